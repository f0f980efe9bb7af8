//! What a long log costs: memory, the time to ready, appending and reading, beside a log of ten thousand entries.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use kernel::Digest;
use serde_json::{Value, json};
use signing::key::{LocalSigner, Signer as _};
use store::{Blobs, Db};
use tlog::merkle::leaf_hash;
use tlog::tile::{TILE_WIDTH, TilePath, parse_bundle};
use tlog::{Accepted, HashedRekord, LogKey, Settings, TAIL_ENTRIES_MAX, Tlog, Verifier};

use crate::figures::{Figure, Target};
use crate::load::{self, Times, now};
use crate::server::{Server, peak_memory, program};
use crate::transparency::load_log;

/// Entries of the log that memory is compared with.
const SMALL: u64 = 10_000;
/// Entries of the long log: as the design asks for, and a number that is filled while one waits.
pub const LONG: u64 = 10_000_000;
pub const SHORT: u64 = 1_000_000;
/// Entries that wait for the log at once while it is filled: under its `QUEUE_ENTRIES_MAX`.
const FILLERS: usize = 3_000;
/// Entries between two looks at how far the tiles are.
const FILL_CHUNK: u64 = 16_384;
/// One entry in so many is signed; the reads are of those.
const SIGNED_EACH: u64 = 1_000;
/// Entries between two lines of progress.
const PROGRESS_EACH: u64 = 500_000;
/// Entries that are read at random places, each with its tiles and its proof, and entries that are appended.
const READS: usize = 4_000;
const APPENDS: usize = 20_000;
/// Keeps the filled folders between runs, if set: filling ten million takes most of an hour.
const FOLDER: &str = "PORTCULLIS_BENCH_LOGS";

/// Servers that are started on each log; the one whose peak is in the middle counts, because an allocator's peak moves
/// by some megabytes from one to the next.
const RUNS: usize = 3;

/// What one server did on a log.
struct Run {
    ready_ms: f64,
    peak_mb: f64,
    append_per_second: f64,
    read_p99_ms: f64,
}

/// What was measured on one log.
struct Measured {
    size: u64,
    ready_ms: f64,
    peak_mb: f64,
    append_per_second: f64,
    read_p99_ms: f64,
    fsck_seconds: f64,
    fsck_peak_mb: f64,
}

/// The issue bounds the memory; the other targets are ours: a start that nobody waits for, and no more than half the
/// speed lost over a thousandfold log.
pub async fn memory(size: u64) -> Result<Vec<Figure>> {
    let temporary = tempfile::tempdir()?;
    let kept = std::env::var_os(FOLDER).map(std::path::PathBuf::from);
    let home = kept.as_deref().unwrap_or(temporary.path());
    let small = measure(home, SMALL).await?;
    let long = measure(home, size).await?;
    let what = |what: &str| format!("{what}, log of {} entries", long.size);
    let figure = |name, unit, own, peer, target| Figure {
        bench: "log-memory",
        what: what(name),
        unit,
        portcullis: own,
        peer: "log of 10,000",
        peer_value: Some(peer),
        target,
    };
    Ok(vec![
        figure(
            "peak memory",
            "MB",
            long.peak_mb,
            small.peak_mb,
            Target::AtMostTimes(1.1),
        ),
        figure(
            "time to ready",
            "ms",
            long.ready_ms,
            small.ready_ms,
            Target::AtMost(5_000.0),
        ),
        figure(
            "append, 64 clients",
            "/s",
            long.append_per_second,
            small.append_per_second,
            Target::TimesMore(0.5),
        ),
        figure(
            "p99 of reading an entry, its tiles and its proof",
            "ms",
            long.read_p99_ms,
            small.read_p99_ms,
            Target::AtMost(50.0),
        ),
        figure(
            "log fsck, peak memory",
            "MB",
            long.fsck_peak_mb,
            small.fsck_peak_mb,
            Target::AtMostTimes(1.1),
        ),
        figure(
            "log fsck, entries",
            "/s",
            long.size as f64 / long.fsck_seconds,
            small.size as f64 / small.fsck_seconds,
            Target::AtLeast(5_000.0),
        ),
    ])
}

