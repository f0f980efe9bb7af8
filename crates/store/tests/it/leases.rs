//! One of many holds a duty.

use std::time::Duration;

use store::{Db, Lease, lease};

use crate::on::{Place, on_both};

const LONG: Duration = Duration::from_secs(600);
/// Ends while the test waits; the wait is many times longer, so that a slow machine does not matter.
const SHORT: Duration = Duration::from_millis(1);
const PAST_SHORT: Duration = Duration::from_millis(50);

on_both! {
    one_holds_it_at_a_time,
    who_held_it_may_take_it_up_again_under_a_higher_number,
    it_ends_by_itself_and_the_next_fences_the_last,
    renewing_keeps_it_and_fails_once_it_is_lost,
    released_it_is_free_at_once,
    of_many_that_ask_at_once_one_gets_it,
    the_guarded_write_of_a_stale_holder_does_not_happen,
}

async fn prepared(place: &Place) -> Db {
    let db = place.open().await;
    db.migrate(store::MIGRATIONS).await.unwrap();
    db
}

async fn acquire(db: &Db, holder: &str, ttl: Duration) -> Option<Lease> {
    Lease::acquire(db, "duty", holder, ttl).await.unwrap()
}

async fn is_newest(db: &Db, fence: i64) -> bool {
    let mut tx = db.begin().await.unwrap();
    let newest = lease::check(&mut tx, "duty", fence).await.unwrap();
    tx.commit().await.unwrap();
    newest
}

async fn one_holds_it_at_a_time(place: Place) {
    let db = prepared(&place).await;
    let held = acquire(&db, "a", LONG).await.unwrap();
    assert_eq!((held.name(), held.fence()), ("duty", 1));
    assert!(acquire(&db, "b", LONG).await.is_none());
    assert!(
        Lease::acquire(&db, "another", "b", LONG).await.unwrap().is_some(),
        "duties are apart"
    );
    assert!(is_newest(&db, 1).await);
}

async fn who_held_it_may_take_it_up_again_under_a_higher_number(place: Place) {
    let db = prepared(&place).await;
    let before = acquire(&db, "a", LONG).await.unwrap();
    let after = acquire(&db, "a", LONG).await.unwrap();
    assert!(after.fence() > before.fence());
    assert!(
        !is_newest(&db, before.fence()).await,
        "the process before the restart is fenced"
    );
    assert!(!before.renew().await.unwrap());
    assert!(after.renew().await.unwrap());
}

async fn it_ends_by_itself_and_the_next_fences_the_last(place: Place) {
    let db = prepared(&place).await;
    let slept = acquire(&db, "a", SHORT).await.unwrap();
    tokio::time::sleep(PAST_SHORT).await;
    let next = acquire(&db, "b", LONG).await.unwrap();
    assert!(next.fence() > slept.fence());
    assert!(!is_newest(&db, slept.fence()).await);
    assert!(
        !slept.renew().await.unwrap(),
        "who slept through the end has lost it"
    );
}

async fn renewing_keeps_it_and_fails_once_it_is_lost(place: Place) {
    let db = prepared(&place).await;
    let held = acquire(&db, "a", LONG).await.unwrap();
    assert!(held.renew().await.unwrap());
    assert!(acquire(&db, "b", LONG).await.is_none());
    let late = Lease::acquire(&db, "late", "a", SHORT).await.unwrap().unwrap();
    tokio::time::sleep(PAST_SHORT).await;
    assert!(late.renew().await.unwrap(), "ended, but nobody took it");
}

async fn released_it_is_free_at_once(place: Place) {
    let db = prepared(&place).await;
    let held = acquire(&db, "a", LONG).await.unwrap();
    let fence = held.fence();
    held.release().await.unwrap();
    assert!(acquire(&db, "b", LONG).await.unwrap().fence() > fence);
}

async fn of_many_that_ask_at_once_one_gets_it(place: Place) {
    let db = prepared(&place).await;
    let ask = |holder: usize| {
        let db = db.clone();
        tokio::spawn(async move { acquire(&db, &format!("holder {holder}"), LONG).await.is_some() })
    };
    let asked: Vec<_> = (0..10).map(ask).collect();
    let mut got = 0;
    for answer in asked {
        got += u32::from(answer.await.unwrap());
    }
    assert_eq!(got, 1);
}

async fn the_guarded_write_of_a_stale_holder_does_not_happen(place: Place) {
    let db = prepared(&place).await;
    let stale = acquire(&db, "a", SHORT).await.unwrap();
    tokio::time::sleep(PAST_SHORT).await;
    // The check locks the row: who takes the duty over waits for the transaction that still held it.
    let mut tx = db.begin().await.unwrap();
    assert!(lease::check(&mut tx, "duty", stale.fence()).await.unwrap());
    let taker = {
        let db = db.clone();
        tokio::spawn(async move { acquire(&db, "b", LONG).await.unwrap().fence() })
    };
    tokio::time::sleep(PAST_SHORT).await;
    assert!(
        !taker.is_finished(),
        "the duty changed hands in the middle of a guarded write"
    );
    tx.commit().await.unwrap();
    assert!(taker.await.unwrap() > stale.fence());
    assert!(!is_newest(&db, stale.fence()).await);
}
