//! Migrations.

use std::time::Duration;

use kernel::Fault as _;
use store::{Migration, StoreError, args};

use crate::on::{Place, on_both};

const FIRST: Migration = Migration {
    domain: "first",
    version: 1,
    sql: "CREATE TABLE one (id TEXT PRIMARY KEY, bytes {blob});",
};
/// Not to be run twice: adding a column that is there fails.
const SECOND: Migration = Migration {
    domain: "first",
    version: 2,
    sql: "ALTER TABLE one ADD COLUMN more BIGINT; CREATE INDEX one_more ON one (more);",
};
const OTHER: Migration = Migration {
    domain: "other",
    version: 1,
    sql: "CREATE TABLE two (id TEXT PRIMARY KEY);",
};
const BROKEN: Migration = Migration {
    domain: "broken",
    version: 1,
    sql: "CREATE TABLE three (id TEXT); CREATE TABEL four (id TEXT);",
};

on_both! {
    each_step_runs_once,
    a_later_step_is_added_and_keeps_the_rows,
    a_step_that_fails_leaves_nothing,
    a_newer_database_is_refused,
    servers_that_start_together_migrate_once,
    who_reads_does_not_wait_for_a_step_that_waits_for_another_reader,
}

async fn each_step_runs_once(place: Place) {
    let steps = [store::MIGRATIONS, &[FIRST, SECOND, OTHER]].concat();
    let db = place.open().await;
    db.migrate(&steps).await.unwrap();
    db.migrate(&steps).await.unwrap();
    db.close().await;
    let db = place.open().await;
    db.migrate(&steps).await.unwrap();
    let rows = db
        .read("SELECT domain, version FROM migration ORDER BY domain", args![])
        .await
        .unwrap();
    let found: Vec<_> = rows
        .iter()
        .map(|row| (row.text("domain").unwrap(), row.int("version").unwrap()))
        .collect();
    assert_eq!(
        found,
        [
            ("first".to_owned(), 2),
            ("other".to_owned(), 1),
            ("store".to_owned(), 2)
        ]
    );
}

async fn a_later_step_is_added_and_keeps_the_rows(place: Place) {
    let db = place.open().await;
    db.migrate(&[FIRST]).await.unwrap();
    let mut tx = db.begin().await.unwrap();
    tx.execute(
        "INSERT INTO one (id, bytes) VALUES ($1, $2)",
        args!["a", &[1_u8, 2][..]],
    )
    .await
    .unwrap();
    tx.commit().await.unwrap();
    db.migrate(&[FIRST, SECOND]).await.unwrap();
    let row = db
        .read_one("SELECT bytes, more FROM one WHERE id = $1", args!["a"])
        .await
        .unwrap()
        .unwrap();
    assert_eq!(row.blob("bytes").unwrap(), [1, 2]);
    assert_eq!(row.opt_int("more").unwrap(), None);
}

async fn a_step_that_fails_leaves_nothing(place: Place) {
    let db = place.open().await;
    assert!(matches!(
        db.migrate(&[FIRST, BROKEN]).await,
        Err(StoreError::Query { .. })
    ));
    for table in [
        "SELECT 1 AS x FROM one",
        "SELECT 1 AS x FROM three",
        "SELECT 1 AS x FROM migration",
    ] {
        assert!(db.read(table, args![]).await.is_err(), "{table}: it is there");
    }
    db.migrate(&[FIRST]).await.unwrap();
}

async fn a_newer_database_is_refused(place: Place) {
    let db = place.open().await;
    db.migrate(&[FIRST, SECOND]).await.unwrap();
    let error = db.migrate(&[FIRST]).await.unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Newer {
                domain: "first",
                found: 2,
                known: 1
            }
        ),
        "{error}"
    );
    assert_eq!(error.code().id, "PC1104");
}

async fn servers_that_start_together_migrate_once(place: Place) {
    let steps = [store::MIGRATIONS, &[FIRST, SECOND, OTHER]].concat();
    // On SQLite the data folder's lock keeps a second server away; here both open the file at once, which
    // is harder than what happens.
    let (one, two) = (place.open().await, place.open().await);
    let (first, second) = tokio::join!(one.migrate(&steps), two.migrate(&steps));
    first.unwrap();
    second.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_commit_of_sqlite_is_synced_but_those_that_ask_for_less() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("test.db").display());
    let db = store::Db::open(&url).await.unwrap();
    let pragma = async |tx: &mut store::Tx, sql| tx.read_one(sql, store::args![]).await.unwrap().unwrap();
    // Of the connections that write: a kill does not show what a power cut would. The two take turns.
    for round in 0..2 {
        let mut tx = db.begin().await.unwrap();
        let row = pragma(&mut tx, "PRAGMA synchronous").await;
        assert_eq!(row.int("synchronous").unwrap(), 2, "FULL, round {round}");
        let row = pragma(&mut tx, "PRAGMA journal_mode").await;
        assert_eq!(row.text("journal_mode").unwrap(), "wal");
        tx.commit().await.unwrap();
        let mut tx = db.begin_unsynced().await.unwrap();
        let row = pragma(&mut tx, "PRAGMA synchronous").await;
        assert_eq!(row.int("synchronous").unwrap(), 1, "NORMAL, round {round}");
        tx.commit().await.unwrap();
    }
    db.close().await;
}

/// As during a backup, which reads for minutes. Shown to fail: without `LOCK_WAIT` on PostgreSQL, who only reads waits behind
/// the step until the first reader ends.
async fn who_reads_does_not_wait_for_a_step_that_waits_for_another_reader(place: Place) {
    let first = [store::MIGRATIONS, &[FIRST]].concat();
    let db = place.open().await;
    db.migrate(&first).await.unwrap();
    let sql = "SELECT COUNT(*) AS n FROM one";
    let mut tx = db.begin().await.unwrap();
    tx.read_one(sql, args![]).await.unwrap();
    let own = db.clone();
    let steps = [store::MIGRATIONS, &[FIRST, SECOND]].concat();
    let migrating = tokio::spawn(async move { own.migrate(&steps).await });
    let half_a_second = Duration::from_millis(500);
    let reads_on = async {
        for _ in 0..8 {
            tokio::time::sleep(half_a_second).await;
            tx.read_one(sql, args![]).await.unwrap();
        }
    };
    let reads = async {
        tokio::time::sleep(half_a_second).await;
        db.read(sql, args![]).await.unwrap();
    };
    tokio::select! {
        () = reads_on => panic!("who only reads waits"),
        () = reads => {}
    }
    drop(tx);
    migrating.await.unwrap().unwrap();
    let rows = db.read("SELECT more FROM one", args![]).await.unwrap();
    assert!(rows.is_empty());
}
