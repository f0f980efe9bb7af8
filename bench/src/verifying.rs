//! What verifying costs: never seen before, and known.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use kernel::{Digest, SystemClock};
use serde_json::json;
use signing::verify::{Policy, Report};
use signing::{VerdictKey, Verdicts};

use crate::figures::{Figure, Target};
use crate::load::{self, now};
use crate::server::{Server, children_cpu};
use crate::signing_cost::{Images, cosign};

const IMAGES: usize = 1_000;
const PROCESSES: usize = 20;

pub async fn cold() -> Result<Vec<Figure>> {
    let images = Images::new(true).await?;
    let server = Server::start("bundle").await?;
    let signed = images.put("signed", IMAGES).await?;
    server.sign(&signed).await?;
    let folder = tempfile::tempdir()?;
    let peer = cosign(&server, folder.path()).await?;
    let peers_image = images.put("peer", 1).await?.remove(0);
    tokio::task::block_in_place(|| peer.sign(&peers_image))?;
    let before = children_cpu()?;
    for _ in 0..PROCESSES {
        tokio::task::block_in_place(|| peer.verify(&peers_image))?;
    }
    let cosign = (children_cpu()? - before) / PROCESSES as f64;
    let before = server.cpu()?;
    let (server, signed) = (&server, &signed);
    let verify = |number: usize| async move {
        let answer = server
            .post("/api/v1/verifications", &json!({ "image": signed[number] }))
            .await?;
        ensure!(answer["verified"] == true, "not verified: {answer}");
        Ok(())
    };
    load::run(IMAGES, 8, verify).await?;
    Ok(vec![Figure {
        bench: "verify-cold",
        what: "CPU per image never seen before, with log proof".to_owned(),
        unit: "ms",
        portcullis: (server.cpu()? - before) / IMAGES as f64 * 1e3,
        peer: "cosign 3.1.3 verify process",
        peer_value: Some(cosign * 1e3),
        target: Target::TimesLess(50.0),
    }])
}

pub async fn warm() -> Result<Vec<Figure>> {
    let images = Images::new(true).await?;
    let server = Server::start("bundle").await?;
    let signed = images.put("signed", 100).await?;
    server.sign(&signed).await?;
    let (server, signed) = (&server, &signed);
    let verify = |number: usize| async move {
        let answer = server
            .post(
                "/api/v1/verifications",
                &json!({ "image": signed[number % signed.len()] }),
            )
            .await?;
        ensure!(answer["verified"] == true, "not verified: {answer}");
        Ok(())
    };
    load::run(200, 4, verify).await?;
    // Moderate load: two callers, each waiting for its answer.
    let times = load::run(10_000, 2, verify).await?;
    Ok(vec![
        Figure {
            bench: "verify-warm",
            what: "known verdicts, in process, one thread".to_owned(),
            unit: "/s",
            portcullis: in_process()?,
            peer: "",
            peer_value: None,
            target: Target::AtLeast(50_000.0),
        },
        Figure {
            bench: "verify-warm",
            what: "p99 over HTTP, 2 callers".to_owned(),
            unit: "ms",
            portcullis: times.quantile(0.99),
            peer: "",
            peer_value: None,
            target: Target::AtMost(1.0),
        },
    ])
}

/// Look-ups of known verdicts per second, the policy's fingerprint made for each as in the server.
fn in_process() -> Result<f64> {
    const LOOKS: u32 = 200_000;
    let verdicts = Verdicts::new(Arc::new(SystemClock::new()));
    let (signer, _) = signing::key::LocalSigner::generate()?;
    let policy = Policy::keys("bench", vec![signing::key::Signer::public_key(&signer).clone()]);
    let key = |number: u32| VerdictKey {
        project: "default".to_owned(),
        repository: "r.example/app".to_owned(),
        digest: Digest::of(&(number % 1_000).to_be_bytes()),
        policy: policy.fingerprint(),
    };
    for number in 0..1_000 {
        let key = key(number);
        let image = "r.example/app".parse::<kernel::Repository>()?.at(key.digest);
        let report = Report {
            digest: key.digest,
            image,
            policy: policy.name.clone(),
            verified: true,
            checks: Vec::new(),
            candidates: Vec::new(),
            reasons: Vec::new(),
        };
        verdicts.put(key, Arc::new(report));
    }
    let began = now();
    for number in 0..LOOKS {
        verdicts.get(&key(number)).context("not known")?;
    }
    Ok(f64::from(LOOKS) / began.elapsed().as_secs_f64())
}
