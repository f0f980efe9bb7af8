//! The debt on SQLite and on PostgreSQL, by a clock that the tests move.

mod fork;
mod pace;
mod publish;
mod world;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kernel::{Clock as _, Digest, Id, Repository, SystemRandom};
use testkit::Postgres;

use super::tables::{self, State, Unlogged};
use super::{Stopped, at_image, evidence, owe, publish_again};
use world::{RATE, World, context};

const DAY: Duration = Duration::from_secs(24 * 3_600);
const MINUTE: Duration = Duration::from_secs(60);
/// A lease that no test outlives.
const LONG: Duration = Duration::from_secs(3_600);

/// Runs a case on both databases, the second if there is one here.
async fn on_both(case: impl AsyncFn(World)) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("test.db").display());
    case(World::on(&url).await).await;
    if let Some(postgres) = Postgres::shared() {
        case(World::on(&postgres.database()).await).await;
    }
}

/// P13. Shown to fail: without the bucket in `Pace::take`, more is sent in a second than the rate; with pauses that stay
/// as short as the first, the log that is away is asked 98,709 times; without `Payer::busy`, 204 entries are in the log
/// instead of 200; without `debt::owe` in `Draft::finish`, nothing is owed.
#[tokio::test(flavor = "multi_thread")]
async fn p13_after_a_day_without_the_external_log_all_is_paid_under_the_rate_and_nothing_twice() {
    on_both(async |world| {
        let lease = world.lease("server-1", LONG).await;
        let mut payer = world.payer(&lease);
        world.outside.down.store(true, Ordering::SeqCst);
        let every = DAY / 200;
        for number in 0..200 {
            let signed = world.sign(&format!("image {number}")).await;
            assert!(!signed.deduplicated && signed.log_index == Some(number));
            world.pays_for(&mut payer, every).await;
        }
        let standing = world.standing().await;
        assert_eq!((standing.owed, standing.unpublished), (200, 0));
        assert!(
            standing.oldest >= DAY - every && standing.oldest <= DAY,
            "{standing:?}"
        );
        assert_eq!(standing.last_error, "connection refused");
        assert_eq!(world.outside.size(), 0);
        let asked = world.outside.asked.lock().unwrap().len();
        assert!(
            (1_440..2_500).contains(&asked),
            "{asked} questions to a log that is away"
        );

        world.outside.down.store(false, Ordering::SeqCst);
        // A pause of a minute at most, and then the rate.
        let enough = MINUTE + Duration::from_secs(200) / RATE + Duration::from_secs(5);
        world.pays_for(&mut payer, enough).await;
        let standing = world.standing().await;
        assert_eq!(
            (standing.owed, standing.unpublished, standing.refused),
            (0, 200, 0)
        );
        assert_eq!((world.outside.size(), world.outside.distinct()), (200, 200));
        assert!(world.outside.most_in_a_second() <= RATE as usize);
        assert_eq!(world.signing.debt_tally().paid, 200);
        world.publish(&lease).await;
        assert_eq!(world.standing().await.unpublished, 0);
        assert_eq!(
            world.shelf.attached("r.example/app"),
            400,
            "a second bundle at each"
        );
    })
    .await;
}

/// Shown to fail: without `barred` in `Payer::start`, entries are sent to the wrong log.
#[tokio::test(flavor = "multi_thread")]
async fn p13_to_a_wrong_log_nothing_is_sent() {
    on_both(async |world| {
        let lease = world.lease("server-1", LONG).await;
        let mut payer = world.payer(&lease);
        world.outside.wrong.store(true, Ordering::SeqCst);
        for number in 0..5 {
            world.sign(&format!("image {number}")).await;
            world.pays_for(&mut payer, MINUTE).await;
        }
        assert_eq!(world.outside.asked.lock().unwrap().len(), 0);
        assert_eq!(world.standing().await.owed, 5);
        world.outside.wrong.store(false, Ordering::SeqCst);
        world.pays_for(&mut payer, MINUTE).await;
        assert_eq!((world.standing().await.owed, world.outside.size()), (0, 5));
    })
    .await;
}

