//! Signatures by certificates: the chain is checked at a time that is proven, whatever else the policy asks for.

use std::sync::Arc;

use kernel::Digest;
use serde_json::json;
use signing::format::legacy;
use signing::trust::TrustRoot;
use signing::verify::{Identity, Policy, check_bundle};

use crate::ca::{Ca, IDENTITY, ISSUER, Issued, Window};
use crate::forge::*;
use crate::world::World;

fn policy(trust: Arc<TrustRoot>) -> Policy {
    changed(Policy::keys("keyless", Vec::new()).with_log(trust), |own| {
        own.identities = vec![Identity::exact(IDENTITY, ISSUER)];
    })
}

/// A bundle by a certificate, promised by a log at a time; with the certificates that it ships.
pub fn bundle_of(issued: &Issued, shipped: &[&[u8]], image: Digest, log: &Rekor1, signed: i64) -> Vec<u8> {
    let work = image_work(&issued.signer, image);
    let entry = log.entry(
        "dsse",
        &dsse1(&work.payload, &work.rekord.signature, &issued.pem),
        ago(signed),
    );
    let chain: Vec<_> = [&[issued.der.as_slice()], shipped]
        .concat()
        .iter()
        .map(|der| json!({ "rawBytes": b64(der) }))
        .collect();
    let material = json!({ "x509CertificateChain": { "certificates": chain } });
    bundle(V01, &material, &[entry], &work.content)
        .to_string()
        .into_bytes()
}

struct Times {
    what: &'static str,
    root: Window,
    intermediate: Window,
    leaf: Window,
    signed: i64,
    counts: bool,
}

/// Seconds before now; what every chain is right about unless it says otherwise.
const RIGHT: Times = Times {
    what: "all is right",
    root: (1_000, -1_000),
    intermediate: (900, -900),
    leaf: (600, 300),
    signed: 450,
    counts: true,
};

