//! What a signature costs, beside a `cosign sign` process.

use anyhow::{Result, ensure};
use registry::{Options, Registry, Running};
use serde_json::json;

use crate::figures::{Figure, Target};
use crate::load;
use crate::peers::Cosign;
use crate::server::{Server, children_cpu};

/// Images that the server signs for one figure; at 10 ms a tick of /proc's clock the error is under 2 %.
const IMAGES: usize = 1_000;
/// Processes of cosign for one figure; each takes about 0.2 s.
const PROCESSES: usize = 10;
const COSIGN: &str = "cosign 3.1.3 process";

/// A registry in this process, whose work does not count for the server.
pub struct Images {
    pub registry: Registry,
    running: Running,
}

impl Images {
    pub async fn new(referrers: bool) -> Result<Self> {
        let registry = Registry::memory(Options {
            referrers,
            ..Options::default()
        });
        let running = registry.serve_on_loopback().await?;
        Ok(Self { registry, running })
    }

    /// Its host and port.
    pub fn host(&self) -> String {
        self.running.host()
    }

    /// Puts so many images, and gives their references by digest.
    pub async fn put(&self, name: &str, count: usize) -> Result<Vec<String>> {
        let mut references = Vec::with_capacity(count);
        for number in 0..count {
            let repository = format!("{name}/{number}");
            let digest = self
                .registry
                .put_image(&repository, "1", &format!("{name} {number}"))
                .await?;
            references.push(format!("{}/{repository}@{digest}", self.running.host()));
        }
        Ok(references)
    }
}

/// cosign against the server's own log.
pub async fn cosign(server: &Server, folder: &std::path::Path) -> Result<Cosign> {
    let root = server.get("/api/v1/trust/trusted_root.json").await?;
    let config = server.get("/api/v1/trust/signing_config.json").await?;
    Cosign::new(folder, &root, &config)
}

/// Seconds of processor time of one `cosign sign` process.
async fn cosign_sign_cpu(server: &Server, images: &Images) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let cosign = cosign(server, folder.path()).await?;
    let references = images.put("cosign", PROCESSES).await?;
    let before = children_cpu()?;
    for image in &references {
        let (cosign, image) = (&cosign, image.clone());
        tokio::task::block_in_place(|| cosign.sign(&image))?;
    }
    Ok((children_cpu()? - before) / PROCESSES as f64)
}

pub async fn cpu() -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (formats, what, times, blob_post_status) in [
        ("bundle,legacy", "both formats", 100.0, None),
        ("bundle", "bundle only", 150.0, None),
        // As distribution answers: each blob is two calls.
        ("bundle", "bundle only, uploads opened first", 150.0, Some(202)),
    ] {
        let images = Images::new(true).await?;
        images
            .registry
            .fault(|plan| plan.blob_post_status = blob_post_status);
        let server = Server::start(formats).await?;
        let fresh = images.put("fresh", IMAGES).await?;
        server.sign(&images.put("warm", 10).await?).await?;
        let before = server.cpu()?;
        server.sign(&fresh).await?;
        let own = (server.cpu()? - before) / IMAGES as f64;
        figures.push(Figure {
            bench: "sign-cpu",
            what: format!("CPU per new signature, {what}"),
            unit: "ms",
            portcullis: own * 1e3,
            peer: COSIGN,
            peer_value: Some(cosign_sign_cpu(&server, &images).await? * 1e3),
            target: Target::TimesLess(times),
        });
    }
    Ok(figures)
}

pub async fn memory() -> Result<Vec<Figure>> {
    let images = Images::new(true).await?;
    let server = Server::start("bundle,legacy").await?;
    let fresh = images.put("fresh", 600).await?;
    let (server, fresh) = (&server, &fresh);
    let sign = |number: usize| async move {
        server
            .post("/api/v1/signatures", &json!({ "image": fresh[number] }))
            .await
            .map(|_| ())
    };
    load::run(600, 600, sign).await?;
    Ok(vec![Figure {
        bench: "sign-memory",
        what: "peak memory, 600 new images at once".to_owned(),
        unit: "MB",
        portcullis: server.peak_memory()?,
        peer: "",
        peer_value: None,
        target: Target::AtMost(150.0),
    }])
}

pub async fn dedup() -> Result<Vec<Figure>> {
    const CALLS: usize = 20_000;
    let images = Images::new(true).await?;
    let server = Server::start("bundle,legacy").await?;
    let known = images.put("known", 100).await?;
    server.sign(&known).await?;
    let cosign = cosign_sign_cpu(&server, &images).await?;
    // The probe of registries in use asks for their identity every few seconds; it is nobody's image.
    let asked = || images.registry.calls().total() - images.registry.calls().pings;
    let calls = asked();
    let before = server.cpu()?;
    let (server, known) = (&server, &known);
    let sign = |number: usize| async move {
        let answer = server
            .post(
                "/api/v1/signatures",
                &json!({ "image": known[number % known.len()] }),
            )
            .await?;
        ensure!(answer["deduplicated"] == true, "not known: {answer}");
        Ok(())
    };
    let times = load::run(CALLS, 4, sign).await?;
    let own = (server.cpu()? - before) / CALLS as f64;
    let figure = |what: &str, unit, portcullis, peer, peer_value, target| Figure {
        bench: "dedup",
        what: what.to_owned(),
        unit,
        portcullis,
        peer,
        peer_value,
        target,
    };
    let called = (asked() - calls) as f64;
    Ok(vec![
        figure(
            "CPU per unchanged image",
            "ms",
            own * 1e3,
            COSIGN,
            Some(cosign * 1e3),
            Target::TimesLess(1_000.0),
        ),
        figure(
            "p99 of an unchanged image, 4 at once",
            "ms",
            times.quantile(0.99),
            "",
            None,
            Target::AtMost(5.0),
        ),
        figure(
            "registry calls for unchanged images",
            "",
            called,
            "",
            None,
            Target::AtMost(0.0),
        ),
    ])
}
