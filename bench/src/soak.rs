//! Hours of ordinary load with everything going wrong: servers are killed, frozen and restarted, the registry refuses,
//! stalls and hangs, PostgreSQL is cut off. At the end nothing that was answered is lost, the log is one, and the server
//! that was never restarted holds no more memory than after its first quarter.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use kernel::{Random as _, SeededRandom};
use serde_json::{Value, json};
use testkit::Postgres;
use tlog::{Checkpoint, Folder, LogVerifier};
use tokio::sync::RwLock;

use crate::figures::{Figure, Target};
use crate::fleet::Fleet;
use crate::load::{self, now};
use crate::server::{Server, program};
use crate::signing_cost::Images;

const SERVERS: usize = 3;
/// New signatures by which the peak is measured, and how many at once.
const PEAK_IMAGES: usize = 600;
const PEAK_AT_ONCE: usize = 48;
/// Pause between two things that go wrong, in seconds, and how long each lasts at most.
const PAUSE_S: u64 = 12;
const LASTS_S: u64 = 6;
/// How often the checkpoints and the memory are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// Calls after which a new registry takes the place of the one before: each keeps all of its images in this program's
/// memory, a quarter of a gigabyte for ten thousand.
const REGISTRY_CALLS: u64 = 150_000;
/// After this share of the time the memory is what it may stay.
const WARM: f64 = 0.25;

/// What goes wrong.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    Killed,
    Frozen,
    Restarted,
    RegistrySlow,
    RegistryFailsWrites,
    RegistryThrottles,
    RegistryHangs,
    DatabaseCut,
}

const TROUBLES: [Trouble; 8] = [
    Trouble::Killed,
    Trouble::Frozen,
    Trouble::Restarted,
    Trouble::RegistrySlow,
    Trouble::RegistryFailsWrites,
    Trouble::RegistryThrottles,
    Trouble::RegistryHangs,
    Trouble::DatabaseCut,
];

/// An image that was answered with a signature.
struct Signed {
    image: String,
    id: String,
    index: u64,
}

/// What came of the calls.
#[derive(Default, Clone, Copy)]
struct Tally {
    asked: u64,
    /// Not answered, or refused: allowed while something is wrong.
    failed: u64,
    /// Answered wrongly: never allowed.
    wrong: u64,
}

struct Soak {
    fleet: RwLock<Fleet>,
    images: Mutex<Arc<Images>>,
    postgres: Postgres,
    signed: Mutex<Vec<Signed>>,
    /// Where those begin that this registry has.
    here: AtomicUsize,
    checkpoints: Mutex<Vec<Checkpoint>>,
    /// Seconds since the beginning, and MB.
    memory: Mutex<Vec<(f64, f64)>>,
    tally: Mutex<Tally>,
    verifier: LogVerifier,
    began: Instant,
    lasts: Duration,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `soak MINUTES SEED`.
pub async fn soak(minutes: u64, seed: u64) -> Result<Vec<Figure>> {
    let program = testkit::peers::find("postgresql").context("there is no PostgreSQL on this machine")?;
    let postgres = Postgres::start_with(&program, &[])?;
    let fleet = Fleet::start(&postgres, SERVERS).await?;
    let images = Images::new(true).await?;
    let first = fleet.servers()[0].clone();
    let body = json!({ "quota": { "signatures_per_minute": 1_000_000, "burst": 1_000_000 } });
    first.patch("/api/v1/projects/default", &body).await?;
    let peak = peak(&fleet, &images).await?;
    let rate = peak / 2.0;
    eprintln!("  peak {peak:.0} new signatures a second; {minutes} minutes at {rate:.0}/s; seed {seed}");
    let soak = Arc::new(Soak {
        fleet: RwLock::new(fleet),
        images: Mutex::new(Arc::new(images)),
        postgres,
        signed: Mutex::default(),
        here: AtomicUsize::new(0),
        checkpoints: Mutex::default(),
        memory: Mutex::default(),
        tally: Mutex::default(),
        verifier: verifier(&first).await?,
        began: now(),
        lasts: Duration::from_secs(minutes * 60),
    });
    drop(first);
    let (load, looks, troubles) = tokio::join!(
        tokio::spawn(soak.clone().load(rate)),
        tokio::spawn(soak.clone().look()),
        soak.clone().trouble(seed)
    );
    load??;
    looks??;
    let troubles = troubles?;
    let soak = Arc::into_inner(soak).context("something still runs")?;
    soak.judge(minutes, troubles).await
}

/// New signatures a second, over all servers.
async fn peak(fleet: &Fleet, images: &Images) -> Result<f64> {
    let fresh = images.put("peak", PEAK_IMAGES).await?;
    let (servers, fresh) = (fleet.servers(), &fresh);
    let sign = |number: usize| async move {
        let body = json!({ "image": fresh[number] });
        let answer = servers[number % SERVERS].try_sign(&body).await?;
        ensure!(answer.status == 201, "status {}", answer.status);
        Ok(())
    };
    Ok(load::run(PEAK_IMAGES, PEAK_AT_ONCE, sign).await?.per_second())
}

async fn verifier(server: &Server) -> Result<LogVerifier> {
    use base64::Engine as _;
    let root: Value = serde_json::from_str(&server.get("/api/v1/trust/trusted_root.json").await?)?;
    let log = &root["tlogs"][0];
    let origin = log["baseUrl"]
        .as_str()
        .unwrap_or_default()
        .trim_start_matches("https://");
    let key = log["publicKey"]["rawBytes"].as_str().unwrap_or_default();
    let key = base64::engine::general_purpose::STANDARD.decode(key)?;
    Ok(LogVerifier::from_spki(origin, &key)?)
}

impl Soak {
    fn is_over(&self) -> bool {
        self.began.elapsed() >= self.lasts
    }

