//! A registry that lost what was in it: restored from an older copy, or cleaned up by somebody.

use e2e::{Server, Setup};
use registry::{Options, Registry};

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_lost_its_signatures_gets_them_back() {
    for referrers in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            referrers,
            ..Options::default()
        };
        let registry = Registry::folder(folder.path(), options).unwrap();
        let running = registry.serve_on_loopback().await.unwrap();
        let digest = registry.put_image("team/app", "v1", "hello").await.unwrap();
        let image = format!("{}/team/app:v1", running.host());
        let server = Server::start(Setup::default()).unwrap();
        let ran = |words: &[&str]| server.run(words).unwrap();
        let first = ran(&["sign", &image, "-o", "json"]).expect_ok();
        let first: serde_json::Value = serde_json::from_str(&first.stdout).unwrap();

        for entry in std::fs::read_dir(folder.path()).unwrap() {
            std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
        }
        assert_eq!(
            registry.put_image("team/app", "v1", "hello").await.unwrap(),
            digest
        );
        let without = ran(&[
            "verify",
            "--local",
            "--insecure-ignore-log",
            "--key",
            &public_key(&server),
            &image,
        ]);
        assert_eq!(without.code, Some(8), "{}", without.text());
        assert!(ran(&["sign", &image]).expect_ok().stdout.starts_with("already"));

        let repaired = ran(&["sign", "--repair", &image, "-o", "json"]).expect_ok();
        let repaired: serde_json::Value = serde_json::from_str(&repaired.stdout).unwrap();
        let (before, after) = (&first[0]["signature"], &repaired[0]["signature"]);
        assert_eq!(after["repaired"], true, "{repaired}");
        assert_eq!(
            (&after["id"], &after["log_index"]),
            (&before["id"], &before["log_index"])
        );
        let verified = ran(&["verify", &image]).expect_ok();
        assert!(verified.stdout.contains("log index 0"), "{}", verified.text());
        let tree = ran(&["image", "tree", &image]).expect_ok();
        assert!(
            tree.stdout.contains("bundle") && tree.stdout.contains(".sig"),
            "{}",
            tree.text()
        );
        // What is there is left alone.
        let again = ran(&["sign", "--repair", &image]).expect_ok();
        assert!(again.stdout.starts_with("already"), "{}", again.text());
        assert_eq!(ran(&["image", "tree", &image]).expect_ok().stdout, tree.stdout);
        assert!(
            ran(&["log", "info"])
                .expect_ok()
                .stdout
                .lines()
                .any(|line| { line.split_whitespace().collect::<Vec<_>>() == ["entries", "1"] })
        );
    }
}

/// The file with the server's public key.
fn public_key(server: &Server) -> String {
    let path = server.data().join("portcullis.pub");
    let key = server.run(&["key", "get", "default"]).unwrap().expect_ok();
    std::fs::write(&path, key.stdout).unwrap();
    path.display().to_string()
}
