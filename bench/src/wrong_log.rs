//! How long a wrong log stays unnoticed. The name of the external log leads to another log, back, and to another again;
//! beside it a check of the port and of the HTTP status, which is what users have instead.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

use crate::figures::{Figure, Target};
use crate::server::Server;

/// How often the name is led astray.
const SWITCHES: usize = 5;
/// The server looks every few seconds; between two switches it has looked at least once.
const SETTLE_SECONDS: u64 = 6;
/// How often is asked whether the state has changed, in milliseconds: the error of the result.
const ASK_MS: u64 = 20;
/// After so many seconds it counts as never.
const GIVE_UP_SECONDS: u64 = 60;

/// An address that leads to a server, and later to another.
struct Name {
    url: String,
    target: Arc<Mutex<String>>,
}

impl Name {
    async fn leads(to: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let target = Arc::new(Mutex::new(to.to_owned()));
        let own = target.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let target = own.lock().unwrap_or_else(PoisonError::into_inner).clone();
                tokio::spawn(async move {
                    let address = target.trim_start_matches("http://");
                    if let Ok(mut backend) = TcpStream::connect(address).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut backend).await;
                    }
                });
            }
        });
        Ok(Self { url, target })
    }

    fn now_leads(&self, to: &str) {
        to.clone_into(&mut self.target.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

pub async fn named() -> Result<Vec<Figure>> {
    let (right, wrong) = (Server::start("bundle").await?, Server::start("bundle").await?);
    let name = Name::leads(&right.url).await?;
    let folder = tempfile::tempdir()?;
    let root = right
        .http
        .get(format!("{}/api/v1/trust/trusted_root.json", right.url))
        .send()
        .await?
        .text()
        .await?;
    let origin: Value = serde_json::from_str(&root)?;
    let origin = origin["tlogs"][0]["baseUrl"].as_str().unwrap_or_default();
    let origin = origin.trim_start_matches("https://");
    let file = folder.path().join("trusted_root.json");
    std::fs::write(&file, &root)?;
    let config = format!(
        "[external_log]\nurl = {:?}\norigin = {origin:?}\ntrusted_root = {:?}\n",
        name.url,
        file.display().to_string()
    );
    std::fs::write(folder.path().join("portcullis.toml"), config)?;
    let server = Server::open(folder.path(), &[]).await?;
    until(&server, "OK").await?;

    let (mut worst, mut checks, mut passed) = (0.0_f64, 0_u32, 0_u32);
    for _ in 0..SWITCHES {
        name.now_leads(&wrong.url);
        let naming = until(&server, "WRONG_LOG");
        tokio::pin!(naming);
        let seconds = loop {
            tokio::select! {
                named = &mut naming => break named?,
                () = tokio::time::sleep(Duration::from_secs(1)) => {
                    checks += 1;
                    passed += u32::from(port_is_fine(&name.url).await);
                }
            }
        };
        checks += 1;
        passed += u32::from(port_is_fine(&name.url).await);
        worst = worst.max(seconds);
        name.now_leads(&right.url);
        until(&server, "OK").await?;
        tokio::time::sleep(Duration::from_secs(SETTLE_SECONDS)).await;
    }
    ensure!(checks > 0, "the port was never checked");
    Ok(vec![Figure {
        bench: "wrong-log",
        what: format!(
            "until a wrong log is named, longest of {SWITCHES}; a check of port and HTTP status found it fine {passed} times of {checks}"
        ),
        unit: "s",
        portcullis: worst,
        peer: "a check of port and HTTP status never notices",
        peer_value: None,
        target: Target::AtMost(10.0),
    }])
}

/// What a load balancer's check does.
async fn port_is_fine(url: &str) -> bool {
    let answer = reqwest::get(format!("{url}/api/v2/checkpoint")).await;
    answer.is_ok_and(|answer| answer.status() == 200)
}

/// Waits for the state of the external log; how many seconds it took.
#[expect(clippy::disallowed_methods, reason = "a benchmark reads the machine's clock")]
async fn until(server: &Server, state: &str) -> Result<f64> {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(GIVE_UP_SECONDS) {
        let request = server.http.get(format!("{}/api/v1/dependencies", server.url));
        let all: Value = request.bearer_auth(&server.token).send().await?.json().await?;
        let all = all["dependencies"].as_array().context("no dependencies")?;
        if all
            .iter()
            .any(|one| one["name"] == "external-log" && one["state"] == state)
        {
            return Ok(began.elapsed().as_secs_f64());
        }
        tokio::time::sleep(Duration::from_millis(ASK_MS)).await;
    }
    bail!("the external log is not {state} after {GIVE_UP_SECONDS} s")
}
