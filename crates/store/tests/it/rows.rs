//! Statements and transactions.

use store::{Db, Migration, StoreError, args};

use crate::on::{Place, on_both};

const TABLE: Migration = Migration {
    domain: "test",
    version: 1,
    sql: "CREATE TABLE thing (
            id TEXT PRIMARY KEY, number BIGINT, words TEXT, bytes {blob}, flag BIGINT NOT NULL DEFAULT 0
          );",
};
const INSERT: &str = "INSERT INTO thing (id, number, words, bytes, flag) VALUES ($1, $2, $3, $4, $5)";

on_both! {
    every_type_comes_back_as_it_went,
    null_of_every_type_comes_back_as_null,
    a_column_of_another_type_is_an_error,
    what_is_not_committed_never_happened,
    what_is_committed_is_there_after_opening_again,
    a_duplicate_is_known_as_one,
    an_upsert_changes_the_row_that_is_there,
    a_statement_tells_how_many_rows_it_changed,
    a_transaction_sees_its_own_writes_and_others_do_not,
    writers_take_turns,
}

async fn table(place: &Place) -> Db {
    let db = place.open().await;
    db.migrate(&[TABLE]).await.unwrap();
    db
}

async fn insert(db: &Db, id: &str, number: i64) -> Result<(), StoreError> {
    let mut tx = db.begin().await?;
    tx.execute(INSERT, args![id, number, "words", &[0_u8, 255][..], true])
        .await?;
    tx.commit().await
}

async fn every_type_comes_back_as_it_went(place: Place) {
    let db = table(&place).await;
    let long = "ü\u{1f512}'\"; DROP TABLE thing; --".repeat(1_000);
    let bytes: Vec<u8> = (0..=255).collect();
    let mut tx = db.begin().await.unwrap();
    for (id, number) in [("low", i64::MIN), ("high", i64::MAX), ("zero", 0)] {
        tx.execute(INSERT, args![id, number, &long, bytes.clone(), false])
            .await
            .unwrap();
    }
    tx.commit().await.unwrap();
    for (id, number) in [("low", i64::MIN), ("high", i64::MAX), ("zero", 0)] {
        let row = db
            .read_one("SELECT * FROM thing WHERE id = $1", args![id])
            .await
            .unwrap()
            .unwrap();
        assert_eq!(row.int("number").unwrap(), number);
        assert_eq!(row.text("words").unwrap(), long);
        assert_eq!(row.blob("bytes").unwrap(), bytes);
        assert_eq!(row.int("flag").unwrap(), 0);
    }
}

async fn null_of_every_type_comes_back_as_null(place: Place) {
    let db = table(&place).await;
    let mut tx = db.begin().await.unwrap();
    let (number, words, bytes) = (None::<i64>, None::<String>, None::<Vec<u8>>);
    tx.execute(INSERT, args!["a", number, words, bytes, true])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let row = db
        .read_one("SELECT * FROM thing", args![])
        .await
        .unwrap()
        .unwrap();
    assert_eq!(row.opt_int("number").unwrap(), None);
    assert_eq!(row.opt_text("words").unwrap(), None);
    assert_eq!(row.opt_blob("bytes").unwrap(), None);
    assert!(row.int("number").is_err(), "null is no number");
    assert!(row.text("words").is_err(), "null is no text");
    assert!(row.blob("bytes").is_err(), "null is no blob");
}

async fn a_column_of_another_type_is_an_error(place: Place) {
    let db = table(&place).await;
    insert(&db, "a", 7).await.unwrap();
    let row = db
        .read_one("SELECT id, number, bytes FROM thing", args![])
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(row.int("id"), Err(StoreError::Column { .. })));
    assert!(matches!(row.text("bytes"), Err(StoreError::Column { .. })));
    assert!(matches!(row.blob("number"), Err(StoreError::Column { .. })));
    assert!(matches!(row.int("missing"), Err(StoreError::Column { .. })));
}

async fn what_is_not_committed_never_happened(place: Place) {
    let db = table(&place).await;
    let mut tx = db.begin().await.unwrap();
    tx.execute(INSERT, args!["a", 1_i64, "w", &[][..] as &[u8], false])
        .await
        .unwrap();
    drop(tx);
    // The next transaction gets through: the one that was dropped holds nothing.
    insert(&db, "b", 2).await.unwrap();
    let rows = db.read("SELECT id FROM thing", args![]).await.unwrap();
    assert_eq!(
        rows.iter().map(|row| row.text("id").unwrap()).collect::<Vec<_>>(),
        ["b"]
    );
}

