//! The server that appends dies, or sleeps and wakes up.

use e2e::Fleet;
use futures::future::join_all;
use kernel::{Clock as _, SystemClock};
use testkit::Postgres;

use super::{Done, GAP_MAX, Images, entries};
use crate::ledger::Ledger;

/// What becomes of the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Killed,
    Frozen,
}

#[tokio::test(flavor = "multi_thread")]
async fn any_server_signs_verifies_and_logs() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let fleet = Fleet::start(&postgres, 3, "").unwrap();
    let (apis, mut images) = (fleet.apis().unwrap(), Images::new().await);
    let (mut ledger, done) = (Ledger::new(&apis[0]).await, Done::default());
    for (at, image) in images.many(9).await.iter().enumerate() {
        assert_eq!(done.sign(&apis[at % 3], image).await, Ok(201));
        assert_eq!(
            done.sign(&apis[(at + 1) % 3], image).await,
            Ok(200),
            "known everywhere"
        );
    }
    for (at, request) in entries(30).iter().enumerate() {
        done.log(&apis[at % 3], &ledger, request).await.unwrap();
    }
    done.check(&fleet, &mut ledger).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_moves_on_within_five_seconds_of_its_leaders_kill() {
    the_log_moves_on(End::Killed).await;
}

/// Shown to fail with both guards out, the fence (`lease::check` answering `true`) and the comparison in the statement
/// that moves the checkpoint: the woken server then moves it back, and only the rows that are there already stop it.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_moves_on_while_its_leader_is_frozen_and_the_woken_one_writes_nothing() {
    the_log_moves_on(End::Frozen).await;
}

async fn the_log_moves_on(end: End) {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let mut fleet = Fleet::start(&postgres, 3, "").unwrap();
    let (apis, mut images) = (fleet.apis().unwrap(), Images::new().await);
    let (mut ledger, done) = (Ledger::new(&apis[0]).await, Done::default());
    let leader = fleet.leader().await.unwrap();
    let others = [&apis[(leader + 1) % 3], &apis[(leader + 2) % 3]];
    for image in images.many(6).await {
        done.sign(&apis[leader], &image).await.unwrap();
    }
    let (during, asleep, after) = (images.many(20).await, images.many(4).await, images.many(10).await);
    // In the middle of its work: what it was answering may be lost, nothing that it answered.
    let busy: Vec<_> = during
        .iter()
        .map(|image| {
            let (api, image) = (apis[leader].clone(), image.clone());
            tokio::spawn(async move { api.post("/api/v1/signatures", &image).await })
        })
        .collect();
    let process = fleet.server(leader).take_process().unwrap();
    process
        .signal(match end {
            End::Killed => "KILL",
            End::Frozen => "STOP",
        })
        .unwrap();
    let clock = SystemClock::new();
    let began = clock.monotonic();
    let signed = join_all(
        after
            .iter()
            .zip(others.iter().cycle())
            .map(|(image, api)| done.sign(api, image)),
    );
    for answer in signed.await {
        answer.unwrap();
    }
    let took = clock.monotonic().since(began);
    println!("{end:?}: the others signed after {took:?}");
    assert!(took <= GAP_MAX, "{took:?}");
    for request in entries(20) {
        done.log(others[0], &ledger, &request).await.unwrap();
    }
    if end == End::Frozen {
        process.signal("CONT").unwrap();
        for answer in join_all(busy).await {
            // Its own work was not written while it slept; it hands it to the new leader, or says that it cannot.
            let answer = answer.unwrap().unwrap();
            assert!(matches!(answer.status, 201 | 200 | 503), "{answer:?}");
        }
        for image in &asleep {
            done.sign(&apis[leader], image).await.unwrap();
        }
        assert_ne!(
            fleet.leader().await.unwrap(),
            leader,
            "it does not take the lead back"
        );
        done.check(&fleet, &mut ledger).await;
        return;
    }
    drop(process);
    fleet.server(leader).restart().unwrap();
    for image in &during {
        done.sign(&apis[leader], image).await.unwrap();
    }
    done.check(&fleet, &mut ledger).await;
}
