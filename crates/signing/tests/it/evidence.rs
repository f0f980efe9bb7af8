//! What a bundle proves, and what it only claims. Nothing but bytes: no registry, no server.

use kernel::Digest;
use serde_json::{Value, json};
use signing::key::{LocalSigner, Signer as _};
use signing::verify::{Policy, Rejected, check_blob, check_bundle};

use crate::forge::*;

/// A key, an image, its signature, and a log that the policy believes.
pub struct Case {
    pub signer: LocalSigner,
    pub image: Digest,
    pub work: Work,
    pub log: Rekor2,
    pub policy: Policy,
}

impl Case {
    pub fn new() -> Self {
        let signer = signer();
        let image = Digest::of(b"image");
        let log = Rekor2::new("trusted");
        let policy = by_key(&signer).with_log(root(&[log.trusted(ago(60), None)]));
        Self {
            work: image_work(&signer, image),
            signer,
            image,
            log,
            policy,
        }
    }

    pub fn entry(&self) -> Value {
        self.log.entry(&self.work.rekord)
    }

    pub fn good(&self) -> Vec<u8> {
        key_bundle(&self.signer, &self.work, &[self.entry()])
    }

    /// The reason for which a bundle with these entries does not count.
    fn refused(&self, entries: &[Value]) -> &'static str {
        refused(
            &key_bundle(&self.signer, &self.work, entries),
            self.image,
            &self.policy,
        )
        .reason
    }
}

pub fn refused(bundle: &[u8], image: Digest, policy: &Policy) -> Rejected {
    check_bundle(bundle, image, policy, now()).unwrap_err()
}

pub fn without_log(policy: &Policy) -> Policy {
    Policy::keys("without a log", policy.authorities[0].keys.clone())
}

#[test]
fn what_is_right_is_accepted_and_says_what_was_proven() {
    let case = Case::new();
    let accepted = check_bundle(&case.good(), case.image, &case.policy, now()).unwrap();
    assert_eq!(accepted.key_id, Some(case.signer.public_key().id().to_string()));
    assert_eq!(
        (accepted.logged, accepted.log_index, accepted.time),
        (true, Some(1), None)
    );
}

#[test]
fn t01_a_promise_over_another_body_is_no_promise() {
    let (signer, log, image) = (signer(), Rekor1::new(), Digest::of(b"image"));
    let policy = by_key(&signer).with_log(root(&[log.trusted(ago(60), None)]));
    let work = image_work(&signer, image);
    let pem = signer.public_key().to_pem();
    let body = dsse1(&work.payload, &work.rekord.signature, &pem);
    let bundle_of = |entry: Value| {
        bundle(V01, &by_hint(signer.public_key()), &[entry], &work.content)
            .to_string()
            .into_bytes()
    };
    let right = log.entry("dsse", &body, ago(30));
    let accepted = check_bundle(&bundle_of(right.clone()), image, &policy, now()).unwrap();
    assert_eq!((accepted.logged, accepted.log_index), (true, Some(7)));
    assert_eq!(accepted.time.unwrap().as_second(), ago(30).as_second());

    let mut borrowed = right.clone();
    let other = dsse1(b"other", &work.rekord.signature, &pem);
    borrowed["inclusionPromise"]["signedEntryTimestamp"] = log.promise(&other, ago(30), 7).into();
    assert_eq!(refused(&bundle_of(borrowed), image, &policy).reason, "log");
    let mut backdated = right.clone();
    backdated["integratedTime"] = ago(40).as_second().to_string().into();
    assert_eq!(refused(&bundle_of(backdated), image, &policy).reason, "log");
    let mut moved = right;
    moved["logIndex"] = "8".into();
    assert_eq!(refused(&bundle_of(moved), image, &policy).reason, "log");
}

#[test]
fn t02_an_entry_for_another_digest_fails() {
    let case = Case::new();
    let other = image_work(&case.signer, Digest::of(b"other"));
    assert_eq!(case.refused(&[case.log.entry(&other.rekord)]), "log");
}

#[test]
fn t02_an_entry_for_another_signature_fails() {
    let case = Case::new();
    // The same key over the same statement: ECDSA makes another signature each time.
    let again = image_work(&case.signer, case.image);
    assert_eq!(again.rekord.digest, case.work.rekord.digest);
    assert_eq!(case.refused(&[case.log.entry(&again.rekord)]), "log");
}