async fn measure(home: &Path, size: u64) -> Result<Measured> {
    let folder = home.join(size.to_string());
    if !folder.join("data").exists() {
        std::fs::create_dir_all(&folder)?;
        Server::open(&folder, &[]).await?.stop().await?;
    }
    fill(&folder.join("data"), size).await?;
    let mut runs = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        runs.push(run(&folder, size).await?);
    }
    runs.sort_by(|one, other| one.peak_mb.total_cmp(&other.peak_mb));
    eprintln!(
        "  peaks on {size} entries: {:.1?} MB",
        runs.iter().map(|run| run.peak_mb).collect::<Vec<_>>()
    );
    let Run {
        ready_ms,
        peak_mb,
        append_per_second,
        read_p99_ms,
    } = runs.swap_remove(RUNS / 2);
    let (fsck_seconds, fsck_peak_mb) = fsck(&folder.join("data")).await?;
    Ok(Measured {
        size,
        ready_ms,
        peak_mb,
        append_per_second,
        read_p99_ms,
        fsck_seconds,
        fsck_peak_mb,
    })
}

/// Starts a server on the log, reads, appends, and stops it.
async fn run(folder: &Path, size: u64) -> Result<Run> {
    let began = now();
    let server = Server::open(folder, &[]).await?;
    let ready_ms = began.elapsed().as_secs_f64() * 1e3;
    // A start opens a signing key, which takes 64 MiB for a moment and would hide what the log takes.
    server.forget_peak_memory()?;
    let reads = read(&server, size).await?;
    let appended = load_log(&server.http, &server.url, APPENDS).await?;
    let peak_mb = server.peak_memory()?;
    server.stop().await?;
    Ok(Run {
        ready_ms,
        peak_mb,
        append_per_second: appended.per_second(),
        read_p99_ms: reads.quantile(0.99),
    })
}

/// Opens the log of a stopped server in this process.
async fn open(data: &Path) -> Result<(Tlog, Db)> {
    let secret: Value = serde_json::from_slice(&std::fs::read(data.join("secrets/log.json"))?)?;
    let text = |field: &str| secret[field].as_str().context("a field of log.json");
    let db = Db::open(&format!("sqlite:{}", data.join("portcullis.db").display())).await?;
    let settings = Settings {
        name: tlog::Name::Signatures,
        db: db.clone(),
        blobs: Blobs::folder(&data.join("blobs"))?,
        key: LogKey::new(text("origin")?, &BASE64.decode(text("private_key")?)?)?,
        holder: "bench".to_owned(),
        server: "bench".to_owned(),
        lease_ttl: Duration::from_secs(5),
        shared: false,
        owner: None,
        mark: None,
    };
    Ok((Tlog::open(settings).await?, db))
}

