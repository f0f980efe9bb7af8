//! `kill -9` at each durable step of signing, and anywhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use e2e::{Api, Server, Setup};
use futures::future::join_all;
use registry::{Options, Registry};
use serde_json::{Value, json};
use store::{Db, args};

use crate::ledger::{Ledger, times};

/// Every point that a signature passes, with those of the log on its way.
const POINTS: &[&str] = &[
    "signing.staged",
    "tlog.staged",
    "tlog.committed",
    "signing.logged",
    "signing.pushed_blobs",
    "signing.published",
    "signing.finished",
];
const KILLS_PER_POINT: u32 = 12;
const KILLS_AT_RANDOM: u32 = 26;
/// Clients that sign at the same time.
const CLIENTS: usize = 6;
/// Which of the clients' signatures dies: the first to pass the point, or a later one.
const NTH_MAX: u32 = 4;
/// How long the server may take to die after the requests were answered or cut off, in milliseconds.
const DIE_MS_MAX: u64 = 5_000;

/// A signature that was acknowledged with 201 or 200.
#[derive(Debug, Clone)]
struct Acknowledged {
    image: String,
    id: String,
    log_index: u64,
}

struct Victim {
    server: Server,
    ledger: Ledger,
    registry: Registry,
    host: String,
    images: u32,
    /// What was acknowledged, by the image.
    acknowledged: BTreeMap<String, Acknowledged>,
    /// Asked for, and not answered.
    unknown: BTreeSet<String>,
}

impl Victim {
    async fn new(registry: Registry, host: String) -> Self {
        let server = Server::start(Setup::default()).unwrap();
        let ledger = Ledger::new(&server.api().unwrap()).await;
        let (acknowledged, unknown) = (BTreeMap::new(), BTreeSet::new());
        Self {
            server,
            ledger,
            registry,
            host,
            images: 0,
            acknowledged,
            unknown,
        }
    }

    /// New images, unsigned.
    async fn images(&mut self) -> Vec<String> {
        let mut images = Vec::with_capacity(CLIENTS);
        for _ in 0..CLIENTS {
            self.images += 1;
            let tag = format!("v{}", self.images);
            let digest = self.registry.put_image("team/app", &tag, &tag).await.unwrap();
            images.push(format!("{}/team/app@{digest}", self.host));
        }
        images
    }

    /// Signs all at once; `meanwhile` is what happens to the server.
    async fn sign(&mut self, images: Vec<String>, meanwhile: impl Future<Output = ()>) {
        let api = self.server.api().unwrap();
        let (answers, ()) = tokio::join!(join_all(images.iter().map(|image| sign(&api, image))), meanwhile);
        for (image, answer) in images.into_iter().zip(answers) {
            match answer {
                Some(acknowledged) => {
                    self.unknown.remove(&image);
                    self.acknowledged.insert(image, acknowledged);
                }
                None => {
                    self.unknown.insert(image);
                }
            }
        }
    }