async fn what_is_committed_is_there_after_opening_again(place: Place) {
    let db = table(&place).await;
    insert(&db, "a", 1).await.unwrap();
    let mut tx = db.begin_unsynced().await.unwrap();
    tx.execute(INSERT, args!["b", 2_i64, "w", &[][..] as &[u8], false])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    insert(&db, "c", 3).await.unwrap();
    db.close().await;
    let rows = place
        .open()
        .await
        .read("SELECT number FROM thing ORDER BY number", args![])
        .await
        .unwrap();
    let numbers: Vec<i64> = rows.iter().map(|row| row.int("number").unwrap()).collect();
    assert_eq!(numbers, [1, 2, 3]);
}

async fn a_duplicate_is_known_as_one(place: Place) {
    let db = table(&place).await;
    insert(&db, "a", 1).await.unwrap();
    let error = insert(&db, "a", 2).await.unwrap_err();
    assert!(error.is_duplicate(), "{error:?}");
    let error = db.read("SELECT nothing FROM nowhere", args![]).await.unwrap_err();
    assert!(!error.is_duplicate(), "{error:?}");
    // A failed transaction spoils none after it.
    insert(&db, "b", 2).await.unwrap();
}

async fn an_upsert_changes_the_row_that_is_there(place: Place) {
    let db = table(&place).await;
    const UPSERT: &str = "INSERT INTO thing (id, number) VALUES ($1, $2) \
        ON CONFLICT (id) DO UPDATE SET number = thing.number + excluded.number RETURNING number";
    for expected in [5, 10, 15] {
        let mut tx = db.begin().await.unwrap();
        let row = tx.read_one(UPSERT, args!["a", 5_i64]).await.unwrap().unwrap();
        assert_eq!(row.int("number").unwrap(), expected);
        tx.commit().await.unwrap();
    }
    let mut tx = db.begin().await.unwrap();
    let nothing = "INSERT INTO thing (id, number) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING";
    assert_eq!(tx.execute(nothing, args!["a", 1_i64]).await.unwrap(), 0);
    assert_eq!(tx.execute(nothing, args!["b", 1_i64]).await.unwrap(), 1);
}

async fn a_statement_tells_how_many_rows_it_changed(place: Place) {
    let db = table(&place).await;
    for (id, number) in [("a", 1), ("b", 2), ("c", 3)] {
        insert(&db, id, number).await.unwrap();
    }
    let mut tx = db.begin().await.unwrap();
    assert_eq!(
        tx.execute("UPDATE thing SET flag = 2 WHERE number >= $1", args![2_i64])
            .await
            .unwrap(),
        2
    );
    assert_eq!(
        tx.execute("DELETE FROM thing WHERE number > $1", args![9_i64])
            .await
            .unwrap(),
        0
    );
    tx.commit().await.unwrap();
}

async fn a_transaction_sees_its_own_writes_and_others_do_not(place: Place) {
    let db = table(&place).await;
    let mut tx = db.begin().await.unwrap();
    tx.execute(INSERT, args!["a", 1_i64, "w", &[][..] as &[u8], false])
        .await
        .unwrap();
    assert_eq!(tx.read("SELECT id FROM thing", args![]).await.unwrap().len(), 1);
    assert_eq!(db.read("SELECT id FROM thing", args![]).await.unwrap().len(), 0);
    tx.commit().await.unwrap();
    assert_eq!(db.read("SELECT id FROM thing", args![]).await.unwrap().len(), 1);
}

async fn writers_take_turns(place: Place) {
    const WRITERS: i64 = 20;
    let db = table(&place).await;
    insert(&db, "sum", 0).await.unwrap();
    let add = |by: i64| {
        let db = db.clone();
        async move {
            let mut tx = db.begin().await.unwrap();
            let add = "UPDATE thing SET number = number + $1 WHERE id = $2";
            tx.execute(add, args![by, "sum"]).await.unwrap();
            tx.commit().await.unwrap();
        }
    };
    let writers: Vec<_> = (1..=WRITERS).map(|by| tokio::spawn(add(by))).collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let row = db
        .read_one("SELECT number FROM thing WHERE id = $1", args!["sum"])
        .await
        .unwrap()
        .unwrap();
    assert_eq!(row.int("number").unwrap(), WRITERS * (WRITERS + 1) / 2);
}
