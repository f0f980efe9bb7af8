//! The audit trail of a real server: what is in it, that nothing can be taken out of it unnoticed, and that it stops
//! nobody.

mod damage;
mod flood;
mod kept;
mod kill;
mod records;
mod servers;
mod tamper;

use std::time::Duration;

use e2e::{Api, Ran, Server};
use serde_json::{Value, json};

/// How long a record may take to the seal, in milliseconds: its interval, and a machine that has much to do.
const SEALED_MS_MAX: u64 = 15_000;

/// A token that the administrator makes.
async fn token(api: &Api, name: &str, role: &str) -> Value {
    let body = json!({ "name": name, "role": role });
    let made = api.post("/api/v1/tokens", &body).await.unwrap();
    assert_eq!(made.status, 201, "{made:?}");
    made.body
}

/// Records that a query finds, all pages.
async fn records(api: &Api, query: &str) -> Vec<Value> {
    let (mut records, mut next) = (Vec::new(), Some(format!("/api/v1/audit?limit=200&{query}")));
    while let Some(path) = next {
        let page = api.get(&path).await.unwrap();
        assert_eq!(page.status, 200, "{page:?}");
        records.extend(page.body["items"].as_array().unwrap().clone());
        next = page.body["next"].as_str().map(str::to_owned);
    }
    records
}

/// Waits until every record is sealed, and at least `count` are.
async fn sealed(api: &Api, count: usize) {
    for _ in 0..SEALED_MS_MAX / 50 {
        if records(api, "order=unsealed").await.is_empty()
            && records(api, "order=sequence").await.len() >= count
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!(
        "the records are not sealed: {:?}",
        records(api, "order=unsealed").await
    );
}

/// `portcullis audit verify`, which finds nothing.
fn assert_whole(server: &Server) {
    let verified = server.run(&["audit", "verify"]).unwrap();
    assert!(verified.ok(), "{}", verified.text());
}

/// `portcullis audit verify`, which finds something and says `words`.
#[track_caller]
fn assert_found(what: &str, verified: &Ran, words: &[&str]) {
    assert_eq!(verified.code, Some(8), "{what}: {}", verified.text());
    for word in words {
        assert!(
            verified.stderr.contains(word),
            "{what}: no {word:?} in {}",
            verified.text()
        );
    }
}
