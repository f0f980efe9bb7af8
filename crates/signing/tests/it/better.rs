//! Where cosign is known to say or do the wrong thing, each behaviour with a test.

use flow::Caller;
use std::sync::Arc;

use kernel::{Clock as _, Digest, Fault as _, Kind};
use registry::Options;
use serde_json::json;
use signing::format::{bundle, legacy};
use signing::ports::Registry as _;
use signing::{Formats, SigningError};

use crate::forge::*;
use crate::world::{REPOSITORY, World, only_reason};

#[tokio::test(flavor = "multi_thread")]
async fn better_a_listing_error_is_an_error_and_never_unsigned() {
    let world = World::new().await;
    let policy = world.policy().await;
    // Even with a good legacy tag: what the listing would have shown is not known.
    world.sign().await;
    let (client, now) = (world.impatient(), world.clock.now());
    for status in [429, 500, 502, 503, 403] {
        world.fake.fault(|plan| plan.listing_status = Some(status));
        let (repository, image) = (&world.repository, world.image);
        let outcome =
            signing::verify::verify_digest(&client, Caller::LOCAL, repository, image, &policy, now).await;
        let error = outcome.unwrap_err();
        assert!(
            matches!(error.kind(), Kind::Unavailable | Kind::Denied),
            "{status}: {error:?}"
        );
    }
    world.fake.fault(|plan| plan.listing_status = None);
    assert!(world.verify(&policy).await.verified);
}

