//! A registry that is slow, overloaded or broken: the truth, within a bound.

use flow::Caller;
use kernel::{Digest, Fault as _, Kind};
use registry::Options;
use signing::ports::{Registry as _, RegistryReason};
use upstream::oci::RegistryConfig;

use super::{World, client, reason, referrer};

#[tokio::test]
async fn a_throttled_read_waits_as_asked_and_succeeds() {
    let world = World::new(Options::default()).await;
    world
        .fake
        .fault(|plan| (plan.throttle_calls, plan.retry_after_seconds) = (2, Some(1)));
    let clock = kernel::SystemClock::new();
    let start = kernel::Clock::monotonic(&clock);
    client(Default::default())
        .manifest(Caller::LOCAL, &world.tag("v1"))
        .await
        .unwrap();
    let took = kernel::Clock::monotonic(&clock).since(start);
    assert!(took >= std::time::Duration::from_secs(2), "{took:?}");
    assert_eq!(world.fake.calls().manifest_reads, 3);
}

#[tokio::test]
async fn a_wait_that_is_too_long_is_an_error_at_once() {
    let world = World::new(Options::default()).await;
    world
        .fake
        .fault(|plan| (plan.throttle_calls, plan.retry_after_seconds) = (100, Some(3_600)));
    let error = client(Default::default())
        .manifest(Caller::LOCAL, &world.tag("v1"))
        .await
        .unwrap_err();
    assert!(
        matches!(error.reason, RegistryReason::Throttled { retry_after: Some(_) }),
        "{error:?}"
    );
    assert_eq!((error.kind(), error.code().id), (Kind::Unavailable, "PC1507"));
    assert_eq!(world.fake.calls().manifest_reads, 1);
}

#[tokio::test]
async fn server_errors_are_tried_again_a_few_times() {
    let world = World::new(Options::default()).await;
    let client = client(Default::default());
    world.fake.fault(|plan| plan.fail_reads = 3);
    client.manifest(Caller::LOCAL, &world.tag("v1")).await.unwrap();
    let before = world.fake.calls().manifest_reads;
    world.fake.fault(|plan| plan.fail_reads = 100);
    let failed = reason(client.manifest(Caller::LOCAL, &world.tag("v1")).await);
    assert!(matches!(failed, RegistryReason::Unavailable(_)), "{failed:?}");
    assert_eq!(world.fake.calls().manifest_reads - before, 4, "ATTEMPTS_MAX");
}

#[tokio::test]
async fn a_registry_that_never_answers_ends_at_the_deadline() {
    let world = World::new(Options::default()).await;
    world.fake.fault(|plan| plan.hang = true);
    let client = client(world.with(RegistryConfig {
        call_seconds_max: 1,
        ..RegistryConfig::default()
    }));
    for failed in [
        reason(client.manifest(Caller::LOCAL, &world.tag("v1")).await),
        reason(
            client
                .referrers(Caller::LOCAL, &world.repository, world.image)
                .await,
        ),
    ] {
        assert!(matches!(failed, RegistryReason::Unavailable(_)), "{failed:?}");
    }
}

