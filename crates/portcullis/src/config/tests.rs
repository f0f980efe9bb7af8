//! What of a configuration is taken, and what is refused.

use super::*;

#[test]
fn the_example_is_valid_and_says_the_defaults() {
    let config: Config = toml::from_str(EXAMPLE).unwrap();
    assert_eq!(config.server.listen, ServerSection::default().listen);
    // Every commented line is a key that exists: uncommented, the whole still reads.
    let all: String = EXAMPLE
        .lines()
        .map(|line| line.strip_prefix("#= ").unwrap_or(line))
        .fold(String::new(), |text, line| text + line + "\n");
    let config: Config = toml::from_str(&all).unwrap();
    assert_eq!(config.registries.len(), 1);
    assert_eq!(config.oidc.len(), 2);
}

#[test]
fn a_database_address_is_checked_and_shown_without_its_password() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("portcullis.toml");
    let read = |url: &str| {
        let text = format!("[database]\nurl = {url:?}\n[blobs]\nurl = \"file:///srv/blobs\"\n");
        std::fs::write(&path, text).unwrap();
        Loaded::read(&ConfigFile {
            config: Some(path.clone()),
        })
    };
    for url in ["mysql://u:s3cret@h/d", "u:s3cret@h", "s3cret", ""] {
        let line = read(url).unwrap_err().line();
        assert!(line.starts_with("PC1701: database.url: "), "{line}");
        assert!(!line.contains("s3cret"), "{line}");
    }
    for url in [
        "postgres://u:s3cret@h/d",
        "postgresql://h/d?user=u&password=s3cret",
        "postgres://u:s3cret@h:port/d",
    ] {
        let shown = read(url).unwrap().rows().concat().join(" ");
        assert!(shown.contains("***") && !shown.contains("s3cret"), "{shown}");
    }
    assert!(read("sqlite:/srv/portcullis.db").is_ok());
}

#[test]
fn too_few_or_too_many_connections_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("portcullis.toml");
    for (connections, fits) in [(3, false), (4, true), (500, true), (501, false)] {
        std::fs::write(&path, format!("[database]\nconnections_max = {connections}\n")).unwrap();
        let loaded = Loaded::read(&ConfigFile {
            config: Some(path.clone()),
        });
        assert_eq!(loaded.is_ok(), fits, "{connections}");
        if let Err(failure) = loaded {
            let line = failure.line();
            assert!(line.starts_with("PC1701: database.connections_max is "), "{line}");
        }
    }
}

#[test]
fn a_database_that_others_may_share_needs_a_place_for_blobs_that_they_share() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("portcullis.toml");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Loaded::read(&ConfigFile {
            config: Some(path.clone()),
        })
    };
    for url in ["postgres://u:s3cret@h/d", "postgresql://h/d"] {
        let line = read(&format!("[database]\nurl = {url:?}\n")).unwrap_err().line();
        assert!(
            line.starts_with("PC1701: ") && line.contains("blobs.url"),
            "{line}"
        );
        assert!(!line.contains("s3cret"), "{line}");
        for blobs in ["/srv/blobs", "file:///srv/blobs", "s3://bucket/prefix"] {
            let text = format!("[database]\nurl = {url:?}\n[blobs]\nurl = {blobs:?}\n");
            assert!(read(&text).is_ok(), "{text}");
        }
    }
}

#[test]
fn plain_http_on_an_address_that_others_reach_has_to_be_asked_for() {
    let mut config = Config::default();
    config.server.listen = "0.0.0.0:7480".to_owned();
    assert!(config.listen().is_err());
    config.server.insecure_http = true;
    assert!(config.listen().is_ok());
}

#[test]
fn a_variable_that_sets_nothing_is_named_and_what_an_orchestrator_sets_is_not() {
    let names = [
        "PORTCULLIS_EXTERNAL_LOG_URL",
        "PORTCULLIS_SERVER_LISTEN",
        "PORTCULLIS_SERVER_SERVICE_HOST",
        "PORTCULLIS_PORT_7480_TCP",
        "OIDC_ISSUER",
    ];
    let unused: Vec<String> = unused(names.map(str::to_owned).into_iter()).collect();
    assert_eq!(unused, ["PORTCULLIS_EXTERNAL_LOG_URL"]);
}
