//! An issuer in memory, with keys of its own and moods.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use access::oidc::{Fetch, FetchError, Oidc, OidcError, Rule, Workload};
use async_trait::async_trait;
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom as Chance;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use kernel::{Clock, Random, SystemRandom, TestClock};
use serde_json::{Value, json};
use url::Url;

pub const ISSUER: &str = "https://ci.example";
pub const AUDIENCE: &str = "https://portcullis.example";

/// Making an RSA key takes a while.
static RSA: LazyLock<RsaKeyPair> = LazyLock::new(|| RsaKeyPair::generate(KeySize::Rsa2048).unwrap());

pub enum Signer {
    Rsa(&'static RsaKeyPair),
    P256(EcdsaKeyPair),
}

impl Signer {
    pub fn rsa() -> Self {
        Self::Rsa(&RSA)
    }

    pub fn p256() -> Self {
        Self::P256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    pub fn alg(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "RS256",
            Self::P256(_) => "ES256",
        }
    }

    pub fn jwk(&self, kid: &str) -> Value {
        match self {
            Self::Rsa(key) => {
                // RSAPublicKey (RFC 8017 appendix A.1.1) of 2048 bits: nine bytes of tags and lengths, the modulus,
                // and the exponent 65537.
                let der = key.public_key().as_ref();
                let n = B64.encode(&der[9..265]);
                json!({ "kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "n": n, "e": "AQAB" })
            }
            Self::P256(key) => {
                let point = key.public_key().as_ref();
                let (x, y) = (B64.encode(&point[1..33]), B64.encode(&point[33..]));
                json!({ "kty": "EC", "crv": "P-256", "kid": kid, "x": x, "y": y })
            }
        }
    }

    /// The public key as certificates have it.
    pub fn spki(&self) -> Vec<u8> {
        match self {
            Self::Rsa(key) => key.public_key().as_der().unwrap().as_ref().to_vec(),
            Self::P256(key) => key.public_key().as_der().unwrap().as_ref().to_vec(),
        }
    }

    /// Signs a token of any header and payload.
    pub fn token(&self, header: &str, payload: &str) -> String {
        let signed = format!("{}.{}", B64.encode(header), B64.encode(payload));
        let signature = match self {
            Self::Rsa(key) => {
                let mut out = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &Chance::new(), signed.as_bytes(), &mut out)
                    .unwrap();
                out
            }
            Self::P256(key) => key
                .sign(&Chance::new(), signed.as_bytes())
                .unwrap()
                .as_ref()
                .to_vec(),
        };
        format!("{signed}.{}", B64.encode(signature))
    }
}

pub fn header(signer: &Signer, kid: &str) -> String {
    json!({ "typ": "JWT", "alg": signer.alg(), "kid": kid }).to_string()
}

/// How the issuer is today.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Well,
    Down,
    Hangs,
    /// A login page.
    Garbage,
    /// A key set without keys.
    Empty,
    /// A description of somebody else.
    Another,
}

/// What the server hears of the issuer.
pub struct Wire {
    pub mood: Mutex<Mood>,
    pub jwks: Mutex<String>,
    /// Documents that were asked for.
    pub asked: AtomicUsize,
}

#[async_trait]
impl Fetch for Wire {
    async fn get(&self, issuer: &str, url: &Url, _: usize) -> Result<Vec<u8>, FetchError> {
        assert_eq!(issuer, ISSUER);
        self.asked.fetch_add(1, Ordering::SeqCst);
        let describes = url.path() == "/.well-known/openid-configuration";
        let mood = *self.mood.lock().unwrap();
        let described =
            |issuer: &str| json!({ "issuer": issuer, "jwks_uri": format!("{ISSUER}/keys") }).to_string();
        let text = match mood {
            Mood::Down => return Err(FetchError("connection refused".to_owned())),
            Mood::Hangs => std::future::pending().await,
            Mood::Garbage => "<html>please log in</html>".to_owned(),
            Mood::Another => described("https://evil.example"),
            Mood::Well | Mood::Empty if describes => described(ISSUER),
            Mood::Empty => r#"{"keys":[]}"#.to_owned(),
            Mood::Well => self.jwks.lock().unwrap().clone(),
        };
        Ok(text.into_bytes())
    }
}

/// A server with one rule, and its issuer with the key `k1`.
pub struct World {
    pub wire: Arc<Wire>,
    pub clock: Arc<TestClock>,
    pub signer: Signer,
    pub folder: tempfile::TempDir,
    pub oidc: Oidc,
}

pub fn rule(rule: Value) -> Rule {
    serde_json::from_value(rule).unwrap()
}

fn release() -> Rule {
    rule(json!({
        "name": "release", "issuer": ISSUER, "audience": AUDIENCE, "project": "payments", "role": "signer",
        "claims": { "repository_id": 74, "ref": "refs/heads/main" },
    }))
}

impl World {
    pub fn new(signer: Signer) -> Self {
        let wire = Arc::new(Wire {
            mood: Mutex::new(Mood::Well),
            jwks: Mutex::new(String::new()),
            asked: AtomicUsize::new(0),
        });
        let clock = Arc::new(TestClock::at("2026-01-31T12:00:00Z".parse().unwrap()));
        let folder = tempfile::tempdir().unwrap();
        let oidc = open(&wire, &clock, folder.path(), vec![release()]);
        let world = Self {
            wire,
            clock,
            signer,
            folder,
            oidc,
        };
        world.publishes(&[world.signer.jwk("k1")]);
        world
    }

