//! Evidence on its way to the images.

use std::sync::atomic::Ordering;
use std::time::Duration;

use access::Context;
use kernel::{Clock as _, Digest, Fault as _};

use super::world::context;
use super::{LONG, MINUTE, on_both};
use crate::Formats;
use crate::debt::publish::Publisher;
use crate::debt::{LEASE, evidence};

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_away_delays_only_what_is_published_there() {
    on_both(async |world| {
        let lease = world.lease("server-1", LONG).await;
        let mut payer = world.payer(&lease);
        world.sign("bundle").await;
        world.sign_in("r.example/old", "legacy", Formats::LEGACY).await;
        world.shelf.down.lock().unwrap().insert("r.example".to_owned());
        world.pays_for(&mut payer, Duration::from_secs(3)).await;
        assert_eq!(world.outside.size(), 2);
        world.publish(&lease).await;
        // The legacy tag carries no evidence, so nothing was to be published for it.
        assert_eq!(world.standing().await.unpublished, 1);
        world.shelf.down.lock().unwrap().clear();
        world.publish(&lease).await;
        assert_eq!(world.standing().await.unpublished, 1, "it is put off");
        world.clock.advance(MINUTE);
        world.publish(&lease).await;
        assert_eq!(world.standing().await.unpublished, 0);
        assert_eq!(world.shelf.attached("r.example/app"), 2);
        assert_eq!(world.shelf.attached("r.example/old"), 0);
    })
    .await;
}

/// Shown to fail: without `Publisher::resting`, the registry that is away is asked for each of its images, and what is
/// to go elsewhere comes after them.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_away_is_asked_once_in_a_pause_and_no_other_waits_for_it() {
    on_both(async |world| {
        let lease = world.lease("server-1", LONG).await;
        let mut payer = world.payer(&lease);
        world.outside.knows.store(true, Ordering::SeqCst);
        world.sign_many("away.example/app", 100).await;
        world.sign("another").await;
        world.pays_for(&mut payer, MINUTE).await;
        world.shelf.down.lock().unwrap().insert("away.example".to_owned());
        let mut publisher = Publisher::new(world.signing.parts.clone(), lease.fence());
        while publisher.round().await.unwrap() {}
        // The bundle with the own log's evidence, and the one with the external log's.
        assert_eq!(world.shelf.attached("r.example/app"), 2);
        assert_eq!(world.shelf.unanswered.load(Ordering::SeqCst), 1);
        let standing = world.standing().await;
        assert_eq!(standing.unpublished, 100);
        assert!(standing.oldest_unpublished >= MINUTE - Duration::from_secs(3));
        world.shelf.down.lock().unwrap().clear();
        world.clock.advance(MINUTE);
        while publisher.round().await.unwrap() {}
        assert_eq!(world.shelf.attached("away.example/app"), 200);
        let standing = world.standing().await;
        assert_eq!(
            (standing.unpublished, standing.oldest_unpublished),
            (0, Duration::ZERO)
        );
    })
    .await;
}

/// Shown to fail: with no `Outcome::Gone`, it is to be published for ever; with the first of them at once, an image that is
/// put back gets no evidence; without `unpublished_debt`, nobody sees why.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_its_registry_has_no_more_needs_no_evidence_after_a_while() {
    on_both(async |world| {
        let lease = world.lease("server-1", LONG).await;
        let mut payer = world.payer(&lease);
        for name in ["gone", "put back"] {
            let signed = world.sign(name).await;
            world
                .shelf
                .gone
                .lock()
                .unwrap()
                .insert(Digest::of(name.as_bytes()));
            assert!(!signed.deduplicated);
        }
        world.pays_for(&mut payer, MINUTE).await;
        world.publish(&lease).await;
        assert_eq!(world.standing().await.unpublished, 2);
        let named = world.signing.unpublished_debt(&context()).await.unwrap();
        assert_eq!(named.len(), 2);
        assert!(named[0].why.contains("does not have it"), "{named:?}");
        for minute in 0..50 {
            if minute == 10 {
                world.shelf.gone.lock().unwrap().remove(&Digest::of(b"put back"));
            }
            world.clock.advance(MINUTE);
            world.publish(&lease).await;
        }
        assert_eq!(world.standing().await.unpublished, 0);
        assert!(
            world
                .signing
                .unpublished_debt(&context())
                .await
                .unwrap()
                .is_empty()
        );
        assert_eq!(world.shelf.attached("r.example/app"), 3);
        let sql = "SELECT last_error FROM external_debt WHERE state = 'published' ORDER BY last_error DESC";
        let rows = world.db.read(sql, Vec::new()).await.unwrap();
        let whys: Vec<String> = rows.iter().map(|row| row.text("last_error").unwrap()).collect();
        assert!(
            whys[0].contains("does not have it") && whys[1].is_empty(),
            "{whys:?}"
        );
    })
    .await;
}

