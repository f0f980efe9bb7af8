//! Probes of what this crate reaches itself, on SQLite and on PostgreSQL: a database and blobs that are not ours, an
//! older copy, a clock that is set back.

#![expect(clippy::unwrap_used, reason = "a helper of a test may end the test")]

mod elsewhere;
#[path = "../../../store/tests/it/on.rs"]
mod on;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use access::Context;
use jiff::{SignedDuration, Timestamp};
use kernel::{Clock as _, Fault as _, Kind, SeededRandom, TestClock};
use on::{Place, on_both};
use probing::{
    BlobsProbe, ClockProbe, DatabaseProbe, Finding, Known, LogMark, Losses, MarkError, Marks, Probe as _,
    References, State,
};
use store::{Blobs, Db, args};

on_both!(
    p14_another_database_behind_the_same_name_is_named,
    p14_a_database_that_lost_the_last_second_is_named_until_somebody_has_looked,
    p14_what_one_server_lost_is_named_though_others_moved_the_count_on,
    p14_changes_that_were_lost_are_named,
    a_database_that_is_gone_is_unreachable,
    p14_another_blob_store_behind_the_same_name_is_named,
    p20_a_clock_an_hour_back_is_named_also_over_a_restart,
    marks_are_kept_and_replaced,
    p14_the_mark_of_a_log_is_moved_on_by_whoever_knew_it_and_replaced_by_a_person,
);

/// A database of an installation of its own.
async fn installed(place: &Place, seed: u64) -> Db {
    let db = place.open().await;
    let migrations = [store::MIGRATIONS, access::MIGRATIONS, probing::MIGRATIONS];
    db.migrate(&migrations.concat()).await.unwrap();
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
    // Each has another name.
    let random = SeededRandom::new(
        mark.as_os_str()
            .as_encoded_bytes()
            .iter()
            .fold(7, |sum, &byte| sum * 31 % 999_983 + u64::from(byte)),
    );
    DatabaseProbe::new(db, mark.to_owned(), None, Arc::new(clock()), &random)
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
/// count is higher; without the check of the missing table, an empty database is UNREACHABLE; without
/// `Db::refuse_changes` in `DatabaseProbe::look`, the other one takes a transaction.
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
        let refused = other.begin().await.map(drop).unwrap_err();
        assert_eq!((refused.code().id, refused.kind()), ("PC1111", Kind::Unavailable));
        assert!(refused.to_string().contains(&named.found), "{refused}");
    }
    let count = "SELECT beat FROM installation";
    let row = other.ungated().read_one(count, args![]).await.unwrap().unwrap();
    assert_eq!(row.int("beat").unwrap(), 0, "somebody else's count was moved");
    // It becomes ours again, as a name that leads back does.
    let mut tx = other.ungated().begin().await.unwrap();
    let ours_again = "UPDATE installation SET name = $1, beat = 100";
    let name = ours.look().await.found;
    let name = name.split([' ', ',']).nth(1).unwrap();
    tx.execute(ours_again, args![name]).await.unwrap();
    let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let row = "INSERT INTO server_beat (server, number) VALUES ($1, 100)";
    tx.execute(row, args![kept["server"].as_str().unwrap()])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    is(&theirs.look().await, State::Ok);
    other.begin().await.unwrap();
    other.read_one(count, args![]).await.unwrap();
    let empty_place = another(&place);
    let empty = probe(&empty_place.open().await, &path).look().await;
    is(&empty, State::WrongDatabase);
    own.begin().await.unwrap();
}

