//! What other tools leave beside an image, or a stranger puts there: none of it stands in the way of a signature.

use flow::{Caller, Class};
use kernel::{Digest, Fault as _};
use serde_json::{Value, json};
use signing::format::{legacy, referrer};
use signing::{Formats, SignRequest};

use crate::forge::annotations;
use crate::world::{REPOSITORY, World, only_reason};

const ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";

/// Manifests that refer to `image` and are no manifests that we read: the content type, the bytes and the reason.
fn strangers(image: Digest) -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let with = |name: &str, value: Value| {
        let mut manifest = json!({
            "schemaVersion": 2, "layers": [],
            "subject": { "mediaType": referrer::IMAGE_MANIFEST, "digest": image, "size": 1 },
        });
        manifest[name] = value;
        manifest.to_string().into_bytes()
    };
    let nested = (0..70).fold(json!(1), |inner, _| json!([inner]));
    let large = "x".repeat(kernel::limits::MANIFEST_BYTES_MAX);
    vec![
        (referrer::IMAGE_MANIFEST, with("note", nested), "malformed"),
        (ARTIFACT, with("mediaType", json!(ARTIFACT)), "malformed"),
        (referrer::IMAGE_MANIFEST, with("note", json!(large)), "too-large"),
        (
            referrer::IMAGE_MANIFEST,
            with("manifests", json!([])),
            "malformed",
        ),
        (referrer::IMAGE_MANIFEST, b"no JSON".to_vec(), "malformed"),
        ("text/html", b"<html>".to_vec(), "malformed"),
    ]
}

/// Makes the list of referrers these, in this order.
async fn list(world: &World, referrers: &[Digest]) {
    let entry =
        |digest: &Digest| json!({ "mediaType": referrer::IMAGE_MANIFEST, "digest": digest, "size": 1 });
    let entries: Vec<Value> = referrers.iter().map(entry).collect();
    let index = json!({ "schemaVersion": 2, "mediaType": referrer::IMAGE_INDEX, "manifests": entries });
    let tag = format!("sha256-{}", world.image.hex());
    let bytes = index.to_string();
    let put = world
        .fake
        .put_manifest(REPOSITORY, Some(&tag), referrer::IMAGE_INDEX, bytes.as_bytes());
    put.await.unwrap();
    world.fake.fault(|plan| plan.listing_status = Some(404));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strange_referrer_is_a_rejected_candidate_wherever_it_stands() {
    for (kind, bytes, reason) in strangers(World::new().await.image) {
        let world = World::new().await;
        world.sign_as(&world.request_in(Formats::BUNDLE)).await;
        let policy = world.logged_policy().await;
        let referrers = signing::ports::Registry::referrers(
            &*world.client,
            Caller::new("default", Class::Verify),
            &world.repository,
            world.image,
        );
        let ours = referrers.await.unwrap()[0].digest;
        let stranger = world
            .fake
            .put_manifest(REPOSITORY, None, kind, &bytes)
            .await
            .unwrap();
        for order in [[stranger, ours], [ours, stranger]] {
            list(&world, &order).await;
            assert!(world.verify(&policy).await.verified, "{kind} {reason} {order:?}");
        }
        // Alone it is no signature, and the reason is told; it is no failure to ask.
        list(&world, &[stranger]).await;
        assert_eq!(only_reason(&world.verify(&policy).await), reason, "{kind}");
        list(&world, &[stranger, stranger, ours]).await;
        let report = world.verify(&policy).await;
        let refused = report.candidates[0].outcome.as_ref().unwrap_err();
        assert_eq!((report.candidates[0].digest, refused.reason), (stranger, reason));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strange_signature_tag_is_a_rejected_candidate() {
    for (kind, bytes, reason) in strangers(Digest::of(b"any")) {
        let world = World::new().await;
        let tag = legacy::tag(world.image);
        let put = world.fake.put_manifest(REPOSITORY, Some(&tag), kind, &bytes);
        put.await.unwrap();
        let policy = world.policy().await;
        let report = world.verify(&policy).await;
        assert_eq!(only_reason(&report), reason, "{kind}");
        assert!(report.reasons[0].contains(&tag), "{:?}", report.reasons);
        // It stays as it is, and whoever would write there is told what stands in the way.
        let request = world.request_in(Formats::LEGACY);
        let error = world.signing.sign(&world.context(), &request).await.unwrap_err();
        assert_eq!(error.code().id, "PC1207", "{kind}: {error:?}");
        world.sign_as(&world.request_in(Formats::BUNDLE)).await;
        assert!(world.verify(&policy).await.verified);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strange_referrer_does_not_keep_a_signature_from_being_put_back() {
    for (kind, bytes, _) in strangers(World::new().await.image) {
        let world = World::new().await;
        let request = world.request_in(Formats::BUNDLE);
        world.sign_as(&request).await;
        let policy = world.logged_policy().await;
        let stranger = world
            .fake
            .put_manifest(REPOSITORY, None, kind, &bytes)
            .await
            .unwrap();
        // The registry lost the signature, and lists a stranger.
        list(&world, &[stranger]).await;
        let repair = SignRequest {
            repair: true,
            ..request
        };
        world.fake.fault(|plan| plan.listing_status = None);
        assert!(!world.sign_as(&repair).await.repaired, "the referrers API has it");
        world.fake.fault(|plan| plan.listing_status = Some(404));
        let repaired = world.signing.sign(&world.context(), &repair).await;
        assert!(repaired.unwrap()[0].repaired, "{kind}");
        assert!(world.verify(&policy).await.verified);
        // Without a server it is the same look.
        let signer = crate::forge::signer();
        let (image, none, now) = (world.reference(), annotations(&[]), crate::forge::now());
        let formats = Formats::BUNDLE;
        let local = signing::local::sign(&*world.client, &signer, &image, &none, false, formats, now);
        assert!(!local.await.unwrap()[0].deduplicated);
    }
}
