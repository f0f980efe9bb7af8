//! Probes of what this crate reaches itself, on SQLite and on PostgreSQL: a database and blobs that are not ours, an
//! older copy, a clock that is set back.

#![expect(clippy::unwrap_used, reason = "a helper of a test may end the test")]

#[path = "../../../store/tests/it/on.rs"]
mod on;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kernel::{Clock as _, SeededRandom, TestClock};
use on::{Place, on_both};
use probing::{BlobsProbe, ClockProbe, DatabaseProbe, Finding, Marks, Probe as _, References, State};
use store::{Blobs, Db, args};

on_both!(
    p14_another_database_behind_the_same_name_is_named,
    p14_a_database_that_lost_the_last_second_is_named,
    a_database_that_is_gone_is_unreachable,
    p14_another_blob_store_behind_the_same_name_is_named,
    p20_a_clock_an_hour_back_is_named_also_over_a_restart,
    marks_are_kept_and_replaced,
);

/// A database of an installation of its own.
async fn installed(place: &Place, seed: u64) -> Db {
    let db = place.open().await;
    db.migrate(&[store::lease::MIGRATIONS, probing::MIGRATIONS].concat())
        .await
        .unwrap();
    let random = SeededRandom::new(seed);
    Marks::new(db.clone())
        .installation(&clock(), &random)
        .await
        .unwrap();
    db
}

fn clock() -> TestClock {
    TestClock::at("2026-03-01T12:00:00Z".parse().unwrap())
}

/// A place of the same kind, with nothing in it.
fn another(place: &Place) -> Place {
    if place.url.starts_with("sqlite:") {
        Place::sqlite()
    } else {
        Place::postgresql().unwrap()
    }
}

fn probe(db: &Db, mark: &Path) -> DatabaseProbe {
    DatabaseProbe::new(Marks::new(db.clone()), mark.to_owned(), None)
}

fn mark() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("database.mark");
    (folder, path)
}

fn is(finding: &Finding, state: State) {
    assert_eq!(finding.state, state, "{finding:?}");
}

/// Shown to fail: without the comparison of the installations in `database::judge`, the other one is OK as soon as its
/// count is higher; without the check of the missing table, an empty database is UNREACHABLE.
async fn p14_another_database_behind_the_same_name_is_named(place: Place) {
    let (_folder, path) = mark();
    let own = installed(&place, 1).await;
    let ours = probe(&own, &path);
    is(&ours.look().await, State::Ok);
    is(&ours.look().await, State::Ok);

    let other_place = another(&place);
    let other = installed(&other_place, 2).await;
    let theirs = probe(&other, &path);
    // Its count is higher by now than ours was.
    for _ in 0..4 {
        let named = theirs.look().await;
        is(&named, State::WrongDatabase);
        assert!(
            named.expected.contains("ins_") && named.found.contains("ins_"),
            "{named:?}"
        );
        assert_ne!(named.expected, named.found);
    }
    let empty_place = another(&place);
    let empty = probe(&empty_place.open().await, &path).look().await;
    is(&empty, State::WrongDatabase);
    is(&probe(&own, &path).look().await, State::Ok);
}

/// Shown to fail: with `<=` taken out of `database::judge`, the copy is OK; with the mark in memory only, the copy that
/// comes with a restart is.
async fn p14_a_database_that_lost_the_last_second_is_named(place: Place) {
    let (_folder, path) = mark();
    let db = installed(&place, 1).await;
    let ours = probe(&db, &path);
    for _ in 0..3 {
        is(&ours.look().await, State::Ok);
    }
    // As a replica that lacks the last two writes.
    let mut tx = db.begin().await.unwrap();
    tx.execute("UPDATE installation SET beat = beat - 2", args![])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    is(&ours.look().await, State::RolledBack);
    let restarted = probe(&db, &path).look().await;
    is(&restarted, State::RolledBack);
    assert!(restarted.expected.contains("count above 3"), "{restarted:?}");
}

async fn a_database_that_is_gone_is_unreachable(place: Place) {
    let (_folder, path) = mark();
    let db = installed(&place, 1).await;
    let ours = probe(&db, &path);
    is(&ours.look().await, State::Ok);
    db.close().await;
    let gone = ours.look().await;
    is(&gone, State::Unreachable);
    assert!(gone.found.starts_with("PC"), "{gone:?}");
}

