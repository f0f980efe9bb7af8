//! The external log's name leads elsewhere: to another log, a fork, a copy that is the log from now on.

use std::time::Duration;

use e2e::Api;
use kernel::{Clock as _, SystemClock};
use serde_json::{Value, json};

use super::{ORIGIN, Scene, debt, paid};
use crate::outside::{OutsideLog, Target, entries};

/// What the probe found of the external log last.
async fn found(api: &Api) -> Value {
    let all = api.get("/api/v1/dependencies").await.unwrap().body;
    let mut all = all["dependencies"].as_array().unwrap().iter();
    all.find(|one| one["name"] == "external-log").unwrap().clone()
}

/// Waits until it is found to be in this state.
async fn is_found(api: &Api, state: &str) {
    let clock = SystemClock::new();
    let began = clock.monotonic();
    loop {
        let found = found(api).await;
        if found["state"] == state {
            return;
        }
        assert!(
            clock.monotonic().since(began) < Duration::from_secs(15),
            "{state} is not found: {found}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Shown to fail: without `barred`, nothing is owed any more: it was sent over a connection that had been kept.
#[tokio::test(flavor = "multi_thread")]
async fn p13_to_another_log_behind_the_name_nothing_is_sent_and_signing_goes_on() {
    let scene = Scene::new().await;
    let server = scene.server(50);
    let api = server.api().unwrap();
    scene.sign(&api, "right", 3).await;
    paid(&api).await;
    let other = OutsideLog::start(ORIGIN, 2, &entries("entry", 7)).await;
    scene.name.now_leads(Target::To(other.address));
    is_found(&api, "WRONG_LOG").await;
    scene.sign(&api, "wrong", 5).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(debt(&api).await["owed"], 5);
    assert_eq!(other.tlog.checkpoint().await.unwrap().size, 7);
    scene.name.now_leads(Target::To(scene.log.address));
    paid(&api).await;
    assert_eq!(
        (scene.size().await, other.tlog.checkpoint().await.unwrap().size),
        (8, 7)
    );
}

/// A fork has the log's key and answers as the log does, until the probe names it. Shown to fail: with `Payer::judge`
/// believing every answer, nothing is owed any more and the log never gets these entries.
#[tokio::test(flavor = "multi_thread")]
async fn p13_no_debt_is_counted_as_paid_to_a_fork() {
    let scene = Scene::new().await;
    let server = scene.server(50);
    let api = server.api().unwrap();
    scene.sign(&api, "right", 3).await;
    paid(&api).await;
    let fork = OutsideLog::start(ORIGIN, 1, &entries("fork", 7)).await;
    // Just after a look: nothing is known of the fork for seconds, and no connection to the log is kept.
    let before = found(&api).await["checked_at"].clone();
    while found(&api).await["checked_at"] == before {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    scene.name.now_leads(Target::To(fork.address));
    scene.sign(&api, "forked", 10).await;
    is_found(&api, "FORKED").await;
    assert_eq!(
        fork.tlog.checkpoint().await.unwrap().size,
        17,
        "it was not tried: the fork was not sent anything"
    );
    let standing = debt(&api).await;
    assert_eq!(
        (&standing["owed"], &standing["unpublished"]),
        (&json!(10), &json!(0)),
        "{standing}"
    );
    scene.name.now_leads(Target::To(scene.log.address));
    paid(&api).await;
    assert_eq!(scene.size().await, 13);
}

/// The log was replaced by another one under its key, and its operator says so. Shown to fail: without `LogMark::take`
/// it is FORKED for ever, also after a restart, and nothing is ever paid there.
#[tokio::test(flavor = "multi_thread")]
async fn p14_an_external_log_that_changed_on_purpose_is_taken_once_an_administrator_says_so() {
    let scene = Scene::new().await;
    let mut server = scene.server(50);
    let api = server.api().unwrap();
    scene.sign(&api, "before", 3).await;
    paid(&api).await;
    let acknowledge = [
        "status",
        "--acknowledge",
        "external-log",
        "--reason",
        "put back from a copy",
    ];
    let well = server.run(&acknowledge).unwrap();
    assert_eq!(well.code, Some(4), "{}", well.text());

    let copy = OutsideLog::start(ORIGIN, 1, &entries("copy", 7)).await;
    scene.name.now_leads(Target::To(copy.address));
    is_found(&api, "FORKED").await;
    server.restart().unwrap();
    is_found(&api, "FORKED").await;
    scene.sign(&api, "after", 2).await;
    assert_eq!(debt(&api).await["owed"], 2);

    let done = server.run(&acknowledge).unwrap().expect_ok();
    assert!(
        done.stdout.contains("3 entries") && done.stdout.contains("7 entries"),
        "{}",
        done.stdout
    );
    is_found(&api, "OK").await;
    paid(&api).await;
    assert_eq!(copy.tlog.checkpoint().await.unwrap().size, 9);
    // What was paid to the one before is in the one of now only if it is owed again.
    let wrong = server
        .run(&["external-log", "retry", "--paid-since", "soon"])
        .unwrap();
    assert_eq!(wrong.code, Some(2), "{}", wrong.text());
    let count = ["external-log", "retry", "--paid-since", "1h", "--dry-run"];
    let counted = server.run(&count).unwrap().expect_ok();
    assert!(
        counted.stdout.starts_with("5 paid entries would be"),
        "{}",
        counted.stdout
    );
    let again = ["external-log", "retry", "--paid-since", "1h"];
    let again = server.run(&again).unwrap().expect_ok();
    assert!(again.stdout.starts_with("5 paid entries"), "{}", again.stdout);
    paid(&api).await;
    assert_eq!(copy.tlog.checkpoint().await.unwrap().size, 12);
    assert_eq!(scene.size().await, 3);
    for (action, words) in [
        ("dependency.acknowledge", "put back from a copy"),
        ("external-log.retry", "5 entries that were paid since"),
    ] {
        let audit = ["audit", "list", "--action", action, "-o", "json"];
        let audit = server.run(&audit).unwrap().expect_ok();
        assert!(audit.stdout.contains(words), "{}", audit.stdout);
    }
    let future = ["external-log", "retry", "--paid-since", "2099-01-01T00:00:00Z"];
    let future = server.run(&future).unwrap();
    assert!(
        !future.ok() && future.text().contains("has not come yet"),
        "{}",
        future.text()
    );
    let listed = server.run(&["external-log", "list"]).unwrap().expect_ok();
    assert!(listed.stdout.starts_with("SIGNATURE"), "{}", listed.stdout);
}
