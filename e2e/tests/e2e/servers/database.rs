//! PostgreSQL is gone, silent, restarted, or comes back as a copy that lost its last second.

use std::time::Duration;

use e2e::{Api, Fleet};
use futures::future::join_all;
use kernel::{Clock as _, SystemClock};
use serde_json::{Value, json};
use testkit::Postgres;

use super::{Done, GAP_MAX, Images, entries};
use crate::ledger::Ledger;

/// How long an answer may take that needs the database, while it is known to be away.
const AT_ONCE: Duration = Duration::from_millis(500);
/// How long the database stays away: longer than rows count as new, shorter than a reader's patience.
const AWAY: Duration = Duration::from_secs(4);

/// A policy under which the project's images are verified.
async fn policy(api: &Api) -> Value {
    let key = api.get("/api/v1/keys/default").await.unwrap().body["public_key"].clone();
    let key = key.as_str().unwrap().to_owned();
    json!({
        "apiVersion": "policy.sigstore.dev/v1beta1", "kind": "ClusterImagePolicy",
        "metadata": { "name": "ours" },
        "spec": { "images": [{ "glob": "**" }], "authorities": [{ "key": { "data": key } }] },
    })
}

/// What is taken from the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// Its process is gone.
    Gone,
    /// It is there and says nothing.
    Silent,
}