#[test]
fn t02_an_entry_for_another_key_fails() {
    let case = Case::new();
    let other = image_work(&signer(), case.image);
    assert_eq!(case.refused(&[case.log.entry(&other.rekord)]), "log");
    // An entry of this digest and this signature under another key: a log would refuse it, a forger's does not.
    let body = String::from_utf8(case.work.rekord.accept().unwrap().body).unwrap();
    let tlog::Verifier::PublicKey(other) = other.rekord.verifier else {
        unreachable!()
    };
    let body = body.replace(&b64(case.signer.public_key().spki()), &b64(other));
    assert_eq!(case.refused(&[case.log.entry_of(body.as_bytes())]), "log");
}

#[test]
fn t03_an_index_without_a_proof_proves_nothing() {
    let case = Case::new();
    let mut entry = case.entry();
    entry.as_object_mut().unwrap().remove("inclusionProof");
    assert_eq!(case.refused(&[entry]), "log");
    assert_eq!(case.refused(&[]), "log");
    // An unproven entry beside a proven one is a claim that nobody checked: cosign refuses the bundle, and so do we.
    let mut claimed = case.entry();
    claimed.as_object_mut().unwrap().remove("inclusionProof");
    claimed["logIndex"] = "99".into();
    for entries in [[claimed.clone(), case.entry()], [case.entry(), claimed]] {
        let bundle = key_bundle(&case.signer, &case.work, &entries);
        let rejected = refused(&bundle, case.image, &case.policy);
        assert_eq!(rejected.reason, "log");
        assert!(rejected.detail.contains("neither a proof"), "{}", rejected.detail);
    }
    assert!(
        check_bundle(
            &key_bundle(&case.signer, &case.work, &[case.entry()]),
            case.image,
            &case.policy,
            now()
        )
        .is_ok()
    );
}

#[test]
fn t04_a_log_that_is_not_believed_does_not_count_however_often_it_speaks() {
    let case = Case::new();
    let foreign = Rekor2::new("foreign").entry(&case.work.rekord);
    assert_eq!(case.refused(std::slice::from_ref(&foreign)), "log");
    assert_eq!(case.refused(&[foreign.clone(), foreign.clone()]), "malformed");
    // Nor does it count under the name of one that is.
    let mut renamed = foreign;
    renamed["logId"] = case.entry()["logId"].clone();
    assert_eq!(case.refused(&[renamed]), "log");
}

#[test]
fn t05_a_log_key_counts_in_its_time_only() {
    let case = Case::new();
    let policy_of = |trusted: Value| by_key(&case.signer).with_log(root(&[trusted]));
    // Rekor v2 proves no time, so its key has to be valid now.
    for (start, end, counts) in [
        (ago(100), None, true),
        (ago(100), Some(ago(-100)), true),
        (ago(100), Some(ago(50)), false),
        (ago(-50), None, false),
    ] {
        let policy = policy_of(case.log.trusted(start, end));
        let outcome = check_bundle(&case.good(), case.image, &policy, now());
        assert_eq!(outcome.is_ok(), counts, "{start} {end:?}: {outcome:?}");
    }
    // A retired log beside a valid one: neither name lends its window to the other.
    let valid = Rekor2::new("valid");
    let both = root(&[
        case.log.trusted(ago(100), Some(ago(50))),
        valid.trusted(ago(100), None),
    ]);
    let mut renamed = case.entry();
    renamed["logId"] = valid.entry(&case.work.rekord)["logId"].clone();
    for entry in [case.entry(), renamed] {
        let bundle = key_bundle(&case.signer, &case.work, &[entry]);
        assert_eq!(
            refused(&bundle, case.image, &by_key(&case.signer).with_log(both.clone())).reason,
            "log"
        );
    }
    // Rekor v1 proves its time: that is what the window is held against.
    let old = Rekor1::new();
    let body = dsse1(
        &case.work.payload,
        &case.work.rekord.signature,
        &case.signer.public_key().to_pem(),
    );
    for (time, counts) in [(ago(200), false), (ago(70), true), (ago(40), false)] {
        let policy = policy_of(old.trusted(ago(100), Some(ago(50))));
        let entry = old.entry("dsse", &body, time);
        let bundle = bundle(
            V01,
            &by_hint(case.signer.public_key()),
            &[entry],
            &case.work.content,
        )
        .to_string();
        let outcome = check_bundle(bundle.as_bytes(), case.image, &policy, now());
        assert_eq!(outcome.is_ok(), counts, "{time}: {outcome:?}");
    }
}

#[test]
fn t07_a_bundle_cut_at_any_byte_is_no_bundle() {
    let case = Case::new();
    let bundle = case.good();
    for policy in [&case.policy, &without_log(&case.policy)] {
        assert!(check_bundle(&bundle, case.image, policy, now()).is_ok());
        for end in 0..bundle.len() {
            assert_eq!(
                refused(&bundle[..end], case.image, policy).reason,
                "malformed",
                "cut at {end}"
            );
        }
    }
}

