//! The server that is measured: the release build, a process of its own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::load::now;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// Clock ticks of `/proc/<pid>/stat` in a second (USER_HZ, 100 on every Linux).
const TICKS: f64 = 100.0;

/// The program.
pub fn program() -> Result<PathBuf> {
    let beside = std::env::current_exe()?.with_file_name("portcullis");
    if beside.exists() {
        Ok(beside)
    } else {
        bail!("{} is missing", beside.display())
    }
}

pub struct Server {
    pub url: String,
    /// The administrator's, which is printed by the first start on a folder only; else empty.
    pub token: String,
    pub http: reqwest::Client,
    child: tokio::process::Child,
    /// Removed at the end.
    _folder: Option<tempfile::TempDir>,
}

/// The longest start: on a log of many millions of entries.
const START_SECONDS_MAX: u64 = 120;
/// How often a server is asked whether it is ready, in milliseconds; the error of the time to ready.
const READY_POLL_MS: u64 = 2;

impl Server {
    /// Starts one on an empty folder. `formats` as in the configuration.
    pub async fn start(formats: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut server = Self::open(folder.path(), &[("PORTCULLIS_SIGNING_FORMATS", formats)]).await?;
        server._folder = Some(folder);
        Ok(server)
    }

    /// The same, on one core of the machine.
    pub async fn start_on_one_core(formats: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let settings = [("PORTCULLIS_SIGNING_FORMATS", formats)];
        let mut server = Self::open_on_one_core(folder.path(), &settings).await?;
        server._folder = Some(folder);
        Ok(server)
    }

    /// As [`Self::open`], on one core of the machine.
    pub async fn open_on_one_core(folder: &Path, settings: &[(&str, &str)]) -> Result<Self> {
        Self::spawn(folder, settings, &["taskset", "--cpu-list", "0"]).await
    }

    /// Starts one on what is in `folder`, with more of the configuration in its environment; ready when this
    /// returns.
    pub async fn open(folder: &Path, settings: &[(&str, &str)]) -> Result<Self> {
        Self::spawn(folder, settings, &[]).await
    }

