//! What draining a debt costs those who sign meanwhile. The entries are real signatures of a real key of the server; the
//! external log is a second server, whose log speaks the interface of Rekor v2.
//!
//! The server has one core to itself. The external log, the registry and the clients, on other machines in the field,
//! share the other, and that log's data lie in memory: its syncs must not be what the server's wait for.
//!
//! The entries are put into the database while the server is stopped, as signatures that are published in the legacy
//! format alone: what is measured is the draining, and not a hundred thousand second bundles.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use kernel::{Clock as _, Digest, Id, Secret, SystemClock, SystemRandom};
use serde_json::{Value, json};
use signing::format::{Annotations, dsse, statement};
use signing::key::{self, LocalSigner, Signer as _};
use store::{Db, args};
use tokio::task::JoinHandle;

use crate::apart::Apart;
use crate::figures::{Figure, Target};
use crate::load::{Times, now};
use crate::server::Server;
use crate::signing_cost::Images;

/// Entries that are owed unless said otherwise, and how many of them may be paid in a second.
pub const ENTRIES: usize = 100_000;
const RATE: u32 = 500;
/// A folder in memory, on every Linux.
const MEMORY: &str = "/dev/shm";
/// Rows of one transaction while they are put in.
const ROWS: usize = 1_000;
/// Clients that sign beside, and the pause of each between two images: about 60 a second.
const SIGNERS: usize = 4;
const PAUSE: Duration = Duration::from_millis(50);
/// Images that are signed without a debt, half of them before there is one and half after, and at most with one.
const QUIET: usize = 4_000;
const BUSY_MAX: usize = 20_000;
/// How often is looked how large the external log is, in milliseconds.
const SAMPLE_MS: u64 = 20;
/// The project's key that made what is owed.
const KEY: &str = "ledger";

/// `entries` drained while others sign.
pub async fn drained(entries: usize) -> Result<Vec<Figure>> {
    let apart = Apart::new()?;
    let elsewhere = tempfile::tempdir_in(MEMORY)?;
    let external = Arc::new(Server::open(elsewhere.path(), &[]).await?);
    let folder = tempfile::tempdir()?;
    configure(&external, folder.path()).await?;
    let settings = [("PORTCULLIS_SIGNING_FORMATS", "bundle")];
    let server = Arc::new(Server::open_on_one_core(folder.path(), &settings).await?);
    let token = server.token.clone();
    let (signer, pkcs8) = LocalSigner::generate()?;
    let password = Secret::new("a password".to_owned());
    let file = key::encrypt(&pkcs8, &password, &SystemRandom)?;
    let body = json!({ "name": KEY, "private_key": file, "password": "a password" });
    server.post("/api/v1/keys", &body).await?;
    let images = Images::new(true).await?;
    let (first, quiet) = (images.put("first", 20).await?, images.put("quiet", QUIET).await?);
    let busy = images.put("busy", BUSY_MAX).await?;

    let never = Arc::new(AtomicBool::new(false));
    sign(&server, &first, &never).await?;
    let (before_it, after_it) = quiet.split_at(QUIET / 2);
    let mut alone = sign(&server, before_it, &never).await?;
    paid(&server).await?;
    let before = log_size(&external).await?;
    let server = Arc::into_inner(server).context("somebody still uses the server")?;
    server.stop().await?;

    owe(folder.path(), &signer, entries).await?;
    let mut server = Server::open_on_one_core(folder.path(), &settings).await?;
    server.token = token;
    let server = Arc::new(server);
    let (began, done) = (now(), Arc::new(AtomicBool::new(false)));
    let sampler = sample(external.clone(), done.clone());
    let drain = {
        let (server, done) = (server.clone(), done.clone());
        tokio::spawn(async move {
            let outcome = drained_to(&server, 50).await;
            done.store(true, Ordering::Relaxed);
            outcome
        })
    };
    let beside = sign(&server, &busy, &done).await?;
    drain.await??;
    let seconds = began.elapsed().as_secs_f64();
    paid(&server).await?;
    let sizes = sampler.await??;
    let in_log = log_size(&external).await? - before;
    alone.extend(sign(&server, after_it, &never).await?);
    drop(apart);
    let (count, alone, beside) = (beside.len(), Times::of(alone), Times::of(beside));
    for (what, times) in [("without a debt", &alone), ("while it is drained", &beside)] {
        let [half, most, nearly_all] = [0.5, 0.9, 0.99].map(|share| times.quantile(share));
        eprintln!("  {what}: p50 {half:.1} ms, p90 {most:.1} ms, p99 {nearly_all:.1} ms");
    }
    let figure = |what: String, unit, portcullis, peer, peer_value, target| Figure {
        bench: "debt",
        what,
        unit,
        portcullis,
        peer,
        peer_value,
        target,
    };
    let (p99, alone) = (beside.quantile(0.99), alone.quantile(0.99));
    Ok(vec![
        figure(
            format!("p99 of signing {count} images while {entries} entries are drained in {seconds:.0} s"),
            "ms",
            p99,
            "without a debt",
            Some(alone),
            Target::AtMostTimes(1.2),
        ),
        figure(
            "most entries in any second".to_owned(),
            "",
            most_in_a_second(&sizes),
            "the rate",
            Some(f64::from(RATE)),
            // What was sent within one second may arrive within a little less.
            Target::AtMostTimes(1.02),
        ),
        figure(
            format!("entries of {entries} owed and {count} signed meanwhile that the external log has"),
            "",
            in_log,
            "owed and signed",
            Some((entries + count) as f64),
            Target::TimesMore(1.0),
        ),
    ])
}

