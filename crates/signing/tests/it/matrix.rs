//! Which formats verify, with and without a log: those that others write too.

use kernel::Digest;
use serde_json::{Value, json};
use signing::format::{legacy, statement};
use signing::key::Signer as _;
use signing::verify::{check_blob, check_bundle};

use crate::forge::*;
use crate::world::{World, only_reason};

/// One cell of the matrix: the media type, which log, and whether it counts with a log and without.
const DSSE: &[(&str, &str, bool)] = &[
    (V01, "none", false),
    (V01, "v1 promise", true),
    (V01, "v2 proof", false),
    (V02, "none", false),
    (V02, "v1 promise", false),
    (V02, "v2 proof", true),
    (V03, "none", false),
    (V03, "v1 promise", false),
    (V03, "v2 proof", true),
];

#[test]
fn t36_bundles_of_a_key_in_every_version_with_and_without_a_log() {
    let (signer, image) = (signer(), Digest::of(b"image"));
    let (old, new) = (Rekor1::new(), Rekor2::new("new"));
    let trust = root(&[old.trusted(ago(60), None), new.trusted(ago(60), None)]);
    let (plain, logged) = (by_key(&signer), by_key(&signer).with_log(trust));
    let pem = signer.public_key().to_pem();
    let statement = image_work(&signer, image);
    let file = message_work(&signer, b"a file");
    for (version, log, counts) in DSSE {
        let bundle_of = |work: &Work, promised: Value| {
            let entries: Vec<Value> = match *log {
                "v1 promise" => vec![promised],
                "v2 proof" => vec![new.entry(&work.rekord)],
                _ => Vec::new(),
            };
            bundle(version, &by_hint(signer.public_key()), &entries, &work.content)
                .to_string()
                .into_bytes()
        };
        let body = dsse1(&statement.payload, &statement.rekord.signature, &pem);
        let bytes = bundle_of(&statement, old.entry("dsse", &body, ago(30)));
        let check = |policy| check_bundle(&bytes, image, policy, now());
        assert!(
            check(&plain).is_ok(),
            "statement, {version}, {log}, without a log"
        );
        assert_eq!(
            check(&logged).is_ok(),
            *counts,
            "statement, {version}, {log}: {:?}",
            check(&logged)
        );

        let digest = Digest::of(b"a file");
        let body = hashedrekord1(digest, &file.rekord.signature, &pem);
        let bytes = bundle_of(&file, old.entry("hashedrekord", &body, ago(30)));
        let check = |policy| check_blob(&bytes, digest, None, policy, now());
        assert!(check(&plain).is_ok(), "file, {version}, {log}, without a log");
        assert_eq!(
            check(&logged).is_ok(),
            *counts,
            "file, {version}, {log}: {:?}",
            check(&logged)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t36_legacy_signatures_of_a_key_with_and_without_a_log() {
    let world = World::new().await;
    let (signer, log) = (signer(), Rekor1::new());
    let (plain, logged) = (
        by_key(&signer),
        by_key(&signer).with_log(root(&[log.trusted(ago(60), None)])),
    );
    let payload = legacy::payload(&world.repository, world.image, &annotations(&[("env", "prod")]));
    let signature = signer.sign_now(Digest::of(&payload)).unwrap();
    let body_of =
        |signature: &[u8]| hashedrekord1(Digest::of(&payload), signature, &signer.public_key().to_pem());
    let with = async |rekor: Option<String>| {
        let mut layer = json!({ (legacy::SIGNATURE): b64(&signature) });
        if let Some(rekor) = rekor {
            layer["dev.sigstore.cosign/bundle"] = rekor.into();
        }
        world.put_legacy(world.image, &[(payload.clone(), layer)]).await;
        (world.verify(&plain).await, world.verify(&logged).await)
    };
    let (bare, unlogged) = with(None).await;
    assert!(bare.verified);
    assert_eq!(only_reason(&unlogged), "log");

    let (unasked, proven) = with(Some(log.annotation(&body_of(&signature), ago(30)))).await;
    assert!(unasked.verified && proven.verified, "{:?}", proven.reasons);
    assert!(!unasked.candidates[0].outcome.as_ref().unwrap().logged);
    let accepted = proven.candidates[0].outcome.as_ref().unwrap();
    assert_eq!((accepted.logged, accepted.log_index), (true, Some(7)));
    assert_eq!(accepted.annotations, annotations(&[("env", "prod")]));

    // T01 and T02 in this format: another signature's entry, another log's promise, a promise over another body.
    let again = signer.sign_now(Digest::of(&payload)).unwrap();
    let (_, borrowed) = with(Some(log.annotation(&body_of(&again), ago(30)))).await;
    assert_eq!(only_reason(&borrowed), "log");
    let (_, foreign) = with(Some(Rekor1::new().annotation(&body_of(&signature), ago(30)))).await;
    assert_eq!(only_reason(&foreign), "log");
    let mut split: Value = serde_json::from_str(&log.annotation(&body_of(&signature), ago(30))).unwrap();
    split["SignedEntryTimestamp"] = log.promise(&body_of(&again), ago(30), 7).into();
    let (_, split) = with(Some(split.to_string())).await;
    assert_eq!(only_reason(&split), "log");
    for text in ["", "{}", "[]", "null", "{\"SignedEntryTimestamp\":1}"] {
        let (unasked, asked) = with(Some(text.to_owned())).await;
        assert_eq!(only_reason(&unasked), "malformed", "{text}");
        assert_eq!(only_reason(&asked), "malformed", "{text}");
    }
}

/// Attestations are not verified here, so none may pass for a signature: not in the tag that cosign 2 keeps them in,
/// and not when somebody who may push puts them where signatures are looked for.
#[tokio::test(flavor = "multi_thread")]
async fn t36_an_attestation_in_the_legacy_format_is_never_a_signature() {
    const DSSE_LAYER: &str = "application/vnd.dsse.envelope.v1+json";
    let world = World::new().await;
    let signer = signer();
    let policy = by_key(&signer);
    let tag = legacy::tag(world.image);
    let attestations = tag.replace(".sig", ".att");
    for kind in [
        statement::PREDICATE,
        "https://slsa.dev/provenance/v1",
        "cosign.sigstore.dev/attestation/v1",
    ] {
        let work = dsse_work(&signer, &statement_of(kind, world.image));
        let envelope = work.content["dsseEnvelope"].to_string().into_bytes();
        // As cosign 2 writes it: the signature is in the envelope, the annotation is empty.
        let written = json!({ (legacy::SIGNATURE): "", "predicateType": kind });
        let layer = [(envelope.clone(), written)];
        world.put_layers(&attestations, DSSE_LAYER, &layer).await;
        let report = world.verify(&policy).await;
        assert!(
            !report.verified && report.candidates.is_empty(),
            "{kind}: {report:?}"
        );
        assert!(
            report.reasons[0].starts_with("no signature is attached"),
            "{kind}"
        );

        // In the tag of signatures; then with the key's own signature over each part of it.
        let mut layers = vec![layer[0].clone()];
        for signed in [&envelope, &work.payload] {
            let signature = b64(signer.sign_now(Digest::of(signed)).unwrap());
            layers.push((signed.clone(), json!({ (legacy::SIGNATURE): signature })));
        }
        for layer in layers {
            for media_type in [DSSE_LAYER, legacy::LAYER] {
                world
                    .put_layers(&tag, media_type, std::slice::from_ref(&layer))
                    .await;
                let report = world.verify(&policy).await;
                assert_eq!(only_reason(&report), "malformed", "{kind}, {media_type}");
            }
        }
        world.put_layers(&tag, legacy::LAYER, &[]).await;
    }
    // Beside a real signature it neither helps nor harms.
    let payload = legacy::payload(&world.repository, world.image, &annotations(&[]));
    let signature = b64(signer.sign_now(Digest::of(&payload)).unwrap());
    world
        .put_legacy(
            world.image,
            &[(payload, json!({ (legacy::SIGNATURE): signature }))],
        )
        .await;
    assert!(world.verify(&policy).await.accepted_in("legacy"));
    assert!(!world.verify(&by_key(&crate::forge::signer())).await.verified);
}

#[tokio::test(flavor = "multi_thread")]
async fn t07_a_legacy_layer_without_a_readable_signature_is_an_error() {
    let world = World::new().await;
    let signer = signer();
    let payload = legacy::payload(&world.repository, world.image, &annotations(&[]));
    let signature = b64(signer.sign_now(Digest::of(&payload)).unwrap());
    for (layer, reason) in [
        (json!({}), "malformed"),
        (json!({ (legacy::SIGNATURE): "?" }), "malformed"),
        (json!({ (legacy::SIGNATURE): "" }), "no-matching-key"),
        (
            json!({ (legacy::SIGNATURE): signature[..signature.len() - 8] }),
            "no-matching-key",
        ),
    ] {
        world.put_legacy(world.image, &[(payload.clone(), layer)]).await;
        assert_eq!(only_reason(&world.verify(&by_key(&signer)).await), reason);
    }
    for end in (0..payload.len()).step_by(11) {
        let signature = b64(signer.sign_now(Digest::of(&payload[..end])).unwrap());
        let layer = (payload[..end].to_vec(), json!({ (legacy::SIGNATURE): signature }));
        world.put_legacy(world.image, &[layer]).await;
        assert_eq!(
            only_reason(&world.verify(&by_key(&signer)).await),
            "malformed",
            "cut at {end}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_we_write_verifies_in_both_formats_with_our_log() {
    for world in [World::new().await, World::without_referrers().await] {
        world.sign().await;
        let logged = world.verify(&world.logged_policy().await).await;
        assert!(logged.accepted_in("bundle"), "{:?}", logged.reasons);
        // The legacy format carries no proof of a log of the second kind; it counts where none is asked for.
        let bundle: Value = serde_json::from_slice(&world.only_bundle().await).unwrap();
        assert_eq!(bundle["mediaType"], V03);
        let tag = legacy::tag(world.image);
        assert!(world.fake.tag_digest("team/app", &tag).await.unwrap().is_some());
    }
}
