//! One wish, one signature: whoever asks, how often, and whatever died in between.

use flow::{Caller, Class};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kernel::Digest;
use signing::Formats;

use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn a_known_digest_is_answered_with_everything_else_dead() {
    let world = World::new().await;
    let first = world.sign().await;
    assert!(!first.deduplicated);
    let (calls, appends) = (world.fake.calls(), world.log.appends.load(Ordering::SeqCst));
    // No call is made, and none could be; the key does not open either.
    world.fake.fault(|plan| plan.hang = true);
    world.log.dead.store(true, Ordering::SeqCst);
    let mut tx = world.db.begin().await.unwrap();
    tx.execute("UPDATE signing_key SET private_pem = 'gone'", store::args![])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    for signing in [world.signing.clone(), world.another()] {
        let again = signing
            .sign(&world.context(), &world.request(world.reference()))
            .await
            .unwrap()
            .remove(0);
        assert!(again.deduplicated);
        assert_eq!((again.id, again.log_index), (first.id.clone(), first.log_index));
    }
    assert_eq!(world.fake.calls(), calls);
    assert_eq!(world.log.appends.load(Ordering::SeqCst), appends);
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_who_want_the_same_at_once_get_one_signature() {
    let world = Arc::new(World::new().await);
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let world = world.clone();
            tokio::spawn(async move { world.sign().await })
        })
        .collect();
    let mut ids = Vec::new();
    for task in tasks {
        ids.push(task.await.unwrap().id.to_string());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    assert_eq!(
        (
            world.signatures().await,
            world.log_size().await,
            world.audited().await
        ),
        (1, 1, 1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_sign_the_same_at_once_agree_on_one_signature() {
    let world = World::new().await;
    let servers: Vec<_> = (0..6).map(|_| world.another()).collect();
    let request = world.request(world.reference());
    let context = world.context();
    let answers =
        futures::future::join_all(servers.iter().map(|server| server.sign(&context, &request))).await;
    let mut ids: Vec<_> = answers
        .into_iter()
        .map(|answer| answer.unwrap().remove(0).id.to_string())
        .collect();
    ids.sort();
    ids.dedup();
    // An acknowledged id that no row speaks of would be a lost signature.
    assert_eq!(ids.len(), 1);
    assert_eq!(
        (
            world.signatures().await,
            world.log_size().await,
            world.audited().await
        ),
        (1, 1, 1)
    );
    let referrers = world.client.clone();
    use signing::ports::Registry as _;
    assert_eq!(
        referrers
            .referrers(
                Caller::new("default", Class::Sign),
                &world.repository,
                world.image
            )
            .await
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_died_between_stage_and_log_goes_on_with_the_same_signature() {
    let world = World::new().await;
    world.log.dead.store(true, Ordering::SeqCst);
    let request = world.request(world.reference());
    let failed = world.signing.sign(&world.context(), &request).await.unwrap_err();
    assert_eq!(kernel::Fault::kind(&failed), kernel::Kind::Unavailable);
    assert_eq!((world.signatures().await, world.audited().await), (1, 0));
    assert!(
        world
            .fake
            .tag_digest("team/app", &signing::format::legacy::tag(world.image))
            .await
            .unwrap()
            .is_none()
    );
    world.log.dead.store(false, Ordering::SeqCst);
    let signed = world
        .another()
        .sign(&world.context(), &request)
        .await
        .unwrap()
        .remove(0);
    assert!(!signed.deduplicated);
    assert_eq!(
        (
            world.signatures().await,
            world.log_size().await,
            world.audited().await
        ),
        (1, 1, 1)
    );
    assert!(world.verify(&world.logged_policy().await).await.verified);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_died_between_log_and_registry_makes_no_second_entry() {
    let world = World::new().await;
    // Every write fails for as long as the client tries.
    world.fake.fault(|plan| plan.fail_writes = u32::MAX);
    let request = world.request(world.reference());
    world.signing.sign(&world.context(), &request).await.unwrap_err();
    assert_eq!(
        (
            world.signatures().await,
            world.log_size().await,
            world.audited().await
        ),
        (1, 1, 0)
    );
    let policy = world.logged_policy().await;
    assert!(!world.verify(&policy).await.verified);
    world.fake.fault(|plan| plan.fail_writes = 0);
    let signed = world
        .another()
        .sign(&world.context(), &request)
        .await
        .unwrap()
        .remove(0);
    assert_eq!(signed.log_index, Some(0));
    assert_eq!(
        (
            world.signatures().await,
            world.log_size().await,
            world.audited().await
        ),
        (1, 1, 1)
    );
    assert!(world.verify(&policy).await.verified);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_annotations_formats_or_keys_are_other_wishes() {
    let world = World::new().await;
    world
        .signing
        .keyring()
        .create(&world.context(), "other")
        .await
        .unwrap();
    let plain = world.request_in(Formats::BUNDLE);
    let mut annotated = plain.clone();
    annotated.annotations = crate::forge::annotations(&[("build", "7")]);
    let mut other = plain.clone();
    other.key = Some("other".to_owned());
    let requests = [plain, annotated, other, world.request_in(Formats::BOTH)];
    for (count, request) in requests.iter().enumerate() {
        assert!(!world.sign_as(request).await.deduplicated);
        assert_eq!(world.log_size().await, count as u64 + 1);
    }
    for request in &requests {
        assert!(world.sign_as(request).await.deduplicated);
    }
    assert_eq!(world.log_size().await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_signed_with_every_manifest_under_it() {
    let world = World::new().await;
    let (index, manifests) = world
        .fake
        .put_index("team/app", "all", &["amd64", "arm64"], "x")
        .await
        .unwrap();
    let mut request = world.request(world.repository.tagged("all"));
    request.recursive = true;
    let signed = world.signing.sign(&world.context(), &request).await.unwrap();
    let digests: Vec<Digest> = signed.iter().map(|own| own.digest).collect();
    assert_eq!(digests, [&[index][..], &manifests[..]].concat());
    let policy = world.logged_policy().await;
    for digest in digests {
        assert!(world.try_verify_digest(digest, &policy).await.unwrap().verified);
    }
}