    /// Asks at an even pace: every second call signs a new image, the others sign or verify one that is known.
    async fn load(self: Arc<Self>, rate: f64) -> Result<()> {
        let mut number = 0_u64;
        let mut tasks = tokio::task::JoinSet::new();
        let mut before = lock(&self.images).clone();
        while !self.is_over() {
            if number > 0 && number.is_multiple_of(REGISTRY_CALLS) {
                // The one before stays for the calls that are under way.
                let fresh = Arc::new(Images::new(true).await?);
                before = std::mem::replace(&mut *lock(&self.images), fresh);
                self.here.store(lock(&self.signed).len(), Ordering::Relaxed);
            }
            let due = Duration::from_secs_f64(number as f64 / (2.0 * rate));
            tokio::time::sleep(due.saturating_sub(self.began.elapsed())).await;
            let server = self.fleet.read().await.servers()[number as usize % SERVERS].clone();
            let own = self.clone();
            tasks.spawn(async move { own.ask(&server, number).await });
            while tasks.try_join_next().is_some() {}
            number += 1;
        }
        while tasks.join_next().await.is_some() {}
        drop(before);
        Ok(())
    }

    async fn ask(&self, server: &Server, number: u64) {
        let known = {
            let signed = lock(&self.signed);
            let here = &signed[self.here.load(Ordering::Relaxed).min(signed.len())..];
            let at = (number as usize).wrapping_mul(7_919) % here.len().max(1);
            here.get(at)
                .map(|signed| (signed.image.clone(), signed.id.clone()))
        };
        let right = match (number % 4, known) {
            (1, Some((image, id))) => {
                let answer = server
                    .post("/api/v1/signatures", &json!({ "image": image }))
                    .await;
                answer.map(|answer| answer["id"] == *id)
            }
            (3, Some((image, _))) => {
                let answer = server
                    .post("/api/v1/verifications", &json!({ "image": image }))
                    .await;
                answer.map(|answer| answer["verified"] == true)
            }
            _ => self.sign_new(server, number).await.map(|()| true),
        };
        let mut tally = lock(&self.tally);
        tally.asked += 1;
        tally.failed += u64::from(right.is_err());
        tally.wrong += u64::from(right.is_ok_and(|right| !right));
    }

    async fn sign_new(&self, server: &Server, number: u64) -> Result<()> {
        let repository = format!("soak/{}", number % 1_000);
        let images = lock(&self.images).clone();
        let digest = images
            .registry
            .put_image(&repository, "1", &format!("soak {number}"))
            .await?;
        let image = format!("{}/{repository}@{digest}", images.host());
        let answer = server
            .post("/api/v1/signatures", &json!({ "image": image }))
            .await?;
        let signed = Signed {
            image,
            id: answer["id"].as_str().context("no id")?.to_owned(),
            index: answer["log_index"].as_u64().context("no place in the log")?,
        };
        lock(&self.signed).push(signed);
        Ok(())
    }