/// Shown to fail: with each `Kind::Overloaded` learned as the registry's, as it was, it is left alone as if it were away.
#[tokio::test(flavor = "multi_thread")]
async fn that_our_own_door_is_full_is_not_held_against_the_registry() {
    on_both(async |world| {
        let lease = world.lease("server-1", LONG).await;
        let mut payer = world.payer(&lease);
        world.sign("image").await;
        world.pays_for(&mut payer, MINUTE).await;
        let door = &world.signing.parts.door;
        // All turns, and all places to wait for one, by other projects.
        let (mut turns, mut waiting) = (Vec::new(), Vec::new());
        let caller = |project| flow::Caller::new(project, flow::Class::Batch);
        for _ in 0..64 {
            turns.push(door.work(caller("a"), "r.example", 1).await.unwrap());
        }
        for project in ["a", "b", "c", "d"] {
            for _ in 0..1_024 {
                let mut turn = Box::pin(door.work(caller(project), "r.example", 1));
                assert!(futures::poll!(&mut turn).is_pending());
                waiting.push(turn);
            }
        }
        let mut publisher = Publisher::new(world.signing.parts.clone(), lease.fence());
        assert!(publisher.round().await.unwrap());
        assert!(publisher.leaves_alone().is_empty());
        assert_eq!(world.standing().await.unpublished, 1);
        drop((waiting, turns));
        world.clock.advance(Duration::from_secs(5));
        publisher.round().await.unwrap();
        assert_eq!(world.standing().await.unpublished, 0);
    })
    .await;
}

/// As in a rolling upgrade. Shown to fail: with the error of `evidence::images` handed on, the round fails, and with it the
/// whole duty of this server.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_does_not_read_is_put_off_with_its_reason_and_stops_no_other() {
    on_both(async |world| {
        let lease = world.lease("server-1", LONG).await;
        let mut payer = world.payer(&lease);
        let newer = world.sign("newer").await;
        world.sign("known").await;
        let mut tx = world.db.begin().await.unwrap();
        let sql = "UPDATE signed_image SET formats = 'bundle,attestation' WHERE signature_id = $1";
        tx.execute(sql, store::args![newer.id.as_str()]).await.unwrap();
        tx.commit().await.unwrap();
        world.pays_for(&mut payer, MINUTE).await;
        world.publish(&lease).await;
        assert_eq!(world.standing().await.unpublished, 1);
        let named = world.signing.unpublished_debt(&context()).await.unwrap();
        assert_eq!(named[0].signature.as_str(), newer.id.as_str());
        assert!(named[0].why.contains("bundle,attestation"), "{}", named[0].why);
    })
    .await;
}

/// Shown to fail: with a `Publisher::round` that waits for all registries before it reads on, as it was, what is to go
/// elsewhere waits for the one that hangs.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_slow_holds_up_no_other() {
    on_both(async |world| {
        let lease = world.lease("server-1", LONG).await;
        let mut payer = world.payer(&lease);
        world.outside.knows.store(true, Ordering::SeqCst);
        // More than are read at once, and more than wait in memory.
        world.sign_many("slow.example/app", 100).await;
        world.pays_for(&mut payer, MINUTE).await;
        world.sign("another").await;
        world.pays_for(&mut payer, MINUTE).await;
        world.shelf.hung.lock().unwrap().insert("slow.example".to_owned());
        let mut publisher = Publisher::new(world.signing.parts.clone(), lease.fence());
        let while_it_hangs = tokio::time::timeout(Duration::from_secs(3), publisher.run());
        assert!(while_it_hangs.await.is_err());
        assert_eq!(world.standing().await.unpublished, 100);
        assert_eq!(world.shelf.attached("r.example/app"), 2);
        world.shelf.hung.lock().unwrap().clear();
        world.publish(&lease).await;
        assert_eq!(world.standing().await.unpublished, 0);
        assert_eq!(world.shelf.attached("slow.example/app"), 200);
    })
    .await;
}