/// Shown to fail: with a refusal that counts at once, as the log's own did before, all five are refused for good.
#[tokio::test(flavor = "multi_thread")]
async fn p13_what_somebody_else_refuses_is_owed_all_the_same() {
    on_both(async |world| {
        let lease = world.lease("server-1", LONG).await;
        let mut payer = world.payer(&lease);
        world.outside.is_looked_at(true);
        for number in 0..5 {
            let signed = world.sign(&format!("image {number}")).await;
            let entry = world.entry_of(&signed).await;
            world.outside.refused.lock().unwrap().insert(entry);
        }
        let counts = async || {
            let standing = world.standing().await;
            (standing.owed, standing.unpublished, standing.refused)
        };
        world.pays_for(&mut payer, MINUTE).await;
        assert_eq!(world.outside.asked.lock().unwrap().len(), 5);
        assert_eq!(counts().await, (5, 0, 0));
        // It was a web server, and then nobody was seen there; the log is back.
        world.outside.is_looked_at(false);
        world.pays_for(&mut payer, MINUTE).await;
        let refused = std::mem::take(&mut *world.outside.refused.lock().unwrap());
        world.outside.is_looked_at(true);
        world.pays_for(&mut payer, 3 * MINUTE).await;
        world.outside.is_looked_at(true);
        world.pays_for(&mut payer, MINUTE).await;
        assert_eq!(counts().await, (0, 5, 0));

        // What the log refuses and a look confirms is refused, until somebody has it owed again.
        let signed = world.sign("another").await;
        *world.outside.refused.lock().unwrap() = refused;
        let entry = world.entry_of(&signed).await;
        world.outside.refused.lock().unwrap().insert(entry);
        world.pays_for(&mut payer, MINUTE).await;
        world.outside.is_looked_at(true);
        world.pays_for(&mut payer, MINUTE).await;
        assert_eq!(counts().await, (0, 5, 1));
        world.outside.refused.lock().unwrap().clear();
        assert_eq!(world.signing.retry_debt(&context(), None).await.unwrap(), 1);
        assert_eq!(counts().await, (1, 5, 0));
        world.pays_for(&mut payer, MINUTE).await;
        world.outside.is_looked_at(true);
        world.pays_for(&mut payer, MINUTE).await;
        assert_eq!(counts().await, (0, 6, 0));
        let mut bound = context();
        bound.everywhere = false;
        assert!(world.signing.retry_debt(&bound, None).await.is_err());
        let sql = "SELECT detail FROM audit WHERE action = 'external-log.retry'";
        let records = world.db.read(sql, Vec::new()).await.unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].text("detail").unwrap(), "1 entries owed again");
    })
    .await;
}

/// A log whose checkpoint does not answer and which takes entries. Shown to fail: with `ill` in place of `wrong` in
/// `Payer::judge`, the same entries are sent after each look.
#[tokio::test(flavor = "multi_thread")]
async fn p13_what_a_log_answered_that_cannot_be_looked_at_is_not_sent_again() {
    on_both(async |world| {
        let lease = world.lease("server-1", LONG).await;
        let mut payer = world.payer(&lease);
        for number in 0..20 {
            world.sign(&format!("image {number}")).await;
        }
        for _ in 0..10 {
            world.outside.is_looked_for_in_vain();
            world.pays_for(&mut payer, Duration::from_secs(5)).await;
        }
        assert_eq!(world.outside.size(), 1);
        world.outside.is_looked_at(true);
        world.pays_for(&mut payer, MINUTE).await;
        world.outside.is_looked_at(true);
        world.pays_for(&mut payer, MINUTE).await;
        assert_eq!((world.standing().await.owed, world.outside.size()), (0, 20));
    })
    .await;
}

/// Shown to fail: with `read` left at the beginning, the same 256 are read for ever and the test does not end; without `held_max`, all
/// 300 are sent to a log that nobody found well.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_stops_nothing_behind_it_and_is_little_while_the_log_is_not_well() {
    on_both(async |world| {
        let lease = world.lease("server-1", LONG).await;
        let mut payer = world.payer(&lease);
        for number in 0..300 {
            world.sign(&format!("image {number}")).await;
        }
        world.outside.is_looked_at(false);
        world.pays_for(&mut payer, 2 * MINUTE).await;
        assert_eq!(world.outside.size(), 1);
        world.outside.is_looked_at(true);
        world.pays_for(&mut payer, 2 * MINUTE).await;
        assert_eq!((world.outside.size(), world.outside.distinct()), (300, 300));
        assert_eq!(world.standing().await.owed, 299);
        world.outside.is_looked_at(true);
        world.pays_for(&mut payer, MINUTE).await;
        let standing = world.standing().await;
        assert_eq!((standing.owed, standing.unpublished), (0, 300));
        assert_eq!(world.outside.size(), 300);
    })
    .await;
}

