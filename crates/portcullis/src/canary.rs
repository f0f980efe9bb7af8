//! The canary: signs, logs, publishes and verifies one tiny image as a user would, over HTTP with a token.
//!
//! Each day has an image of its own, a manifest of a few hundred bytes, so that what hangs on one image stays below
//! the cap on referrers; each run signs it anew, by an annotation that no other run has. Of several servers on one
//! database one runs it at a time.

use std::sync::Arc;
use std::time::Duration;

use access::TokenText;
use async_trait::async_trait;
use flow::{Caller, Class};
use jiff::Timestamp;
use kernel::{Clock, Digest, Repository};
use probing::{Finding, Kind, Probe, Rhythm, State};
use serde_json::{Value, json};
use signing::ports::{NewManifest, Registry};
use store::{Db, Lease};

use crate::client;
use crate::config::CanarySection;
use crate::failure::Failure;
use crate::metrics::Metrics;

/// The tag that names the image of the day.
const TAG: &str = "portcullis-canary";
/// How long one run may take, in seconds: each step is a call of a slow registry.
const RUN_SECONDS_MAX: u64 = 60;
/// The name of the lease.
const LEASE: &str = "canary";

pub struct Canary {
    repository: Repository,
    project: String,
    token: TokenText,
    url: String,
    every: Duration,
    http: reqwest::Client,
    registry: Arc<dyn Registry>,
    db: Db,
    holder: String,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
}

/// A step that failed: its name, and why.
struct Stopped(&'static str, String);

impl Canary {
    pub fn new(
        settings: &CanarySection,
        registry: Arc<dyn Registry>,
        db: Db,
        holder: String,
        url: &str,
        metrics: Metrics,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Failure> {
        let token = settings.token()?;
        Ok(Self {
            repository: settings.repository()?,
            project: settings.project.clone(),
            token,
            url: url.trim_end_matches('/').to_owned(),
            every: Duration::from_secs(settings.every_seconds),
            http: client::http(Duration::from_secs(RUN_SECONDS_MAX))?,
            registry,
            db,
            holder,
            metrics,
            clock,
        })
    }

    /// All steps; what each took, for a person.
    async fn run(&self) -> Result<String, Stopped> {
        let now = self.clock.now();
        let mut told = Vec::new();
        let mut began = self.clock.monotonic();
        let mut step = |name: &str| {
            let ended = self.clock.monotonic();
            told.push(format!("{name} {} ms", ended.since(began).as_millis()));
            began = ended;
        };
        let digest = self.publish(now).await?;
        step("pushed");
        let image = format!("{}@{digest}", self.repository);
        let run = now.to_string();
        let sign = json!({ "image": image, "annotations": { "portcullis.canary": run } });
        let signed = self.post("signing", "signatures", &sign).await?;
        let index = signed["log_index"].as_u64();
        let index =
            index.ok_or_else(|| Stopped("logging", "the signature has no place in the log".to_owned()))?;
        step("signed and logged");
        let verify = json!({ "image": image, "annotations": { "portcullis.canary": run } });
        let verified = self.post("verifying", "verifications", &verify).await?;
        if verified["verified"] != true {
            return Err(Stopped("verifying", verified["reasons"].to_string()));
        }
        step("verified");
        Ok(format!("log entry {index}; {}", told.join(", ")))
    }

    /// Makes the tag name the image of the day.
    async fn publish(&self, now: Timestamp) -> Result<Digest, Stopped> {
        let day = now.strftime("%Y-%m-%d").to_string();
        let manifest = manifest(&day);
        let digest = Digest::of(&manifest.bytes);
        let merge = |current: Option<&signing::ports::Manifest>| {
            let there = current.is_some_and(|current| current.digest == digest);
            Ok((!there).then(|| manifest.clone()))
        };
        let failed = |error: signing::ports::RegistryError| Stopped("pushing", kernel::chain(&error));
        let caller = Caller::new(&self.project, Class::Verify);
        self.registry
            .update_tag(caller, &self.repository, TAG, &merge)
            .await
            .map_err(failed)?;
        Ok(digest)
    }

    async fn post(&self, step: &'static str, path: &str, body: &Value) -> Result<Value, Stopped> {
        let request = self.http.post(format!("{}/api/v1/{path}", self.url));
        let request = request
            .bearer_auth(self.token.expose())
            .header("x-portcullis-project", &self.project)
            .json(body);
        let failed = |error: reqwest::Error| Stopped(step, kernel::chain(&error));
        let response = request.send().await.map_err(failed)?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(failed)?;
        let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        if status.is_success() {
            return Ok(body);
        }
        let word = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let why = format!("status {}, {}: {}", status.as_u16(), word("code"), word("detail"));
        Err(Stopped(step, why))
    }
}

/// A manifest without layers, another one each day (OCI image specification, "Guidelines for artifact usage").
fn manifest(day: &str) -> NewManifest {
    const EMPTY: &str = "application/vnd.oci.empty.v1+json";
    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    let empty = json!({ "mediaType": EMPTY, "digest": Digest::of(b"{}").to_string(), "size": 2 });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/vnd.portcullis.canary",
        "config": empty, "layers": [empty], "annotations": { "portcullis.canary": day },
    });
    NewManifest {
        media_type: MANIFEST.to_owned(),
        bytes: manifest.to_string().into_bytes(),
        blobs: vec![(&b"{}"[..]).into()],
    }
}

#[async_trait]
impl Probe for Canary {
    fn name(&self) -> &str {
        "canary"
    }

    fn kind(&self) -> Kind {
        Kind::Canary
    }

    fn expected(&self) -> String {
        format!("an image in {} is signed, logged and verified", self.repository)
    }

    async fn look(&self) -> Finding {
        let of = |state, found: String| Finding::new(state, self.expected(), kernel::words(&found));
        let turn = self.every + Duration::from_secs(RUN_SECONDS_MAX);
        match Lease::acquire(&self.db, LEASE, &self.holder, turn).await {
            Ok(Some(_)) => {}
            Ok(None) => return of(State::Ok, "another server runs it".to_owned()),
            Err(error) => return of(State::Failing, kernel::chain(&error)),
        }
        match self.run().await {
            Ok(told) => {
                self.metrics.canary_ran(true);
                of(State::Ok, told)
            }
            Err(Stopped(step, why)) => {
                self.metrics.canary_ran(false);
                of(State::Failing, format!("{step}: {why}"))
            }
        }
    }

    fn rhythm(&self) -> Rhythm {
        Rhythm {
            every: self.every,
            look_max: Duration::from_secs(RUN_SECONDS_MAX),
        }
    }
}
