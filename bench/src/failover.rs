//! How long nobody can sign when the server that appends to the log dies or freezes: three servers on one PostgreSQL.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use testkit::Postgres;

use crate::figures::{Figure, Target};
use crate::fleet::Fleet;
use crate::load::{Times, now};
use crate::signing_cost::Images;

const SERVERS: usize = 3;
/// How often the leader is taken away, each way.
const TIMES: usize = 5;
/// How often somebody asks for a new signature at each of the others, in milliseconds.
const EVERY_MS: u64 = 25;
/// For how long they ask.
const WATCHED: Duration = Duration::from_secs(7);
/// How long a lease and a probe need to settle after the leader is back.
const SETTLE: Duration = Duration::from_secs(2);
/// Servers that lose their leader again and again.
struct Bereaved {
    fleet: Fleet,
    images: Images,
    next: usize,
}

/// What the others saw while the leader was away.
#[derive(Default)]
struct Seen {
    /// Seconds from the loss to the first signature that was asked for after it.
    gaps: Vec<f64>,
    failed: usize,
    asked: usize,
    /// Milliseconds of verifications of a known image.
    verified: Vec<f64>,
}

impl Bereaved {
    /// Takes the leader away by a signal, and asks the others.
    async fn lose_leader(&mut self, signal: &str, seen: &mut Seen) -> Result<()> {
        let leader = self.fleet.leader().await?;
        let rounds = (WATCHED.as_millis() as u64 / EVERY_MS) as usize;
        let name = format!("round{}", self.next);
        self.next += 1;
        let images = self.images.put(&name, 2 * rounds + 1).await?;
        let (known, images) = images.split_last().context("no images")?;
        for server in self.fleet.servers() {
            server
                .post("/api/v1/signatures", &json!({ "image": known }))
                .await?;
            server
                .post("/api/v1/verifications", &json!({ "image": known }))
                .await?;
        }
        self.fleet.signal(leader, signal)?;
        let began = now();
        let others = [1, 2].map(|next| self.fleet.servers()[(leader + next) % SERVERS].clone());
        let mut tasks = Vec::new();
        for (round, pair) in images.chunks(2).enumerate() {
            for (server, image) in others.iter().zip(pair) {
                let (server, image, known) = (server.clone(), image.clone(), known.clone());
                tasks.push(tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(EVERY_MS * round as u64)).await;
                    let answer = server.try_sign(&json!({ "image": image })).await?;
                    let asked = now();
                    let verdict = server
                        .post("/api/v1/verifications", &json!({ "image": known }))
                        .await?;
                    ensure!(
                        verdict["verified"] == true,
                        "a known image is not verified: {verdict}"
                    );
                    let ms = asked.elapsed().as_secs_f64() * 1e3;
                    let signed = (answer.status == 201).then(|| answer.ended_s(began));
                    anyhow::Ok((signed, ms))
                }));
            }
        }
        let mut first = f64::INFINITY;
        for task in tasks {
            let (signed, ms) = task.await??;
            seen.asked += 1;
            seen.verified.push(ms);
            match signed {
                Some(at) => first = first.min(at),
                None => seen.failed += 1,
            }
        }
        seen.gaps.push(first);
        self.bring_back(leader, signal).await
    }

    async fn bring_back(&mut self, leader: usize, signal: &str) -> Result<()> {
        match signal {
            "STOP" => self.fleet.signal(leader, "CONT")?,
            _ => {
                let server = self.fleet.launch(leader).await?;
                self.fleet.put(leader, server);
            }
        }
        tokio::time::sleep(SETTLE).await;
        Ok(())
    }
}

/// kill -9 and SIGSTOP of the leader.
pub async fn gaps() -> Result<Vec<Figure>> {
    let program = testkit::peers::find("postgresql").context("there is no PostgreSQL on this machine")?;
    let postgres = Postgres::start_with(&program, &[])?;
    let mut bereaved = Bereaved {
        fleet: Fleet::start(&postgres, SERVERS).await?,
        images: Images::new(true).await?,
        next: 0,
    };
    let mut figures = Vec::new();
    for (signal, what) in [
        ("KILL", "its leader is killed (kill -9)"),
        ("STOP", "its leader freezes (SIGSTOP)"),
    ] {
        let mut seen = Seen::default();
        for _ in 0..TIMES {
            bereaved.lose_leader(signal, &mut seen).await?;
        }
        let figure = |what, unit, portcullis, target| Figure {
            bench: "failover",
            what,
            unit,
            portcullis,
            peer: "",
            peer_value: None,
            target,
        };
        let longest = seen.gaps.iter().copied().fold(0.0, f64::max);
        figures.extend([
            figure(
                format!("nobody can sign after {what}, longest of {TIMES}"),
                "s",
                longest,
                Target::AtMost(5.0),
            ),
            figure(
                format!("calls to the other two that fail then, of {}", seen.asked),
                "",
                seen.failed as f64,
                Target::AtMost(0.0),
            ),
            figure(
                "p99 of verifying a known image meanwhile".to_owned(),
                "ms",
                Times::of(seen.verified).quantile(0.99),
                Target::AtMost(100.0),
            ),
        ]);
    }
    Ok(figures)
}
