//! A command line that cannot be meant: refused with exit code 2, before anybody is asked.

use std::process::Command;

use e2e::{Server, Setup, program, run};

#[test]
fn what_does_not_parse_is_usage_and_no_server_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (empty, list) = (
        file("empty.yaml", "---\n"),
        file("images.txt", "registry.example/app:1\n\nNOT A REFERENCE\n"),
    );
    for (args, said) in [
        (&["sign", "registry.example/App"][..], "does not parse"),
        (&["verify", "--policy", "p", "app@sha256:12"], "does not parse"),
        (&["image", "tree", "::"], "does not parse"),
        (&["signature", "list", "--image", "::"], "does not parse"),
        (&["sign", "--from-file", &list], "images.txt, line 3"),
        (
            &["sign", "--formats", "foo", "registry.example/app"],
            "not a format",
        ),
        (&["token", "create", "ci", "--role", "king"], "viewer, signer"),
        (
            &["token", "create", "ci", "--role", "signer", "--days", "0"],
            "--days",
        ),
        (&["token", "create", "", "--role", "signer"], "not empty"),
        (
            &["key", "rotate", "default", "--verify-until", "yesterday"],
            "--verify-until",
        ),
        (&["key", "rotate", ""], "not empty"),
        (&["key", "get", ""], "not empty"),
        (&["key", "get", ".."], "not a name"),
        (&["image-policy", "get", ""], "not empty"),
        (&["image-policy", "delete", " "], "not empty"),
        (&["project", "get", ""], "not empty"),
        (&["token", "revoke", ""], "not empty"),
        (&["signature", "get", ""], "not empty"),
        (&["image-policy", "apply", &empty], "holds no image policy"),
    ] {
        let mut command = Command::new(program().unwrap());
        // Nothing listens there: whoever asked would end with 6.
        command
            .env("PORTCULLIS_SERVER", "http://127.0.0.1:1")
            .env_remove("PORTCULLIS_TOKEN");
        let ran = run(command.args(args)).unwrap();
        assert_eq!(ran.code, Some(2), "{args:?}: {}", ran.text());
        assert!(ran.stderr.contains(said), "{args:?}: {}", ran.stderr);
        assert!(
            ran.stderr.contains("PC1711"),
            "{args:?} has no code: {}",
            ran.stderr
        );
    }
}

#[test]
fn every_failure_of_the_command_line_has_a_code_and_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (yaml, text) = (file("bad.yaml", "a: [1"), file("text", "this is no key"));
    let no_policy = file("list.yaml", "images: [a]");
    let binary = folder.path().join("binary").display().to_string();
    std::fs::write(&binary, [0xff, 0xfe, 0]).unwrap();
    let image = "registry.example/app";
    for (args, exit, code) in [
        (&["sign", "--from-file", "/nonexistent"][..], 1, "PC1712"),
        (&["image-policy", "apply", &yaml], 1, "PC1713"),
        (&["sign", "--local", "--key", "/nonexistent", image], 1, "PC1712"),
        (
            &[
                "verify-blob",
                &text,
                "--bundle",
                "/nonexistent",
                "--key",
                &text,
                "--insecure-ignore-log",
            ],
            1,
            "PC",
        ),
        (&["verify", "--local", image], 2, "PC1711"),
        (&["sign", "--from-file", &binary], 1, "PC1713"),
        (&["verify", "--local", "--policy", &no_policy, image], 1, "PC1211"),
        (&["--server", "ftp://x", "key", "list"], 2, "PC1711"),
        (&["init", &text], 7, "PC1717"),
        (&["explain", "PC9999"], 4, "PC1715"),
        (
            &[
                "token",
                "create",
                "t",
                "--role",
                "admin",
                "--local",
                "--data",
                "/nonexistent",
            ],
            4,
            "PC1716",
        ),
    ] {
        let mut command = Command::new(program().unwrap());
        command
            .current_dir(folder.path())
            .env("PORTCULLIS_SERVER", "http://127.0.0.1:1")
            .env_remove("PORTCULLIS_TOKEN");
        let ran = run(command.args(args)).unwrap();
        assert_eq!(ran.code, Some(exit), "{args:?}: {}", ran.text());
        let said = &ran.stderr;
        assert!(
            said.contains(&format!("error[{code}")),
            "{args:?} has no code {code}: {said}"
        );
        assert!(
            said.contains("  cause: ") && said.contains("  hint: "),
            "{args:?}: {said}"
        );
    }
    let mut command = Command::new(program().unwrap());
    let days = run(command.args(["token", "create", "t", "--role", "viewer", "--days", "91"])).unwrap();
    assert!(
        days.code == Some(2) && days.stderr.contains("1..=90"),
        "{}",
        days.stderr
    );
}

