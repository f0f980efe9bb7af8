//! A log in a folder, by the command line and without a server.

use std::path::Path;
use std::process::Command;

use e2e::{Ran, program, run};
use serde_json::Value;

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