    pub fn with_rules(mut self, rules: Vec<Rule>) -> Self {
        self.oidc = open(&self.wire, &self.clock, self.folder.path(), rules);
        self
    }

    /// The server starts again on the same data.
    pub fn restarts(&mut self) {
        self.oidc = open(&self.wire, &self.clock, self.folder.path(), vec![release()]);
    }

    pub fn publishes(&self, keys: &[Value]) {
        *self.wire.jwks.lock().unwrap() = json!({ "keys": keys }).to_string();
    }

    pub fn is(&self, mood: Mood) {
        *self.wire.mood.lock().unwrap() = mood;
    }

    pub fn asked(&self) -> usize {
        self.wire.asked.load(Ordering::SeqCst)
    }

    pub fn passes(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    /// What a job's token says now, good for five minutes.
    pub fn claims(&self) -> Value {
        let now = self.clock.now().as_second();
        json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": "repo:octo/payments:ref:refs/heads/main",
            "iat": now, "nbf": now, "exp": now + 300, "jti": "x",
            "repository_id": "74", "repository": "octo/payments", "ref": "refs/heads/main",
        })
    }

    pub fn token_of(&self, claims: &Value) -> String {
        self.signer
            .token(&header(&self.signer, "k1"), &claims.to_string())
    }

    pub fn token(&self) -> String {
        self.token_of(&self.claims())
    }

    /// The same with claims set, or taken out by null.
    pub fn token_with(&self, changes: &Value) -> String {
        let mut claims = self.claims();
        for (name, value) in changes.as_object().unwrap() {
            claims[name] = value.clone();
            if value.is_null() {
                claims.as_object_mut().unwrap().remove(name);
            }
        }
        self.token_of(&claims)
    }

    /// All that a request is held against.
    pub async fn shows(&self, token: &str) -> Result<Workload, OidcError> {
        let workload = self.oidc.identify(token).await?;
        self.oidc.require_current(&workload)?;
        Ok(workload)
    }
}

fn open(wire: &Arc<Wire>, clock: &Arc<TestClock>, folder: &Path, rules: Vec<Rule>) -> Oidc {
    let fetch: Arc<dyn Fetch> = wire.clone();
    let clock: Arc<dyn Clock> = clock.clone();
    let random: Arc<dyn Random> = Arc::new(SystemRandom);
    Oidc::new(rules, &fetch, folder, clock, &random)
}