    /// Starts one behind the command `before`.
    async fn spawn(folder: &Path, settings: &[(&str, &str)], before: &[&str]) -> Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = std::fs::File::create(folder.join("server.log"))?;
        let first = !folder.join("data").exists();
        let program = program()?.display().to_string();
        let words = [before, &[program.as_str()]].concat();
        let mut child = tokio::process::Command::new(words[0])
            .args(&words[1..])
            .args(["serve", "--listen", &address.to_string(), "--data"])
            .arg(folder.join("data"))
            .current_dir(folder)
            .envs(settings.iter().copied())
            .env("RUST_LOG", "warn")
            .stdout(if first { Stdio::piped() } else { Stdio::null() })
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let mut token = String::new();
        if let Some(output) = child.stdout.take() {
            let mut lines = BufReader::new(output).lines();
            while token.is_empty() {
                let line = lines.next_line().await?.context("the server printed no token")?;
                let found = line.trim().strip_prefix("export PORTCULLIS_TOKEN=");
                token = found.unwrap_or_default().to_owned();
            }
        }
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(120))
            .build()?;
        let mut server = Self {
            url: format!("http://{address}"),
            token,
            http,
            child,
            _folder: None,
        };
        server.ready().await?;
        Ok(server)
    }

    async fn ready(&mut self) -> Result<()> {
        let address = format!("{}/readyz", self.url);
        for _ in 0..START_SECONDS_MAX * 1_000 / READY_POLL_MS {
            let answer = self.http.get(&address).send().await;
            if answer.is_ok_and(|answer| answer.status() == 200) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended with {status}");
            }
            tokio::time::sleep(Duration::from_millis(READY_POLL_MS)).await;
        }
        bail!("the server is not ready after {START_SECONDS_MAX} s")
    }

    /// Stops it as an operator does.
    pub async fn stop(mut self) -> Result<()> {
        let pid = self.pid().to_string();
        let sent = std::process::Command::new("kill")
            .args(["-TERM", &pid])
            .status()?;
        ensure!(sent.success(), "the signal was not sent");
        let status = self.child.wait().await?;
        ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }

    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Seconds of processor time that the server used so far.
    pub fn cpu(&self) -> Result<f64> {
        let fields = stat(&self.pid().to_string())?;
        Ok((fields[13] + fields[14]) / TICKS)
    }

    /// The most memory that the server held, in MB.
    pub fn peak_memory(&self) -> Result<f64> {
        peak_memory(self.pid())
    }

    /// Counts the most memory from here on (`clear_refs`, proc(5)).
    pub fn forget_peak_memory(&self) -> Result<()> {
        let path = format!("/proc/{}/clear_refs", self.pid());
        std::fs::write(&path, "5").with_context(|| format!("writing {path}"))
    }

    pub async fn get(&self, path: &str) -> Result<String> {
        let answer = self
            .http
            .get(format!("{}{path}", self.url))
            .bearer_auth(&self.token)
            .send()
            .await?;
        Ok(answer.error_for_status()?.text().await?)
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.post_as(&self.token, path, body).await
    }

    /// Signs, or is refused.
    pub async fn try_sign(&self, body: &Value) -> Result<Answer> {
        let began = now();
        let address = format!("{}/api/v1/signatures", self.url);
        let request = self.http.post(address).bearer_auth(&self.token).json(body);
        let answer = request.send().await?;
        let (status, retry_after) = (
            answer.status().as_u16(),
            answer.headers().contains_key("retry-after"),
        );
        answer.bytes().await?;
        let ended = now();
        Ok(Answer {
            status,
            retry_after,
            ms: ended.duration_since(began).as_secs_f64() * 1e3,
            ended,
        })
    }

    pub async fn patch(&self, path: &str, body: &Value) -> Result<()> {
        let address = format!("{}{path}", self.url);
        let request = self.http.patch(address).bearer_auth(&self.token).json(body);
        request.send().await?.error_for_status()?;
        Ok(())
    }

    pub async fn post_as(&self, token: &str, path: &str, body: &Value) -> Result<Value> {
        let answer = self
            .http
            .post(format!("{}{path}", self.url))
            .bearer_auth(token)
            .json(body)
            .send()
            .await?;
        let status = answer.status();
        let body: Value = answer
            .json()
            .await
            .with_context(|| format!("{path} answered {status}"))?;
        ensure!(status.is_success(), "{path} answered {status}: {body}");
        Ok(body)
    }

    /// Signs an image that nobody has signed; how many milliseconds it took.
    pub async fn sign_new(&self, token: &str, image: &str) -> Result<f64> {
        let began = now();
        let body = serde_json::json!({ "image": image });
        let answer = self.post_as(token, "/api/v1/signatures", &body).await?;
        ensure!(answer["deduplicated"] == false, "not new: {answer}");
        Ok(began.elapsed().as_secs_f64() * 1e3)
    }

    /// Signs all images in batches; fails if any was not signed.
    pub async fn sign(&self, images: &[String]) -> Result<()> {
        for chunk in images.chunks(1_000) {
            let items: Vec<Value> = chunk
                .iter()
                .map(|image| serde_json::json!({ "image": image }))
                .collect();
            let lines = self
                .post("/api/v1/signatures:batch", &serde_json::json!({ "items": items }))
                .await?;
            for line in lines.as_array().context("no list")? {
                ensure!(line["signature"].is_object(), "not signed: {line}");
            }
        }
        Ok(())
    }
}

/// What came of one request to sign.
pub struct Answer {
    pub status: u16,
    pub retry_after: bool,
    pub ms: f64,
    ended: Instant,
}

impl Answer {
    /// Seconds from `began` to its end.
    pub fn ended_s(&self, began: Instant) -> f64 {
        self.ended.duration_since(began).as_secs_f64()
    }
}

/// The most memory that a running process held, in MB.
pub fn peak_memory(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("no VmHWM")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// Seconds of processor time of this process's children that have ended.
pub fn children_cpu() -> Result<f64> {
    let fields = stat("self")?;
    Ok((fields[15] + fields[16]) / TICKS)
}

/// The numbers of `/proc/<pid>/stat`, counted from 0 as in proc(5) from 1; the name in brackets is left out.
fn stat(pid: &str) -> Result<Vec<f64>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = text.rsplit_once(") ").context("no stat")?;
    let numbers = rest.split_whitespace().map(|field| field.parse().unwrap_or(0.0));
    Ok([0.0, 0.0].into_iter().chain(numbers).collect())
}