/// Shown to fail: with publications that are polled by `Publisher::run` alone and not tasks, as they were, the look waits
/// for the turn to write that one of them has been given and nobody lets go on, and all who want to write with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_look_and_a_publication_that_want_to_write_at_once_do_not_wait_for_each_other() {
    on_both(async |world| {
        let lease = world.lease("server-1", LONG).await;
        let mut payer = world.payer(&lease);
        world.sign("image").await;
        let later = world.sign_in("r.example/old", "legacy", Formats::LEGACY).await;
        world.pays_for(&mut payer, MINUTE).await;
        let mut tx = world.db.begin().await.unwrap();
        let sql = "UPDATE external_debt SET next_at = $1 WHERE signature_id = $2";
        let soon = world.clock.now_us() + 1_000_000;
        tx.execute(sql, store::args![soon, later.id.as_str()])
            .await
            .unwrap();
        tx.commit().await.unwrap();
        let mut publisher = Publisher::new(world.signing.parts.clone(), lease.fence());
        let mut other = world.db.begin().await.unwrap();
        // The row that both of them check first, on a database on which many write at once.
        let sql = "UPDATE lease SET holder = holder WHERE name = $1";
        other.execute(sql, store::args![LEASE]).await.unwrap();
        let driver = async {
            // The image is published, and that is to be written down.
            while world.shelf.attached("r.example/app") < 2 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            // A look finds what has no place for evidence, and that is to be written down.
            world.clock.advance(Duration::from_secs(1));
            tokio::time::sleep(Duration::from_millis(800)).await;
            drop(other);
            while world.standing().await.unpublished > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let published = tokio::time::timeout(Duration::from_secs(10), async {
            tokio::select! {
                stopped = publisher.run() => panic!("{:?}", stopped.err()),
                () = driver => {}
            }
        });
        assert!(published.await.is_ok(), "they wait for each other");
    })
    .await;
}

/// Shown to fail: without `logged_at` in `evidence::published`, what was owed again is taken for published though the
/// images have the evidence of before.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_owed_again_while_it_is_published_is_published_again() {
    on_both(async |world| {
        let lease = world.lease("server-1", LONG).await;
        let mut payer = world.payer(&lease);
        world.sign("image").await;
        let began = world.clock.now();
        world.pays_for(&mut payer, MINUTE).await;
        let (db, from) = (&world.db, (i64::MIN, String::new()));
        let now = world.clock.now_us();
        let item = evidence::unpublished(db, now, &from, 1).await.unwrap().remove(0);
        // Its evidence is on the way to the registry.
        let again = world.signing.retry_debt(&context(), Some(began)).await.unwrap();
        assert_eq!(again, 1);
        world.clock.advance(MINUTE);
        world.pays_for(&mut payer, MINUTE).await;
        let mut tx = db.begin().await.unwrap();
        assert_eq!(
            evidence::published(&mut tx, &[(&item, String::new())], now)
                .await
                .unwrap(),
            0
        );
        tx.commit().await.unwrap();
        assert_eq!(world.standing().await.unpublished, 1);
        world.publish(&lease).await;
        assert_eq!(world.standing().await.unpublished, 0);
    })
    .await;
}

