//! What other servers changed is forgotten, and nothing else.

use std::sync::Arc;

use kernel::SystemClock;
use store::{Db, Learner, Recent, StoreError};

use crate::on::{Place, on_both};

on_both! {
    what_another_server_changed_is_forgotten_and_nothing_else,
    a_change_that_ends_late_is_not_missed,
    a_database_that_lost_changes_has_everything_forgotten,
}

/// What one server keeps, and what it has heard of.
struct Server {
    recent: Arc<Recent<String, i64>>,
    learner: Learner,
}

impl Server {
    async fn new(db: &Db) -> Self {
        let recent = Recent::new("row", Arc::new(SystemClock::new()), |name, key: &String, _| {
            key == name
        });
        let recent = Arc::new(recent);
        let mut learner = Learner::new(db.clone(), vec![recent.clone()]);
        learner.learn().await.unwrap();
        let server = Self { recent, learner };
        for name in ["a", "b", "c"] {
            let row = async { Ok::<_, StoreError>(Some(1)) };
            server.recent.read(name.to_owned(), row).await.unwrap();
        }
        server
    }

    /// The names that it still knows, asked of a database that knows none.
    async fn knows(&self) -> Vec<&'static str> {
        let mut known = Vec::new();
        for name in ["a", "b", "c"] {
            let nothing = async { Ok::<_, StoreError>(None) };
            let row = self.recent.read(name.to_owned(), nothing).await.unwrap();
            known.extend(row.map(|_| name));
        }
        known
    }
}

async fn prepared(place: &Place) -> Db {
    let db = place.open().await;
    db.migrate(store::MIGRATIONS).await.unwrap();
    db
}

async fn change(db: &Db, server: &Server, name: &str) {
    let mut tx = db.begin().await.unwrap();
    let _change = server.recent.change(&mut tx, name).await.unwrap();
    tx.commit().await.unwrap();
}

/// Shown to fail: without `Kept::forget` in `Learner::learn`, it still knows a; with `Kept::forget_all` there, it knows
/// nothing.
async fn what_another_server_changed_is_forgotten_and_nothing_else(place: Place) {
    let db = prepared(&place).await;
    let (one, mut two) = (Server::new(&db).await, Server::new(&db).await);
    change(&db, &one, "a").await;
    let mut tx = db.begin().await.unwrap();
    drop(one.recent.change(&mut tx, "b").await.unwrap());
    drop(tx);
    change(&db, &one, &"longer than an index takes ".repeat(1_000)).await;
    two.learner.learn().await.unwrap();
    assert_eq!(two.knows().await, ["b", "c"]);
    change(&db, &one, "a").await;
    change(&db, &one, "c").await;
    two.learner.learn().await.unwrap();
    assert_eq!(two.knows().await, ["b"]);
}

/// With numbers of a sequence, which are given out before the transaction ends, the change of b would be seen first, and
/// that of a never.
async fn a_change_that_ends_late_is_not_missed(place: Place) {
    let db = prepared(&place).await;
    let (one, mut two) = (Server::new(&db).await, Server::new(&db).await);
    let mut late = db.begin().await.unwrap();
    let changing = one.recent.change(&mut late, "a").await.unwrap();
    let next = {
        let (db, other) = (db.clone(), Server::new(&db).await);
        tokio::spawn(async move { change(&db, &other, "b").await })
    };
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    two.learner.learn().await.unwrap();
    late.commit().await.unwrap();
    drop(changing);
    next.await.unwrap();
    two.learner.learn().await.unwrap();
    assert_eq!(two.knows().await, ["c"]);
}

async fn a_database_that_lost_changes_has_everything_forgotten(place: Place) {
    let db = prepared(&place).await;
    let one = Server::new(&db).await;
    change(&db, &one, "a").await;
    let mut two = Server::new(&db).await;
    let mut tx = db.begin().await.unwrap();
    tx.execute("UPDATE change_count SET number = 0", Vec::new())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    two.learner.learn().await.unwrap();
    assert!(two.knows().await.is_empty());
}
