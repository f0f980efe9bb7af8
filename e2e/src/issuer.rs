//! An issuer of workloads' tokens as a small web server: its description, its keys, and the place where a job of GitHub
//! Actions asks for a token.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use serde_json::{Value, json};

/// What a job of GitHub Actions shows to get a token.
pub const JOB_TOKEN: &str = "the-job-itself";

/// How the issuer is today.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Well,
    /// Connections are cut.
    Down,
    /// Every answer is a login page.
    Garbage,
    /// Everything is elsewhere.
    Redirects,
}

/// An issuer on a free port of 127.0.0.1, for as long as the process lives.
#[derive(Debug)]
pub struct Issuer {
    url: String,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    key: EcdsaKeyPair,
    mood: Mutex<Mood>,
    /// The claims of the tokens that jobs get, without audience.
    claims: Mutex<Value>,
    asked: AtomicUsize,
}

impl Issuer {
    /// # Errors
    /// If there is no port.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}", listener.local_addr()?);
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).context("making a key")?;
        let shared = Arc::new(Shared {
            key,
            mood: Mutex::new(Mood::Well),
            claims: Mutex::new(json!({})),
            asked: AtomicUsize::new(0),
        });
        let (own, at) = (shared.clone(), url.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A peer that went away is no concern of the issuer's.
                let _ = own.answer(stream, &at);
            }
        });
        Ok(Self { url, shared })
    }

    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn is(&self, mood: Mood) {
        *lock(&self.shared.mood) = mood;
    }

    /// Documents of its own that it was asked for.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }

    /// A token with these claims and the issuer's own.
    #[must_use]
    pub fn token(&self, claims: &Value) -> String {
        self.shared.token("k1", &self.url, claims)
    }

    /// The same, naming another key.
    #[must_use]
    pub fn token_by(&self, kid: &str, claims: &Value) -> String {
        self.shared.token(kid, &self.url, claims)
    }

    /// The variables of a job of GitHub Actions whose tokens have these claims.
    pub fn job(&self, claims: Value) -> [(&'static str, String); 2] {
        *lock(&self.shared.claims) = claims;
        [
            (
                "ACTIONS_ID_TOKEN_REQUEST_URL",
                format!("{}/token?api-version=2.0", self.url),
            ),
            ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", JOB_TOKEN.to_owned()),
        ]
    }
}

impl Shared {
    fn answer(&self, stream: TcpStream, url: &str) -> Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut first = String::new();
        reader.read_line(&mut first)?;
        let mut authorization = String::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            if line.trim().is_empty() {
                break;
            }
            if line.to_ascii_lowercase().starts_with("authorization:") {
                line.trim().clone_into(&mut authorization);
            }
        }
        let target = first.split_whitespace().nth(1).unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let body = match (*lock(&self.mood), path) {
            (Mood::Down, _) => return Ok(()),
            (_, "/token") if authorization.ends_with(&format!(" {JOB_TOKEN}")) => {
                let audience = query.split('&').find_map(|pair| pair.strip_prefix("audience="));
                let audience = audience
                    .unwrap_or("github")
                    .replace("%3A", ":")
                    .replace("%2F", "/");
                let mut claims = lock(&self.claims).clone();
                claims["aud"] = json!(audience);
                json!({ "count": 1, "value": self.token("k1", url, &claims) }).to_string()
            }
            (Mood::Garbage, _) => "<html>please log in</html>".to_owned(),
            (Mood::Redirects, _) => return send(stream, "302 Found\r\nLocation: http://127.0.0.1:1/", ""),
            (_, "/.well-known/openid-configuration") => {
                self.asked.fetch_add(1, Ordering::SeqCst);
                json!({ "issuer": url, "jwks_uri": format!("{url}/keys") }).to_string()
            }
            (_, "/keys") => {
                self.asked.fetch_add(1, Ordering::SeqCst);
                let point = self.key.public_key().as_ref();
                let (x, y) = (B64.encode(&point[1..33]), B64.encode(&point[33..]));
                json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "k1", "x": x, "y": y }] }).to_string()
            }
            _ => return send(stream, "404 Not Found", ""),
        };
        send(stream, "200 OK", &body)
    }

    fn token(&self, kid: &str, url: &str, claims: &Value) -> String {
        let header = json!({ "typ": "JWT", "alg": "ES256", "kid": kid });
        let mut claims = claims.clone();
        claims["iss"] = json!(url);
        let signed = format!(
            "{}.{}",
            B64.encode(header.to_string()),
            B64.encode(claims.to_string())
        );
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes());
        let signature = signature.map(|own| B64.encode(own.as_ref())).unwrap_or_default();
        format!("{signed}.{signature}")
    }
}

fn send(mut stream: TcpStream, status: &str, body: &str) -> Result<()> {
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
