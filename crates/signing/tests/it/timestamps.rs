//! Timestamps of a real authority (RFC 3161, OpenSSL's): they prove when a signature was there, and nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;
use kernel::Digest;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};
use signing::format::legacy;
use signing::verify::{Identity, Policy, check_bundle};

use crate::ca::{Ca, IDENTITY, ISSUER};
use crate::forge::*;
use crate::world::World;

/// Extended key usage, and its value that says timeStamping and nothing else (RFC 3161 section 2.3), DER.
const EXTENDED_KEY_USAGE: &[u64] = &[2, 5, 29, 37];
const TIME_STAMPING: &[u8] = &[
    0x30, 0x0a, 0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x08,
];
const CONFIG: &str = "[tsa]\ndefault_tsa = own\n[own]\nserial = serial\nsigner_cert = leaf.pem\ncerts = root.pem\n\
signer_key = key.pem\nsigner_digest = sha256\ndefault_policy = 1.2.3.4\ndigests = sha256\naccuracy = secs:1\n\
ess_cert_id_alg = sha256\n";

/// A timestamp authority: a folder with its certificates, and the program that signs.
struct Tsa {
    openssl: PathBuf,
    folder: tempfile::TempDir,
    certificates: Vec<Vec<u8>>,
}

impl Tsa {
    /// `None` if OpenSSL is not there.
    fn new() -> Option<Self> {
        let openssl = testkit::peers::find("openssl")?;
        let folder = tempfile::tempdir().unwrap();
        let named = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            let start = u64::try_from(ago(1_000).as_second()).unwrap();
            params.not_before = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(start);
            params.not_after = params.not_before + Duration::from_secs(100_000);
            params
        };
        let (mut root, root_key) = (named("time root"), KeyPair::generate().unwrap());
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root_certificate = root.self_signed(&root_key).unwrap();
        let (mut leaf, key) = (named("time"), KeyPair::generate().unwrap());
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let mut usage = CustomExtension::from_oid_content(EXTENDED_KEY_USAGE, TIME_STAMPING.to_vec());
        usage.set_criticality(true);
        leaf.custom_extensions.push(usage);
        let leaf = leaf.signed_by(&key, &Issuer::new(root, root_key)).unwrap();
        for (name, text) in [
            ("leaf.pem", leaf.pem()),
            ("root.pem", root_certificate.pem()),
            ("key.pem", key.serialize_pem()),
            ("serial", "01\n".to_owned()),
            ("ts.cnf", CONFIG.to_owned()),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let certificates = vec![leaf.der().to_vec(), root_certificate.der().to_vec()];
        Some(Self {
            openssl,
            folder,
            certificates,
        })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Its entry in a trusted root.
    fn trusted(&self, start: Timestamp, end: Option<Timestamp>) -> Value {
        let certificates = self
            .certificates
            .iter()
            .map(|der| json!({ "rawBytes": b64(der) }));
        let mut window = json!({ "start": start.to_string() });
        if let Some(end) = end {
            window["end"] = end.to_string().into();
        }
        json!({
            "subject": { "organization": "test", "commonName": "time" }, "uri": "https://time.example",
            "certChain": { "certificates": certificates.collect::<Vec<_>>() }, "validFor": window,
        })
    }

    /// A response over these bytes, as of now: DER of `TimeStampResp`.
    fn stamp(&self, bytes: &[u8]) -> Vec<u8> {
        fs::write(self.path().join("data"), bytes).unwrap();
        for words in [
            "ts -query -data data -sha256 -cert -out query",
            "ts -reply -config ts.cnf -queryfile query -out reply",
        ] {
            let output = Command::new(&self.openssl)
                .args(words.split(' '))
                .current_dir(self.path())
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "{words}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        fs::read(self.path().join("reply")).unwrap()
    }
}

fn stamped(bundle: &[u8], responses: &[&[u8]]) -> Vec<u8> {
    let mut bundle: Value = serde_json::from_slice(bundle).unwrap();
    let stamps: Vec<Value> = responses
        .iter()
        .map(|response| json!({ "signedTimestamp": b64(response) }))
        .collect();
    bundle["verificationMaterial"]["timestampVerificationData"] = json!({ "rfc3161Timestamps": stamps });
    bundle.to_string().into_bytes()
}

#[test]
fn a_timestamp_proves_how_old_a_signature_by_a_key_is() {
    let (Some(tsa), Some(other)) = (Tsa::new(), Tsa::new()) else {
        return testkit::peers::skip("openssl");
    };
    let (signer, image) = (signer(), Digest::of(b"image"));
    let work = image_work(&signer, image);
    let bare = key_bundle(&signer, &work, &[]);
    let stamp = tsa.stamp(&work.rekord.signature);
    let believed = root_with(json!({ "timestampAuthorities": [tsa.trusted(ago(500), None)] }));
    let young = |trust: &std::sync::Arc<signing::trust::TrustRoot>| Policy {
        not_before: Some(ago(60)),
        ..changed(by_key(&signer), |own| own.trust = Some(trust.clone()))
    };
    let reason = |bundle: &[u8], policy: &Policy| {
        let outcome = check_bundle(bundle, image, policy, now());
        outcome
            .map(|accepted| accepted.time)
            .map_err(|rejected| rejected.reason)
    };
    let time = reason(&stamped(&bare, &[&stamp]), &young(&believed))
        .unwrap()
        .unwrap();
    assert!(time >= ago(60) && time <= Timestamp::from_second(now().as_second() + 60).unwrap());
    assert_eq!(reason(&bare, &young(&believed)), Err("too-old"));
    let later = Policy {
        not_before: Some(Timestamp::from_second(now().as_second() + 3_600).unwrap()),
        ..young(&believed)
    };
    assert_eq!(reason(&stamped(&bare, &[&stamp]), &later), Err("too-old"));
    for (what, bundle) in [
        (
            "of another signature",
            stamped(&bare, &[&tsa.stamp(b"another signature")]),
        ),
        (
            "of another authority",
            stamped(&bare, &[&other.stamp(&work.rekord.signature)]),
        ),
        ("that is cut", stamped(&bare, &[&stamp[..stamp.len() - 1]])),
        ("of which a bit is flipped", {
            let mut bent = stamp.clone();
            let at = bent.len() - 5;
            bent[at] ^= 1;
            stamped(&bare, &[&bent])
        }),
    ] {
        assert!(
            reason(&bundle, &young(&believed)).is_err(),
            "a timestamp {what} counts"
        );
    }
    // An authority counts in its window only.
    let ended = root_with(json!({ "timestampAuthorities": [tsa.trusted(ago(500), Some(ago(100)))] }));
    assert!(reason(&stamped(&bare, &[&stamp]), &young(&ended)).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timestamp_says_when_a_certificate_has_to_be_valid() {
    let Some(tsa) = Tsa::new() else {
        return testkit::peers::skip("openssl");
    };
    let world = World::new().await;
    let ca = Ca::new((1_000, -1_000), (900, -900));
    let log = Rekor2::new("trusted");
    let mut parts = ca.trusted(&[log.trusted(ago(500), None)], true);
    parts["timestampAuthorities"] = json!([tsa.trusted(ago(500), None)]);
    let policy = changed(
        Policy::keys("keyless", Vec::new()).with_log(root_with(parts)),
        |own| {
            own.identities = vec![Identity::exact(IDENTITY, ISSUER)];
        },
    );
    // Valid now, and no longer: what counts is the time that is stamped.
    for (window, counts) in [((600, -600), true), ((600, 300), false)] {
        let issued = ca.issue(window);
        let work = image_work(&issued.signer, world.image);
        let rekord = tlog::HashedRekord {
            verifier: tlog::Verifier::Certificate(issued.der.clone()),
            ..work.rekord.clone()
        };
        let material = json!({ "certificate": { "rawBytes": b64(&issued.der) } });
        let plain = bundle(V03, &material, &[log.entry(&rekord)], &work.content).to_string();
        let stamp = tsa.stamp(&work.rekord.signature);
        let outcome = check_bundle(
            &stamped(plain.as_bytes(), &[&stamp]),
            world.image,
            &policy,
            Timestamp::MAX,
        );
        assert_eq!(outcome.is_ok(), counts, "{window:?}: {outcome:?}");
        // A log of the second kind knows no time: without a timestamp none is proven.
        assert!(check_bundle(plain.as_bytes(), world.image, &policy, now()).is_err());

        // The same in the legacy format, where the timestamp is an annotation.
        let payload = legacy::payload(&world.repository, world.image, &annotations(&[]));
        let signature = issued.signer.sign_now(Digest::of(&payload)).unwrap();
        let rekor1 = Rekor1::new();
        let mut parts = ca.trusted(&[rekor1.trusted(ago(10_000), None)], true);
        parts["timestampAuthorities"] = json!([tsa.trusted(ago(500), None)]);
        let body = hashedrekord1(Digest::of(&payload), &signature, &issued.pem);
        let layer = |stamp: &[u8]| {
            json!({
                (legacy::SIGNATURE): b64(&signature), "dev.sigstore.cosign/certificate": issued.pem,
                "dev.sigstore.cosign/chain": ca.intermediate_pem(),
                "dev.sigstore.cosign/bundle": rekor1.annotation(&body, ago(450)),
                "dev.sigstore.cosign/rfc3161timestamp": json!({ "SignedRFC3161Timestamp": b64(stamp) }).to_string(),
            })
        };
        let policy = changed(policy.clone(), |own| own.trust = Some(root_with(parts)));
        world
            .put_legacy(world.image, &[(payload.clone(), layer(&tsa.stamp(&signature)))])
            .await;
        let report = world.verify(&policy).await;
        assert_eq!(report.verified, counts, "{window:?}: {:?}", report.reasons);
        world
            .put_legacy(world.image, &[(payload.clone(), layer(&tsa.stamp(b"other")))])
            .await;
        assert!(
            !world.verify(&policy).await.verified,
            "a timestamp of another signature"
        );
    }
}
