//! The log beside rekor-tiles.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kernel::Digest;
use serde_json::{Value, json};
use signing::key::{LocalSigner, Signer as _};

use crate::figures::{Figure, Target};
use crate::load::{self, Times};
use crate::peers;
use crate::server::Server;

const CLIENTS: usize = 64;
/// Entries that our log gets, and the peer's, which needs about a second for each round of 64.
const ENTRIES: usize = 20_000;
const PEER_ENTRIES: usize = 64 * 20;

/// A request as cosign 3.1 sends it.
fn request(signer: &LocalSigner, number: usize) -> Result<Value> {
    let digest = Digest::of(&number.to_be_bytes());
    let signature = signer.sign_now(digest)?;
    Ok(json!({ "hashedRekordRequestV002": {
        "digest": BASE64.encode(digest.as_bytes()),
        "signature": {
            "content": BASE64.encode(signature),
            "verifier": {
                "publicKey": { "rawBytes": BASE64.encode(signer.public_key().spki()) },
                "keyDetails": "PKIX_ECDSA_P256_SHA_256",
            },
        },
    } }))
}

pub async fn load_log(http: &reqwest::Client, url: &str, entries: usize) -> Result<Times> {
    let (signer, _) = LocalSigner::generate()?;
    let requests = (0..entries)
        .map(|number| request(&signer, number))
        .collect::<Result<Vec<_>>>()?;
    let (requests, address) = (&requests, &format!("{url}/api/v2/log/entries"));
    let post = |number: usize| async move {
        let answer = http.post(address).json(&requests[number]).send().await?;
        let status = answer.status();
        let body = answer.bytes().await?;
        ensure!(
            status == 201,
            "the log answered {status}: {}",
            String::from_utf8_lossy(&body)
        );
        Ok(())
    };
    load::run(entries, CLIENTS, post).await
}

pub async fn append() -> Result<Vec<Figure>> {
    let server = Server::start("bundle").await?;
    let own = load_log(&server.http, &server.url, ENTRIES).await?;
    drop(server);
    let on_postgresql = append_on_postgresql().await?;
    let http = reqwest::Client::new();
    let rekor = Rekor::start(&http).await?;
    let peer = load_log(&http, &rekor.url, PEER_ENTRIES).await?;
    let mut figures = figures(&own, &peer, "");
    match on_postgresql {
        Some(own) => figures.extend(self::figures(&own, &peer, ", on PostgreSQL")),
        None => eprintln!("  not run: there is no PostgreSQL on this machine"),
    }
    Ok(figures)
}

fn figures(own: &Times, peer: &Times, database: &str) -> Vec<Figure> {
    let figure = |what: &str, unit, quantity: fn(&Times) -> f64, target| Figure {
        bench: "log-append",
        what: format!("{what}, {CLIENTS} clients{database}"),
        unit,
        portcullis: quantity(own),
        peer: "rekor-tiles 2.3.0 tuned",
        peer_value: Some(quantity(peer)),
        target,
    };
    vec![
        figure("p50", "ms", |times| times.quantile(0.5), Target::AtMost(10.0)),
        figure("p99", "ms", |times| times.quantile(0.99), Target::AtMost(50.0)),
        figure("entries", "/s", Times::per_second, Target::TimesMore(20.0)),
    ]
}

/// The same on a PostgreSQL as Debian ships it, every commit synced, if there is one.
async fn append_on_postgresql() -> Result<Option<Times>> {
    let Some(program) = testkit::peers::find("postgresql") else {
        return Ok(None);
    };
    let postgres = testkit::Postgres::start_with(&program, &[])?;
    let folder = tempfile::tempdir()?;
    let blobs = folder.path().join("blobs").display().to_string();
    let settings = [
        ("PORTCULLIS_DATABASE_URL", &*postgres.database()),
        ("PORTCULLIS_BLOBS_URL", &*blobs),
    ];
    let server = Server::open(folder.path(), &settings).await?;
    let times = load_log(&server.http, &server.url, ENTRIES).await?;
    server.stop().await?;
    Ok(Some(times))
}

/// rekor-tiles on a folder, tuned as far as its flags go.
struct Rekor {
    url: String,
    child: Child,
    _folder: tempfile::TempDir,
}

impl Rekor {
    async fn start(http: &reqwest::Client) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let key = folder.path().join("key.pem");
        let made = Command::new("openssl")
            .args(["genpkey", "-algorithm", "ed25519", "-out"])
            .arg(&key)
            .output();
        ensure!(
            made.context("running openssl")?.status.success(),
            "openssl made no key"
        );
        let ports: Vec<u16> = (0..3).map(|_| free_port()).collect::<Result<_>>()?;
        let child = Command::new(peers::program("rekor-tiles-2.3.0/posix")?)
            .args([
                "serve",
                "--hostname",
                "localhost",
                "--log-level",
                "error",
                "--persistent-antispam=false",
            ])
            .args(["--checkpoint-interval", "100ms", "--batch-max-age", "10ms"])
            .arg(format!("--http-port={}", ports[0]))
            .arg(format!("--grpc-port={}", ports[1]))
            .arg(format!("--http-metrics-port={}", ports[2]))
            .arg(format!("--storage-dir={}", folder.path().join("log").display()))
            .arg(format!("--signer-filepath={}", key.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting rekor-tiles")?;
        let rekor = Self {
            url: format!("http://127.0.0.1:{}", ports[0]),
            child,
            _folder: folder,
        };
        for _ in 0..200 {
            if http
                .get(format!("{}/healthz", rekor.url))
                .send()
                .await
                .is_ok_and(|answer| answer.status() == 200)
            {
                return Ok(rekor);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("rekor-tiles is not ready after 10 s")
    }
}

impl Drop for Rekor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