#[tokio::test(flavor = "multi_thread")]
async fn better_a_legacy_signature_counts_beside_a_bundle_that_does_not_verify() {
    let world = World::new().await;
    let stranger = signer();
    world
        .attach(
            world.image,
            &key_bundle(&stranger, &image_work(&stranger, world.image), &[]),
        )
        .await;
    let legacy = Formats {
        bundle: false,
        legacy: true,
    };
    world.sign_as(&world.request_in(legacy)).await;
    let report = world.verify(&world.policy().await).await;
    assert!(report.verified);
    assert!(report.accepted_in("legacy") && !report.accepted_in("bundle"));
    assert_eq!(report.candidates.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn better_a_rejecting_attestation_by_the_right_key_is_no_signature() {
    let world = World::new().await;
    let signer = signer();
    let verdict = dsse_work(&signer, &statement_of(ATTESTATION, world.image));
    world
        .attach(world.image, &key_bundle(&signer, &verdict, &[]))
        .await;
    let report = world.verify(&by_key(&signer)).await;
    assert_eq!(only_reason(&report), "predicate-type");
}

#[tokio::test(flavor = "multi_thread")]
async fn better_nothing_is_claimed_of_a_log_that_was_not_checked() {
    let world = World::new().await;
    world.sign().await;
    let unchecked = world.verify(&world.policy().await).await;
    let accepted = unchecked.candidates[0].outcome.as_ref().unwrap();
    assert_eq!((accepted.logged, accepted.log_index), (false, None));
    assert!(!unchecked.checks.iter().any(|check| check.contains("log")));
    let checked = world.verify(&world.logged_policy().await).await;
    let accepted = checked.candidates[0].outcome.as_ref().unwrap();
    assert_eq!((accepted.logged, accepted.log_index), (true, Some(0)));
    assert!(checked.checks.iter().any(|check| check.contains("log")));
}

#[tokio::test(flavor = "multi_thread")]
async fn better_signing_four_times_leaves_one_signature() {
    let world = World::new().await;
    for _ in 0..4 {
        world.sign().await;
    }
    world.only_bundle().await;
    // And by someone without our memory: the command line with the key file, on the same image.
    let (signer, now) = (signer(), now());
    for _ in 0..4 {
        let image = world.reference();
        let none = &annotations(&[]);
        signing::local::sign(&*world.client, &signer, &image, none, false, Formats::BOTH, now)
            .await
            .unwrap();
    }
    let listed = world
        .client
        .referrers(Caller::LOCAL, &world.repository, world.image)
        .await
        .unwrap();
    assert_eq!(listed.len(), 2);
    let tag = world.repository.tagged(&legacy::tag(world.image));
    let tag = world.client.manifest(Caller::LOCAL, &tag).await.unwrap();
    assert_eq!(legacy::layers(&tag).unwrap().len(), 2);
}

/// Signs one image by sixteen keys or annotations at once, each in a server of its own.
async fn sixteen(world: &World, formats: Formats) {
    let context = world.context();
    let work = (0..16).map(|number| {
        let (server, context) = (world.another(), context.clone());
        let mut request = world.request_in(formats);
        request.annotations = annotations(&[("number", &format!("{number}"))]);
        async move { server.sign(&context, &request).await }
    });
    for outcome in futures::future::join_all(work).await {
        outcome.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn better_sixteen_signers_at_once_without_a_referrers_api_all_stay() {
    let world = World::without_referrers().await;
    sixteen(&world, Formats::BUNDLE).await;
    let listed = world
        .client
        .referrers(Caller::LOCAL, &world.repository, world.image)
        .await
        .unwrap();
    assert_eq!(listed.len(), 16);
    for number in 0..16 {
        let policy = world
            .logged_policy()
            .await
            .with_annotations(annotations(&[("number", &format!("{number}"))]));
        assert!(world.verify(&policy).await.verified, "{number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn better_sixteen_legacy_signatures_at_once_all_stay() {
    let world = World::new().await;
    let legacy_only = Formats {
        bundle: false,
        legacy: true,
    };
    sixteen(&world, legacy_only).await;
    let tag = world
        .client
        .manifest(Caller::LOCAL, &world.repository.tagged(&legacy::tag(world.image)))
        .await
        .unwrap();
    assert_eq!(legacy::layers(&tag).unwrap().len(), 16);
    for number in 0..16 {
        let policy = world
            .policy()
            .await
            .with_annotations(annotations(&[("number", &format!("{number}"))]));
        assert!(world.verify(&policy).await.verified, "{number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn better_a_key_is_opened_once_for_sixty_images() {
    let world = World::new().await;
    // A server after a restart: nothing is open yet.
    let server = world.another();
    server
        .sign(&world.context(), &world.request(world.reference()))
        .await
        .unwrap();
    // From now on the file does not open; sixty images are signed all the same.
    let mut tx = world.db.begin().await.unwrap();
    tx.execute("UPDATE signing_key SET private_pem = 'gone'", store::args![])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    for number in 0..60 {
        let image = world
            .fake
            .put_image(REPOSITORY, "n", &format!("image {number}"))
            .await
            .unwrap();
        let request = signing::SignRequest {
            formats: Some(Formats::BUNDLE),
            ..world.request(world.repository.at(image))
        };
        server.sign(&world.context(), &request).await.unwrap();
    }
    assert_eq!(world.log_size().await, 61);
    // One that has not opened it cannot.
    let request = world.request(
        world
            .repository
            .at(world.fake.put_image(REPOSITORY, "n", "new").await.unwrap()),
    );
    let error = world
        .another()
        .sign(&world.context(), &request)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, SigningError::Shared(inner) if matches!(**inner, SigningError::KeyClosed { .. })),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn t32_an_envelope_without_a_signature_never_counts() {
    let world = World::new().await;
    let stranger = signer();
    let mut work = image_work(&stranger, world.image);
    for signatures in [
        json!([]),
        json!([{ "sig": "" }]),
        json!([{ "sig": b64(b"nothing") }]),
    ] {
        work.content["dsseEnvelope"]["signatures"] = signatures;
        world
            .attach(world.image, &key_bundle(&stranger, &work, &[]))
            .await;
    }
    let report = world.verify(&world.policy().await).await;
    assert!(!report.verified);
    assert_eq!(report.candidates.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_attached_to_one_image_and_signs_another_does_not_count() {
    let world = World::new().await;
    let signer = signer();
    let other = Digest::of(b"another image");
    world
        .attach(
            world.image,
            &key_bundle(&signer, &image_work(&signer, other), &[]),
        )
        .await;
    let report = world.verify(&by_key(&signer)).await;
    assert_eq!(only_reason(&report), "other-subject");
    // The legacy tag of one image with the signature of another.
    let payload = legacy::payload(&world.repository, other, &annotations(&[]));
    let signature = b64(signer.sign_now(Digest::of(&payload)).unwrap());
    world
        .put_legacy(
            world.image,
            &[(payload, json!({ (legacy::SIGNATURE): signature }))],
        )
        .await;
    let report = world.verify(&by_key(&signer)).await;
    assert!(!report.verified);
    assert!(
        report
            .reasons
            .iter()
            .any(|reason| reason.contains("it signs sha256:"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_referrer_of_any_artifact_type_is_looked_at() {
    // cosign's own entries in the fallback tag carry the empty config's type.
    let options = Options {
        referrers: false,
        ..Options::default()
    };
    let world = World::with(options, "**").await;
    world.sign_as(&world.request_in(Formats::BUNDLE)).await;
    let tag = format!("sha256-{}", world.image.hex());
    let index = world
        .client
        .manifest(Caller::LOCAL, &world.repository.tagged(&tag))
        .await
        .unwrap();
    let text = String::from_utf8(index.bytes.to_vec()).unwrap();
    let quoted = format!("\"artifactType\":\"{}\"", bundle::MEDIA_TYPE);
    assert!(text.contains(&quoted), "{text}");
    for other in [
        "\"artifactType\":\"application/vnd.oci.empty.v1+json\"",
        "\"x\":1",
    ] {
        let changed = text.replace(&quoted, other);
        world
            .fake
            .put_manifest(REPOSITORY, Some(&tag), &index.media_type, changed.as_bytes())
            .await
            .unwrap();
        assert!(
            world.verify(&world.logged_policy().await).await.verified,
            "{other}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_look_ends_with_the_first_signature_that_counts() {
    let world = Arc::new(World::new().await);
    world.sign().await;
    let before = world.fake.calls();
    assert!(world.verify(&world.logged_policy().await).await.verified);
    let after = world.fake.calls();
    assert_eq!(after.referrer_lists - before.referrer_lists, 1);
    assert_eq!(
        after.manifest_reads - before.manifest_reads,
        1,
        "the referrer; not the signature tag"
    );
    assert_eq!(after.blob_reads - before.blob_reads, 1);
}