async fn configure(external: &Server, folder: &Path) -> Result<()> {
    let root = external.get("/api/v1/trust/trusted_root.json").await?;
    let parsed: Value = serde_json::from_str(&root)?;
    let origin = parsed["tlogs"][0]["baseUrl"].as_str().context("no log")?;
    let file = folder.join("trusted_root.json");
    std::fs::write(&file, &root)?;
    let config = format!(
        "[external_log]\nurl = {:?}\norigin = {:?}\ntrusted_root = {:?}\nentries_per_second_max = {RATE}\n",
        external.url,
        origin.trim_start_matches("https://"),
        file.display().to_string()
    );
    Ok(std::fs::write(folder.join("portcullis.toml"), config)?)
}

/// Signs images until there are no more of them, or it is `done`; how long each took, in milliseconds.
async fn sign(server: &Arc<Server>, images: &[String], done: &Arc<AtomicBool>) -> Result<Vec<f64>> {
    let (images, next) = (Arc::new(images.to_vec()), Arc::new(AtomicUsize::new(0)));
    let mut tasks = Vec::new();
    for _ in 0..SIGNERS {
        let (server, images, next, done) = (server.clone(), images.clone(), next.clone(), done.clone());
        tasks.push(tokio::spawn(async move {
            let mut times = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let Some(image) = images.get(next.fetch_add(1, Ordering::Relaxed)) else {
                    break;
                };
                times.push(server.sign_new(&server.token, image).await?);
                tokio::time::sleep(PAUSE).await;
            }
            anyhow::Ok(times)
        }));
    }
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    Ok(times)
}

/// Puts signatures of `signer` into the database of a server that does not run, each of them owed.
async fn owe(folder: &Path, signer: &LocalSigner, entries: usize) -> Result<()> {
    let db = Db::open(&format!("sqlite:{}", folder.join("data/portcullis.db").display())).await?;
    let (clock, key_id) = (SystemClock::new(), signer.public_key().id().to_string());
    let annotations = Annotations::new();
    for first in (0..entries).step_by(ROWS) {
        let mut tx = db.begin().await?;
        for number in first..entries.min(first + ROWS) {
            let (id, now) = (Id::new("sig", &clock, &SystemRandom), clock.now_us());
            let image = Digest::of(format!("owed {number}").as_bytes());
            let statement = statement::write(&[image], &annotations);
            let signature = signer.sign_now(Digest::of(&dsse::pae(dsse::IN_TOTO, &statement)))?;
            tx.execute(
                "INSERT INTO signature (id, project, key_name, key_id, annotations, statement, signature, created_at, \
                   actor) VALUES ($1, 'default', $2, $3, '{}', $4, $5, $6, 'bench')",
                args![&id, KEY, &key_id, statement, signature, now],
            )
            .await?;
            tx.execute(
                "INSERT INTO signed_image (project, repository, digest, key_id, payload, signature_id, formats, \
                   done_at) VALUES ('default', 'registry.example/owed', $1, $2, '', $3, 'legacy', $4)",
                args![image.to_string(), &key_id, &id, now],
            )
            .await?;
            tx.execute(
                "INSERT INTO external_debt (signature_id, state, images, since, attempts, next_at, last_error) \
                 VALUES ($1, 'owed', 1, $2, 0, $2, '')",
                args![&id, now],
            )
            .await?;
        }
        tx.commit().await?;
    }
    db.close().await;
    Ok(())
}

/// Waits until at most so many entries are owed.
async fn drained_to(server: &Server, owed: u64) -> Result<()> {
    loop {
        let debt: Value = serde_json::from_str(&server.get("/api/v1/external-log").await?)?;
        if debt["owed"].as_u64().context("no debt")? <= owed {
            return Ok(());
        }
        ensure!(debt["refused"] == 0, "refused: {debt}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Waits until nothing is owed, and everything is published.
async fn paid(server: &Server) -> Result<()> {
    for _ in 0..1_200 {
        let debt: Value = serde_json::from_str(&server.get("/api/v1/external-log").await?)?;
        if debt["owed"] == 0 && debt["unpublished"] == 0 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("the debt was not paid within two minutes")
}

async fn log_size(server: &Server) -> Result<f64> {
    let note = server.get("/api/v2/checkpoint").await?;
    Ok(note
        .lines()
        .nth(1)
        .context("no size in the checkpoint")?
        .parse()?)
}

/// The sizes of the external log, and when it had them, until it is `done`.
fn sample(external: Arc<Server>, done: Arc<AtomicBool>) -> JoinHandle<Result<Vec<(Instant, f64)>>> {
    tokio::spawn(async move {
        let mut sizes = Vec::new();
        while !done.load(Ordering::Relaxed) {
            let size = log_size(&external).await?;
            sizes.push((now(), size));
            tokio::time::sleep(Duration::from_millis(SAMPLE_MS)).await;
        }
        Ok(sizes)
    })
}

/// The most that was added between two samples that lie no more than a second apart.
fn most_in_a_second(sizes: &[(Instant, f64)]) -> f64 {
    let mut most = 0.0_f64;
    for (at, (from, size)) in sizes.iter().enumerate() {
        let within = sizes[at..]
            .iter()
            .take_while(|(to, _)| to.duration_since(*from) <= Duration::from_secs(1));
        let last = within.last().map_or(0.0, |(_, last)| last - size);
        most = most.max(last);
    }
    most
}
