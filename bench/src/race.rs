//! Sixteen who sign one image at the same time, on a registry without the referrers API.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::figures::{Figure, Target};
use crate::peers::Cosign;
use crate::server::program;
use crate::signing_cost::Images;

const SIGNERS: usize = 16;
/// cosign's signing config without any log.
const NO_LOG: &str = r#"{"mediaType":"application/vnd.dev.sigstore.signingconfig.v0.2+json","rekorTlogConfig":{},"tsaConfig":{}}"#;
const NO_ROOT: &str = r#"{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}"#;

pub async fn referrers() -> Result<Vec<Figure>> {
    let images = Images::new(false).await?;
    let folder = tempfile::tempdir()?;
    let cosign = Cosign::new(folder.path(), NO_ROOT, NO_LOG)?;
    cosign.public_key()?;
    let key = folder.path().join("cosign.key").display().to_string();

    let own_image = images.put("own", 1).await?.remove(0);
    let own = race(|number| {
        let mut command = std::process::Command::new(program()?);
        let annotation = format!("signer={number}");
        command.args([
            "sign",
            "--local",
            "--formats",
            "bundle",
            "--quiet",
            "--key",
            &key,
            "-a",
            &annotation,
            &own_image,
        ]);
        command
            .env("COSIGN_PASSWORD", "bench")
            .stdout(std::process::Stdio::null());
        Ok(command)
    })
    .await?;
    ensure!(
        own == SIGNERS,
        "only {own} of {SIGNERS} portcullis processes reported success"
    );

    let peer_image = images.put("peer", 1).await?.remove(0);
    let peer = race(|number| {
        let annotation = format!("signer={number}");
        let args = [
            "sign",
            "--yes",
            "--key",
            "cosign.key",
            "--signing-config",
            "signing_config.json",
            "-a",
            &annotation,
            &peer_image,
        ];
        Ok(cosign.command(&args))
    })
    .await?;
    ensure!(peer > 0, "no cosign process reported success");
    Ok(vec![Figure {
        bench: "referrers-race",
        what: format!(
            "signatures present after {SIGNERS} signers at once (cosign reported {peer} successes)"
        ),
        unit: "",
        portcullis: present(&images, &own_image).await? as f64,
        peer: "cosign 3.1.3 processes",
        peer_value: Some(present(&images, &peer_image).await? as f64),
        target: Target::AtLeast(SIGNERS as f64),
    }])
}

/// Starts all at once; how many ended with success.
async fn race(command: impl Fn(usize) -> Result<std::process::Command>) -> Result<usize> {
    let mut children = Vec::with_capacity(SIGNERS);
    for number in 0..SIGNERS {
        children.push(tokio::process::Command::from(command(number)?).spawn()?);
    }
    let mut succeeded = 0;
    for mut child in children {
        succeeded += usize::from(child.wait().await?.success());
    }
    Ok(succeeded)
}

/// Entries of the image's fallback tag.
async fn present(images: &Images, image: &str) -> Result<usize> {
    let (name, digest) = image.split_once('@').context("no digest")?;
    let (_, repository) = name.split_once('/').context("no repository")?;
    let Some(index) = images
        .registry
        .tag_digest(repository, &digest.replace(':', "-"))
        .await?
    else {
        return Ok(0);
    };
    let bytes = images
        .registry
        .manifest_bytes(repository, index)
        .await?
        .context("the index is gone")?;
    let index: Value = serde_json::from_slice(&bytes)?;
    Ok(index["manifests"].as_array().map_or(0, Vec::len))
}