#[test]
fn an_empty_token_is_none_and_says_where_one_comes_from() {
    let server = Server::start(Setup::default()).unwrap();
    let ran = run(server.command().env("PORTCULLIS_TOKEN", "").args(["key", "list"])).unwrap();
    assert_eq!(ran.code, Some(5), "{}", ran.text());
    for word in ["has no token", "no token is given", "portcullis token create"] {
        assert!(ran.stderr.contains(word), "{word} is not in {}", ran.stderr);
    }
    assert!(!ran.stderr.contains("Bearer"), "{}", ran.stderr);
}

#[test]
fn fsck_of_a_data_folder_reads_the_configuration_and_damage_is_no_reason_to_try_later() {
    let config = "[log]\nkey_file = \"keys/log-key.json\"\n";
    let mut server = Server::start(Setup {
        config: config.to_owned(),
        ..Setup::default()
    })
    .unwrap();
    assert_eq!(server.stop().unwrap(), Some(0));
    let data = server.data().display().to_string();
    // ./portcullis.toml, then one that is named.
    server.run(&["log", "fsck", &data]).unwrap().expect_ok();
    let elsewhere = server.folder().join("other.toml").display().to_string();
    std::fs::rename(server.folder().join("portcullis.toml"), &elsewhere).unwrap();
    let lost = server.run(&["log", "fsck", &data]).unwrap();
    assert!(lost.stderr.contains("secrets/log.json"), "{}", lost.text());
    server
        .run(&["log", "fsck", &data, "--config", &elsewhere])
        .unwrap()
        .expect_ok();

    let tiles = server.data().join("blobs/tlog/tile/entries");
    std::fs::create_dir_all(&tiles).unwrap();
    std::fs::write(tiles.join("000"), "an entry that the database does not know").unwrap();
    for args in [
        &["log", "fsck", &data, "--config", &elsewhere][..],
        &[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--data",
            &data,
            "--config",
            &elsewhere,
        ],
    ] {
        let ran = server.run(args).unwrap();
        assert_eq!(ran.code, Some(1), "{args:?}: {}", ran.text());
        assert!(ran.stderr.contains("PC1405"), "{args:?}: {}", ran.stderr);
    }
}

#[test]
fn a_usage_line_asks_only_for_what_the_command_needs() {
    let mut command = Command::new(program().unwrap());
    command
        .env("PORTCULLIS_SERVER", "http://127.0.0.1:1")
        .env("PORTCULLIS_TOKEN", "secret");
    let ran = run(command.args(["key", "create"])).unwrap();
    assert_eq!(ran.code, Some(2), "{}", ran.text());
    assert!(
        ran.stderr.contains("Usage: portcullis key create <NAME>"),
        "{}",
        ran.stderr
    );
}

#[test]
fn explain_and_version_obey_the_output_option() {
    let ask = |args: &[&str]| {
        let ran = run(Command::new(program().unwrap()).args(args))
            .unwrap()
            .expect_ok();
        serde_json::from_str::<serde_json::Value>(&ran.stdout).unwrap()
    };
    let version = ask(&["version", "-o", "json"]);
    assert_eq!(version["name"], "portcullis");
    assert!(version["version"].is_string());
    let one = ask(&["explain", "pc1710", "-o", "json"]);
    assert_eq!(one["code"], "PC1710");
    let all = ask(&["explain", "-o", "json"]);
    assert!(all.as_array().unwrap().contains(&one));
}