#[test]
fn t07_a_signed_payload_that_is_no_statement_is_an_error() {
    let (signer, image) = (signer(), Digest::of(b"image"));
    let whole = image_work(&signer, image).payload;
    for end in (0..whole.len()).step_by(7) {
        let bundle = key_bundle(&signer, &dsse_work(&signer, &whole[..end]), &[]);
        assert_eq!(
            refused(&bundle, image, &by_key(&signer)).reason,
            "malformed",
            "cut at {end}"
        );
    }
}

#[test]
fn t08_an_attestation_of_something_else_is_no_signature() {
    let (signer, image) = (signer(), Digest::of(b"image"));
    for kind in [
        ATTESTATION,
        "",
        "https://sigstore.dev/cosign/sign/v10",
        "https://slsa.dev/provenance/v1",
    ] {
        let work = dsse_work(&signer, &statement_of(kind, image));
        let bundle = key_bundle(&signer, &work, &[]);
        assert_eq!(
            refused(&bundle, image, &by_key(&signer)).reason,
            "predicate-type",
            "{kind}"
        );
        // The same for a file: a verdict about it is not its signature.
        let outcome = check_blob(&bundle, image, None, &by_key(&signer), now());
        assert_eq!(outcome.unwrap_err().reason, "predicate-type", "{kind}");
    }
    let mut other = image_work(&signer, image);
    other.content["dsseEnvelope"]["payloadType"] = "text/plain".into();
    assert_eq!(
        refused(&key_bundle(&signer, &other, &[]), image, &by_key(&signer)).reason,
        "not-a-signature"
    );
}

/// Anybody who may push writes these words, and they go into answers, logs and terminals.
#[test]
fn t28_a_reason_quotes_little_and_stays_in_its_line() {
    let (signer, image) = (signer(), Digest::of(b"image"));
    let long = format!("\u{1b}[2J\r\nverified: yes\u{202e}{}", "x".repeat(500_000));
    let mut kind_of_payload = image_work(&signer, image);
    kind_of_payload.content["dsseEnvelope"]["payloadType"] = long.clone().into();
    let mut kind_of_field = image_work(&signer, image);
    kind_of_field.content["dsseEnvelope"]["signatures"] = long.clone().into();
    let predicate = dsse_work(&signer, &statement_of(&long, image));
    for work in [kind_of_payload, kind_of_field, predicate] {
        let rejected = refused(&key_bundle(&signer, &work, &[]), image, &by_key(&signer));
        let detail = rejected.detail;
        assert!(
            !detail.is_empty() && detail.chars().count() <= kernel::WORDS_CHARS_MAX,
            "{}",
            detail.len()
        );
        assert!(
            !detail.contains(|c: char| c.is_control() || c == '\u{202e}'),
            "{detail:?}"
        );
    }
}

#[test]
fn t09_the_bundle_of_one_image_does_not_sign_another() {
    let case = Case::new();
    let other = Digest::of(b"other");
    assert_eq!(refused(&case.good(), other, &case.policy).reason, "other-subject");
    let file = key_bundle(&case.signer, &message_work(&case.signer, b"a file"), &[]);
    let policy = by_key(&case.signer);
    assert!(check_blob(&file, Digest::of(b"a file"), None, &policy, now()).is_ok());
    assert_eq!(
        check_blob(&file, other, None, &policy, now()).unwrap_err().reason,
        "no-matching-key"
    );
    // A signature over the digest of an image as a file is none of the image.
    assert_eq!(
        refused(&file, Digest::of(b"a file"), &policy).reason,
        "not-a-signature"
    );
}

#[test]
fn t28_what_nests_or_repeats_without_end_is_refused_before_it_is_parsed() {
    let case = Case::new();
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    assert_eq!(
        refused(deep.as_bytes(), case.image, &case.policy).reason,
        "malformed"
    );
    let good = String::from_utf8(case.good()).unwrap();
    let hidden = good.replacen('{', &format!("{{\"x\":{deep},"), 1);
    assert_eq!(
        refused(hidden.as_bytes(), case.image, &case.policy).reason,
        "malformed"
    );
    let payload = format!("{{\"_type\":{deep}}}");
    let bundle = key_bundle(&case.signer, &dsse_work(&case.signer, payload.as_bytes()), &[]);
    assert_eq!(
        refused(&bundle, case.image, &without_log(&case.policy)).reason,
        "malformed"
    );
}

