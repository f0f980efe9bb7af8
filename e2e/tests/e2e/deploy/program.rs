//! The systemd unit and the Dockerfile: the paths are there, and the program takes the arguments.

use std::path::Path;
use std::process::Command;

use e2e::{program, run};
use testkit::{Process, peer};

use super::{read, tree};

/// What `systemd-analyze security` counts, in tenths: 0 is nothing that a service could do beyond its own, 100 everything.
const EXPOSURE_MAX: u32 = 20;

/// The program with these arguments comes up and serves.
fn serves(args: &[String], environment: &[(&str, String)], folder: &Path) {
    let mut command = Command::new(program().unwrap());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PORTCULLIS_") {
            command.env_remove(name);
        }
    }
    command
        .args(args)
        .current_dir(folder)
        .env("PORTCULLIS_SERVER_LISTEN", "127.0.0.1:0")
        .envs(environment.iter().map(|(name, value)| (name, value)));
    let mut process = Process::start(&mut command, &folder.join("log")).unwrap();
    process
        .wait_for_log(|log| {
            log.contains("Portcullis listens on http://127.0.0.1:")
                .then_some(())
        })
        .unwrap();
    process.signal("TERM").unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(0));
}

fn value<'a>(unit: &'a str, name: &str) -> &'a str {
    let found = unit
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    found.unwrap()
}

#[test]
fn the_program_starts_as_the_unit_starts_it() {
    let unit = read("deploy/systemd/portcullis.service");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(
        path("portcullis.toml"),
        read("crates/portcullis/src/portcullis.example.toml"),
    )
    .unwrap();
    let start = value(&unit, "ExecStart");
    let start = start
        .replace("${CREDENTIALS_DIRECTORY}", &path(""))
        .replace("/var/lib/portcullis", &path("data"));
    let mut words = start.split_whitespace().map(str::to_owned);
    assert_eq!(words.next().as_deref(), Some("/usr/local/bin/portcullis"));
    serves(&words.collect::<Vec<_>>(), &[], folder.path());
    assert!(folder.path().join("data/portcullis.db").is_file());
    // Killed by nobody before it has finished what runs (25 s) and closed (10 s), after the longest time in which it
    // still serves (300 s).
    let seconds: u32 = value(&unit, "TimeoutStopSec").parse().unwrap();
    assert!(seconds > 335, "{seconds}");
    // Its threads of connections may give way: what is taken from the filter last is given back after it.
    let filters: Vec<&str> = unit
        .lines()
        .filter(|line| line.starts_with("SystemCallFilter="))
        .collect();
    assert_eq!(
        filters[filters.len() - 2..],
        [
            "SystemCallFilter=~@privileged @resources",
            "SystemCallFilter=setpriority"
        ]
    );
}

#[test]
fn systemd_takes_the_unit_and_finds_it_closed() {
    let analyze = peer!("systemd-analyze");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("portcullis.service");
    let unit = read("deploy/systemd/portcullis.service");
    let here = unit.replace(
        "/usr/local/bin/portcullis",
        &program().unwrap().display().to_string(),
    );
    let verify = |text: &str| {
        std::fs::write(&path, text).unwrap();
        run(Command::new(&analyze).arg("verify").arg(&path)).unwrap()
    };
    let security = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let threshold = format!("--threshold={EXPOSURE_MAX}");
        run(Command::new(&analyze)
            .args(["security", "--offline=true", &threshold])
            .arg(&path))
        .unwrap()
    };
    let verified = verify(&here);
    assert!(
        verified.ok() && !verified.text().contains("portcullis.service:"),
        "{verified:?}"
    );
    assert!(security(&here).ok(), "{}", security(&here).text());
    // Both can fail.
    let misspelt = verify(&here.replace("NoNewPrivileges", "NoNewPrivilege"));
    assert!(misspelt.text().contains("NoNewPrivilege"), "{misspelt:?}");
    let open: String = here
        .lines()
        .filter(|line| !line.starts_with("SystemCallFilter") && !line.starts_with("CapabilityBoundingSet"))
        .map(|line| format!("{line}\n"))
        .collect();
    assert!(
        !security(&open).ok(),
        "a service that may call everything counts as closed"
    );
}

#[test]
fn the_dockerfile_names_what_is_there_and_starts_the_program_as_it_takes_it() {
    let text = read("Dockerfile");
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let ignored = read(".dockerignore");
    let mut copied = Vec::new();
    for words in &lines {
        match words.as_slice() {
            ["COPY", first, ..] if first.starts_with("--from") => {}
            ["COPY", sources @ .., _] => copied.extend(sources.iter().map(|source| (*source).to_owned())),
            ["FROM", image, ..] => {
                let (_, tag) = image.rsplit_once(':').unwrap();
                assert!(tag != "latest", "{image}");
            }
            _ => {}
        }
    }
    for source in &copied {
        assert!(tree(source).exists(), "{source} is not there");
        assert!(
            ignored.contains(&format!("!{source}\n")),
            "{source} is not sent to the build"
        );
    }
    // The workspace does not build without all of its members.
    let manifest = read("Cargo.toml");
    let members = manifest.lines().find(|line| line.starts_with("members")).unwrap();
    for member in members.split('"').skip(1).step_by(2) {
        let folder = member.trim_end_matches("/*");
        assert!(
            copied.iter().any(|source| source == folder),
            "{folder} is not copied"
        );
    }
    let rust = text.split_once("FROM rust:").unwrap().1;
    let version = manifest.split_once("rust-version = \"").unwrap().1;
    assert!(
        rust.starts_with(version.split('"').next().unwrap()),
        "another Rust is needed"
    );

    let words = |line: &str| {
        let start = text.split_once(&format!("\n{line} [")).unwrap().1;
        let list = start.split(']').next().unwrap();
        let words: Vec<String> = serde_json::from_str(&format!("[{list}]")).unwrap();
        words
    };
    assert_eq!(words("ENTRYPOINT"), ["/usr/local/bin/portcullis"]);
    assert!(
        text.contains("release/portcullis /usr/local/bin/portcullis\n"),
        "{text}"
    );
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    assert!(text.contains("\nENV PORTCULLIS_DATA_FOLDER=/var/lib/portcullis\n"));
    let environment = [("PORTCULLIS_DATA_FOLDER", data.display().to_string())];
    serves(&words("CMD"), &environment, folder.path());
    assert!(data.join("portcullis.db").is_file());
}
