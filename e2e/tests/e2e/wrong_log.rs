//! P14: a wrong backend behind the right name is named within 10 seconds, with what was expected and what was found,
//! and signing goes on meanwhile. The logs are real ones: tiles, proofs and signed checkpoints.
//!
//! Each was seen to fail with its guard taken out of `upstream::rekor` or `probing::log`; the comments say which.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use e2e::{Api, Server, Setup};
use kernel::{Clock as _, SystemClock};
use registry::{Options, Registry, Running};
use serde_json::{Value, json};

use crate::outside::{Name, OutsideLog, Target, entries, web_server};

const ORIGIN: &str = "rekor.example";
/// What the property says.
const NAMED_WITHIN: Duration = Duration::from_secs(10);

/// A server that watches a log of 300 entries, which are more than a tile, under a name that can change.
pub struct World {
    pub log: OutsideLog,
    pub name: Name,
    pub server: Server,
    api: Api,
    registry: Registry,
    running: Running,
    signed: AtomicU32,
    _folder: tempfile::TempDir,
}

impl World {
    pub async fn new() -> Self {
        let log = OutsideLog::start(ORIGIN, 1, &entries("entry", 300)).await;
        let name = Name::leads(Target::To(log.address)).await;
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("rekor.pub");
        std::fs::write(&key, log.pem()).unwrap();
        let config = format!(
            "[external_log]\nurl = \"http://{}\"\norigin = {ORIGIN:?}\npublic_key = {:?}\n",
            name.address,
            key.display().to_string()
        );
        let server = Server::start(Setup {
            config,
            ..Setup::default()
        });
        let server = server.unwrap();
        let registry = Registry::memory(Options::default());
        let running = registry.serve_on_loopback().await.unwrap();
        let world = Self {
            api: server.api().unwrap(),
            log,
            name,
            server,
            registry,
            running,
            signed: AtomicU32::new(0),
            _folder: folder,
        };
        world.becomes("OK").await;
        world
    }

    async fn external(&self) -> Value {
        let all = self.api.get("/api/v1/dependencies").await.unwrap().body;
        let mut found = all["dependencies"].as_array().into_iter().flatten();
        let found = found.find(|one| one["name"] == "external-log");
        found.cloned().unwrap_or_default()
    }

