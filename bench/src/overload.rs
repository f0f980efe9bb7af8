//! More clients, connections and requests than one core can serve.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::figures::{Figure, Target};
use crate::load::{Times, now};
use crate::server::Server;
use crate::signing_cost::Images;
use crate::storm::LATENCY;

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
