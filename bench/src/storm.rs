//! One project that asks for too much, and the others.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::figures::{Figure, Target};
use crate::load::{Times, now};
use crate::server::Server;
use crate::signing_cost::Images;

/// Projects beside the one that storms.
const OTHERS: usize = 20;
/// Images of the storm, of which so many changed, each asked for so many times at once.
const IMAGES: usize = 400;
const CHANGED: usize = 3;
const TIMES: usize = 3;
/// What the registry takes for each call: a registry in the same data centre, on an object store.
const LATENCY: Duration = Duration::from_millis(15);
/// New images that each other project signs while it is measured, and its pause between them.
const SIGNED_EACH: usize = 12;
const PAUSE: Duration = Duration::from_millis(100);

/// The other projects: a token and its images.
struct Other {
    token: String,
    images: Vec<String>,
}

/// One core for the server, a slow registry, 20 other projects.
pub async fn storm() -> Result<Vec<Figure>> {
    let images = Images::new(true).await?;
    // Without the legacy tag, whose lost updates are looked for after a while: nothing hides what waits in a queue.
    let server = Arc::new(Server::start_on_one_core("bundle").await?);
    let tags = tagged(&images, "fleet", IMAGES, "first").await?;
    server.sign(&tags).await?;
    let others = others(&server, &images).await?;
    images.registry.fault(|plan| plan.latency = LATENCY);

    // Idle: each of the others alone with the other others.
    let quiet = all_sign(&server, &others, 0).await?;
    let changed = tagged(&images, "fleet", CHANGED, "second").await?;
    let before = log_size(&server).await?;
    let storming = {
        let (server, tags) = (server.clone(), tags.clone());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(300)).await;
            rush(&server, &tags).await
        })
    };
    let busy = all_sign(&server, &others, 1).await?;
    let storm = storming.await??;
    ensure!(changed.len() == CHANGED, "the storm changed other images");
    let grown = log_size(&server).await? - before - (OTHERS * SIGNED_EACH) as f64;
    let figure = |what: String, unit, portcullis, peer, peer_value, target| Figure {
        bench: "storm",
        what,
        unit,
        portcullis,
        peer,
        peer_value,
        target,
    };
    let count = IMAGES * TIMES;
    Ok(vec![
        figure(
            format!("new signatures of {count} requests at once, {CHANGED} images changed"),
            "",
            storm.new as f64,
            "changed images",
            Some(CHANGED as f64),
            Target::AtMostTimes(1.0),
        ),
        figure(
            "log entries of the storm".to_owned(),
            "",
            grown,
            "changed images",
            Some(CHANGED as f64),
            Target::AtMostTimes(1.0),
        ),
        figure(
            "until the last answer of the storm".to_owned(),
            "ms",
            storm.times.quantile(1.0),
            "",
            None,
            Target::AtMost(2_000.0),
        ),
        figure(
            format!("p99 of {OTHERS} other projects in the storm"),
            "ms",
            busy.quantile(0.99),
            "the same, idle",
            Some(quiet.quantile(0.99)),
            Target::AtMostTimes(1.5),
        ),
        figure(
            "peak memory of the server".to_owned(),
            "MB",
            server.peak_memory()?,
            "",
            None,
            Target::AtMost(1_024.0),
        ),
    ])
}

struct Storm {
    /// Signatures that were made for it.
    new: usize,
    times: Times,
}

/// All images, each so many times, all at once.
async fn rush(server: &Arc<Server>, tags: &[String]) -> Result<Storm> {
    let mut tasks = Vec::with_capacity(tags.len() * TIMES);
    for image in tags.iter().cycle().take(tags.len() * TIMES) {
        let (server, image) = (server.clone(), image.clone());
        tasks.push(tokio::spawn(async move {
            let began = now();
            let answer = server
                .post("/api/v1/signatures", &json!({ "image": image }))
                .await?;
            let ms = began.elapsed().as_secs_f64() * 1e3;
            let id = answer["id"].to_string();
            anyhow::Ok((ms, (answer["deduplicated"] != true).then_some(id)))
        }));
    }
    let (mut times, mut new) = (Vec::with_capacity(tasks.len()), HashSet::new());
    for task in tasks {
        let (ms, id) = task.await??;
        times.push(ms);
        new.extend(id);
    }
    Ok(Storm {
        new: new.len(),
        times: Times::of(times),
    })
}

