//! A full disk: writes are refused at once, verifying goes on, and writing goes on by itself when there is room.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use e2e::{Answer, Api, Server, Setup};
use kernel::{Clock as _, SystemClock};
use registry::{Options, Registry};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long an answer may take on a full disk, in milliseconds.
const ANSWER_MS_MAX: u128 = 500;

/// A disk of 8 MiB, in memory; gone when it is dropped.
pub struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None` if this user may not mount anything.
    pub fn mount() -> Option<Self> {
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

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        use std::io::Write as _;
        let mut file = std::fs::File::create(self.path().join("fill")).unwrap();
        while file.write(&[0; 4_096]).is_ok_and(|written| written > 0) {}
    }

    pub fn empty(&self) {
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

/// What was answered, within [`ANSWER_MS_MAX`].
async fn soon(api: &Api, path: &str, body: &Value) -> Answer {
    let clock = SystemClock::new();
    let began = clock.monotonic();
    let answer = api.post(path, body).await.unwrap();
    let ms = clock.monotonic().since(began).as_millis();
    assert!(ms < ANSWER_MS_MAX, "{path} took {ms} ms: {answer:?}");
    answer
}

async fn recorded(api: &Api, query: &str) -> Vec<Value> {
    let page = api
        .get(&format!("/api/v1/audit?limit=200&{query}"))
        .await
        .unwrap();
    assert_eq!(page.status, 200, "{page:?}");
    page.body["items"].as_array().unwrap().clone()
}

/// P20: on a full disk every change is refused fast, the audit trail with it; verifying goes on, and so do refusals,
/// whose records come when there is room. It fails if `StoreError` no longer knows SQLITE_FULL (503), and if
/// `Trail::write_refusals` keeps nothing that it could not write (no record of the refusals).
#[tokio::test(flavor = "multi_thread")]
async fn p20_a_full_disk_refuses_changes_fast_while_verification_goes_on() {
    let Some(disk) = SmallDisk::mount() else {
        return testkit::peers::skip("root (who may mount a small disk)");
    };
    let registry = Registry::memory(Options::default());
    let running = registry.serve_on_loopback().await.unwrap();
    registry.put_image("app", "v1", "one").await.unwrap();
    registry.put_image("app", "v2", "two").await.unwrap();
    let image = json!({ "image": format!("{}/app:v1", running.host()) });
    // Everything is on the small disk: the database, the secrets, the tiles and the seal of the audit trail.
    let environment = vec![
        (
            "PORTCULLIS_DATABASE_URL".to_owned(),
            format!("sqlite:{}", disk.path().join("portcullis.db").display()),
        ),
        (
            "PORTCULLIS_BLOBS_URL".to_owned(),
            disk.path().join("blobs").display().to_string(),
        ),
    ];
    let server = Server::start(Setup {
        environment,
        ..Setup::default()
    })
    .unwrap();
    let api = server.api().unwrap();
    assert_eq!(api.post("/api/v1/signatures", &image).await.unwrap().status, 201);
    let viewer = api
        .post("/api/v1/tokens", &json!({ "name": "v", "role": "viewer" }))
        .await
        .unwrap();
    let as_viewer = Api::new(&server.url(), viewer.body["token"].as_str().unwrap()).unwrap();
    let before = recorded(&api, "").await.len();

    disk.fill();
    let revoke = format!("/api/v1/tokens/{}:revoke", viewer.body["id"].as_str().unwrap());
    let unsigned = json!({ "image": format!("{}/app:v2", running.host()) });
    for round in 0..20 {
        for (path, body) in [
            ("/api/v1/tokens", json!({ "name": "t", "role": "viewer" })),
            (revoke.as_str(), json!({})),
            (
                "/api/v1/projects",
                json!({ "name": format!("p{round}"), "images": ["**"] }),
            ),
            ("/api/v1/signatures", unsigned.clone()),
        ] {
            let refused = soon(&api, path, &body).await;
            assert_eq!(
                (refused.status, refused.body["code"].as_str()),
                (507, Some("PC1107")),
                "{path}: {refused:?}"
            );
        }
        let verified = soon(&api, "/api/v1/verifications", &image).await;
        assert_eq!(verified.body["verified"], true, "{verified:?}");
        let denied = soon(
            &as_viewer,
            "/api/v1/keys",
            &json!({ "name": format!("k{round}") }),
        )
        .await;
        assert_eq!(denied.status, 403, "{denied:?}");
    }
    // A new key is closed with its password first, which takes as long on any disk: it is not timed.
    for (path, body) in [
        ("/api/v1/keys", json!({ "name": "k" })),
        ("/api/v1/keys/default:rotate", json!({})),
    ] {
        assert_eq!(api.post(path, &body).await.unwrap().status, 507, "{path}");
    }
    // Long enough for the trail to try, and to fail.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(
        recorded(&api, "").await.len(),
        before,
        "what was refused left no record of success"
    );
    assert!(!server.log().contains("panicked"), "{}", server.log());

    disk.empty();
    let denied = async || recorded(&api, "outcome=denied&action=key.create&order=sequence").await;
    for _ in 0..200 {
        if denied().await.len() == 20 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(
        denied().await.len(),
        20,
        "each refusal has its record, under the seal"
    );
    let made = api
        .post("/api/v1/tokens", &json!({ "name": "t", "role": "viewer" }))
        .await
        .unwrap();
    assert_eq!(made.status, 201, "{made:?}");
    server.run(&["audit", "verify"]).unwrap().expect_ok();
}
