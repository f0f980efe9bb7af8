//! Many images, one signature.

use std::sync::atomic::Ordering;

use kernel::limits::{RELEASE_SUBJECTS_MAX, SIGNATURE_BLOB_BYTES_MAX};
use kernel::{Fault as _, Reference};
use signing::{Formats, SigningError};

use crate::forge::annotations;
use crate::world::{REPOSITORY, World};

async fn images(world: &World, count: usize) -> Vec<Reference> {
    let mut images = Vec::new();
    for number in 0..count {
        let digest = world
            .fake
            .put_image(REPOSITORY, "n", &format!("release {number}"))
            .await
            .unwrap();
        images.push(world.repository.at(digest));
    }
    images
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_of_forty_is_one_signature_and_one_entry() {
    let world = World::new().await;
    let images = images(&world, 40).await;
    let context = world.context();
    let release = || {
        world
            .signing
            .release(&context, images.clone(), None, annotations(&[("release", "7")]))
    };
    let outcome = release().await.unwrap();
    assert_eq!(outcome.len(), 40);
    let first = outcome[0].as_ref().unwrap().id.clone();
    let policy = world
        .logged_policy()
        .await
        .with_annotations(annotations(&[("release", "7")]));
    for (image, signed) in images.iter().zip(&outcome) {
        let signed = signed.as_ref().unwrap();
        assert_eq!(
            (Some(signed.digest), &signed.id, signed.deduplicated),
            (image.digest(), &first, false)
        );
        assert!(
            world
                .try_verify_digest(signed.digest, &policy)
                .await
                .unwrap()
                .verified
        );
    }
    assert_eq!(
        (
            world.signatures().await,
            world.log_size().await,
            world.audited().await
        ),
        (1, 1, 40)
    );
    // Again: nothing is made.
    assert!(
        release()
            .await
            .unwrap()
            .iter()
            .all(|signed| signed.as_ref().unwrap().deduplicated)
    );
    assert_eq!(
        (
            world.signatures().await,
            world.log_size().await,
            world.audited().await
        ),
        (1, 1, 40)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_of_a_whole_batch_verifies() {
    let world = World::new().await;
    let images = images(&world, RELEASE_SUBJECTS_MAX).await;
    assert_eq!(images.len(), 1_000);
    let outcome = world
        .signing
        .release(&world.context(), images.clone(), None, annotations(&[]))
        .await
        .unwrap();
    let id = outcome[0].as_ref().unwrap().id.clone();
    assert!(outcome.iter().all(|signed| signed.as_ref().unwrap().id == id));
    assert_eq!((world.signatures().await, world.log_size().await), (1, 1));
    let policy = world.logged_policy().await;
    for image in [&images[0], &images[499], &images[999]] {
        let digest = image.digest().unwrap();
        assert!(world.try_verify_digest(digest, &policy).await.unwrap().verified);
    }
    let sql = "SELECT statement FROM signature";
    let row = world.db.read_one(sql, vec![]).await.unwrap().unwrap();
    // In base64 it is a third longer; the rest of a bundle is a few kilobytes.
    assert!(row.blob("statement").unwrap().len() * 4 < SIGNATURE_BLOB_BYTES_MAX);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_release_only_what_changed_is_signed() {
    let world = World::new().await;
    let images = images(&world, 10).await;
    let context = world.context();
    let release = |images: &[Reference]| {
        world
            .signing
            .release(&context, images.to_vec(), None, annotations(&[]))
    };
    release(&images[..7]).await.unwrap();
    let outcome = release(&images).await.unwrap();
    let fresh: Vec<bool> = outcome
        .iter()
        .map(|signed| !signed.as_ref().unwrap().deduplicated)
        .collect();
    assert_eq!(fresh, [[false; 7].as_slice(), &[true; 3]].concat());
    assert_eq!(
        (
            world.signatures().await,
            world.log_size().await,
            world.audited().await
        ),
        (2, 2, 10)
    );
    // The id that each was answered with is the one that its row has.
    for signed in outcome {
        let signed = signed.unwrap();
        let sql = "SELECT COUNT(*) AS n FROM signed_image WHERE signature_id = $1 AND digest = $2 \
                   AND done_at IS NOT NULL";
        let args = store::args![signed.id.to_string(), signed.digest.to_string()];
        assert_eq!(
            world
                .db
                .read_one(sql, args)
                .await
                .unwrap()
                .unwrap()
                .int("n")
                .unwrap(),
            1
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_image_twice_in_a_release_is_signed_once() {
    let world = World::new().await;
    let images = vec![
        world.reference(),
        world.repository.tagged("v1"),
        world.reference(),
    ];
    let outcome = world
        .signing
        .release(&world.context(), images, None, annotations(&[]))
        .await
        .unwrap();
    assert_eq!(outcome.len(), 3);
    assert!(
        outcome
            .iter()
            .all(|signed| signed.as_ref().unwrap().digest == world.image)
    );
    assert_eq!(
        (
            world.signatures().await,
            world.log_size().await,
            world.audited().await
        ),
        (1, 1, 1)
    );
    world.only_bundle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_with_an_image_that_does_not_resolve_signs_nothing() {
    let world = World::new().await;
    let mut images = images(&world, 5).await;
    images.push(world.repository.tagged("nobody-pushed-this"));
    let error = world
        .signing
        .release(&world.context(), images, None, annotations(&[]))
        .await
        .unwrap_err();
    assert_eq!(error.code().id, "PC1501");
    assert_eq!((world.signatures().await, world.log_size().await), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_image_that_cannot_be_published_keeps_the_others_from_nothing() {
    let world = World::new().await;
    let mut images = images(&world, 4).await;
    // Its list of referrers is full: one more is over the cap.
    let full = world.fake.put_image(REPOSITORY, "full", "full").await.unwrap();
    for number in 0..257 {
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "number": number,
            "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": full, "size": 2 }, "layers": [],
            "subject": { "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": full, "size": 1 },
        });
        let kind = "application/vnd.oci.image.manifest.v1+json";
        world
            .fake
            .put_manifest(REPOSITORY, None, kind, manifest.to_string().as_bytes())
            .await
            .unwrap();
    }
    images.insert(2, world.repository.at(full));
    let context = world.context();
    let outcome = world
        .signing
        .release(&context, images.clone(), None, annotations(&[]))
        .await
        .unwrap();
    let failed: Vec<usize> = (0..5).filter(|at| outcome[*at].is_err()).collect();
    assert_eq!(failed, [2]);
    let error = outcome[2].as_ref().unwrap_err();
    assert!(matches!(error, SigningError::Shared(_)));
    assert_eq!(error.code().id, "PC1513", "257 referrers: {error:?}");
    assert_eq!(
        (
            world.signatures().await,
            world.log_size().await,
            world.audited().await
        ),
        (1, 1, 4)
    );
    assert_eq!(
        world
            .try_verify_digest(full, &world.policy().await)
            .await
            .unwrap_err()
            .code()
            .id,
        "PC1513"
    );
    // Again: still one signature and one entry.
    world
        .signing
        .release(&context, images, None, annotations(&[]))
        .await
        .unwrap();
    assert_eq!(
        (
            world.signatures().await,
            world.log_size().await,
            world.audited().await
        ),
        (1, 1, 4)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_died_goes_on_with_its_signature_whole_or_singly() {
    let world = World::new().await;
    let images = images(&world, 6).await;
    let context = world.context();
    world.log.dead.store(true, Ordering::SeqCst);
    world
        .signing
        .release(&context, images.clone(), None, annotations(&[]))
        .await
        .unwrap_err();
    world.log.dead.store(false, Ordering::SeqCst);
    assert_eq!((world.signatures().await, world.log_size().await), (1, 0));
    // One of its images is asked for alone, in the same format.
    let mut single = world.request_in(Formats::BUNDLE);
    single.image = images[3].clone();
    let signed = world.another().sign(&context, &single).await.unwrap().remove(0);
    assert!(!signed.deduplicated);
    assert_eq!(
        (
            world.signatures().await,
            world.log_size().await,
            world.audited().await
        ),
        (1, 1, 1)
    );
    let policy = world.logged_policy().await;
    assert!(
        world
            .try_verify_digest(signed.digest, &policy)
            .await
            .unwrap()
            .verified
    );
    // Then the release again, by another server.
    let outcome = world
        .another()
        .release(&context, images, None, annotations(&[]))
        .await
        .unwrap();
    assert!(outcome.iter().all(|own| own.as_ref().unwrap().id == signed.id));
    assert_eq!(
        (
            world.signatures().await,
            world.log_size().await,
            world.audited().await
        ),
        (1, 1, 6)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn releases_and_single_requests_at_once_agree() {
    let world = World::new().await;
    let images = images(&world, 8).await;
    let context = world.context();
    let (a, b, c) = (world.another(), world.another(), world.another());
    let mut single = world.request_in(Formats::BUNDLE);
    single.image = images[5].clone();
    let mut reversed = images.clone();
    reversed.reverse();
    let (x, y, z) = tokio::join!(
        a.release(&context, images.clone(), None, annotations(&[])),
        b.release(&context, reversed, None, annotations(&[])),
        c.sign(&context, &single),
    );
    z.unwrap();
    assert!(
        x.unwrap()
            .into_iter()
            .chain(y.unwrap())
            .all(|signed| signed.is_ok())
    );
    assert_eq!(world.audited().await, 8);
    let orphans =
        "SELECT COUNT(*) AS n FROM signature WHERE id NOT IN (SELECT signature_id FROM signed_image)";
    assert_eq!(world.count(orphans).await, 0);
    assert_eq!(world.signatures().await as u64, world.log_size().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_keeps_within_its_caps() {
    let world = World::new().await;
    let context = world.context();
    for count in [0, RELEASE_SUBJECTS_MAX + 1] {
        let images = vec![world.reference(); count];
        let error = world
            .signing
            .release(&context, images, None, annotations(&[]))
            .await
            .unwrap_err();
        assert_eq!(error.code().id, "PC1208", "{count}");
    }
    // A statement that would not be read back is not signed: every image repeats the annotations.
    let images = images(&world, 200).await;
    let long = annotations(&[("note", &"x".repeat(4_000))]);
    let error = world
        .signing
        .release(&context, images, None, long)
        .await
        .unwrap_err();
    assert_eq!(error.code().id, "PC1208");
    assert!(error.to_string().contains("STATEMENT_BYTES_MAX"), "{error}");
    assert_eq!((world.signatures().await, world.log_size().await), (0, 0));
}
