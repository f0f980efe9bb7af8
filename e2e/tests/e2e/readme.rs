//! Every command of the README does what it says.
//!
//! Blocks that are marked `sh` are run, in their order, as one session of the shell, against a server that was
//! just started. The session has what the README says that its reader has: `PORTCULLIS_SERVER` and
//! `PORTCULLIS_TOKEN` of that server, an image of the reader's own in `IMAGE`, and a cosign key pair. Blocks
//! that are marked `console` show what one sees; their commands are listed here, with who runs them.

use std::path::Path;
use std::process::Command;

use e2e::{Server, Setup, run};
use registry::{Options, Registry};
use testkit::peer;

use crate::cosign::{Home, PASSWORD};

/// Commands of `console` blocks, and what runs them instead of a session.
const SHOWN: &[(&str, &str)] = &[
    ("cargo run --release -- demo", "the_demo_comes_out_as_told"),
    ("cargo xtask test", "the run of which this test is a part"),
    ("portcullis serve", "every test that starts a server"),
    (
        "portcullis token create rescue --role admin --everywhere --local --data ./portcullis-data",
        "when_all_tokens_have_ended_a_new_one_is_made_beside_the_stopped_server",
    ),
    (
        "portcullis backup portcullis.backup --data ./portcullis-data",
        "a_backup_while_images_are_signed_restores_from_sqlite_to_sqlite",
    ),
    (
        "portcullis restore portcullis.backup --data ./restored --checkpoint newest.checkpoint",
        "a_backup_that_holds_less_than_was_seen_is_refused",
    ),
];

/// The blocks of `text` that are marked `language`.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let opening = format!("```{language}\n");
    let after = text.split(opening.as_str()).skip(1);
    after
        .map(|rest| rest.split("```").next().unwrap_or_default())
        .collect()
}

fn readme() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap()
}

#[test]
fn blocks_are_found_by_their_mark() {
    let text = "a\n```sh\none\n```\n```console\n$ two\n```\n```sh\nthree\nfour\n```\n";
    assert_eq!(blocks(text, "sh"), ["one\n", "three\nfour\n"]);
    assert_eq!(blocks(text, "console"), ["$ two\n"]);
}

#[test]
fn every_command_that_is_only_shown_is_run_by_another_test() {
    let readme = readme();
    for line in blocks(&readme, "console").into_iter().flat_map(str::lines) {
        if let Some(command) = line.strip_prefix("$ ") {
            let command = command.split('#').next().unwrap_or_default().trim();
            assert!(
                SHOWN.iter().any(|(known, _)| *known == command),
                "who runs `{command}`?"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_readme_works() {
    let cosign = peer!("cosign-3.1.3");
    let registry = Registry::memory(Options::default());
    let running = registry.serve_on_loopback().await.unwrap();
    registry
        .put_image("you/app", "v1", "an image of the reader's own")
        .await
        .unwrap();
    let server = Server::start(Setup::default()).unwrap();
    let session = tempfile::tempdir().unwrap();
    Home::new(&cosign, session.path());

    let readme = readme();
    let blocks = blocks(&readme, "sh");
    assert!(blocks.len() > 3, "the README has lost its commands");
    let programs = e2e::program().unwrap();
    let folder = |program: &Path| program.parent().unwrap().display().to_string();
    let path = std::env::var("PATH").unwrap_or_default();
    // From the token on, nothing is taken from this machine: `-u` finds a variable that nobody set.
    let mut shell = Command::new("bash");
    shell
        .args(["-euxo", "pipefail", "-c", &blocks.concat()])
        .current_dir(&session)
        .env_clear()
        .env("HOME", session.path())
        .env(
            "PATH",
            format!("{}:{}:{path}", folder(&programs), folder(&cosign)),
        )
        .env("PORTCULLIS_SERVER", server.url())
        .env("PORTCULLIS_TOKEN", server.token())
        .env("COSIGN_PASSWORD", PASSWORD)
        .env("IMAGE", format!("{}/you/app:v1", running.host()));
    let ran = run(&mut shell).unwrap();
    // The trace ends with the command that failed.
    assert!(
        ran.ok(),
        "the session ended with {:?}:\n{}\n{}",
        ran.code,
        ran.stdout,
        ran.stderr
    );
    assert!(
        ran.stdout.lines().any(|line| line.starts_with("already ")),
        "the second sign made something"
    );
}

#[test]
fn the_demo_comes_out_as_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut demo = Command::new(e2e::program().unwrap());
    demo.args(["demo", "--exit"])
        .current_dir(&folder)
        .env("HOME", folder.path());
    let told = run(&mut demo).unwrap();
    assert!(told.ok(), "the demo ended with {:?}:\n{}", told.code, told.text());
}