/// Shown to fail: without `lease::check` in `Payer::settle`, the old leader writes what it was told in its sleep.
#[tokio::test(flavor = "multi_thread")]
async fn who_lost_the_lease_writes_nothing_and_the_next_one_pays_all() {
    on_both(async |world| {
        world.outside.knows.store(true, Ordering::SeqCst);
        for number in 0..8 {
            world.sign(&format!("image {number}")).await;
        }
        let sleeping = world.lease("server-1", Duration::from_millis(1)).await;
        let mut asleep = world.payer(&sleeping);
        // It sent, was answered, and fell asleep before it wrote that down.
        world.clock.advance(Duration::from_secs(2));
        asleep.start().await.unwrap();
        while asleep.answer().await {}
        asleep.prove().await;
        assert!(world.outside.size() > 0);
        tokio::time::sleep(Duration::from_millis(50)).await;
        let lease = world.lease("server-2", LONG).await;
        assert!(matches!(asleep.settle().await, Err(Stopped::Lost)));
        assert_eq!(world.standing().await.owed, 8);
        let mut publisher = super::publish::Publisher::new(world.signing.parts.clone(), sleeping.fence());

        let mut next = world.payer(&lease);
        world.pays_for(&mut next, MINUTE).await;
        assert_eq!((world.standing().await.owed, world.outside.size()), (0, 8));
        assert!(matches!(publisher.round().await, Err(Stopped::Lost)));
        assert_eq!(world.standing().await.unpublished, 8);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_with_a_trouble_of_its_own_delays_no_other() {
    on_both(async |world| {
        let lease = world.lease("server-1", LONG).await;
        let mut payer = world.payer(&lease);
        let (never, later) = (world.sign("never").await, world.sign("later").await);
        for number in 0..3 {
            world.sign(&format!("image {number}")).await;
        }
        let (refused, unproven) = (world.entry_of(&never).await, world.entry_of(&later).await);
        world.outside.refused.lock().unwrap().insert(refused);
        world.outside.unproven.lock().unwrap().insert(unproven);
        world.pays_for(&mut payer, Duration::from_secs(3)).await;
        let standing = world.standing().await;
        assert_eq!((standing.owed, standing.unpublished, standing.refused), (1, 3, 1));
        assert_eq!(standing.last_error, "it is not there");
        let named = world.signing.refused_debt(&context()).await.unwrap();
        assert_eq!(
            (named[0].signature.as_str(), named[0].why.as_str()),
            (never.id.as_str(), "no such key details")
        );
        assert_eq!(named.len(), 1);
        world.outside.unproven.lock().unwrap().clear();
        world.pays_for(&mut payer, MINUTE).await;
        let standing = world.standing().await;
        assert_eq!((standing.owed, standing.unpublished, standing.refused), (0, 4, 1));
    })
    .await;
}

/// Shown to fail: without `images` in `evidence::published`, the image that was finished meanwhile is left out.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_finished_later_is_published_too() {
    on_both(async |world| {
        let signed = world.sign("image").await;
        let (db, now) = (&world.db, world.clock.now_us());
        let row = |state: State| async move {
            let digest = Digest::of(b"image");
            let found = at_image(db, "default", "r.example/app", digest).await.unwrap();
            assert_eq!(found.iter().map(|one| one.state).collect::<Vec<_>>(), [state]);
            found[0].clone()
        };
        assert_eq!(row(State::Owed).await.since_us, now);
        let mut tx = db.begin().await.unwrap();
        let entry = crate::ports::LoggedEntry {
            index: 7,
            json: serde_json::value::RawValue::from_string("{}".to_owned()).unwrap(),
        };
        let id = signed.id.as_str();
        assert!(tables::logged(&mut tx, id, &entry, now).await.unwrap());
        // What is late does not undo it.
        let late = Unlogged::Refused(String::new());
        tables::unlogged(&mut tx, id, &late).await.unwrap();
        tx.commit().await.unwrap();
        row(State::Logged).await;
        let read = async || {
            let from = (i64::MIN, String::new());
            let mut all = evidence::unpublished(db, now, &from, 10).await.unwrap();
            all.remove(0)
        };
        let one_more = BTreeMap::from([(&signed.id, 1)]);
        let before = read().await;
        let mut tx = db.begin().await.unwrap();
        owe(&mut tx, &one_more, now).await.unwrap();
        tx.commit().await.unwrap();
        let item = read().await;
        let mut tx = db.begin().await.unwrap();
        let mut marked = async |item| {
            let items = [(item, String::new())];
            evidence::published(&mut tx, &items, now).await.unwrap()
        };
        assert_eq!((marked(&before).await, marked(&item).await), (0, 1));
        tx.commit().await.unwrap();
        assert_eq!(world.standing().await.unpublished, 0);
        let mut tx = db.begin().await.unwrap();
        owe(&mut tx, &one_more, now).await.unwrap();
        tx.commit().await.unwrap();
        row(State::Logged).await;
        // As does who finds that the registry lost it.
        let app: Repository = "r.example/app".parse().unwrap();
        let item = read().await;
        let mut tx = db.begin().await.unwrap();
        let marked = evidence::published(&mut tx, &[(&item, String::new())], now).await;
        assert_eq!(marked.unwrap(), 1);
        publish_again(&mut tx, &signed.id, (&app, Digest::of(b"image")), true, now)
            .await
            .unwrap();
        let stranger = Id::new("sig", &*world.clock, &SystemRandom);
        publish_again(&mut tx, &stranger, (&app, Digest::of(b"image")), true, now)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        row(State::Logged).await;
    })
    .await;
}
