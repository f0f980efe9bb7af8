//! A person's own Docker configuration.

use flow::{Caller, Class};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use signing::ports::{Registry as _, RegistryReason};
use upstream::oci::Config;

use super::{World, basic, bearer, client, reason};

/// base64 of `robot:hunter2`.
const AUTH: &str = "cm9ib3Q6aHVudGVyMg==";

fn config(folder: &Path, json: &str) -> Config {
    let path = folder.join("config.json");
    std::fs::write(&path, json).unwrap();
    Config {
        docker_config: Some(path),
        docker_helpers: Some(folder.to_owned()),
        ..Config::default()
    }
}

fn helper(folder: &Path, name: &str, script: &str) {
    let path = folder.join(format!("docker-credential-{name}"));
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn auths_of_the_file_are_used_for_the_person_and_for_no_project() {
    for options in [basic(), bearer()] {
        let world = World::new(options).await;
        let folder = tempfile::tempdir().unwrap();
        let host = world.running.host();
        let client = client(config(
            folder.path(),
            &format!(r#"{{"auths":{{"http://{host}/v2/":{{"auth":"{AUTH}"}}}}}}"#),
        ));
        client.manifest(Caller::LOCAL, &world.tag("v1")).await.unwrap();
        let refused = reason(
            client
                .manifest(Caller::new("team", Class::Sign), &world.tag("v1"))
                .await,
        );
        assert!(
            matches!(refused, RegistryReason::Unauthenticated(_)),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn a_credential_helper_is_asked_for_its_registry() {
    let world = World::new(basic()).await;
    let folder = tempfile::tempdir().unwrap();
    let asked = folder.path().join("asked");
    let print = r#"{"ServerURL":"x","Username":"robot","Secret":"hunter2"}"#;
    helper(
        folder.path(),
        "test",
        &format!("echo \"$1 $(cat)\" >> {}\necho '{print}'", asked.display()),
    );
    let host = world.running.host();
    let client = client(config(
        folder.path(),
        &format!(r#"{{"credHelpers":{{"{host}":"test"}}}}"#),
    ));
    client.manifest(Caller::LOCAL, &world.tag("v1")).await.unwrap();
    client.manifest(Caller::LOCAL, &world.tag("v1")).await.unwrap();
    assert_eq!(
        std::fs::read_to_string(asked).unwrap(),
        format!("get {host}\n"),
        "asked once"
    );
}

#[tokio::test]
async fn a_store_without_credentials_falls_back_to_the_file() {
    let world = World::new(basic()).await;
    let folder = tempfile::tempdir().unwrap();
    helper(
        folder.path(),
        "store",
        "echo 'credentials not found in native keychain'; exit 1",
    );
    let host = world.running.host();
    let json = format!(r#"{{"credsStore":"store","auths":{{"{host}":{{"auth":"{AUTH}"}}}}}}"#);
    client(config(folder.path(), &json))
        .manifest(Caller::LOCAL, &world.tag("v1"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_broken_helper_is_an_error_that_names_it() {
    let world = World::new(basic()).await;
    let folder = tempfile::tempdir().unwrap();
    helper(folder.path(), "broken", "echo 'a secret detail'; exit 2");
    for name in ["broken", "absent"] {
        let json = format!(r#"{{"credsStore":"{name}"}}"#);
        let error = client(config(folder.path(), &json))
            .manifest(Caller::LOCAL, &world.tag("v1"))
            .await
            .unwrap_err();
        let text = kernel::chain(&error);
        assert!(
            text.contains(&format!("docker-credential-{name}")) && !text.contains("secret detail"),
            "{text}"
        );
    }
}
