//! The server of the story: a child process.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::codes;
use crate::config::FILE;
use crate::failure::Failure;

/// How long a start may take, in seconds; it takes a tenth of one.
const START_SECONDS_MAX: u64 = 30;
/// Pause between two looks whether the server is ready, in milliseconds.
const POLL_MS: u64 = 20;

pub struct ServerProcess {
    pub url: String,
    pub token: String,
    listen: String,
    data: PathBuf,
    child: Child,
}

impl ServerProcess {
    pub async fn start(data: &Path) -> Result<Self, Failure> {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let listen = free
            .map_err(|error| Failure::local("finding a free port", &error))?
            .to_string();
        let mut child = spawn(data, &listen)?;
        let token = token(&mut child).await?;
        let server = Self {
            url: format!("http://{listen}"),
            token,
            listen,
            data: data.to_owned(),
            child,
        };
        server.ready().await?;
        Ok(server)
    }

    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// SIGKILL: no handler runs, nothing is flushed.
    pub async fn kill_and_restart(&mut self) -> Result<(), Failure> {
        self.child
            .kill()
            .await
            .map_err(|error| Failure::local("killing the server", &error))?;
        self.child = spawn(&self.data, &self.listen)?;
        self.ready().await
    }

    /// Starts it anew with this configuration.
    pub async fn reconfigure(&mut self, config: &str) -> Result<(), Failure> {
        let file = self.data.join(FILE);
        std::fs::write(&file, config).map_err(|error| Failure::file("writing", &file, &error))?;
        self.kill_and_restart().await
    }

    pub async fn stop(&mut self) -> Result<(), Failure> {
        self.child
            .kill()
            .await
            .map_err(|error| Failure::local("stopping the server", &error))
    }

    async fn ready(&self) -> Result<(), Failure> {
        let http = crate::client::http(Duration::from_secs(1))?;
        for _ in 0..START_SECONDS_MAX * 1_000 / POLL_MS {
            if http
                .get(format!("{}/readyz", self.url))
                .send()
                .await
                .is_ok_and(|answer| answer.status().is_success())
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(POLL_MS)).await;
        }
        let what = format!("the server is not ready after {START_SECONDS_MAX} s");
        let hint = format!("look at {}", self.data.join("server.log").display());
        Err(Failure::coded(1, &codes::DEMO, what).with_hint(hint))
    }
}

fn spawn(data: &Path, listen: &str) -> Result<Child, Failure> {
    let failed = |error: std::io::Error| Failure::local("starting the server", &error);
    std::fs::create_dir_all(data).map_err(failed)?;
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(data.join("server.log"))
        .map_err(failed)?;
    Command::new(std::env::current_exe().map_err(failed)?)
        .args(["serve", "--listen", listen, "--data"])
        .arg(data)
        .current_dir(data)
        .env_remove("PORTCULLIS_CONFIG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)
}

/// The token from what the first start prints. The rest of it is read too: a pipe that nobody reads would end the
/// server's own output.
async fn token(child: &mut Child) -> Result<String, Failure> {
    let missing = || {
        let hint = "give --data a folder that is empty or new";
        Failure::coded(1, &codes::DEMO, "the server printed no token".to_owned()).with_hint(hint)
    };
    let mut lines = BufReader::new(child.stdout.take().ok_or_else(missing)?).lines();
    let (found, token) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut found = Some(found);
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some(token) = line.trim().strip_prefix("export PORTCULLIS_TOKEN=")
                && let Some(found) = found.take()
            {
                // Nobody waits any more: then nobody needs it.
                let _ = found.send(token.to_owned());
            }
        }
    });
    let wait = tokio::time::timeout(Duration::from_secs(START_SECONDS_MAX), token);
    wait.await.ok().and_then(Result::ok).ok_or_else(missing)
}
