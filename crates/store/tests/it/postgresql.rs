//! Answers of PostgreSQL that are no absence: it takes no writes, or has no room.

use std::time::Duration;

use kernel::{Fault as _, Kind};
use store::{Db, StoreError, args};
use testkit::Postgres;

async fn write(db: &Db) -> Result<(), StoreError> {
    let mut tx = db.begin().await?;
    let sql = "INSERT INTO migration (domain, version) VALUES ('x', 1) \
               ON CONFLICT (domain) DO UPDATE SET version = migration.version + 1";
    tx.execute(sql, args![]).await?;
    tx.commit().await
}

async fn administer(db: &Db, statements: &[&'static str]) {
    let mut tx = db.begin().await.unwrap();
    for statement in statements {
        tx.execute(statement, args![]).await.unwrap();
    }
    tx.commit().await.unwrap();
}

/// Shown to fail: without `Presence::is_read_only`, a session that began read-only refuses for as long as it is kept.
#[tokio::test]
async fn a_database_that_takes_no_writes_is_read_and_named() {
    let Some(postgres) = Postgres::own() else { return };
    let url = postgres.database();
    let (db, operator) = (Db::open(&url).await.unwrap(), Db::open(&url).await.unwrap());
    db.migrate(store::MIGRATIONS).await.unwrap();
    administer(
        &operator,
        &[
            "ALTER ROLE postgres SET default_transaction_read_only = on",
            "SELECT pg_terminate_backend(pid) IS NULL FROM pg_stat_activity WHERE pid <> pg_backend_pid() \
             AND datname = current_database()",
        ],
    )
    .await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    // As many sessions at once as a server has, all of them read-only.
    let many = futures::future::join_all((0..8).map(|_| write(&db))).await;
    for refused in many.into_iter().map(Result::unwrap_err) {
        assert_eq!((refused.code().id, refused.kind()), ("PC1112", Kind::Unavailable));
        assert!(refused.to_string().contains("takes no writes"), "{refused}");
    }
    let read = db.read("SELECT domain FROM migration", args![]).await.unwrap();
    assert_eq!(read.len(), 1);
    administer(
        &operator,
        &[
            "SET TRANSACTION READ WRITE",
            "ALTER ROLE postgres RESET default_transaction_read_only",
        ],
    )
    .await;
    let mut refused = 0;
    while write(&db).await.is_err() {
        refused += 1;
        assert!(
            refused < 10,
            "it takes writes again, and this server does not notice"
        );
    }
}

/// Shown to fail: with the table made in each `Db::migrate`, a server that starts on a standby is refused; with
/// `StoreError::query` in `PostgresTx::script`, an empty database that takes no writes is PC1101.
#[tokio::test]
async fn a_schema_that_is_current_is_used_where_nothing_may_be_written() {
    let Some(postgres) = Postgres::own() else { return };
    let (current, empty) = (postgres.database(), postgres.database());
    let operator = Db::open(&current).await.unwrap();
    operator.migrate(store::MIGRATIONS).await.unwrap();
    administer(
        &operator,
        &["ALTER ROLE postgres SET default_transaction_read_only = on"],
    )
    .await;
    let db = Db::open(&current).await.unwrap();
    assert_eq!(write(&db).await.unwrap_err().code().id, "PC1112");
    db.migrate(store::MIGRATIONS).await.unwrap();
    let refused = Db::open(&empty).await.unwrap().migrate(store::MIGRATIONS).await;
    assert_eq!(refused.unwrap_err().code().id, "PC1112");
}

/// Shown to fail: with every session dropped until a statement without RETURNING writes, each read has a new one.
#[tokio::test]
async fn after_a_time_without_writes_sessions_are_kept_again() {
    let Some(postgres) = Postgres::own() else { return };
    let url = postgres.database();
    let operator = Db::open(&url).await.unwrap();
    operator.migrate(store::MIGRATIONS).await.unwrap();
    administer(
        &operator,
        &["ALTER ROLE postgres SET default_transaction_read_only = on"],
    )
    .await;
    let db = Db::open(&url).await.unwrap();
    write(&db).await.unwrap_err();
    administer(
        &operator,
        &[
            "SET TRANSACTION READ WRITE",
            "ALTER ROLE postgres RESET default_transaction_read_only",
        ],
    )
    .await;
    let mut sessions = std::collections::HashSet::new();
    for _ in 0..40 {
        let row = db
            .read_one("SELECT pg_backend_pid() AS pid", args![])
            .await
            .unwrap();
        sessions.insert(row.unwrap().int("pid").unwrap());
        // A session is given back by a task.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(sessions.len() <= 4, "{} sessions for 40 reads", sessions.len());
}

/// Shown to fail: with every failed look taken for absence in `Presence::look`, what the connections that there are could
/// read is refused too.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_room_is_named_and_is_not_away() {
    let program = testkit::peer!("postgresql");
    let postgres = Postgres::start_with(&program, &["fsync=off", "max_connections=8"]).unwrap();
    let url = postgres.database();
    let db = Db::open(&url).await.unwrap();
    let others = Db::open(&url).await.unwrap();
    // Seven sessions, each kept when its work is done.
    drop(futures::future::join_all((0..7).map(|_| others.begin())).await);
    let mut tx = db.begin().await.unwrap();
    let second = tokio::spawn({
        let db = db.clone();
        async move { db.begin().await.map(drop).unwrap_err() }
    });
    while !second.is_finished() {
        tx.read("SELECT 1 AS one", args![]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let refused = second.await.unwrap();
    assert_eq!(
        (refused.code().id, refused.kind()),
        ("PC1113", Kind::Unavailable),
        "{refused:?}"
    );
    tx.commit().await.unwrap();
    // Its connection goes back to the others a moment later.
    tokio::time::sleep(Duration::from_millis(200)).await;
    db.read("SELECT 1 AS one", args![]).await.unwrap();
    let Err(refused) = Db::open(&url).await else {
        unreachable!("there was room")
    };
    assert_eq!(refused.code().id, "PC1113", "{refused:?}");
}