const TIMES: &[Times] = &[
    RIGHT,
    Times {
        what: "the certificate had expired",
        signed: 200,
        counts: false,
        ..RIGHT
    },
    Times {
        what: "the certificate was not valid yet",
        signed: 700,
        counts: false,
        ..RIGHT
    },
    Times {
        what: "the intermediate had expired",
        intermediate: (900, 500),
        counts: false,
        ..RIGHT
    },
    Times {
        what: "the intermediate was not valid yet",
        intermediate: (440, -900),
        counts: false,
        ..RIGHT
    },
    Times {
        what: "the intermediate expired since",
        intermediate: (900, 400),
        ..RIGHT
    },
    Times {
        what: "the root had expired",
        root: (1_000, 500),
        counts: false,
        ..RIGHT
    },
    Times {
        what: "the root expired since",
        root: (1_000, 400),
        ..RIGHT
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn t06_the_chain_is_checked_at_a_proven_time_in_every_mode() {
    let world = World::new().await;
    for times in TIMES {
        let (ca, log) = (Ca::new(times.root, times.intermediate), Rekor1::new());
        let issued = ca.issue(times.leaf);
        let payload = legacy::payload(&world.repository, world.image, &annotations(&[]));
        let signature = issued.signer.sign_now(Digest::of(&payload)).unwrap();
        let body = hashedrekord1(Digest::of(&payload), &signature, &issued.pem);
        let layer = json!({
            (legacy::SIGNATURE): b64(&signature), "dev.sigstore.cosign/certificate": issued.pem,
            "dev.sigstore.cosign/chain": ca.intermediate_pem(),
            "dev.sigstore.cosign/bundle": log.annotation(&body, ago(times.signed)),
        });
        world.put_legacy(world.image, &[(payload, layer)]).await;
        // The intermediate comes from the trusted root, or from whoever signed.
        for whole in [true, false] {
            let trust = root_with(ca.trusted(&[log.trusted(ago(10_000), None)], whole));
            for log_required in [true, false] {
                let policy = changed(policy(trust.clone()), |own| own.log_required = log_required);
                let case = format!("{}, {whole}, {log_required}", times.what);
                let bundle = bundle_of(&issued, &[ca.intermediate_der()], world.image, &log, times.signed);
                let outcome = check_bundle(&bundle, world.image, &policy, now());
                assert_eq!(outcome.is_ok(), times.counts, "bundle, {case}: {outcome:?}");
                let report = world.verify(&policy).await;
                assert_eq!(
                    report.verified, times.counts,
                    "legacy, {case}: {:?}",
                    report.reasons
                );
            }
        }
    }
}

#[test]
fn t16_identity_and_issuer_both_have_to_be_right() {
    let (ca, log, image) = (
        Ca::new(RIGHT.root, RIGHT.intermediate),
        Rekor1::new(),
        Digest::of(b"image"),
    );
    let bundle = bundle_of(&ca.issue(RIGHT.leaf), &[], image, &log, RIGHT.signed);
    let good = policy(root_with(ca.trusted(&[log.trusted(ago(10_000), None)], true)));
    let accepted = check_bundle(&bundle, image, &good, now()).unwrap();
    assert_eq!(
        (accepted.identity.as_deref(), accepted.issuer.as_deref()),
        (Some(IDENTITY), Some(ISSUER))
    );
    assert_eq!((accepted.key_id, accepted.logged), (None, true));
    let with = |identities: &[(&str, &str)]| {
        let named = identities
            .iter()
            .map(|(subject, issuer)| Identity::exact(subject, issuer));
        let policy = changed(good.clone(), |own| own.identities = named.collect());
        check_bundle(&bundle, image, &policy, now()).map_err(|rejected| rejected.reason)
    };
    assert!(with(&[("other@example.com", ISSUER), (IDENTITY, ISSUER)]).is_ok());
    for wrong in [
        &[][..],
        &[("other@example.com", ISSUER)],
        &[(IDENTITY, "https://issuer.example.com.evil.example")],
        &[("", "")],
        &[(".*", ".*")],
        &[("Builder@example.com", ISSUER)],
        &[(ISSUER, IDENTITY)],
    ] {
        assert_eq!(with(wrong).unwrap_err(), "identity", "{wrong:?}");
    }
}

#[test]
fn a_certificate_of_another_authority_or_of_no_log_does_not_count() {
    let (ca, log, image) = (
        Ca::new(RIGHT.root, RIGHT.intermediate),
        Rekor1::new(),
        Digest::of(b"image"),
    );
    let bundle = bundle_of(&ca.issue(RIGHT.leaf), &[], image, &log, RIGHT.signed);
    let refused = |trust: Arc<TrustRoot>| {
        check_bundle(&bundle, image, &policy(trust), now())
            .unwrap_err()
            .reason
    };
    let tlogs = [log.trusted(ago(10_000), None)];
    let other = Ca::new(RIGHT.root, RIGHT.intermediate);
    assert_eq!(refused(root_with(other.trusted(&tlogs, true))), "identity");
    assert_eq!(refused(root_with(ca.trusted(&[], true))), "identity");
    assert_eq!(
        refused(root_with(
            ca.trusted(&[Rekor1::new().trusted(ago(10_000), None)], true)
        )),
        "identity"
    );
    let mut no_promise = ca.trusted(&tlogs, true);
    no_promise["ctlogs"] = other.trusted(&tlogs, true)["ctlogs"].clone();
    assert_eq!(refused(root_with(no_promise)), "identity");
    let policy = changed(policy(root_with(ca.trusted(&tlogs, true))), |own| {
        own.trust = None;
    });
    assert_eq!(
        check_bundle(&bundle, image, &policy, now()).unwrap_err().reason,
        "log"
    );
    // A policy of keys takes no certificate, even of that key.
    let issued = ca.issue(RIGHT.leaf);
    let bundle = bundle_of(&issued, &[], image, &log, RIGHT.signed);
    assert_eq!(
        check_bundle(&bundle, image, &by_key(&issued.signer), now())
            .unwrap_err()
            .reason,
        "identity"
    );
}
