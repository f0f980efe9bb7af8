//! An export that is there is replaced by one that follows it, and by no other.

use std::path::Path;

use e2e::{Server, Setup};

use super::{assert_found, sealed, token};

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => std::fs::copy(entry.path(), &to).map(|_| ()).unwrap(),
        }
    }
}

/// Shown to fail: without `may_replace` the fork's export takes the place of the one that proves the fork.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_not_replaced_by_one_of_a_trail_that_forked_from_it() {
    let mut server = Server::start(Setup::default()).unwrap();
    let api = server.api().unwrap();
    sealed(&api, 3).await;
    let file = server.folder().join("audit.jsonl");
    let beside = |extension: &str| format!("{}{extension}", file.display());
    let parts = || ["", ".checkpoint", ".pub"].map(|extension| std::fs::read(beside(extension)).unwrap());
    let export = |server: &Server, more: &[&str]| {
        let args = ["audit", "export", "--file", file.to_str().unwrap()];
        server.run(&[&args, more].concat()).unwrap()
    };
    export(&server, &[]).expect_ok();
    assert_eq!(server.stop().unwrap(), Some(0));
    let old = server.folder().join("old");
    copy(&server.data(), &old);
    server.restart().unwrap();
    token(&api, "a", "viewer").await;
    sealed(&api, 4).await;
    // It has grown from the one that is there.
    export(&server, &[]).expect_ok();
    let good = parts();
    assert_eq!(String::from_utf8_lossy(&good[0]).lines().count(), 4);

    // An older copy with its keys is put back, and goes on in another way.
    assert_eq!(server.stop().unwrap(), Some(0));
    std::fs::remove_dir_all(server.data()).unwrap();
    copy(&old, &server.data());
    server.restart().unwrap();
    let (url, kept) = (server.url(), beside(".checkpoint"));
    let names = |why: &'static str| ["PC1620", "nothing was replaced", &url, &kept, why];
    let shorter = names("the seal had 4 records and has 3");
    assert_found("shorter", &export(&server, &[]), &shorter);
    token(&api, "b", "viewer").await;
    sealed(&api, 4).await;
    let others = names("the first 4 records of the seal are others than they were");
    assert_found("a fork", &export(&server, &[]), &others);
    assert_found(
        "in another form",
        &export(&server, &["--format", "ocsf"]),
        &others,
    );
    // Another server's, by another key.
    let another = Server::start(Setup::default()).unwrap();
    sealed(&another.api().unwrap(), 3).await;
    let found = export(&another, &[]);
    assert_found(
        "another's",
        &found,
        &["PC1620", "nothing was replaced", &another.url(), &kept],
    );
    assert!(parts() == good, "something was replaced");
    assert!(!Path::new(&beside(".part")).exists());
    let beside = server.folder().join("fork.jsonl");
    let args = ["audit", "export", "--file", beside.to_str().unwrap()];
    server.run(&args).unwrap().expect_ok();
}
