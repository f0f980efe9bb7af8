//! A full disk: writes are refused at once, verifying goes on, and writing goes on by itself when there is room.

use std::path::Path;
use std::process::Command;

use e2e::{Server, Setup};
use registry::{Options, Registry};
use serde_json::json;
use tempfile::TempDir;

/// A disk of 8 MiB, in memory; gone when it is dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None` if this user may not mount anything.
    fn mount() -> Option<Self> {
        let disk = Self(tempfile::tempdir().unwrap());
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"])
            .arg(disk.0.path());
        mount
            .output()
            .is_ok_and(|mounted| mounted.status.success())
            .then_some(disk)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        use std::io::Write as _;
        let mut file = std::fs::File::create(self.path().join("fill")).unwrap();
        while file.write(&[0; 4_096]).is_ok_and(|written| written > 0) {}
    }

    fn empty(&self) {
        std::fs::remove_file(self.path().join("fill")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the server may still have its files open.
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_with_507_and_nothing_else() {
    let Some(disk) = SmallDisk::mount() else {
        return testkit::peers::skip("root (who may mount a small disk)");
    };
    let registry = Registry::memory(Options::default());
    let running = registry.serve_on_loopback().await.unwrap();
    let mut images = Vec::new();
    for number in 0..10 {
        let repository = format!("app/{number}");
        let digest = registry.put_image(&repository, "v1", &repository).await.unwrap();
        images.push(json!({ "image": format!("{}/{repository}@{digest}", running.host()) }));
    }
    let url = format!("sqlite:{}", disk.path().join("portcullis.db").display());
    let environment = vec![("PORTCULLIS_DATABASE_URL".to_owned(), url)];
    let server = Server::start(Setup {
        environment,
        ..Setup::default()
    })
    .unwrap();
    let api = server.api().unwrap();
    let signed = api.post("/api/v1/signatures", &images[0]).await.unwrap();
    assert_eq!(signed.status, 201, "{signed:?}");

    disk.fill();
    // Again and again: the second refusal came from another place than the first, once.
    for image in &images[1..5] {
        let refused = api.post("/api/v1/signatures", image).await.unwrap();
        assert_eq!(
            (refused.status, refused.body["code"].as_str()),
            (507, Some("PC1107")),
            "{refused:?}"
        );
    }
    let known = api.post("/api/v1/signatures", &images[0]).await.unwrap();
    assert_eq!(
        known.status, 200,
        "an image that is signed already is still answered: {known:?}"
    );
    let verified = api.post("/api/v1/verifications", &images[0]).await.unwrap();
    assert_eq!(verified.body["verified"], true, "{verified:?}");

    disk.empty();
    for image in &images[1..] {
        let signed = api.post("/api/v1/signatures", image).await.unwrap();
        assert_eq!(signed.status, 201, "{signed:?}");
    }
    let log = server.run(&["log", "fsck"]).unwrap();
    assert!(log.ok() && log.stdout.contains("10 of 10 entries"), "{log:?}");
}