/// Shown to fail: with `fell_to` left out of `database::judge`, the copy is OK; with the mark in memory only, the copy that
/// comes with a restart is; without `loss::note`, each is OK again at the next look.
async fn p14_a_database_that_lost_the_last_second_is_named_until_somebody_has_looked(place: Place) {
    let (_folder, path) = mark();
    let (_other_folder, other_path) = mark();
    let db = installed(&place, 1).await;
    let (ours, other) = (probe(&db, &path), probe(&db, &other_path));
    for _ in 0..3 {
        is(&ours.look().await, State::Ok);
    }
    is(&other.look().await, State::Ok);
    // As a replica that lacks the last three writes: another server was at 4, this one at 3.
    let mut tx = db.begin().await.unwrap();
    tx.execute("UPDATE installation SET beat = beat - 3", args![])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    is(&ours.look().await, State::RolledBack);
    for _ in 0..4 {
        is(&other.look().await, State::RolledBack);
        is(&ours.look().await, State::RolledBack);
    }
    let restarted = probe(&db, &path).look().await;
    is(&restarted, State::RolledBack);
    let told = "count 1 was found at 2026-03-01T12:00:00Z after count 4";
    assert!(restarted.found.contains(told), "{restarted:?}");
    db.begin().await.unwrap();

    let losses = Losses::new(db.clone(), Arc::new(clock()), Arc::new(SeededRandom::new(3)));
    let everywhere = Context::local("default".parse().unwrap());
    let mut of_project = everywhere.clone();
    of_project.everywhere = false;
    let refused = losses.acknowledge(&of_project, "looked").await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Denied);
    losses.acknowledge(&everywhere, " ").await.unwrap_err();
    is(&ours.look().await, State::RolledBack);
    let loss = losses.acknowledge(&everywhere, "no token is back").await.unwrap();
    assert_eq!((loss.known, loss.found), (4, 1));
    is(&ours.look().await, State::Ok);
    is(&other.look().await, State::Ok);
    let record = "SELECT detail FROM audit WHERE action = 'dependency.acknowledge'";
    let record = db.read_one(record, args![]).await.unwrap().unwrap();
    assert!(record.text("detail").unwrap().ends_with(": no token is back"));
    let nothing = losses.acknowledge(&everywhere, "again").await.unwrap_err();
    assert_eq!(nothing.kind(), Kind::NotFound);
    assert!(nothing.hint().contains("portcullis status"), "{}", nothing.hint());
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

/// Shown to fail: without the server's own row in `database::fell_to`, both are OK.
async fn p14_what_one_server_lost_is_named_though_others_moved_the_count_on(place: Place) {
    let (_folder, path) = mark();
    let (_other_folder, other_path) = mark();
    let db = installed(&place, 1).await;
    let (ours, other) = (probe(&db, &path), probe(&db, &other_path));
    for _ in 0..2 {
        is(&ours.look().await, State::Ok);
        is(&other.look().await, State::Ok);
    }
    is(&ours.look().await, State::Ok);
    // The copy has all but the last look, which was ours.
    let mut tx = db.begin().await.unwrap();
    for lost in [
        "UPDATE server_beat SET number = 3 WHERE number = 5",
        "UPDATE installation SET beat = 4",
    ] {
        assert_eq!(tx.execute(lost, args![]).await.unwrap(), 1);
    }
    tx.commit().await.unwrap();
    is(&other.look().await, State::Ok);
    is(&other.look().await, State::Ok);
    is(&ours.look().await, State::RolledBack);
    is(&other.look().await, State::RolledBack);
}

