//! A log in a folder, by the command line and without a server.

use std::path::Path;
use std::process::Command;

use e2e::{Ran, Server, Setup, program, run};
use serde_json::Value;

use crate::ledger::{Ledger, Signatures, send};

/// Runs `portcullis ARGS` with no server at hand.
fn portcullis(args: &[&str]) -> Ran {
    let mut command = Command::new(program().unwrap());
    command
        .env_remove("PORTCULLIS_SERVER")
        .env_remove("PORTCULLIS_TOKEN");
    run(command.args(args)).unwrap()
}

#[test]
fn a_folder_without_an_exported_log_is_not_found_and_not_a_broken_store() {
    let folder = tempfile::tempdir().unwrap();
    let make = |name: &str| -> String {
        let path = folder.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path.display().to_string()
    };
    let (empty, other) = (make("empty"), make("other"));
    let file = format!("{other}/notes.txt");
    std::fs::write(&file, "no log").unwrap();
    let missing = folder.path().join("missing").display().to_string();
    for (path, found) in [
        (&missing, "there is no such folder"),
        (&empty, "it is empty"),
        (&other, "there is no file `checkpoint` in it"),
        (&file, "it is a file, not a folder"),
    ] {
        for args in [
            &["log", "fsck", path][..],
            &["log", "proof", "0", "--folder", path],
        ] {
            let ran = portcullis(args);
            assert_eq!(ran.code, Some(4), "{args:?}: {}", ran.text());
            assert!(ran.stderr.contains("error[PC1417]"), "{args:?}: {}", ran.stderr);
            let sought = format!("looking for an exported log in {path}: {found}");
            assert!(ran.stderr.contains(&sought), "{args:?}: {}", ran.stderr);
            assert!(
                ran.stderr.contains(&format!("portcullis log export {path}")),
                "{args:?}: {}",
                ran.stderr
            );
            assert!(!ran.stderr.contains("bucket"), "{args:?}: {}", ran.stderr);
        }
    }
    assert!(!Path::new(&missing).exists(), "looking made the folder");
    let ran = portcullis(&["-o", "json", "log", "fsck", &empty]);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((ran.code, &document["code"]), (Some(4), &"PC1417".into()));
    portcullis(&["explain", "PC1417"]).expect_ok();
}

/// A server that lies about its log lies about the log's key too; who kept the key finds it out.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_checked_by_the_key_that_the_caller_kept() {
    let (mut kept, other) = (
        Server::start(Setup::default()).unwrap(),
        Server::start(Setup::default()).unwrap(),
    );
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (mine, theirs) = (path("mine"), path("theirs"));
    let (api, ledger) = (kept.api().unwrap(), Ledger::new(&kept.api().unwrap()).await);
    assert_eq!(send(&api, &ledger, &[Signatures::new().request()]).await.len(), 1);
    kept.run(&["log", "export", &mine]).unwrap().expect_ok();
    let key = format!("{mine}/log.pub");
    other
        .run(&["log", "export", &theirs, "--log-key", &key])
        .unwrap()
        .expect_refused("PC1403");
    assert!(!Path::new(&theirs).exists(), "the wrong log was copied");
    other.run(&["log", "export", &theirs]).unwrap().expect_ok();

    for args in [&["log", "info"][..], &["log", "fsck"]] {
        let args = [args, &["--log-key", &key]].concat();
        kept.run(&args).unwrap().expect_ok();
        other.run(&args).unwrap().expect_refused("PC1403");
    }
    portcullis(&["log", "fsck", &mine, "--log-key", &key]).expect_ok();
    let no_key = portcullis(&["log", "fsck", &mine, "--log-key", &format!("{mine}/checkpoint")]);
    assert!(
        no_key.stderr.contains("PC1713") && no_key.stderr.contains("log.pub"),
        "{}",
        no_key.text()
    );
    portcullis(&["log", "fsck", &theirs, "--log-key", &key]).expect_refused("PC1403");

    assert_eq!(kept.stop().unwrap(), Some(0));
    let data = kept.data().display().to_string();
    portcullis(&["log", "fsck", &data, "--log-key", &key]).expect_ok();
    portcullis(&["log", "fsck", &data, "--log-key", &format!("{theirs}/log.pub")]).expect_refused("PC1403");
    // A data folder is one without its database too: it is not taken for a copy, and named as what it is.
    std::fs::remove_file(kept.data().join("portcullis.db")).unwrap();
    portcullis(&["log", "fsck", &data]).expect_refused("PC1405");
}
