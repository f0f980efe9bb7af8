//! `kill -9` at each durable step of the log, and anywhere else.

use std::sync::Arc;
use std::time::Duration;

use e2e::{Server, Setup};
use serde_json::Value;
use store::{Blobs, Db};
use tlog::tile::TILE_WIDTH;
use tlog::{CRASH_STEPS, LogKey, Name, Settings, Tlog};

use crate::ledger::{Acknowledged, Ledger, Signatures, send, times};

/// Steps that an entry passes at once; the others come with every full bundle of 256 entries.
const AT_ONCE: &[&str] = &["staged", "committed"];
/// Passed with 65,536 entries only: a test of its own.
const UPPER: &str = "upper_tile_written";
/// Kills at each point, and at random moments.
const KILLS_AT_ONCE: u32 = 20;
const KILLS_PER_BUNDLE: u32 = 12;
const KILLS_AT_RANDOM: u32 = 24;
/// How long the tiler may take after the answers of a full bundle, in milliseconds, before the server is killed
/// from outside; it wakes up at once.
const TILER_MS_MAX: u64 = 5_000;

/// A log that is killed again and again, and what it promised in between.
struct Victim {
    server: Server,
    ledger: Ledger,
    signatures: Signatures,
    acknowledged: Vec<Acknowledged>,
    /// The last round's requests: those that were answered, with the answer.
    last: Vec<(Value, Option<Acknowledged>)>,
    kills: u32,
}

impl Victim {
    async fn new() -> Self {
        let server = Server::start(Setup::default()).unwrap();
        let ledger = Ledger::new(&server.api().unwrap()).await;
        let signatures = Signatures::new();
        Self {
            server,
            ledger,
            signatures,
            acknowledged: Vec::new(),
            last: Vec::new(),
            kills: 0,
        }
    }

    /// Starts the server with a point armed; `false` if it died at that point before it was ready.
    async fn start(&mut self, crash_at: Option<&str>) -> bool {
        self.server.kill();
        if !self.server.launch(crash_at).unwrap() {
            assert!(
                crash_at.is_some(),
                "the server does not start:\n{}",
                self.server.log()
            );
            return false;
        }
        true
    }

    /// Appends `count` entries at once and remembers what was acknowledged.
    async fn append(&mut self, count: usize) {
        let requests: Vec<Value> = (0..count).map(|_| self.signatures.request()).collect();
        let answers = send(&self.server.api().unwrap(), &self.ledger, &requests).await;
        self.last = requests.into_iter().map(|request| (request, None)).collect();
        for (at, entry) in answers {
            self.acknowledged.push(entry.clone());
            self.last[at].1 = Some(entry);
        }
    }

