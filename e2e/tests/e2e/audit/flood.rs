//! A flood of refusals: answered at once, recorded within bounds, and counted to the last.

use std::sync::Arc;
use std::time::Duration;

use access::audit::{ACTOR_REFUSALS_MAX, REFUSALS_MAX, WINDOW_SECONDS};
use e2e::{Api, Server, Setup};
use kernel::{Clock as _, SystemClock};
use serde_json::json;

use super::{assert_whole, records, token};

const CLIENTS: usize = 32;
const REQUESTS: usize = 250;
/// How long a refusal may take under it, in milliseconds, at the 99th percentile.
const REFUSAL_MS_MAX: u128 = 500;

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_refusals_is_bounded_and_counted_and_stops_nobody() {
    let mut server = Server::start(Setup::default()).unwrap();
    let api = server.api().unwrap();
    let viewer = token(&api, "flood", "viewer").await;
    let flooding = Api::new(&server.url(), viewer["token"].as_str().unwrap()).unwrap();
    let unknown = Api::new(&server.url(), "pcl_x").unwrap();
    let clock = Arc::new(SystemClock::new());
    let began = clock.monotonic();
    let clients = (0..CLIENTS).map(|client| {
        let (flooding, unknown, clock) = (flooding.clone(), unknown.clone(), clock.clone());
        tokio::spawn(async move {
            let mut took = Vec::new();
            for request in 0..REQUESTS {
                let began = clock.monotonic();
                let answer = if request % 5 == 0 {
                    unknown.get("/api/v1/keys").await.unwrap()
                } else {
                    let body = json!({ "name": format!("k{client}-{request}") });
                    flooding.post("/api/v1/keys", &body).await.unwrap()
                };
                assert!(matches!(answer.status, 401 | 403), "{answer:?}");
                took.push(clock.monotonic().since(began).as_millis());
            }
            took
        })
    });
    let mut took: Vec<u128> = Vec::new();
    for client in futures::future::join_all(clients).await {
        took.extend(client.unwrap());
    }
    took.sort_unstable();
    let p99 = took[took.len() * 99 / 100];
    let all = took.len() as i64;
    println!(
        "{all} refusals in {:?}, p99 {p99} ms",
        clock.monotonic().since(began)
    );
    assert!(p99 <= REFUSAL_MS_MAX, "p99 {p99} ms");
    // Meanwhile others work, and their records are there at once.
    token(&api, "other", "viewer").await;
    // A stop writes what was gathered.
    assert_eq!(server.stop().unwrap(), Some(0));
    let windows = clock.monotonic().since(began).as_secs() / WINDOW_SECONDS + 1;
    server.restart().unwrap();
    let denied = records(&api, "outcome=denied").await;
    let most = windows as usize * (2 * REFUSALS_MAX + 1);
    assert!(
        denied.len() <= most && denied.len() >= ACTOR_REFUSALS_MAX,
        "{} records",
        denied.len()
    );
    let counted: i64 = denied
        .iter()
        .map(|record| record["times"].as_i64().unwrap())
        .sum();
    assert_eq!(counted, all, "every refusal is counted");
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_whole(&server);
}