/// Shown to fail: without `Silence::ask` in `Session::turn` each of the later calls waits for its own deadline.
#[tokio::test]
async fn once_a_registry_answers_nobody_everybody_is_told_at_once_until_it_does_again() {
    let world = World::new(Options::default()).await;
    let client = client(world.with(RegistryConfig {
        call_seconds_max: 2,
        ..RegistryConfig::default()
    }));
    let image = world.tag("v1");
    client.manifest(Caller::LOCAL, &image).await.unwrap();
    world.fake.fault(|plan| plan.hang = true);
    let clock = kernel::SystemClock::new();
    let now = || kernel::Clock::monotonic(&clock);
    // Many at once, of which most wait for their turn: all of them end with the first.
    let start = now();
    let many = (0..200).map(|_| client.manifest(Caller::LOCAL, &image));
    for failed in futures::future::join_all(many).await {
        assert!(matches!(reason(failed), RegistryReason::Unavailable(_)));
    }
    let took = now().since(start);
    assert!(took < std::time::Duration::from_millis(3_500), "{took:?}");
    // One of these finds out, and waits for it.
    let start = now();
    let more = (0..50).map(|_| async {
        let failed = reason(client.manifest(Caller::LOCAL, &image).await);
        (failed, now().since(start))
    });
    let told_at_once = futures::future::join_all(more)
        .await
        .into_iter()
        .filter(|(failed, took)| {
            *took < std::time::Duration::from_millis(500)
                && matches!(failed, RegistryReason::Unavailable(why) if why.contains("answered nobody"))
        });
    assert!(told_at_once.count() >= 48);
    world.fake.fault(|plan| plan.hang = false);
    let start = now();
    while client.manifest(Caller::LOCAL, &image).await.is_err() {
        assert!(now().since(start) < std::time::Duration::from_secs(10));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Shown to fail: without the look after `SILENT_AFTER` in `Session::within`, the second call waits for its own deadline.
#[tokio::test]
async fn a_call_that_waits_for_long_tells_the_others_before_its_own_end() {
    let world = World::new(Options::default()).await;
    let client = client(world.with(RegistryConfig {
        call_seconds_max: 14,
        ..RegistryConfig::default()
    }));
    let image = world.tag("v1");
    client.manifest(Caller::LOCAL, &image).await.unwrap();
    world.fake.fault(|plan| plan.hang = true);
    let clock = kernel::SystemClock::new();
    let now = || kernel::Clock::monotonic(&clock);
    let first = async { reason(client.manifest(Caller::LOCAL, &image).await) };
    let others = async {
        tokio::time::sleep(std::time::Duration::from_millis(11_000)).await;
        // The first of these finds out.
        let trial = client.manifest(Caller::LOCAL, &image);
        let told = async {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            let start = now();
            (
                reason(client.manifest(Caller::LOCAL, &image).await),
                now().since(start),
            )
        };
        tokio::select! {
            _ = trial => panic!("the registry answered"),
            told = told => told,
        }
    };
    let (first, (failed, took)) = futures::future::join(first, others).await;
    assert!(
        matches!(&first, RegistryReason::Unavailable(why) if why.contains("no end")),
        "{first:?}"
    );
    assert!(
        matches!(&failed, RegistryReason::Unavailable(why) if why.contains("answered nobody")),
        "{failed:?}"
    );
    assert!(took < std::time::Duration::from_millis(500), "{took:?}");
}

#[tokio::test]
async fn nobody_listening_is_unavailable_and_not_missing() {
    let world = World::new(Options::default()).await;
    let image = world.tag("v1");
    drop(world.running);
    // The task that listened ends a moment after it was told to.
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    let failed = reason(client(Default::default()).manifest(Caller::LOCAL, &image).await);
    assert!(matches!(failed, RegistryReason::Unavailable(_)), "{failed:?}");
}

#[tokio::test]
async fn writes_that_fail_are_tried_again() {
    for options in [true, false].map(|referrers| Options {
        referrers,
        ..Options::default()
    }) {
        let world = World::new(options).await;
        let client = client(Default::default());
        world.fake.fault(|plan| plan.fail_writes = 2);
        let attached = world.attach(&client, "a").await.unwrap();
        assert_eq!(
            client
                .referrers(Caller::LOCAL, &world.repository, world.image)
                .await
                .unwrap(),
            [attached]
        );
    }
}

#[tokio::test]
async fn a_registry_that_takes_no_writes_is_an_error_and_reading_goes_on() {
    let world = World::new(Options::default()).await;
    let client = client(Default::default());
    world.fake.fault(|plan| plan.fail_writes = 1_000);
    let failed = reason(world.attach(&client, "a").await);
    assert!(matches!(failed, RegistryReason::Unavailable(_)), "{failed:?}");
    client.manifest(Caller::LOCAL, &world.tag("v1")).await.unwrap();
    assert!(
        client
            .referrers(Caller::LOCAL, &world.repository, world.image)
            .await
            .unwrap()
            .is_empty()
    );
}

/// P12: each `PUT` in turn is done and its answer lost; the end is the same as without.
#[tokio::test]
async fn a_put_that_was_accepted_before_the_connection_dropped_ends_in_the_truth() {
    for referrers in [true, false] {
        for cuts in [1, 2, 3] {
            let world = World::new(Options {
                referrers,
                ..Options::default()
            })
            .await;
            let client = client(Default::default());
            world.fake.fault(|plan| plan.cut_after_puts = cuts);
            let attached = world.attach(&client, "a").await.unwrap();
            let listed = client
                .referrers(Caller::LOCAL, &world.repository, world.image)
                .await
                .unwrap();
            assert_eq!(listed, [attached], "referrers API {referrers}, {cuts} cuts");
        }
    }
}

/// P12: when every answer to a `PUT` of a manifest is lost, it is still found out that it was stored.
#[tokio::test]
async fn a_registry_that_drops_every_put_still_ends_in_the_truth() {
    for referrers in [true, false] {
        let world = World::new(Options {
            referrers,
            ..Options::default()
        })
        .await;
        let client = client(Default::default());
        world.fake.put_blob("team/app", b"{}").await.unwrap();
        world.fake.put_blob("team/app", b"a").await.unwrap();
        world.fake.fault(|plan| plan.cut_after_puts = 1_000);
        let (descriptor, bytes) = referrer(world.image, "a");
        client
            .attach(Caller::LOCAL, &world.repository, world.image, &descriptor, bytes)
            .await
            .unwrap();
        let listed = client
            .referrers(Caller::LOCAL, &world.repository, world.image)
            .await
            .unwrap();
        assert_eq!(listed, [descriptor], "referrers API {referrers}");
    }
}

#[tokio::test]
async fn a_manifest_without_its_blobs_is_refused_with_the_registrys_words() {
    let world = World::new(Options::default()).await;
    let (descriptor, bytes) = referrer(world.image, "never pushed");
    let answer = client(Default::default())
        .attach(Caller::LOCAL, &world.repository, world.image, &descriptor, bytes)
        .await;
    assert!(matches!(reason(answer), RegistryReason::NotFound));
    let wrong = descriptor_of_other_bytes(&world);
    assert!(matches!(
        reason(wrong.await),
        RegistryReason::DigestMismatch { .. }
    ));
}

async fn descriptor_of_other_bytes(world: &World) -> Result<(), signing::ports::RegistryError> {
    let (mut descriptor, bytes) = referrer(world.image, "a");
    descriptor.digest = Digest::of(b"other bytes");
    client(Default::default())
        .attach(Caller::LOCAL, &world.repository, world.image, &descriptor, bytes)
        .await
}
