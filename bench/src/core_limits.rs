//! The signing core beside the limit of the cryptographic library.

use anyhow::{Context as _, Result};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use kernel::Digest;
use signing::format::{Annotations, bundle, dsse, statement};
use signing::key::{LocalSigner, Signer as _};

use crate::figures::{Figure, Target};
use crate::load::now;

/// Signatures of one round; a round takes about a second.
const ROUND: u32 = 40_000;
/// The better of so many rounds counts, for both sides.
const ROUNDS: usize = 3;

/// Rounds of `work`: the best rate per second.
fn best(mut work: impl FnMut(u32) -> Result<()>) -> Result<f64> {
    let mut best: f64 = 0.0;
    for _ in 0..ROUNDS {
        let began = now();
        (0..ROUND).try_for_each(&mut work)?;
        best = best.max(f64::from(ROUND) / began.elapsed().as_secs_f64());
    }
    Ok(best)
}

pub fn signing() -> Result<Vec<Figure>> {
    let (signer, pkcs8) = LocalSigner::generate()?;
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8)
        .ok()
        .context("the key")?;
    let (random, message) = (SystemRandom::new(), [7; 400]);
    let limit = best(|_| pair.sign(&random, &message).map(|_| ()).ok().context("signing"))?;
    let annotations = Annotations::new();
    let own = best(|number| {
        let statement = statement::write(&[Digest::of(&number.to_be_bytes())], &annotations);
        let signature = signer.sign_now(Digest::of(&dsse::pae(dsse::IN_TOTO, &statement)))?;
        std::hint::black_box(bundle::write(signer.public_key(), &statement, &signature, None));
        Ok(())
    })?;
    Ok(vec![Figure {
        bench: "signing-core",
        what: "statement, signature and bundle, one thread".to_owned(),
        unit: "/s",
        portcullis: own,
        peer: "aws-lc-rs P-256 sign",
        peer_value: Some(limit),
        target: Target::TimesMore(0.6),
    }])
}