/// Every other project signs its images, one after the other with a pause; `round` says which of them.
async fn all_sign(server: &Arc<Server>, others: &[Other], round: usize) -> Result<Times> {
    let mut tasks = Vec::new();
    for (number, other) in others.iter().enumerate() {
        let images = other.images[round * SIGNED_EACH..(round + 1) * SIGNED_EACH].to_vec();
        let (server, token) = (server.clone(), other.token.clone());
        tasks.push(tokio::spawn(async move {
            // Not all in one moment.
            tokio::time::sleep(PAUSE * u32::try_from(number)? / u32::try_from(OTHERS)?).await;
            let mut times = Vec::new();
            for image in images {
                let began = now();
                let body = json!({ "image": image });
                let answer = server.post_as(&token, "/api/v1/signatures", &body).await?;
                ensure!(answer["deduplicated"] == false, "not new: {answer}");
                times.push(began.elapsed().as_secs_f64() * 1e3);
                tokio::time::sleep(PAUSE).await;
            }
            anyhow::Ok(times)
        }));
    }
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    Ok(Times::of(times))
}

async fn others(server: &Server, images: &Images) -> Result<Vec<Other>> {
    let mut others = Vec::with_capacity(OTHERS);
    for number in 0..OTHERS {
        let project = format!("other-{number}");
        let body = json!({ "name": project, "images": ["**"] });
        server.post("/api/v1/projects", &body).await?;
        let token = json!({ "name": "ci", "role": "admin", "project": project });
        let token = server.post("/api/v1/tokens", &token).await?;
        let token = token["token"].as_str().context("no token")?.to_owned();
        let key = json!({ "name": "default" });
        server.post_as(&token, "/api/v1/keys", &key).await?;
        // A key that is opened for the first time takes a tenth of a second, which is not what is measured.
        let first = images.put(&format!("{project}-first"), 1).await?.remove(0);
        server
            .post_as(&token, "/api/v1/signatures", &json!({ "image": first }))
            .await?;
        let images = images.put(&project, SIGNED_EACH * 2).await?;
        others.push(Other { token, images });
    }
    Ok(others)
}

/// Images by tag, as pipelines name them; those that there were with other content have changed.
async fn tagged(images: &Images, name: &str, count: usize, content: &str) -> Result<Vec<String>> {
    let mut tags = Vec::with_capacity(count);
    for number in 0..count {
        let repository = format!("{name}/{number}");
        let content = format!("{name} {number} {content}");
        images.registry.put_image(&repository, "1", &content).await?;
        tags.push(format!("{}/{repository}:1", images.host()));
    }
    Ok(tags)
}

async fn log_size(server: &Server) -> Result<f64> {
    let note = server.get("/api/v2/checkpoint").await?;
    let size = note.lines().nth(1).context("no size in the checkpoint")?;
    Ok(size.parse()?)
}

/// So many connections that are open at once and idle.
const CONNECTIONS: usize = 5_000;
/// Clients that ask at once.
const CLIENTS: usize = 2_000;

/// Many clients at once on one core: answers or orderly refusals, and bounded memory.
pub async fn clients() -> Result<Vec<Figure>> {
    let images = Images::new(true).await?;
    let server = Arc::new(Server::start_on_one_core("bundle").await?);
    let known = images.put("known", 200).await?;
    server.sign(&known).await?;
    let fresh = images.put("fresh", CLIENTS).await?;
    let (mut wrong, mut refused, mut slowest_refusal) = (0, 0, 0.0_f64);
    let mut tasks = Vec::new();
    for number in 0..CLIENTS {
        // Every second one has something new.
        let image = if number % 2 == 0 {
            &known[number % known.len()]
        } else {
            &fresh[number]
        };
        let (server, body) = (server.clone(), json!({ "image": image }));
        tasks.push(tokio::spawn(async move { server.try_sign(&body).await }));
    }
    let began = now();
    for task in tasks {
        let answer = task.await??;
        match answer.status {
            200 | 201 => {}
            429 | 503 if answer.retry_after => {
                refused += 1;
                slowest_refusal = slowest_refusal.max(answer.ms);
            }
            _ => wrong += 1,
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    eprintln!(
        "  {CLIENTS} clients answered in {seconds:.1} s, {refused} refused in order (slowest {slowest_refusal:.0} ms)"
    );
    let idle = idle_connections(&server.url).await?;
    let answered = server.try_sign(&json!({ "image": known[0] })).await?;
    ensure!(
        answered.status == 200,
        "beside {CONNECTIONS} connections: {}",
        answered.status
    );
    drop(idle);
    Ok(vec![
        Figure {
            bench: "clients",
            what: format!("errors other than 429 and 503, {CLIENTS} clients at once"),
            unit: "",
            portcullis: f64::from(wrong),
            peer: "",
            peer_value: None,
            target: Target::AtMost(0.0),
        },
        Figure {
            bench: "clients",
            what: format!("peak memory with {CONNECTIONS} connections"),
            unit: "MB",
            portcullis: server.peak_memory()?,
            peer: "",
            peer_value: None,
            target: Target::AtMost(256.0),
        },
    ])
}

/// Connections that have each asked once and stay open.
async fn idle_connections(url: &str) -> Result<Vec<tokio::net::TcpStream>> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let address = url.trim_start_matches("http://");
    let mut open = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        stream
            .write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            .await?;
        let mut answer = [0; 512];
        let read = stream.read(&mut answer).await?;
        ensure!(read > 0, "connection {} was closed", open.len());
        open.push(stream);
    }
    Ok(open)
}

