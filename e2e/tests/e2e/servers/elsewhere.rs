//! The database's name leads to another installation's PostgreSQL for a while.

use std::path::PathBuf;
use std::time::Duration;

use e2e::{Api, Server, Setup};
use kernel::{Clock as _, SystemClock};
use testkit::{Postgres, Switch};

use super::{Done, GAP_MAX, Images};

/// How long it leads there: longer than the pause of two looks, and than rows count as new.
const ELSEWHERE: Duration = Duration::from_secs(8);

fn socket(postgres: &Postgres) -> PathBuf {
    postgres.socket_folder().join(".s.PGSQL.5432")
}

/// Shown to fail: without `Gate::admit` in `store::Postgres::open`, the other one's token is accepted.
#[tokio::test(flavor = "multi_thread")]
async fn of_another_installations_postgresql_no_token_counts_and_nothing_is_signed_into_it() {
    let (Some(own), Some(other)) = (Postgres::own(), Postgres::own()) else {
        return;
    };
    let switch = Switch::start(&socket(&own)).unwrap();
    let _ = own.database();
    let blobs = tempfile::tempdir().unwrap();
    let setup = |url: &str, name: &str| Setup {
        config: format!(
            "[database]\nurl = {url:?}\n[blobs]\nurl = {:?}\n",
            blobs.path().join(name)
        ),
        ..Setup::default()
    };
    let url = format!("postgres://postgres@{}/test0", switch.address());
    let ours = Server::start(setup(&url, "own")).unwrap();
    let beside = other.database();
    let theirs = Server::start(setup(&beside, "other")).unwrap();
    let (api, mut images) = (ours.api().unwrap(), Images::new().await);
    let known = images.next().await;
    Done::default().sign(&api, &known).await.unwrap();
    let verdict = api.post("/api/v1/verifications", &known).await.unwrap();
    assert_eq!(verdict.body["verified"], true, "{verdict:?}");
    let with_their_token = Api::new(&ours.url(), theirs.token()).unwrap();
    let others = store::Db::open(&beside).await.unwrap();
    let signatures = async || {
        let row = others
            .read_one("SELECT COUNT(*) AS n FROM signature", Vec::new())
            .await;
        row.unwrap().unwrap().int("n").unwrap()
    };
    let before = signatures().await;

    switch.lead_to(&socket(&other));
    let clock = SystemClock::new();
    let began = clock.monotonic();
    let mut named = 0;
    while clock.monotonic().since(began) < ELSEWHERE {
        let accepted = with_their_token.get("/api/v1/projects").await.unwrap();
        assert!([401, 503].contains(&accepted.status), "{accepted:?}");
        let verdict = api.post("/api/v1/verifications", &known).await.unwrap();
        assert_eq!(verdict.body["verified"], true, "{verdict:?}");
        let refused = api
            .post("/api/v1/signatures", &images.next().await)
            .await
            .unwrap();
        assert_eq!(refused.status, 503, "{refused:?}");
        named += u32::from(refused.body["code"] == "PC1111");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(named > 0, "nobody said that it is the wrong one");
    assert_eq!(
        signatures().await,
        before,
        "something was signed into the other's database"
    );
    let dependencies = api.get("/api/v1/dependencies").await.unwrap().body.to_string();
    assert!(dependencies.contains("WRONG_DATABASE"), "{dependencies}");

    switch.lead_to(&socket(&own));
    let back = clock.monotonic();
    let image = images.next().await;
    while Done::default().sign(&api, &image).await.is_err() {
        let waited = clock.monotonic().since(back);
        assert!(waited < 2 * GAP_MAX, "not back after {waited:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