/// Fills a log up to `size` entries: accepted, sequenced, made durable and moved into tiles as for any caller. One
/// in [`SIGNED_EACH`] is really signed and checked; the others have the same form and size, and signatures of chance,
/// which saves most of the hour: what is measured here is the tree and not the curve.
async fn fill(data: &Path, size: u64) -> Result<()> {
    let (tlog, db) = open(data).await?;
    while !tlog.info().await?.leading {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (signer, _) = LocalSigner::generate()?;
    let from = tlog.checkpoint().await?.size;
    let (began, mut done) = (now(), from);
    while done < size {
        // A log whose tiles are behind refuses more, so they get their time.
        while done - tlog.info().await?.tiled > TAIL_ENTRIES_MAX / 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let next = size.min(done + FILL_CHUNK);
        let include = async |number| {
            tlog.include(entry(&signer, number)?).await?;
            Ok::<_, anyhow::Error>(())
        };
        let included = stream::iter(done..next).map(include).buffer_unordered(FILLERS);
        included.try_for_each(|()| std::future::ready(Ok(()))).await?;
        if done / PROGRESS_EACH != next / PROGRESS_EACH {
            let rate = (next - from) as f64 / began.elapsed().as_secs_f64();
            eprintln!("  filled {next} of {size}, {rate:.0}/s so far");
        }
        done = next;
    }
    tlog.close().await;
    db.close().await;
    Ok(())
}

/// Entry `number` of a filled log.
fn entry(signer: &LocalSigner, number: u64) -> Result<Accepted> {
    let digest = Digest::of(&number.to_be_bytes());
    let signed = number.is_multiple_of(SIGNED_EACH);
    let signature = match signed {
        true => signer.sign_now(digest)?,
        false => [
            digest.as_bytes(),
            Digest::of(digest.as_bytes()).as_bytes(),
            &[0; 7][..],
        ]
        .concat(),
    };
    let verifier = Verifier::PublicKey(signer.public_key().spki().to_vec());
    let record = HashedRekord {
        digest: digest.as_bytes().to_vec(),
        signature,
        verifier,
    };
    if signed {
        return Ok(record.accept()?);
    }
    let body = record.body(&record.verifier.algorithm()?);
    Ok(Accepted {
        leaf: leaf_hash(&body),
        body,
    })
}

/// Reads entries at random places as a client does that proves them by itself, and has the server prove them too,
/// which is what it does when an entry is sent again.
async fn read(server: &Server, size: u64) -> Result<Times> {
    let note = server.get("/api/v2/checkpoint").await?;
    let held: u64 = note.lines().nth(1).context("no checkpoint")?.parse()?;
    ensure!(held >= size, "the log has {held} entries");
    load::run(READS, 8, |number| async move {
        // Spread over the whole log, the same ones in each run (Fibonacci hashing).
        let index = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) % (size / SIGNED_EACH) * SIGNED_EACH;
        let mut level = 0;
        while held >> (8 * level) > 0 {
            let tile = index >> (8 * (level + 1));
            let width = TilePath::width_at(Some(level), tile, held);
            if width > 0 {
                bytes(server, TilePath::full(level, tile).with_width(width)).await?;
            }
            level += 1;
        }
        let bundle = index / TILE_WIDTH;
        let width = TilePath::width_at(None, bundle, held);
        let entries = parse_bundle(
            &bytes(server, TilePath::bundle(bundle).with_width(width)).await?,
            width,
        )?;
        let body: Value = serde_json::from_slice(&entries[(index % TILE_WIDTH) as usize])?;
        let answer = server.post("/api/v2/log/entries", &request(&body)).await?;
        ensure!(
            answer["logIndex"].as_str() == Some(index.to_string().as_str()),
            "entry {index} was not found again: {answer}"
        );
        Ok(())
    })
    .await
}

/// The request that made an entry.
fn request(body: &Value) -> Value {
    let record = &body["spec"]["hashedRekordV002"];
    json!({ "hashedRekordRequestV002": {
        "digest": record["data"]["digest"],
        "signature": record["signature"],
    } })
}

async fn bytes(server: &Server, path: TilePath) -> Result<Vec<u8>> {
    let address = format!("{}/api/v2/{path}", server.url);
    let answer = server.http.get(address).send().await?.error_for_status()?;
    Ok(answer.bytes().await?.to_vec())
}

/// Runs `log fsck` over the folder of a stopped server: seconds, and the most memory that it held in MB.
async fn fsck(data: &Path) -> Result<(f64, f64)> {
    let began = now();
    let mut child = tokio::process::Command::new(program()?)
        .args(["log", "fsck", "--quiet"])
        .arg(data)
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let pid = child.id().context("no process")?;
    let mut peak: f64 = 0.0;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            // Between its end and our look there is nothing to read.
            None => peak = peak.max(peak_memory(pid).unwrap_or_default()),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    ensure!(status.success(), "log fsck ended with {status}");
    Ok((began.elapsed().as_secs_f64(), peak))
}