/// Requests a second that are offered beside what the server can do.
const OVERLOAD_TIMES: f64 = 10.0;
const OVERLOAD_SECONDS: f64 = 8.0;

/// Ten times as much new work as the server can do, from one project, offered at an even pace.
pub async fn overload() -> Result<Vec<Figure>> {
    let images = Images::new(true).await?;
    let server = Arc::new(Server::start_on_one_core("bundle").await?);
    images.registry.fault(|plan| plan.latency = LATENCY);
    let body = json!({ "quota": { "signatures_per_minute": 1_000_000, "burst": 1_000_000 } });
    server.patch("/api/v1/projects/default", &body).await?;
    let warm = images.put("warm", 1_000).await?;
    let peak = offered(&server, warm, 128, None).await?;
    let rate = peak.good_per_second * OVERLOAD_TIMES;
    let count = (rate * OVERLOAD_SECONDS) as usize;
    let fresh = images.put("fresh", count).await?;
    let loaded = offered(&server, fresh, usize::MAX, Some(rate)).await?;
    eprintln!(
        "  peak {:.0}/s; offered {rate:.0}/s: {:.0}/s signed, {} refused, {} wrong",
        peak.good_per_second, loaded.good_per_second, loaded.refused, loaded.wrong
    );
    ensure!(
        loaded.wrong == 0,
        "{} answers were neither signatures nor refusals",
        loaded.wrong
    );
    Ok(vec![
        Figure {
            bench: "overload",
            what: "new signatures at ten times the load".to_owned(),
            unit: "/s",
            portcullis: loaded.good_per_second,
            peer: "peak",
            peer_value: Some(peak.good_per_second),
            target: Target::TimesMore(0.9),
        },
        Figure {
            bench: "overload",
            what: "p99 of a refusal".to_owned(),
            unit: "ms",
            portcullis: loaded.refusals.quantile(0.99),
            peer: "",
            peer_value: None,
            target: Target::AtMost(50.0),
        },
    ])
}

struct Offered {
    good_per_second: f64,
    refused: usize,
    wrong: usize,
    refusals: Times,
}

/// Offers images to sign: with at most `at_once` open, or at a pace of so many a second.
async fn offered(
    server: &Arc<Server>,
    images: Vec<String>,
    at_once: usize,
    pace: Option<f64>,
) -> Result<Offered> {
    let began = now();
    let room = Arc::new(tokio::sync::Semaphore::new(at_once.min(20_000)));
    let mut tasks = Vec::with_capacity(images.len());
    for (number, image) in images.into_iter().enumerate() {
        if let Some(pace) = pace {
            let due = Duration::from_secs_f64(number as f64 / pace);
            tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
        }
        let place = room.clone().acquire_owned().await?;
        let (server, body) = (server.clone(), json!({ "image": image }));
        tasks.push(tokio::spawn(async move {
            let answer = server.try_sign(&body).await;
            drop(place);
            answer
        }));
    }
    let offering = began.elapsed().as_secs_f64();
    let (mut good, mut wrong, mut refusals) = (0_usize, 0, Vec::new());
    for task in tasks {
        let answer = task.await??;
        match answer.status {
            201 => good += usize::from(pace.is_none() || answer.ended_s(began) <= offering),
            429 | 503 => refusals.push(answer.ms),
            _ => wrong += 1,
        }
    }
    let seconds = if pace.is_some() {
        offering
    } else {
        began.elapsed().as_secs_f64()
    };
    Ok(Offered {
        good_per_second: good as f64 / seconds,
        refused: refusals.len(),
        wrong,
        refusals: Times::of(refusals),
    })
}