#[test]
fn t40_no_version_of_the_bundle_waives_the_log() {
    let case = Case::new();
    let key = by_hint(case.signer.public_key());
    let mut bare = case.entry();
    bare.as_object_mut().unwrap().remove("inclusionProof");
    let mut promised = bare.clone();
    promised["inclusionPromise"] = json!({ "signedEntryTimestamp": b64(b"") });
    for version in [
        V01,
        V02,
        V03,
        "application/vnd.dev.sigstore.bundle+json;version=0.3",
    ] {
        for entries in [vec![], vec![bare.clone()], vec![promised.clone()]] {
            let bundle = bundle(version, &key, &entries, &case.work.content)
                .to_string()
                .into_bytes();
            assert_eq!(
                refused(&bundle, case.image, &case.policy).reason,
                "log",
                "{version}"
            );
        }
    }
    for version in [
        "application/vnd.dev.sigstore.bundle+json;version=0.0",
        "application/json",
        "",
    ] {
        let bundle = bundle(version, &key, &[], &case.work.content)
            .to_string()
            .into_bytes();
        assert_eq!(
            refused(&bundle, case.image, &case.policy).reason,
            "malformed",
            "{version}"
        );
    }
}

#[test]
fn a_bundle_with_two_signatures_is_refused() {
    let case = Case::new();
    let mut bundle: Value = serde_json::from_slice(&case.good()).unwrap();
    let first = bundle["dsseEnvelope"]["signatures"][0].clone();
    let other = image_work(&signer(), case.image).content["dsseEnvelope"]["signatures"][0].clone();
    for two in [json!([first, other]), json!([other, first]), json!([])] {
        bundle["dsseEnvelope"]["signatures"] = two;
        let bytes = bundle.to_string().into_bytes();
        assert_eq!(
            refused(&bytes, case.image, &without_log(&case.policy)).reason,
            "malformed"
        );
    }
}

#[test]
fn a_proof_against_another_tree_is_refused() {
    let case = Case::new();
    let body = case.work.rekord.accept().unwrap().body;
    let mut smaller = case.entry();
    smaller["inclusionProof"]["checkpoint"]["envelope"] = case.log.smaller_checkpoint(&body).into();
    assert_eq!(case.refused(&[smaller]), "log");
    let mut short = case.entry();
    short["inclusionProof"]["hashes"] = json!([]);
    assert_eq!(case.refused(&[short]), "log");
    let mut moved = case.entry();
    (moved["logIndex"], moved["inclusionProof"]["logIndex"]) = ("0".into(), "0".into());
    assert_eq!(case.refused(&[moved]), "log");
    let mut resized = case.entry();
    let note = resized["inclusionProof"]["checkpoint"]["envelope"]
        .as_str()
        .unwrap()
        .replace("\n2\n", "\n3\n");
    resized["inclusionProof"]["checkpoint"]["envelope"] = note.into();
    assert_eq!(case.refused(&[resized]), "log");
}

#[test]
fn every_bit_of_the_evidence_matters() {
    let case = Case::new();
    let good: Value = serde_json::from_slice(&case.good()).unwrap();
    let entry = "/verificationMaterial/tlogEntries/0";
    for pointer in [
        "/dsseEnvelope/payload",
        "/dsseEnvelope/signatures/0/sig",
        &format!("{entry}/canonicalizedBody"),
        &format!("{entry}/inclusionProof/hashes/0"),
    ] {
        let text = good.pointer(pointer).unwrap().as_str().unwrap();
        for at in (0..text.len() - 4).step_by(9) {
            let mut changed = text.as_bytes().to_vec();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let mut bundle = good.clone();
            *bundle.pointer_mut(pointer).unwrap() = String::from_utf8(changed).unwrap().into();
            let outcome = check_bundle(bundle.to_string().as_bytes(), case.image, &case.policy, now());
            assert!(outcome.is_err(), "{pointer} at {at}");
        }
    }
}

#[test]
fn a_signature_that_names_our_key_and_fails_is_told_from_one_of_another_key() {
    let (ours, other, image) = (signer(), signer(), Digest::of(b"image"));
    let foreign = refused(
        &key_bundle(&other, &image_work(&other, image), &[]),
        image,
        &by_key(&ours),
    );
    assert_eq!(foreign.reason, "no-matching-key");
    assert!(
        foreign.detail.contains(&other.public_key().hint()),
        "{}",
        foreign.detail
    );
    let damaged = refused(
        &key_bundle(&ours, &image_work(&other, image), &[]),
        image,
        &by_key(&ours),
    );
    assert_eq!(damaged.reason, "no-matching-key");
    assert!(
        damaged.detail.contains(&ours.public_key().id().to_string()),
        "{}",
        damaged.detail
    );
}
