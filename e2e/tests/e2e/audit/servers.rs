//! Several servers on one PostgreSQL seal one trail.

use std::time::Duration;

use e2e::{Server, Setup};
use kernel::{Clock as _, SystemClock};
use testkit::Postgres;

use super::{assert_whole, records, sealed, token};

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_seal_one_trail_and_the_second_goes_on_alone() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let blobs = tempfile::tempdir().unwrap();
    let config = format!(
        "[database]\nurl = {:?}\n[blobs]\nurl = {:?}\n",
        postgres.database(),
        blobs.path()
    );
    let mut first = Server::start(Setup {
        config: config.clone(),
        ..Setup::default()
    })
    .unwrap();
    let secret = |name: &str| format!("{:?}", first.data().join("secrets").join(name));
    let with = |audit: &str| {
        format!(
            "{config}[log]\nkey_file = {}\n[keys]\npassword_file = {}\n{audit}",
            secret("log.json"),
            secret("keys.password")
        )
    };
    // Without the key of the seal it would make a second seal.
    let alone = Server::join(
        Setup {
            config: with(""),
            ..Setup::default()
        },
        first.token(),
    );
    let said = format!("{:?}", alone.unwrap_err());
    assert!(said.contains("PC1705") && said.contains("audit.json"), "{said}");
    let second = Server::join(
        Setup {
            config: with(&format!("[audit]\nkey_file = {}\n", secret("audit.json"))),
            ..Setup::default()
        },
        first.token(),
    )
    .unwrap();
    let apis = [first.api().unwrap(), second.api().unwrap()];
    let make = async |from: usize| {
        let all = (from..from + 150).map(|number| {
            let api = apis[number % 2].clone();
            async move { token(&api, &format!("t{number}"), "viewer").await }
        });
        futures::future::join_all(all).await;
    };
    make(0).await;
    make(150).await;
    sealed(&apis[1], 303).await;
    assert_whole(&first);
    assert_whole(&second);
    // Whichever leads: with the first one dead the second seals within the lease and an interval.
    first.kill();
    token(&apis[1], "after", "viewer").await;
    let clock = SystemClock::new();
    let began = clock.monotonic();
    sealed(&apis[1], 304).await;
    let took = clock.monotonic().since(began);
    println!("sealed again after {took:?}");
    assert!(took < Duration::from_secs(12), "{took:?}");
    assert_whole(&second);
    let all = records(&apis[1], "order=sequence").await;
    let places: Vec<u64> = all
        .iter()
        .map(|record| record["sequence"].as_u64().unwrap())
        .collect();
    assert_eq!(
        places,
        (0..304).collect::<Vec<u64>>(),
        "one trail, no place twice"
    );
}