    async fn died(&mut self) -> bool {
        for _ in 0..DIE_MS_MAX / 5 {
            if !self.server.is_running() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        false
    }

    /// After a death: every promise is kept, and who got no answer and asks again gets his signature.
    async fn recovered(&mut self, fresh: &[String]) {
        self.server.restart().unwrap();
        let api = self.server.api().unwrap();
        self.ledger.look(&api).await;
        for image in fresh {
            if let Some(acknowledged) = self.acknowledged.get(image) {
                assert_stands(&api, acknowledged).await;
            }
        }
        let unknown: Vec<String> = self.unknown.iter().cloned().collect();
        self.sign(unknown, std::future::ready(())).await;
        assert!(
            self.unknown.is_empty(),
            "a retry after a crash failed:\n{}",
            self.server.log()
        );
    }
}

/// `None`: no answer, or one that promises nothing.
async fn sign(api: &Api, image: &str) -> Option<Acknowledged> {
    let answer = api
        .post("/api/v1/signatures", &json!({ "image": image }))
        .await
        .ok()?;
    if !matches!(answer.status, 200 | 201) {
        return None;
    }
    Some(Acknowledged {
        image: image.to_owned(),
        id: answer.body["id"].as_str()?.to_owned(),
        log_index: answer.body["log_index"].as_u64()?,
    })
}

/// The signature is found by its id, in the log, and verifies from the registry.
async fn assert_stands(api: &Api, acknowledged: &Acknowledged) {
    let Acknowledged { image, id, log_index } = acknowledged;
    let found = api.get(&format!("/api/v1/signatures/{id}")).await.unwrap();
    assert_eq!(found.status, 200, "{acknowledged:?} is lost: {found:?}");
    assert_eq!(found.body["items"][0]["image"], *image, "{found:?}");
    assert_eq!(found.body["items"][0]["log_index"], *log_index, "{found:?}");
    let verdict = api
        .post("/api/v1/verifications", &json!({ "image": image }))
        .await
        .unwrap();
    assert_eq!(verdict.body["verified"], true, "{acknowledged:?}: {verdict:?}");
    let evidence = verdict.body["evidence"].as_array().unwrap();
    let logged = |one: &&Value| one["accepted"] == true && one["log_index"] == *log_index;
    assert_eq!(
        evidence.iter().filter(logged).count(),
        1,
        "{acknowledged:?}: {verdict:?}"
    );
}

/// Every acknowledged signature has its audit record, once.
async fn assert_recorded(server: &mut Server, acknowledged: &BTreeMap<String, Acknowledged>) {
    assert_eq!(server.stop().unwrap(), Some(0));
    let db = Db::open(&format!(
        "sqlite:{}",
        server.data().join("portcullis.db").display()
    ))
    .await
    .unwrap();
    let sql = "SELECT resource, detail FROM audit WHERE action = $1";
    let mut records: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in db.read(sql, args!["signature.create"]).await.unwrap() {
        records
            .entry(row.text("resource").unwrap())
            .or_default()
            .push(row.text("detail").unwrap());
    }
    db.close().await;
    for (image, Acknowledged { id, .. }) in acknowledged {
        let details = records.get(image).map(Vec::as_slice).unwrap_or_default();
        assert_eq!(details.len(), 1, "the audit records of {image}: {details:?}");
        assert!(
            details[0].starts_with(id.as_str()),
            "{image}: {details:?} is not of {id}"
        );
    }
}

/// Shown to fail: without `Draft::finish` before the answer, an acknowledged signature is not there after the kill.
#[tokio::test(flavor = "multi_thread")]
async fn p11_signing_loses_nothing_that_it_acknowledged_when_it_is_killed() {
    let registry = Registry::memory(Options::default());
    let running = registry.serve_on_loopback().await.unwrap();
    let mut victim = Victim::new(registry.clone(), running.host()).await;
    let mut kills = 0;
    for point in POINTS {
        let mut hits = 0;
        for nth in 0..times() * KILLS_PER_POINT {
            victim.server.kill();
            // A batch of the log takes all that waits, so its points are passed less often.
            let nth = if point.starts_with("tlog.") {
                1
            } else {
                1 + nth % NTH_MAX
            };
            assert!(victim.server.launch(Some(&format!("{point}:{nth}"))).unwrap());
            let images = victim.images().await;
            victim.sign(images.clone(), std::future::ready(())).await;
            hits += u32::from(victim.died().await);
            kills += 1;
            victim.recovered(&images).await;
        }
        assert_eq!(
            hits,
            times() * KILLS_PER_POINT,
            "{point}: the server did not die at it every time"
        );
    }
    for nth in 0..times() * KILLS_AT_RANDOM {
        let images = victim.images().await;
        // The kill comes from a thread of its own, anywhere in the time that the signatures take.
        let mut process = victim.server.take_process().unwrap();
        let kill = tokio::task::spawn_blocking(move || {
            std::thread::sleep(Duration::from_millis(u64::from(nth % KILLS_AT_RANDOM * 5)));
            process.kill();
        });
        victim.sign(images.clone(), async { kill.await.unwrap() }).await;
        kills += 1;
        victim.recovered(&images).await;
    }
    let api = victim.server.api().unwrap();
    for acknowledged in victim.acknowledged.values() {
        assert_stands(&api, acknowledged).await;
    }
    assert_eq!(victim.acknowledged.len(), victim.images as usize);
    victim.ledger.audit(&victim.server, &[]).await;
    assert_recorded(&mut victim.server, &victim.acknowledged).await;
    println!(
        "{kills} kills, {} acknowledged signatures, none lost",
        victim.acknowledged.len()
    );
    assert!(kills >= 100);
}
