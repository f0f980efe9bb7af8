//! Several servers on one PostgreSQL seal one trail.

use std::time::Duration;

use e2e::{Fleet, Server, Setup};
use kernel::{Clock as _, SystemClock};
use testkit::Postgres;

use super::{assert_whole, records, sealed, token};

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_seal_one_trail_and_the_second_goes_on_alone() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let mut fleet = Fleet::start(&postgres, 2, "").unwrap();
    // Without the key of the seal it would make a second seal.
    let secret = |name: &str| format!("{:?}", fleet.servers()[0].data().join("secrets").join(name));
    let config = format!(
        "{}[log]\nkey_file = {}\n[keys]\npassword_file = {}\n",
        fleet.config(),
        secret("log.json"),
        secret("keys.password")
    );
    let alone = Server::join(
        Setup {
            config,
            ..Setup::default()
        },
        fleet.servers()[0].token(),
    );
    let said = format!("{:?}", alone.unwrap_err());
    assert!(said.contains("PC1705") && said.contains("audit.json"), "{said}");
    let apis = fleet.apis().unwrap();
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
    assert_whole(&fleet.servers()[0]);
    assert_whole(&fleet.servers()[1]);
    // Whichever leads: with the first one dead the second seals within the lease and an interval.
    fleet.server(0).kill();
    token(&apis[1], "after", "viewer").await;
    let clock = SystemClock::new();
    let began = clock.monotonic();
    sealed(&apis[1], 304).await;
    let took = clock.monotonic().since(began);
    println!("sealed again after {took:?}");
    assert!(took < Duration::from_secs(12), "{took:?}");
    assert_whole(&fleet.servers()[1]);
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