/// Shown to fail: without `Told::acknowledged` in `Tx::commit`, the change that nobody had learnt of yet is missed by
/// nobody; without `Db::changes_lost` in `DatabaseProbe::settle`, it is OK.
async fn p14_changes_that_were_lost_are_named(place: Place) {
    let (_folder, path) = mark();
    let db = installed(&place, 1).await;
    let ours = probe(&db, &path);
    let recent = store::Recent::new("row", Arc::new(clock()), |_, _: &u8, _: &u8| true);
    let mut learner = store::Learner::new(db.clone(), Vec::new());
    learner.learn().await.unwrap();
    for _ in 0..2 {
        let mut tx = db.begin().await.unwrap();
        drop(recent.change(&mut tx, "a").await.unwrap());
        tx.commit().await.unwrap();
    }
    // One that was not committed is missed by nobody.
    let mut undone = db.begin().await.unwrap();
    drop(recent.change(&mut undone, "a").await.unwrap());
    drop(undone);
    let mut tx = db.begin().await.unwrap();
    tx.execute("UPDATE change_count SET number = number - 1", args![])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    is(&ours.look().await, State::Ok);
    learner.learn().await.unwrap();
    let named = ours.look().await;
    is(&named, State::RolledBack);
    let told = "change 1 was found at 2026-03-01T12:00:00Z after change 2";
    assert!(named.found.contains(told), "{named:?}");
    learner.learn().await.unwrap();
    let losses = Losses::new(db.clone(), Arc::new(clock()), Arc::new(SeededRandom::new(3)));
    let everywhere = Context::local("default".parse().unwrap());
    losses.acknowledge(&everywhere, "looked").await.unwrap();
    is(&ours.look().await, State::Ok);
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

/// Shown to fail: without `AND mark = $4` in `LogMark::replace`, the second of two servers that looked at the same time
/// has what it found believed.
async fn p14_the_mark_of_a_log_is_moved_on_by_whoever_knew_it_and_replaced_by_a_person(place: Place) {
    let db = installed(&place, 1).await;
    let (mark, now) = (LogMark::new(&Marks::new(db.clone()), "aa"), clock().now());
    let known = |size: u64, root: &str| Known {
        seen: Some(probing::log::Seen {
            origin: "log".to_owned(),
            size,
            root: root.to_owned(),
            note: "note".to_owned(),
        }),
        taken: 0,
    };
    let nothing = mark.read().await.unwrap();
    assert_eq!(nothing.known, Known::default());
    assert!(mark.replace(&nothing, &known(1, "aa"), now).await.unwrap());
    assert!(!mark.replace(&nothing, &known(1, "bb"), now).await.unwrap());
    let first = mark.read().await.unwrap();
    assert_eq!(first.known, known(1, "aa"));
    // What stands there already is no write.
    assert!(mark.replace(&first, &known(1, "aa"), now).await.unwrap());
    assert!(mark.replace(&first, &known(2, "cc"), now).await.unwrap());
    assert!(!mark.replace(&first, &known(2, "dd"), now).await.unwrap());
    assert_eq!(mark.read().await.unwrap().known, known(2, "cc"));
    // Another log has a mark of its own, and one of an older program is read.
    let other = LogMark::new(&Marks::new(db.clone()), "bb");
    assert_eq!(other.read().await.unwrap().known, Known::default());
    let older = r#"{"origin":"log","size":7,"root":"ee","note":"note"}"#;
    let marks = Marks::new(db.clone());
    marks.keep("external-log bb", older, now).await.unwrap();
    assert_eq!(other.read().await.unwrap().known, known(7, "ee"));

    let everywhere = Context::local("default".parse().unwrap());
    let mut of_project = everywhere.clone();
    of_project.everywhere = false;
    let (clock, random) = (clock(), SeededRandom::new(3));
    let refused = mark.take(&of_project, "looked", &clock, &random).await;
    assert_eq!(refused.unwrap_err().kind(), Kind::Denied);
    // Nothing contradicts it yet.
    let nothing = mark.take(&everywhere, "looked", &clock, &random).await;
    assert_eq!(nothing.unwrap_err().kind(), Kind::NotFound);
    let found = known(1, "ee").seen.unwrap();
    mark.found(Some(found.clone()));
    mark.take(&everywhere, " ", &clock, &random).await.unwrap_err();
    let before = mark.read().await.unwrap();
    let (seen, taken) = mark
        .take(&everywhere, "a new shard", &clock, &random)
        .await
        .unwrap();
    assert!(seen.contains("2 entries"), "{seen}");
    assert_eq!(taken, found);
    // Who read it before does not bring it back.
    assert!(!mark.replace(&before, &known(3, "ff"), now).await.unwrap());
    let after = mark.read().await.unwrap().known;
    assert_eq!((after.seen, after.taken), (Some(found), 1));
    let record = "SELECT detail FROM audit WHERE action = 'dependency.acknowledge'";
    let record = db.read_one(record, args![]).await.unwrap().unwrap();
    let detail = record.text("detail").unwrap();
    assert!(
        detail.contains("seen: log, 2 entries") && detail.ends_with("root ee…: a new shard"),
        "{detail}"
    );
    let nothing = mark.take(&everywhere, "again", &clock, &random).await;
    assert_eq!(nothing.unwrap_err().kind(), Kind::NotFound);

    // Whoever trusted what comes after a damaged mark would trust anything; a person may put it right.
    for damaged in [
        r#"{"origin":"log","size":"nine","root":"aa","note":"note","taken":4}"#,
        r#"{"taken":4}"#,
        r#"{"origin":"log","size":9,"root":"aa","note":""}"#,
        "",
    ] {
        marks.keep("external-log bb", damaged, now).await.unwrap();
        let read = other.read().await.unwrap_err();
        assert!(matches!(read, MarkError::Damaged(_)), "{damaged}: {read}");
    }
    other.found(known(9, "aa").seen);
    other
        .take(&everywhere, "it was damaged", &clock, &random)
        .await
        .unwrap();
    assert_eq!(other.read().await.unwrap().known.seen, known(9, "aa").seen);
}