    /// Waits for the state; how it is described then.
    async fn becomes(&self, state: &str) -> Value {
        let clock = SystemClock::new();
        let began = clock.monotonic();
        loop {
            let now = self.external().await;
            if now["state"] == state {
                return now;
            }
            let waited = clock.monotonic().since(began);
            assert!(waited <= NAMED_WITHIN, "not {state} within 10 s: {now}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Leads the name elsewhere; the state has to come within 10 seconds, and signing to go on.
    async fn is_named(&self, target: Target, state: &str, expected: &[&str], found: &[&str]) {
        self.name.now_leads(target);
        let named = self.becomes(state).await;
        let has = |field: &str, words: &[&str]| {
            for word in words {
                let text = named[field].as_str().unwrap();
                assert!(text.contains(word), "{field} says nothing of {word:?}: {text}");
            }
        };
        has("expected", expected);
        has("found", found);
        assert!(named["last_good"].is_string(), "{named}");
        assert!(!named["hint"].as_str().unwrap().is_empty(), "{named}");
        self.goes_on(state).await;
    }

    /// The wrong log is in everybody's sight, and in nobody's way.
    async fn goes_on(&self, state: &str) {
        let tag = format!("v{}", self.signed.fetch_add(1, Ordering::Relaxed));
        self.registry.put_image("team/app", &tag, &tag).await.unwrap();
        let image = json!({ "image": format!("{}/team/app:{tag}", self.running.host()) });
        let signed = self.api.post("/api/v1/signatures", &image).await.unwrap();
        assert_eq!(signed.status, 201, "{signed:?}");
        let ready = self.api.get("/readyz?verbose").await.unwrap();
        assert_eq!(ready.status, 200);
        let line = format!("[-] external-log {state}");
        assert!(ready.body.as_str().unwrap().contains(&line), "{ready:?}");
        let metrics = String::from_utf8(self.api.bytes("/metrics").await.unwrap()).unwrap();
        let series = format!(
            "portcullis_dependency_state{{dependency=\"external-log\",kind=\"external-log\",state=\"{state}\"}} 1"
        );
        assert!(metrics.contains(&series), "no {series}");
        let status = self.server.run(&["status"]).unwrap().expect_ok();
        assert!(status.stdout.contains("DEGRADED"), "{}", status.stdout);
        assert!(status.stdout.contains(state), "{}", status.stdout);
        let doctor = self.server.run(&["doctor"]).unwrap();
        assert_eq!(doctor.code, Some(9), "{}", doctor.text());
        assert!(doctor.stdout.contains(state), "{}", doctor.text());
    }

    async fn is_right_again(&self) {
        self.name.now_leads(Target::To(self.log.address));
        self.becomes("OK").await;
    }
}

/// Shown to fail: with `Client::verified` parsing the checkpoint instead of verifying it, the other log gets another name
/// (FORKED); with connections that are kept, it is never noticed.
#[tokio::test(flavor = "multi_thread")]
async fn p14_the_logs_name_leads_to_another_log() {
    let world = World::new().await;
    let other = OutsideLog::start(ORIGIN, 2, &entries("entry", 301)).await;
    let id = hex(&world.log);
    let found = hex(&other);
    world
        .is_named(
            Target::To(other.address),
            "WRONG_LOG",
            &[ORIGIN, &id],
            &[ORIGIN, &found],
        )
        .await;
    world.is_right_again().await;
    // The same key under another name is another log too.
    let renamed = OutsideLog::start("other.example", 1, &entries("entry", 301)).await;
    world
        .is_named(
            Target::To(renamed.address),
            "WRONG_LOG",
            &[ORIGIN],
            &["other.example"],
        )
        .await;
    world.is_right_again().await;
}

/// Shown to fail: with `document::note` taking any text and a malformed checkpoint counted as another log's, it is a
/// WRONG_LOG; either alone is caught by the other.
#[tokio::test(flavor = "multi_thread")]
async fn p14_the_logs_name_leads_to_a_web_server() {
    let world = World::new().await;
    let web = web_server().await;
    world
        .is_named(
            Target::To(web),
            "NOT_A_LOG",
            &[ORIGIN],
            &["a-web-server/1.0", "text/html"],
        )
        .await;
    world.is_right_again().await;
}

/// Shown to fail: without the deadline of a look (`Watch::look`), the state is OK until the call itself gives up, after
/// `call_seconds_max`.
#[tokio::test(flavor = "multi_thread")]
async fn p14_the_logs_name_leads_to_a_silent_socket() {
    let world = World::new().await;
    world
        .is_named(
            Target::Silent,
            "UNREACHABLE",
            &[ORIGIN],
            &["no answer within 4 s"],
        )
        .await;
    world.is_right_again().await;
    world
        .is_named(Target::Closed, "UNREACHABLE", &[ORIGIN], &[])
        .await;
    world.is_right_again().await;
}

/// Shown to fail: with `compare` taking a smaller size for good, it is OK; with the mark not read at the start, it is after
/// the restart.
#[tokio::test(flavor = "multi_thread")]
async fn p14_the_logs_name_leads_to_an_older_copy() {
    let mut world = World::new().await;
    let older = OutsideLog::start(ORIGIN, 1, &entries("entry", 280)).await;
    let (expected, found) = (["300 entries"], ["280 entries"]);
    world
        .is_named(Target::To(older.address), "ROLLED_BACK", &expected, &found)
        .await;
    world.is_right_again().await;
    // While the server is down, too: what it saw last is durable.
    world.server.kill();
    world.name.now_leads(Target::To(older.address));
    world.server.restart().unwrap();
    let named = world.becomes("ROLLED_BACK").await;
    assert!(
        named["expected"].as_str().unwrap().contains("300 entries"),
        "{named}"
    );
    assert_eq!(named["last_good"], Value::Null, "{named}");
}

/// Shown to fail: without the proof (`Client::follows` saying yes), it is OK; without the comparison of the proven old root
/// with the one that was seen, too: a fork proves its own past; without the comparison of roots of one size, the twin is.
#[tokio::test(flavor = "multi_thread")]
async fn p14_the_logs_name_leads_to_a_fork() {
    let world = World::new().await;
    // What grows as it has to is fine.
    world.log.grow(&entries("more", 20)).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    let grown = world.becomes("OK").await;
    assert!(
        grown["found"].as_str().unwrap().contains("320 entries"),
        "{grown}"
    );
    let shared = entries("entry", 290);
    let fork = OutsideLog::start(ORIGIN, 1, &[shared, entries("forked", 60)].concat()).await;
    world
        .is_named(
            Target::To(fork.address),
            "FORKED",
            &["320 entries"],
            &["350 entries"],
        )
        .await;
    world.is_right_again().await;
    // What was signed meanwhile was owed to it, and is paid now. Until then it does not have the size that the twin has.
    let clock = SystemClock::new();
    let began = clock.monotonic();
    while !world.external().await["found"]
        .as_str()
        .unwrap()
        .contains("321 entries")
    {
        assert!(
            clock.monotonic().since(began) <= 3 * NAMED_WITHIN,
            "the debt is not paid"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // As large, and another.
    let twin = OutsideLog::start(ORIGIN, 1, &entries("twin", 321)).await;
    world
        .is_named(
            Target::To(twin.address),
            "FORKED",
            &["321 entries"],
            &["321 entries"],
        )
        .await;
}

/// A server starts without its external log, and without a name that resolves. Shown to fail: without `stops_signing` in
/// `Verdict::of`, it says that nobody can deploy.
#[tokio::test(flavor = "multi_thread")]
async fn p14_a_server_starts_with_dns_gone() {
    let folder = tempfile::tempdir().unwrap();
    let log = OutsideLog::start(ORIGIN, 1, &[]).await;
    let key = folder.path().join("rekor.pub");
    std::fs::write(&key, log.pem()).unwrap();
    let config = format!(
        "[external_log]\nurl = \"https://no-such-log.invalid\"\norigin = {ORIGIN:?}\npublic_key = {:?}\n",
        key.display().to_string()
    );
    let server = Server::start(Setup {
        config,
        ..Setup::default()
    });
    let server = server.unwrap();
    let api = server.api().unwrap();
    let clock = SystemClock::new();
    let began = clock.monotonic();
    loop {
        let all = api.get("/api/v1/dependencies").await.unwrap().body;
        let mut all_of_them = all["dependencies"].as_array().unwrap().iter();
        let one = all_of_them
            .find(|one| one["name"] == "external-log")
            .unwrap()
            .clone();
        if one["state"] == "UNREACHABLE" {
            assert_eq!(all["can_deploy"], "degraded");
            break;
        }
        assert!(clock.monotonic().since(began) <= NAMED_WITHIN, "{one}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The first four bytes of the log's id.
fn hex(log: &OutsideLog) -> String {
    let id = log.tlog.verifier().log_id();
    id[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}