/// Shown to fail: without `given_up_registry` in `evidence::images`, the registry is asked for ever; without `until` there,
/// what is signed there later gets no evidence; without `evidence::hurry`, all of it waits until it is due.
#[tokio::test(flavor = "multi_thread")]
async fn evidence_for_a_registry_that_is_gone_for_good_is_given_up_by_a_person() {
    on_both(async |world| {
        let lease = world.lease("server-1", LONG).await;
        let mut payer = world.payer(&lease);
        world.outside.knows.store(true, Ordering::SeqCst);
        world.sign_many("gone.example/app", 100).await;
        world
            .sign_in("gone.example:5000/app", "elsewhere", Formats::BUNDLE)
            .await;
        world.pays_for(&mut payer, MINUTE).await;
        for host in ["gone.example", "gone.example:5000"] {
            world.shelf.down.lock().unwrap().insert(host.to_owned());
        }
        world.publish(&lease).await;
        let asked = world.shelf.unanswered.load(Ordering::SeqCst);
        assert_eq!(world.standing().await.unpublished, 101);

        let give_up = async |context: &Context, registry: &str| {
            let given_up = world.signing.give_up_evidence(context, registry, "it was sold");
            given_up.await.map_err(|error| error.code().id)
        };
        let mut bound = context();
        bound.everywhere = false;
        assert!(give_up(&bound, "gone.example").await.is_err());
        for other in ["gone", "r.example", "docker.io", "gone.example:50"] {
            assert_eq!(give_up(&context(), other).await, Err("PC1220"), "{other}");
        }
        for no_host in ["gone.example/app", "https://gone.example", "%", "a b", ""] {
            assert_eq!(give_up(&context(), no_host).await, Err("PC1606"), "{no_host}");
        }
        world.clock.advance(Duration::from_secs(1));
        assert_eq!(give_up(&context(), "Gone.Example").await, Ok(100));
        world.publish(&lease).await;
        assert_eq!(world.standing().await.unpublished, 1);
        assert!(world.shelf.unanswered.load(Ordering::SeqCst) <= asked + 1);
        let sql = "SELECT resource, detail FROM audit WHERE action = 'external-log.give-up'";
        let records = world.db.read(sql, Vec::new()).await.unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].text("detail").unwrap(), "it was sold");

        // Its name is another's now.
        world.shelf.down.lock().unwrap().clear();
        world.clock.advance(Duration::from_secs(1));
        world.sign_in("gone.example/app", "new", Formats::BUNDLE).await;
        world.pays_for(&mut payer, 2 * MINUTE).await;
        world.publish(&lease).await;
        assert_eq!(world.standing().await.unpublished, 0);
        assert_eq!(world.shelf.attached("gone.example/app"), 102);
        assert_eq!(world.shelf.attached("gone.example:5000/app"), 2);
        // It is there all the same: who repairs an image gets what was given up.
        let mut request = world.request("gone.example/app", "image 7", Formats::BUNDLE);
        request.repair = true;
        world.sign_as(&request).await;
        assert_eq!(world.standing().await.unpublished, 1);
        world.publish(&lease).await;
        // The evidence; and the own bundle again, since these registries show nothing of what they have.
        assert_eq!(world.shelf.attached("gone.example/app"), 104);
    })
    .await;
}

/// Shown to fail: with a `retry_debt` that changes all rows with one statement, as it was, there is one record; without
/// `last_index` in `tables::owe_paid_again`, an entry is looked for in a quarter of a million.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_paid_is_owed_again_some_at_a_time_and_looked_for_where_it_was() {
    on_both(async |world| {
        let began = world.clock.now();
        world.owe(2_500).await;
        let lease = world.lease("server-1", LONG).await;
        let mut payer = world.payer_at(&lease, 1_000);
        world.pays_for(&mut payer, MINUTE).await;
        assert_eq!(world.standing().await.unpublished, 2_501);
        world.clock.advance(MINUTE);
        let since = Some(began);
        assert_eq!(world.signing.count_debt(&context(), since).await.unwrap(), 2_501);
        assert_eq!(world.standing().await.owed, 0);
        let again = world.signing.retry_debt(&context(), Some(began)).await.unwrap();
        assert_eq!(again, 2_501);
        let standing = world.standing().await;
        assert_eq!((standing.owed, standing.unpublished), (2_501, 0));
        assert_eq!(world.signing.count_debt(&context(), since).await.unwrap(), 0);
        let sql = "SELECT detail FROM audit WHERE action = 'external-log.retry'";
        let records = world.db.read(sql, Vec::new()).await.unwrap();
        assert_eq!(records.len(), 3);
        let looked_at = std::mem::take(&mut *world.outside.looked_at.lock().unwrap());
        assert!(looked_at.iter().all(Option::is_none));
        world.pays_for(&mut payer, Duration::from_secs(5)).await;
        let looked_at = world.outside.looked_at.lock().unwrap().clone();
        let places: std::collections::BTreeSet<u64> = looked_at.into_iter().flatten().collect();
        assert!(places.into_iter().eq(10_000..12_501));
    })
    .await;
}