#[tokio::test(flavor = "multi_thread")]
async fn without_postgresql_known_images_are_verified_and_signing_refuses_at_once() {
    the_database_is_away(Loss::Gone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_postgresql_is_as_good_as_none() {
    the_database_is_away(Loss::Silent).await;
}

/// Shown to fail without older rows in `store::Recent`: known images are then not verified; and, for the silent one,
/// without `store::presence`: signing then waits for seconds.
async fn the_database_is_away(loss: Loss) {
    let Some(postgres) = Postgres::own() else {
        return;
    };
    let fleet = Fleet::start(&postgres, 2, "").unwrap();
    let (apis, mut images) = (fleet.apis().unwrap(), Images::new().await);
    let (mut ledger, done) = (Ledger::new(&apis[0]).await, Done::default());
    let known = images.next().await;
    done.sign(&apis[0], &known).await.unwrap();
    let put = fleet.servers()[0].folder().join("policy.json");
    std::fs::write(&put, policy(&apis[0]).await.to_string()).unwrap();
    let apply = ["image-policy", "apply", put.to_str().unwrap()];
    fleet.servers()[0].run(&apply).unwrap().expect_ok();
    let by_policy = json!({ "image": known["image"], "policy": "ours" });
    for api in &apis {
        for asked in [&known, &by_policy] {
            let verdict = api.post("/api/v1/verifications", asked).await.unwrap();
            assert_eq!(verdict.body["verified"], true, "{verdict:?}");
        }
    }
    match loss {
        Loss::Gone => postgres.crash().unwrap(),
        Loss::Silent => postgres.freeze().unwrap(),
    }
    let clock = SystemClock::new();
    let began = clock.monotonic();
    let mut slowest = Duration::ZERO;
    while clock.monotonic().since(began) < AWAY {
        for api in &apis {
            for asked in [&known, &by_policy] {
                let asked_at = clock.monotonic();
                let verdict = api.post("/api/v1/verifications", asked).await.unwrap();
                assert_eq!(verdict.body["verified"], true, "{loss:?}: {verdict:?}");
                slowest = slowest.max(clock.monotonic().since(asked_at));
            }
            assert_eq!(api.get("/readyz").await.unwrap().status, 200);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("{loss:?}: the slowest verification took {slowest:?}");
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
    let new = images.many(4).await;
    for (image, api) in new.iter().zip(apis.iter().cycle()) {
        let asked_at = clock.monotonic();
        let refused = api.post("/api/v1/signatures", image).await.unwrap();
        let took = clock.monotonic().since(asked_at);
        assert_eq!(
            (refused.status, &refused.body["code"]),
            (503, &json!("PC1101")),
            "{refused:?}"
        );
        assert!(refused.retry_after.is_some(), "{refused:?}");
        assert!(took < AT_ONCE, "{loss:?}: refused after {took:?}");
    }
    match loss {
        Loss::Gone => postgres.start_again().unwrap(),
        Loss::Silent => postgres.thaw().unwrap(),
    }
    let back = clock.monotonic();
    for (image, api) in new.iter().zip(apis.iter().cycle()) {
        while done.sign(api, image).await.is_err() {
            let waited = clock.monotonic().since(back);
            assert!(waited < GAP_MAX, "{loss:?}: not back after {waited:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    println!(
        "{loss:?}: signing again {:?} after its return",
        clock.monotonic().since(back)
    );
    done.check(&fleet, &mut ledger).await;
}

/// A statement as the database's operator would give it.
async fn administer(db: &store::Db, statements: &[&'static str]) {
    let mut tx = db.begin().await.unwrap();
    for statement in statements {
        tx.execute(statement, Vec::new()).await.unwrap();
    }
    tx.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgresql_that_takes_no_writes_is_named_and_verifies_every_image() {
    let Some(postgres) = Postgres::own() else {
        return;
    };
    let mut fleet = Fleet::start(&postgres, 2, "").unwrap();
    let (apis, mut images) = (fleet.apis().unwrap(), Images::new().await);
    let signed = images.many(6).await;
    for image in &signed {
        Done::default().sign(&apis[0], image).await.unwrap();
    }
    let url = fleet.config().split('"').nth(1).unwrap();
    let operator = store::Db::open(url).await.unwrap();
    administer(
        &operator,
        &[
            "ALTER ROLE postgres SET default_transaction_read_only = on",
            "SELECT pg_terminate_backend(pid) IS NULL FROM pg_stat_activity WHERE pid <> pg_backend_pid() \
             AND datname = current_database()",
        ],
    )
    .await;
    let new = images.next().await;
    let clock = SystemClock::new();
    let began = clock.monotonic();
    for api in &apis {
        while api.post("/api/v1/signatures", &new).await.unwrap().body["code"] != "PC1112" {
            let waited = clock.monotonic().since(began);
            assert!(waited < Duration::from_secs(15), "it is not named");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    // Each image is verified for the first time by each server.
    for (image, api) in signed
        .iter()
        .flat_map(|image| apis.iter().map(move |api| (image, api)))
    {
        let verdict = api.post("/api/v1/verifications", image).await.unwrap();
        assert_eq!(verdict.body["verified"], true, "{verdict:?}");
        let asked_at = clock.monotonic();
        let refused = api.post("/api/v1/signatures", &new).await.unwrap();
        let took = clock.monotonic().since(asked_at);
        assert_eq!(
            (refused.status, &refused.body["code"]),
            (503, &json!("PC1112")),
            "{refused:?}"
        );
        assert!(took < AT_ONCE, "refused after {took:?}");
    }
    for api in &apis {
        let named = |body: &Value| body.to_string().contains("answers, and takes no writes");
        while !named(&api.get("/api/v1/dependencies").await.unwrap().body["dependencies"][0]) {
            assert!(clock.monotonic().since(began) < Duration::from_secs(25));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    // A server that is started now comes up, and verifies.
    let restarted = tokio::task::block_in_place(|| fleet.server(1).restart());
    restarted.unwrap();
    for image in &signed {
        let verdict = apis[1].post("/api/v1/verifications", image).await.unwrap();
        assert_eq!(verdict.body["verified"], true, "{verdict:?}");
    }
    administer(
        &operator,
        &[
            "SET TRANSACTION READ WRITE",
            "ALTER ROLE postgres RESET default_transaction_read_only",
        ],
    )
    .await;
    let back = clock.monotonic();
    while Done::default().sign(&apis[1], &new).await.is_err() {
        let waited = clock.monotonic().since(back);
        assert!(waited < GAP_MAX, "not back after {waited:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Two clones of a machine have one host name and one folder; each process is another holder of leases all the same.
///
/// Shown to fail: with the host and the folder alone in `place::holder`, it is the same holder after the restart.
#[tokio::test(flavor = "multi_thread")]
async fn each_process_holds_leases_under_a_name_of_its_own() {
    let Some(postgres) = Postgres::own() else {
        return;
    };
    let mut fleet = Fleet::start(&postgres, 1, "").unwrap();
    let mut images = Images::new().await;
    let url = fleet.config().split('"').nth(1).unwrap().to_owned();
    let db = store::Db::open(&url).await.unwrap();
    let clock = SystemClock::new();
    let mut holders = Vec::new();
    for _ in 0..2 {
        let (api, image) = (fleet.apis().unwrap().remove(0), images.next().await);
        let began = clock.monotonic();
        while Done::default().sign(&api, &image).await.is_err() {
            let waited = clock.monotonic().since(began);
            assert!(waited < GAP_MAX, "not signing after {waited:?}");
        }
        let row = db
            .read_one("SELECT holder FROM lease ORDER BY ends_at DESC", Vec::new())
            .await;
        holders.push(row.unwrap().unwrap().text("holder").unwrap());
        fleet.server(0).kill();
        fleet.server(0).restart().unwrap();
    }
    let parts: Vec<_> = holders
        .iter()
        .map(|holder| holder.split_once(" (process ").unwrap())
        .collect();
    assert_eq!(parts[0].0, parts[1].0, "the machine and its folder stay readable");
    assert_ne!(parts[0].1, parts[1].1);
}

/// Whoever was told that a token is revoked may rely on it two seconds later, whichever server is asked, and whatever
/// happens to the database then. The answer is 503 and not 401: the other server knows that what it kept is no longer
/// so, and cannot ask what is.
///
/// Shown to fail without `App::learn`: the revoked token verifies on.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_another_server_revoked_is_refused_though_postgresql_is_away() {
    let Some(postgres) = Postgres::own() else {
        return;
    };
    let fleet = Fleet::start(&postgres, 2, "").unwrap();
    let (apis, mut images) = (fleet.apis().unwrap(), Images::new().await);
    let known = images.next().await;
    Done::default().sign(&apis[0], &known).await.unwrap();
    let mut made = Vec::new();
    for name in ["leaked", "other"] {
        let new = json!({ "name": name, "role": "viewer" });
        let token = apis[0].post("/api/v1/tokens", &new).await.unwrap().body;
        let text = token["token"].as_str().unwrap();
        let api = Api::new(&fleet.servers()[1].url(), text).unwrap();
        let verdict = api.post("/api/v1/verifications", &known).await.unwrap();
        assert_eq!(verdict.body["verified"], true, "{verdict:?}");
        made.push((token["id"].as_str().unwrap().to_owned(), api));
    }
    let revoke = format!("/api/v1/tokens/{}:revoke", made[0].0);
    let revoked = apis[0].post(&revoke, &Value::Null).await.unwrap();
    assert_eq!(revoked.status, 204, "{revoked:?}");
    tokio::time::sleep(Duration::from_millis(store::STALE_MS_MAX)).await;
    postgres.crash().unwrap();
    for _ in 0..3 {
        let (leaked, other) = (&made[0].1, &made[1].1);
        let refused = leaked.post("/api/v1/verifications", &known).await.unwrap();
        assert_eq!(
            (refused.status, &refused.body["code"]),
            (503, &json!("PC1101")),
            "{refused:?}"
        );
        let verdict = other.post("/api/v1/verifications", &known).await.unwrap();
        assert_eq!(verdict.body["verified"], true, "{verdict:?}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_postgresql_in_the_middle_of_work_loses_nothing() {
    let Some(postgres) = Postgres::own() else {
        return;
    };
    let fleet = Fleet::start(&postgres, 2, "").unwrap();
    let (apis, mut images) = (fleet.apis().unwrap(), Images::new().await);
    let (mut ledger, done) = (Ledger::new(&apis[0]).await, Done::default());
    let (images, requests) = (images.many(60).await, entries(60));
    let until_signed = |at: usize| {
        let (api, image, done) = (&apis[at % 2], &images[at], &done);
        let (request, ledger) = (&requests[at], &ledger);
        async move {
            tokio::time::sleep(Duration::from_millis(at as u64 * 40)).await;
            // As a pipeline would: what failed is asked for again.
            while done.sign(api, image).await.is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            while done.log(api, ledger, request).await.is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    };
    let restarts = async {
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            tokio::task::block_in_place(|| {
                postgres.crash().unwrap();
                postgres.start_again().unwrap();
            });
        }
    };
    let work = join_all((0..images.len()).map(until_signed));
    futures::future::join(work, restarts).await;
    assert_eq!(done.signed.lock().unwrap().len(), images.len());
    done.check(&fleet, &mut ledger).await;
}

/// The log gave out checkpoints that the copy does not have. To go on would give their indexes out again, so nobody
/// appends, everybody says why, and images go on being verified.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_lost_the_last_second_is_named_and_not_appended_to() {
    let Some(postgres) = Postgres::own() else {
        return;
    };
    let fleet = Fleet::start(&postgres, 2, "").unwrap();
    let (apis, mut images) = (fleet.apis().unwrap(), Images::new().await);
    let (mut ledger, done) = (Ledger::new(&apis[0]).await, Done::default());
    let known = images.next().await;
    done.sign(&apis[0], &known).await.unwrap();
    tokio::task::block_in_place(|| {
        postgres.stop().unwrap();
        postgres.copy().unwrap();
        postgres.start_again().unwrap();
    });
    let clock = SystemClock::new();
    let back = clock.monotonic();
    let lost = images.many(5).await;
    for image in &lost {
        while done.sign(&apis[1], image).await.is_err() {
            assert!(
                clock.monotonic().since(back) < Duration::from_secs(20),
                "signing never came back"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let newest = ledger.look(&apis[0]).await;
    tokio::task::block_in_place(|| {
        postgres.crash().unwrap();
        postgres.fail_over().unwrap();
        postgres.start_again().unwrap();
    });
    // On a lucky day it would find a moment in which a server knows nothing of what was lost.
    let deadline = clock.monotonic();
    let mut refused = 0;
    let image = images.next().await;
    while clock.monotonic().since(deadline) < Duration::from_secs(6) {
        for api in &apis {
            let answer = api.post("/api/v1/signatures", &image).await.unwrap();
            assert_eq!(
                answer.status, 503,
                "the log went on from an older copy: {answer:?}"
            );
            refused += u32::from(answer.body["code"] == "PC1405");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(refused > 0, "nobody said that the log is older");
    for api in &apis {
        let verdict = api.post("/api/v1/verifications", &known).await.unwrap();
        assert_eq!(verdict.body["verified"], true, "{verdict:?}");
        let dependencies = api.get("/api/v1/dependencies").await.unwrap();
        println!("{}", dependencies.body);
    }
    for server in fleet.servers() {
        assert!(
            server.log().contains("PC1405") || server.log().contains("has seen its checkpoint"),
            "{}",
            server.log()
        );
    }
    println!("{newest} entries were seen; refused {refused} times by name");
    dismissed_it_goes_on(fleet, &apis, &images.many(2).await).await;
}

/// What is missing is lost for good: an administrator says so, and the log goes on at all servers, also at one that has it
/// in its file and tells it again.
async fn dismissed_it_goes_on(mut fleet: Fleet, apis: &[Api], images: &[Value]) {
    let seen = async || apis[0].get("/api/v1/log/seen").await.unwrap().body["items"].clone();
    let stops = |items: &Value| -> Vec<(String, u64)> {
        let items = items.as_array().unwrap().iter();
        let stops = items.filter(|item| item["stops"] == true);
        stops
            .map(|item| {
                (
                    item["log"].as_str().unwrap().to_owned(),
                    item["size"].as_u64().unwrap(),
                )
            })
            .collect()
    };
    let clock = SystemClock::new();
    let told = seen().await;
    assert!(stops(&told).iter().any(|(log, _)| log == "signatures"), "{told}");
    let status = fleet.servers()[0].run(&["status"]).unwrap();
    let doctor = fleet.servers()[0].run(&["doctor"]).unwrap();
    for told in [&status.stdout, &doctor.stdout] {
        assert!(
            told.contains("the log is stopped, nothing new is signed"),
            "{told}"
        );
    }
    let kept = fleet.servers()[0].data().join("log.checkpoint");
    let kept = (std::fs::read(&kept).unwrap(), kept);
    let command = |size: u64, log: &str, reason: &str| {
        let size = size.to_string();
        let mut args = vec!["log", "seen", "--dismiss", &size, "--reason", reason];
        if log == "audit" {
            args.push("--audit");
        }
        fleet.servers()[0].run(&args).unwrap()
    };
    assert!(!command(1, "signatures", " ").ok());
    assert!(!command(999_999, "signatures", "it is lost").ok());
    // The servers saw different ends of what was lost; the audit log lost its last second too.
    let began = clock.monotonic();
    loop {
        for (log, size) in stops(&seen().await) {
            let done = command(size, &log, "it is lost");
            println!("{}", done.stdout);
        }
        let mut signed = 0;
        for api in apis {
            let answer = api.post("/api/v1/signatures", &images[0]).await.unwrap();
            signed += usize::from(answer.status < 300);
        }
        if signed == apis.len() {
            break;
        }
        let took = clock.monotonic().since(began);
        assert!(took < Duration::from_secs(10), "{}", seen().await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("all went on after {:?}", clock.monotonic().since(began));
    // Told again.
    fleet.server(0).kill();
    std::fs::write(&kept.1, &kept.0).unwrap();
    fleet.server(0).restart().unwrap();
    for api in fleet.apis().unwrap() {
        let answer = api.post("/api/v1/signatures", &images[1]).await.unwrap();
        assert!(answer.status < 300, "{answer:?}");
    }
    let items = fleet.apis().unwrap()[0]
        .get("/api/v1/log/seen")
        .await
        .unwrap()
        .body["items"]
        .clone();
    assert_eq!(stops(&items), [], "{items}");
    let audit = fleet.servers()[1]
        .run(&["audit", "list", "--action", "log.dismiss", "-o", "json"])
        .unwrap();
    assert!(audit.stdout.contains("it is lost"), "{audit:?}");
}
