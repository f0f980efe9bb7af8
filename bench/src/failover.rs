//! How long nobody can sign when the server that appends to the log dies or freezes: three servers on one PostgreSQL.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use testkit::Postgres;

use crate::figures::{Figure, Target};
use crate::load::{Times, now};
use crate::server::Server;
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
/// The secrets that servers of one database share: section, key, and the file that the first one makes.
const SECRETS: [(&str, &str, &str); 3] = [
    ("log", "key_file", "log.json"),
    ("audit", "key_file", "audit.json"),
    ("keys", "password_file", "keys.password"),
];

/// Servers of one database, each with a folder of its own.
struct Fleet {
    servers: Vec<Arc<Server>>,
    folders: Vec<tempfile::TempDir>,
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

impl Fleet {
    async fn start(postgres: &Postgres) -> Result<Self> {
        let folders = (0..SERVERS)
            .map(|_| tempfile::tempdir())
            .collect::<Result<Vec<_>, _>>()?;
        let blobs = folders[0].path().join("blobs");
        let common = format!(
            "[database]\nurl = {:?}\n[blobs]\nurl = {blobs:?}\n[signing]\nformats = [\"bundle\"]\n",
            postgres.database()
        );
        std::fs::write(folders[0].path().join("portcullis.toml"), &common)?;
        let mut servers = vec![Arc::new(Server::open(folders[0].path(), &[]).await?)];
        let secrets = folders[0].path().join("data/secrets");
        let shared: String = SECRETS
            .iter()
            .map(|(section, key, file)| format!("[{section}]\n{key} = {:?}\n", secrets.join(file)))
            .collect();
        for folder in &folders[1..] {
            std::fs::write(folder.path().join("portcullis.toml"), format!("{common}{shared}"))?;
            servers.push(Arc::new(Self::join(folder.path(), &servers[0].token).await?));
        }
        Ok(Self {
            servers,
            folders,
            images: Images::new(true).await?,
            next: 0,
        })
    }

    /// Starts a server on a database that has its administrator already.
    async fn join(folder: &Path, token: &str) -> Result<Server> {
        std::fs::create_dir_all(folder.join("data"))?;
        let mut server = Server::open(folder, &[]).await?;
        token.clone_into(&mut server.token);
        Ok(server)
    }

    async fn leader(&self) -> Result<usize> {
        for _ in 0..200 {
            for (at, server) in self.servers.iter().enumerate() {
                if server
                    .get("/metrics")
                    .await?
                    .contains("portcullis_tlog_leads 1\n")
                {
                    return Ok(at);
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        None.context("no server appends to the log")
    }

    /// Takes the leader away by a signal, and asks the others.
    async fn lose_leader(&mut self, signal: &str, seen: &mut Seen) -> Result<()> {
        let leader = self.leader().await?;
        let rounds = (WATCHED.as_millis() as u64 / EVERY_MS) as usize;
        let name = format!("round{}", self.next);
        self.next += 1;
        let images = self.images.put(&name, 2 * rounds + 1).await?;
        let (known, images) = images.split_last().context("no images")?;
        for server in &self.servers {
            server
                .post("/api/v1/signatures", &json!({ "image": known }))
                .await?;
            server
                .post("/api/v1/verifications", &json!({ "image": known }))
                .await?;
        }
        let pid = self.servers[leader].pid().to_string();
        ensure!(
            Command::new("kill")
                .args([&format!("-{signal}"), &pid])
                .status()?
                .success(),
            "the signal was not sent"
        );
        let began = now();
        let others = [1, 2].map(|next| self.servers[(leader + next) % SERVERS].clone());
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
        if signal == "STOP" {
            let pid = self.servers[leader].pid().to_string();
            Command::new("kill").args(["-CONT", &pid]).status()?;
        } else {
            let token = self.servers[leader].token.clone();
            let server = Self::join(self.folders[leader].path(), &token).await?;
            self.servers[leader] = Arc::new(server);
        }
        tokio::time::sleep(SETTLE).await;
        Ok(())
    }
}

/// kill -9 and SIGSTOP of the leader.
pub async fn gaps() -> Result<Vec<Figure>> {
    let program = testkit::peers::find("postgresql").context("there is no PostgreSQL on this machine")?;
    let postgres = Postgres::start_with(&program, &[])?;
    let mut fleet = Fleet::start(&postgres).await?;
    let mut figures = Vec::new();
    for (signal, what) in [
        ("KILL", "its leader is killed (kill -9)"),
        ("STOP", "its leader freezes (SIGSTOP)"),
    ] {
        let mut seen = Seen::default();
        for _ in 0..TIMES {
            fleet.lose_leader(signal, &mut seen).await?;
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
