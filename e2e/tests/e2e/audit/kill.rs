//! `kill -9` between a change and its seal.

use std::time::Duration;

use e2e::{Server, Setup};
use serde_json::{Value, json};

use super::{assert_whole, records, sealed};
use crate::ledger::times;

/// Every point that a record passes after its change was committed.
const POINTS: &[&str] = &[
    "audit.staged",
    "audit.committed",
    "audit.appended",
    "audit.numbered",
];
const KILLS_PER_POINT: u32 = 6;
const KILLS_AT_RANDOM: u32 = 12;
/// How long the server may take to come to the point, in milliseconds: the interval of the seal, and a slow machine.
const DIE_MS_MAX: u64 = 15_000;

/// Makes tokens until the server is gone; the names of those that were acknowledged.
async fn make(server: &Server, prefix: &str, count: u32) -> Vec<String> {
    let api = server.api().unwrap();
    let mut made = Vec::new();
    for number in 0..count {
        let name = format!("{prefix}-{number}");
        let body = json!({ "name": &name, "role": "viewer" });
        match api.post("/api/v1/tokens", &body).await {
            Ok(answer) if answer.status == 201 => made.push(name),
            _ => break,
        }
    }
    made
}

async fn died(server: &mut Server) -> bool {
    for _ in 0..DIE_MS_MAX / 10 {
        if !server.is_running() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

/// Every acknowledged change has one record, sealed once.
async fn assert_recorded(server: &Server, acknowledged: &[String]) {
    let api = server.api().unwrap();
    sealed(&api, acknowledged.len()).await;
    let all = records(&api, "order=sequence&action=token.create").await;
    let details: Vec<&str> = all
        .iter()
        .map(|record| record["detail"].as_str().unwrap())
        .collect();
    for name in acknowledged {
        let own = format!("{name} as viewer");
        assert_eq!(
            details.iter().filter(|detail| **detail == own).count(),
            1,
            "{name}"
        );
    }
    let places: Vec<u64> = records(&api, "order=sequence")
        .await
        .iter()
        .map(sequence)
        .collect();
    assert_eq!(
        places,
        (0..places.len() as u64).collect::<Vec<_>>(),
        "each place once, none left out"
    );
    assert_whole(server);
}

fn sequence(record: &Value) -> u64 {
    record["sequence"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_record_is_lost_or_sealed_twice_when_the_server_is_killed() {
    let mut server = Server::start(Setup::default()).unwrap();
    let mut acknowledged = Vec::new();
    for point in POINTS {
        for nth in 0..times() * KILLS_PER_POINT {
            server.kill();
            assert!(server.launch(Some(&format!("{point}:{}", 1 + nth % 2))).unwrap());
            acknowledged.extend(make(&server, &format!("{point}-{nth}"), 3).await);
            // The second round of the seal needs a record of its own.
            for more in 0..3 {
                tokio::time::sleep(Duration::from_millis(1_100)).await;
                if nth % 2 == 0 || !server.is_running() {
                    break;
                }
                acknowledged.extend(make(&server, &format!("{point}-{nth}-{more}"), 1).await);
            }
            assert!(died(&mut server).await, "{point}: the server did not die at it");
            server.restart().unwrap();
        }
        assert_recorded(&server, &acknowledged).await;
    }
    for nth in 0..times() * KILLS_AT_RANDOM {
        let mut process = server.take_process().unwrap();
        let kill = tokio::task::spawn_blocking(move || {
            std::thread::sleep(Duration::from_millis(u64::from(nth) * 97 % 1_500));
            process.kill();
        });
        acknowledged.extend(make(&server, &format!("random-{nth}"), 1_000).await);
        kill.await.unwrap();
        server.restart().unwrap();
    }
    assert_recorded(&server, &acknowledged).await;
    println!("{} acknowledged changes, each sealed once", acknowledged.len());
}
