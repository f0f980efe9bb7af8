//! The server that is measured: the release build, a process of its own.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

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
    pub token: String,
    pub http: reqwest::Client,
    child: tokio::process::Child,
    _data: tempfile::TempDir,
}

impl Server {
    /// Starts one on an empty folder. `formats` as in the configuration.
    pub async fn start(formats: &str) -> Result<Self> {
        let data = tempfile::tempdir()?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = std::fs::File::create(data.path().join("server.log"))?;
        let mut child = tokio::process::Command::new(program()?)
            .args(["serve", "--listen", &address.to_string(), "--data"])
            .arg(data.path().join("data"))
            .current_dir(data.path())
            .env("PORTCULLIS_SIGNING_FORMATS", formats)
            .env("RUST_LOG", "warn")
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let token = loop {
            let line = lines.next_line().await?.context("the server printed no token")?;
            if let Some(token) = line.trim().strip_prefix("export PORTCULLIS_TOKEN=") {
                break token.to_owned();
            }
        };
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(120))
            .build()?;
        let server = Self {
            url: format!("http://{address}"),
            token,
            http,
            child,
            _data: data,
        };
        for _ in 0..500 {
            if server
                .http
                .get(format!("{}/readyz", server.url))
                .send()
                .await
                .is_ok_and(|answer| answer.status() == 200)
            {
                return Ok(server);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("the server is not ready after 10 s")
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
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .context("no VmHWM")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
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
        let answer = self
            .http
            .post(format!("{}{path}", self.url))
            .bearer_auth(&self.token)
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