    /// Looks at every server's checkpoint and at the memory of the one that is never restarted.
    async fn look(self: Arc<Self>) -> Result<()> {
        while !self.is_over() {
            let servers = self.fleet.read().await.servers().to_vec();
            let mut notes = Vec::new();
            for server in &servers {
                let get = tokio::time::timeout(LOOK, server.get("/api/v2/checkpoint"));
                if let Ok(Ok(note)) = get.await {
                    notes.push(self.verifier.verify(&note)?);
                }
            }
            lock(&self.checkpoints).extend(notes);
            let memory = memory(servers[0].pid())?;
            lock(&self.memory).push((self.began.elapsed().as_secs_f64(), memory));
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// One trouble after the other, by chance; how often each came.
    async fn trouble(self: Arc<Self>, seed: u64) -> Result<HashMap<String, u32>> {
        let random = SeededRandom::new(seed);
        let chance = |below: u64| {
            let mut bytes = [0; 8];
            random.fill(&mut bytes);
            u64::from_be_bytes(bytes) % below
        };
        let mut counts = HashMap::new();
        loop {
            tokio::time::sleep(Duration::from_secs(PAUSE_S / 2 + chance(PAUSE_S))).await;
            let (trouble, lasts) = (
                TROUBLES[chance(TROUBLES.len() as u64) as usize],
                1 + chance(LASTS_S),
            );
            let at = match trouble {
                // The first one is kept, for its memory.
                Trouble::Killed | Trouble::Restarted => 1 + chance(SERVERS as u64 - 1),
                _ => chance(SERVERS as u64),
            };
            if self.began.elapsed() + Duration::from_secs(2 * LASTS_S) >= self.lasts {
                return Ok(counts);
            }
            *counts.entry(format!("{trouble:?}")).or_insert(0) += 1;
            self.one(trouble, at as usize, Duration::from_secs(lasts)).await?;
        }
    }

    async fn one(&self, trouble: Trouble, at: usize, lasts: Duration) -> Result<()> {
        let images = lock(&self.images).clone();
        let registry = &images.registry;
        match trouble {
            Trouble::Killed | Trouble::Restarted => {
                let name = if matches!(trouble, Trouble::Killed) {
                    "KILL"
                } else {
                    "TERM"
                };
                self.fleet.read().await.signal(at, name)?;
                tokio::time::sleep(lasts).await;
                let fleet = self.fleet.read().await;
                fleet.ended(at).await?;
                let server = fleet.launch(at).await?;
                drop(fleet);
                self.fleet.write().await.put(at, server);
            }
            Trouble::Frozen => {
                self.fleet.read().await.signal(at, "STOP")?;
                tokio::time::sleep(lasts).await;
                self.fleet.read().await.signal(at, "CONT")?;
            }
            Trouble::RegistrySlow => registry.fault(|plan| plan.latency = Duration::from_millis(200)),
            Trouble::RegistryFailsWrites => registry.fault(|plan| plan.fail_writes = 50),
            Trouble::RegistryThrottles => registry.fault(|plan| {
                plan.throttle_calls = 100;
                plan.retry_after_seconds = Some(1);
            }),
            Trouble::RegistryHangs => registry.fault(|plan| plan.hang = true),
            Trouble::DatabaseCut => {
                tokio::task::block_in_place(|| self.postgres.crash())?;
                tokio::time::sleep(lasts / 2).await;
                tokio::task::block_in_place(|| self.postgres.start_again())?;
            }
        }
        tokio::time::sleep(lasts).await;
        registry.fault(|plan| *plan = registry::Plan::default());
        Ok(())
    }

    async fn judge(self, minutes: u64, troubles: HashMap<String, u32>) -> Result<Vec<Figure>> {
        let fleet = self.fleet.into_inner();
        let signed = self.signed.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Tally { asked, failed, wrong } = *lock(&self.tally);
        let mut told: Vec<_> = troubles.iter().collect();
        told.sort();
        eprintln!(
            "  {asked} calls, {failed} refused or not answered; {} signatures; {told:?}",
            signed.len()
        );
        ensure!(!signed.is_empty(), "nothing was signed");
        let lost = lost(&fleet.servers()[0], &signed).await?;
        let mut checkpoints = self
            .checkpoints
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let seen = checkpoints.len();
        let forks = forks(&fleet.servers()[0], &self.verifier, &mut checkpoints, &signed).await?;
        let memory = self.memory.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (warm, last) = plateaus(&memory, self.lasts.as_secs_f64())?;
        let figure = |what: String, unit, portcullis, peer, peer_value, target| Figure {
            bench: "soak",
            what,
            unit,
            portcullis,
            peer,
            peer_value,
            target,
        };
        Ok(vec![
            figure(
                format!("signatures lost of {} in {minutes} minutes", signed.len()),
                "",
                lost as f64,
                "",
                None,
                Target::AtMost(0.0),
            ),
            figure(
                format!("known images with another signature or not verified, of {asked} calls"),
                "",
                wrong as f64,
                "",
                None,
                Target::AtMost(0.0),
            ),
            figure(
                format!("forks among {seen} checkpoints, and indexes given out twice"),
                "",
                forks as f64,
                "",
                None,
                Target::AtMost(0.0),
            ),
            figure(
                "memory of the server that was never restarted, at the end".to_owned(),
                "MB",
                last,
                "after a quarter of the time",
                Some(warm),
                Target::AtMostTimes(1.1),
            ),
        ])
    }
}

/// The memory that a process holds now, in MB.
fn memory(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// The median memory once all caches are warm, and in the last tenth of the time.
fn plateaus(memory: &[(f64, f64)], seconds: f64) -> Result<(f64, f64)> {
    let median = |from: f64, to: f64| {
        let mut values: Vec<f64> = memory
            .iter()
            .filter(|(at, _)| (from * seconds..to * seconds).contains(at))
            .map(|(_, mb)| *mb)
            .collect();
        values.sort_unstable_by(f64::total_cmp);
        values
            .get(values.len() / 2)
            .copied()
            .context("too few looks at the memory")
    };
    Ok((median(WARM, WARM + 0.1)?, median(0.9, 1.1)?))
}

/// Asks for every signature again: how many are not there any more, or are another.
async fn lost(server: &Arc<Server>, signed: &[Signed]) -> Result<usize> {
    let mut lost = 0;
    for chunk in signed.chunks(1_000) {
        let items: Vec<Value> = chunk
            .iter()
            .map(|signed| json!({ "image": signed.image }))
            .collect();
        let answers = server
            .post("/api/v1/signatures:batch", &json!({ "items": items }))
            .await?;
        let answers = answers.as_array().context("no list")?;
        ensure!(answers.len() == chunk.len(), "{} answers", answers.len());
        for (answer, signed) in answers.iter().zip(chunk) {
            let found = &answer["signature"];
            let same = found["id"] == *signed.id && found["log_index"] == signed.index;
            if !same || found["deduplicated"] != true {
                eprintln!("  lost: {} {}: {answer}", signed.image, signed.id);
                lost += 1;
            }
        }
    }
    Ok(lost)
}

/// Copies the log out, checks all of it, and holds every checkpoint that any server ever showed against it.
async fn forks(
    server: &Arc<Server>,
    verifier: &LogVerifier,
    checkpoints: &mut [Checkpoint],
    signed: &[Signed],
) -> Result<usize> {
    let folder = tempfile::tempdir()?;
    let to = folder.path().join("log");
    for args in [&["log", "export"][..], &["log", "fsck"]] {
        let output = std::process::Command::new(program()?)
            .args(args)
            .arg(&to)
            .env("PORTCULLIS_SERVER", &server.url)
            .env("PORTCULLIS_TOKEN", &server.token)
            .output()?;
        if !output.status.success() {
            bail!("{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    let copy = Folder::open(&to, Some(verifier.clone())).await?;
    checkpoints.sort_by_key(|checkpoint| checkpoint.size);
    let mut forks = 0;
    for pair in checkpoints.windows(2) {
        let proof = copy.consistency(pair[0].size, pair[1].size).await?;
        forks += usize::from(proof.old_root != pair[0].root || proof.new_root != pair[1].root);
    }
    let indexes: HashSet<u64> = signed.iter().map(|signed| signed.index).collect();
    Ok(forks + signed.len() - indexes.len())
}