/// Shown to fail: with `begin` writing the blob without asking whether it was there before, the empty store is OK; with
/// the content not compared, the other one is.
async fn p14_another_blob_store_behind_the_same_name_is_named(place: Place) {
    let db = installed(&place, 1).await;
    let (marks, clock) = (Marks::new(db), Arc::new(clock()));
    let probe = |blobs: &Blobs, installation: &str| {
        BlobsProbe::new(
            blobs.clone(),
            marks.clone(),
            clock.clone(),
            installation.to_owned(),
        )
    };
    // Of two servers that begin at once with two places, one is told.
    let (own, other) = (Blobs::memory(), Blobs::memory());
    let (one, two) = (probe(&own, "ins_a"), probe(&other, "ins_a"));
    let (one, two) = tokio::join!(one.look(), two.look());
    let mut states = [one.state, two.state];
    states.sort();
    assert_eq!(states, [State::Ok, State::WrongStore]);
    let (own, other) = match one.state {
        State::Ok => (own, other),
        _ => (other, own),
    };
    is(&probe(&own, "ins_a").look().await, State::Ok);
    is(&probe(&own, "ins_a").look().await, State::Ok);
    other.put("installation", "ins_b".into()).await.unwrap();
    let named = probe(&other, "ins_a").look().await;
    is(&named, State::WrongStore);
    assert!(
        named.expected.contains("ins_a") && named.found.contains("ins_b"),
        "{named:?}"
    );
    let empty = probe(&Blobs::memory(), "ins_a").look().await;
    is(&empty, State::WrongStore);
    is(&probe(&own, "ins_a").look().await, State::Ok);
}

/// Shown to fail: with `behind_latest` and `stepped` left out of `clock::judge`, all of it is OK; with `latest` not
/// read at the start, the last part is.
async fn p20_a_clock_an_hour_back_is_named_also_over_a_restart(place: Place) {
    let db = installed(&place, 1).await;
    // PostgreSQL has the real time: only what this server alone sees is tried.
    if db.is_shared() {
        let real = Arc::new(kernel::SystemClock::new());
        let probe = ClockProbe::new(real, &db, References::default(), None);
        is(&probe.look().await, State::Ok);
        let late = Arc::new(TestClock::at(Timestamp::from_second(0).unwrap()));
        let probe = ClockProbe::new(late, &db, References::default(), None);
        let named = probe.look().await;
        is(&named, State::WrongClock);
        assert!(
            named.found.contains("behind the clock of the database"),
            "{named:?}"
        );
        return;
    }
    let clock = Arc::new(clock());
    let marks = Marks::new(db.clone());
    let references = References::default();
    let probe = ClockProbe::new(clock.clone(), &db, references.clone(), None);
    is(&probe.look().await, State::Ok);
    clock.advance(Duration::from_secs(120));
    is(&probe.look().await, State::Ok);
    let hour = SignedDuration::from_hours(1);
    let now = clock.now();
    clock.set(now - hour);
    let back = probe.look().await;
    is(&back, State::WrongClock);
    assert!(back.found.contains("3600 s before the latest time"), "{back:?}");
    // Another clock that was asked says the same.
    references.note("r.example", now, &*clock);
    let told = probe.look().await;
    is(&told, State::WrongClock);
    assert_eq!(told.found, "3600 s behind the clock of r.example");
    clock.set(now);
    clock.advance(Duration::from_secs(120));
    is(&probe.look().await, State::Ok);
    clock.set(clock.now() + hour);
    is(&probe.look().await, State::WrongClock);

    clock.set(now - hour);
    let latest = ClockProbe::latest(&marks).await.unwrap();
    assert!(latest.is_some());
    let restarted = ClockProbe::new(clock.clone(), &db, References::default(), latest);
    is(&restarted.look().await, State::WrongClock);
}

async fn marks_are_kept_and_replaced(place: Place) {
    let db = installed(&place, 1).await;
    let marks = Marks::new(db.clone());
    assert_eq!(marks.read("log").await.unwrap(), None);
    marks.keep("log", "one", clock().now()).await.unwrap();
    marks.keep("log", "two", clock().now()).await.unwrap();
    assert_eq!(marks.read("log").await.unwrap().as_deref(), Some("two"));
    assert_eq!(marks.read("other").await.unwrap(), None);
    // Whoever comes second finds the first one's installation.
    let first = marks.installation(&clock(), &SeededRandom::new(1)).await.unwrap();
    let second = marks.installation(&clock(), &SeededRandom::new(9)).await.unwrap();
    assert_eq!(first, second);
}