    /// Waits until the server has died of the armed point; kills it if it does not.
    async fn died(&mut self, within_ms: u64) -> bool {
        self.kills += 1;
        for _ in 0..within_ms / 5 {
            if !self.server.is_running() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.server.kill();
        false
    }

    /// After a start without a point: the log grew, and who asks again gets the same entry again.
    async fn recovered(&mut self) {
        assert!(self.start(None).await);
        let api = self.server.api().unwrap();
        self.ledger.look(&api).await;
        let last: Vec<_> = std::mem::take(&mut self.last).into_iter().take(8).collect();
        let requests: Vec<Value> = last.iter().map(|(request, _)| request.clone()).collect();
        let answers = send(&api, &self.ledger, &requests).await;
        assert_eq!(
            answers.len(),
            requests.len(),
            "a retry after a crash was not answered"
        );
        for (at, again) in answers {
            if let Some(before) = &last[at].1 {
                assert_eq!(&again, before, "an acknowledged entry moved");
            }
            self.acknowledged.push(again);
        }
    }
}

/// Shown to fail: without `tables.find` in `Sequencer::commit`, what is sent again after a kill is
/// not answered.
#[tokio::test(flavor = "multi_thread")]
async fn p11_the_log_loses_nothing_and_never_forks_when_it_is_killed() {
    let mut victim = Victim::new().await;
    for step in CRASH_STEPS.iter().filter(|step| **step != UPPER) {
        let at_once = AT_ONCE.contains(step);
        let kills = times() * if at_once { KILLS_AT_ONCE } else { KILLS_PER_BUNDLE };
        let mut hits = 0;
        for nth in 0..kills {
            // At once: the first, second or third batch after the start. Otherwise a full bundle more.
            let (armed, entries) = match at_once {
                true => (format!("tlog.{step}:{}", 1 + nth % 3), 24),
                false => (format!("tlog.{step}:1"), TILE_WIDTH as usize + 1),
            };
            if victim.start(Some(&armed)).await {
                for _ in 0..if at_once { 3 } else { 1 } {
                    victim.append(entries).await;
                }
            }
            hits += u32::from(victim.died(TILER_MS_MAX).await);
            victim.recovered().await;
        }
        assert_eq!(hits, kills, "{step}: the server did not die at it every time");
    }
    for nth in 0..times() * KILLS_AT_RANDOM {
        assert!(victim.start(None).await);
        let requests: Vec<Value> = (0..200).map(|_| victim.signatures.request()).collect();
        let api = victim.server.api().unwrap();
        // Spread over the time that the requests take; where exactly each falls is up to the machine.
        let pause = tokio::time::sleep(Duration::from_millis(u64::from(nth % KILLS_AT_RANDOM * 7)));
        let sending = send(&api, &victim.ledger, &requests);
        let server = &mut victim.server;
        let (answers, ()) = tokio::join!(sending, async {
            pause.await;
            server.kill();
        });
        victim.kills += 1;
        victim.last = requests.into_iter().map(|request| (request, None)).collect();
        for (at, entry) in answers {
            victim.acknowledged.push(entry.clone());
            victim.last[at].1 = Some(entry);
        }
        victim.recovered().await;
    }
    victim.ledger.audit(&victim.server, &victim.acknowledged).await;
    println!(
        "{} kills, {} acknowledged entries, none lost",
        victim.kills,
        victim.acknowledged.len()
    );
    assert!(victim.kills >= 100);
}

/// Fills the log of a stopped server in this process, up to `size` entries.
async fn fill(server: &Server, size: u64) {
    let secret: Value =
        serde_json::from_slice(&std::fs::read(server.data().join("secrets/log.json")).unwrap()).unwrap();
    let text = |field: &str| secret[field].as_str().unwrap();
    let pkcs8 = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text("private_key"));
    let db = Db::open(&format!(
        "sqlite:{}",
        server.data().join("portcullis.db").display()
    ))
    .await
    .unwrap();
    let tlog = Tlog::open(Settings {
        name: Name::Signatures,
        db: db.clone(),
        blobs: Blobs::folder(&server.data().join("blobs")).unwrap(),
        key: LogKey::new(text("origin"), &pkcs8.unwrap()).unwrap(),
        holder: "the test".to_owned(),
        server: "the test".to_owned(),
        lease_ttl: Duration::from_secs(5),
        shared: false,
        owner: None,
        mark: None,
    })
    .await
    .unwrap();
    let mut signatures = Signatures::new();
    // The server that was killed a moment ago holds the lease until it ends.
    while !tlog.info().await.unwrap().leading {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let tlog = Arc::new(tlog);
    let mut done = tlog.checkpoint().await.unwrap().size;
    while done < size {
        let count = (size - done).min(1_024);
        let append = |entry: tlog::HashedRekord| {
            let tlog = tlog.clone();
            tokio::spawn(async move { tlog.append(&entry).await.unwrap() })
        };
        let batch: Vec<_> = (0..count).map(|_| append(signatures.entry())).collect();
        for entry in batch {
            entry.await.unwrap();
        }
        done += count;
    }
    tlog.close().await;
    db.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_survives_its_death_at_an_upper_tile() {
    let mut victim = Victim::new().await;
    assert_eq!(victim.server.stop().unwrap(), Some(0));
    fill(&victim.server, TILE_WIDTH * TILE_WIDTH - 3).await;
    // The tile of level 1 is written again after each start, until its rows are pruned.
    for _ in 0..3 {
        if victim.start(Some(&format!("tlog.{UPPER}"))).await {
            victim.append(8).await;
        }
        assert!(
            victim.died(TILER_MS_MAX).await,
            "the server did not die at {UPPER}"
        );
    }
    victim.recovered().await;
    victim.append(300).await;
    victim.ledger.audit(&victim.server, &victim.acknowledged).await;
}
