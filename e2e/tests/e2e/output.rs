//! Output that cannot be written, and output that nobody reads: the work is done, the exit code stays.

use std::fs::{File, OpenOptions};
use std::process::Stdio;
use std::time::Duration;

use e2e::{Server, Setup};
use kernel::{Clock as _, SystemClock};
use registry::{Options, Registry};

/// A key that cosign made, and its password.
const KEY: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../crates/signing/tests/it/fixtures/cosign-3.1.3.key"
);
const PASSWORD: &str = "fixture";

/// Where a command's standard output goes.
#[derive(Debug, Clone, Copy)]
enum Out {
    /// To a device that is full.
    Full,
    /// To a pipe that its reader has closed.
    Closed,
}

/// Exit code, and what went to standard error.
fn run(server: &Server, args: &[&str], out: Out) -> (Option<i32>, String) {
    let mut command = server.command();
    command.args(args).env("COSIGN_PASSWORD", PASSWORD);
    command.stdout(match out {
        Out::Full => Stdio::from(full()),
        Out::Closed => Stdio::from(closed()),
    });
    let output = command.stdin(Stdio::null()).output().unwrap();
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

fn full() -> File {
    OpenOptions::new().write(true).open("/dev/full").unwrap()
}

fn closed() -> std::io::PipeWriter {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer
}

#[track_caller]
fn assert_ended(server: &Server, args: &[&str], on_full: i32, on_closed: i32) {
    let (code, said) = run(server, args, Out::Full);
    assert_eq!(code, Some(on_full), "{args:?} >/dev/full: {said}");
    assert!(
        said.contains("error[PC1710]"),
        "{args:?} >/dev/full says nothing: {said}"
    );
    let (code, said) = run(server, args, Out::Closed);
    assert_eq!(code, Some(on_closed), "{args:?} | true: {said}");
    assert!(!said.contains("PC1710"), "{args:?} | true is not quiet: {said}");
    // Nobody reads either stream.
    let both = server
        .command()
        .args(args)
        .env("COSIGN_PASSWORD", PASSWORD)
        .stdin(Stdio::null())
        .stdout(closed())
        .stderr(closed())
        .status()
        .unwrap();
    assert_eq!(both.code(), Some(on_closed), "{args:?} 2>&1 | true");
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_output_neither_stops_the_work_nor_hides_its_outcome() {
    let registry = Registry::memory(Options::default());
    let running = registry.serve_on_loopback().await.unwrap();
    let host = running.host();
    let image = |name: &str| format!("{host}/{name}:v1");
    for name in ["signed", "stranger", "a1", "a2", "a3"] {
        registry.put_image(name, "v1", name).await.unwrap();
    }
    let server = Server::start(Setup::default()).unwrap();
    server.run(&["sign", &image("signed")]).unwrap().expect_ok();

    assert_ended(&server, &["verify", &image("stranger")], 8, 8);
    assert_ended(&server, &["verify", &image("stranger"), "-o", "json"], 8, 8);
    assert_ended(&server, &["verify", &image("signed")], 1, 0);
    assert_ended(&server, &["verify", &image("signed"), "-o", "json"], 1, 0);
    assert_ended(&server, &["key", "get", "nope", "-o", "json"], 4, 4);
    assert_ended(&server, &["token", "create", "ci", "--role", "signer"], 1, 0);
    assert_ended(&server, &["completion", "bash"], 1, 0);
    assert_ended(&server, &["--help"], 1, 0);

    // Three images are asked for, three are signed, though the first line is lost already.
    let (a1, a2, a3) = (image("a1"), image("a2"), image("a3"));
    let local = ["sign", "--local", "--key", KEY, &a1, &a2, &a3];
    let (code, said) = run(&server, &local, Out::Full);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("3 signed"), "{said}");
    assert_ended(&server, &local, 1, 0);
    for image in [&a1, &a2, &a3] {
        let tree = server.run(&["image", "tree", image]).unwrap().expect_ok();
        assert!(tree.stdout.contains(".sig"), "{image}: {}", tree.stdout);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_in_a_slow_registry_ends_in_time_with_what_was_read() {
    let registry = Registry::memory(Options::default());
    let running = registry.serve_on_loopback().await.unwrap();
    let digest = registry.put_image("app", "v1", "app").await.unwrap();
    let kind = "application/vnd.oci.image.manifest.v1+json";
    for number in 0..40 {
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": kind, "number": number, "layers": [],
            "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": digest, "size": 2 },
            "subject": { "mediaType": kind, "digest": digest, "size": 1 },
        });
        let bytes = manifest.to_string();
        registry
            .put_manifest("app", None, kind, bytes.as_bytes())
            .await
            .unwrap();
    }
    registry.fault(|plan| plan.latency = Duration::from_millis(900));
    let server = Server::start(Setup::default()).unwrap();
    let image = format!("{}/app:v1", running.host());
    let clock = SystemClock::new();
    let began = clock.monotonic();
    let tree = server.run(&["image", "tree", "--timeout", "5", &image]).unwrap();
    let took = clock.monotonic().since(began);
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert_eq!(tree.code, Some(6), "{}", tree.text());
    assert!(tree.stderr.contains("error[PC1719]"), "{}", tree.text());
    // Each of the forty is there, some with what they are, the others with the truth.
    let lines = |what: &str| tree.stdout.lines().filter(|line| line.contains(what)).count();
    assert!(
        lines("vnd.oci.empty") > 0 && lines("not read in time") > 0,
        "{}",
        tree.text()
    );
    assert_eq!(tree.stdout.matches("sha256:").count(), 41, "{}", tree.text());
    // One that answers nothing at all.
    registry.fault(|plan| plan.hang = true);
    let tree = server.run(&["image", "tree", "--timeout", "1", &image]).unwrap();
    assert_eq!(
        (tree.code, tree.stdout.as_str()),
        (Some(6), ""),
        "{}",
        tree.text()
    );
    assert!(tree.stderr.contains("error[PC1719]"), "{}", tree.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn fsck_of_a_damaged_log_fails_wherever_it_prints() {
    let registry = Registry::memory(Options::default());
    let running = registry.serve_on_loopback().await.unwrap();
    registry.put_image("app", "v1", "app").await.unwrap();
    let server = Server::start(Setup::default()).unwrap();
    server
        .run(&["sign", &format!("{}/app:v1", running.host())])
        .unwrap()
        .expect_ok();
    let copy = server.folder().join("copy").display().to_string();
    server.run(&["log", "export", &copy]).unwrap().expect_ok();
    assert_ended(&server, &["log", "fsck", &copy], 1, 0);
    let entries = server.folder().join("copy/tile/entries/000.p/1");
    let mut bytes = std::fs::read(&entries).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&entries, bytes).unwrap();
    assert_ended(&server, &["log", "fsck", &copy], 1, 1);
    assert_ended(&server, &["log", "fsck", &copy, "-o", "json"], 1, 1);
    let damaged = server.run(&["log", "fsck", &copy]).unwrap();
    damaged.expect_refused("PC1401");
}
