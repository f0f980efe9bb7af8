//! Where the storm's images lie.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kernel::Digest;
use serde_json::json;
use testkit::Distribution;

use crate::signing_cost::Images;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// A registry, and how images get into it.
pub enum Place {
    /// The demo's, in this process.
    Demo(Images),
    /// A real one, a process of its own, over its HTTP interface.
    Distribution {
        registry: Distribution,
        http: reqwest::Client,
    },
}

impl Place {
    pub async fn demo() -> Result<Self> {
        Ok(Self::Demo(Images::new(true).await?))
    }

    pub fn distribution() -> Result<Self> {
        let program =
            testkit::peers::find("distribution-3.1.2").context("cargo xtask peers gets distribution")?;
        Ok(Self::Distribution {
            registry: Distribution::start(&program)?,
            http: reqwest::Client::new(),
        })
    }

    /// Its host and port.
    pub fn host(&self) -> String {
        match self {
            Self::Demo(images) => images.host(),
            Self::Distribution { registry, .. } => registry.address().to_owned(),
        }
    }

    /// Each call to the demo's takes so long from now on; a real one takes what it takes.
    pub fn slow_down(&self, latency: Duration) {
        if let Self::Demo(images) = self {
            images.registry.fault(|plan| plan.latency = latency);
        }
    }

    /// Puts an image under the tag 1.
    pub async fn put(&self, repository: &str, content: &str) -> Result<Digest> {
        match self {
            Self::Demo(images) => Ok(images.registry.put_image(repository, "1", content).await?),
            Self::Distribution { registry, http } => {
                push(
                    http,
                    &format!("http://{}/v2/{repository}", registry.address()),
                    content,
                )
                .await
            }
        }
    }
}

/// Pushes an image with one small blob, its configuration (OCI distribution specification 1.1, "Pushing manifests").
async fn push(http: &reqwest::Client, repository: &str, content: &str) -> Result<Digest> {
    let config =
        json!({ "architecture": "amd64", "os": "linux", "config": { "Labels": { "content": content } } });
    let config = config.to_string();
    let digest = Digest::of(config.as_bytes());
    let opened = http.post(format!("{repository}/blobs/uploads/")).send().await?;
    let place = opened.headers().get("location").context("no upload was opened")?;
    let place = format!("{}&digest={digest}", place.to_str()?);
    let stored = http.put(place).body(config.clone()).send().await?;
    ensure!(
        stored.status() == 201,
        "a blob was answered with {}",
        stored.status()
    );
    let config = json!({ "mediaType": CONFIG, "digest": digest.to_string(), "size": config.len() });
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [] }).to_string();
    let digest = Digest::of(manifest.as_bytes());
    let request = http.put(format!("{repository}/manifests/1"));
    let stored = request
        .header("content-type", MANIFEST)
        .body(manifest)
        .send()
        .await?;
    ensure!(
        stored.status() == 201,
        "a manifest was answered with {}",
        stored.status()
    );
    Ok(digest)
}
