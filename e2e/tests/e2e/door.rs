//! One project that asks for too much, a registry that hangs, callers that go away: the others do not notice.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use e2e::{Answer, Api, Server, Setup};
use futures::future::join_all;
use kernel::{Clock as _, SystemClock};
use serde_json::{Value, json};

use crate::images::Images;

impl Images {
    /// Images by digest.
    async fn many(&self, name: &str, count: usize) -> Vec<String> {
        let mut images = Vec::new();
        for number in 0..count {
            images.push(self.put(name, &format!("{name} {number}")).await);
        }
        images
    }

    /// Images by tag, each in a repository of its own.
    async fn tags(&self, name: &str, count: usize, content: &str) -> Vec<String> {
        let mut images = Vec::new();
        for number in 0..count {
            let repository = format!("{name}/{number}");
            let content = format!("{name} {number} {content}");
            self.registry.put_image(&repository, "1", &content).await.unwrap();
            images.push(format!("{}/{repository}:1", self.running.host()));
        }
        images
    }
}

async fn sign(api: &Api, image: &str) -> Answer {
    api.post("/api/v1/signatures", &json!({ "image": image }))
        .await
        .unwrap()
}

async fn log_size(api: &Api) -> u64 {
    let note = String::from_utf8(api.bytes("/api/v2/checkpoint").await.unwrap()).unwrap();
    note.lines().nth(1).unwrap().parse().unwrap()
}

/// Shown to fail without singleflight: each of the three requests for a changed image then makes its own entry.
#[tokio::test(flavor = "multi_thread")]
async fn p16_a_storm_signs_what_changed_and_nothing_else() {
    let images = Images::new().await;
    let server = Server::start(Setup::default()).unwrap();
    let api = server.api().unwrap();
    let fleet = images.tags("fleet", 100, "first").await;
    for answer in join_all(fleet.iter().map(|image| sign(&api, image))).await {
        assert_eq!(answer.status, 201, "{}", answer.body);
    }
    images.tags("fleet", 3, "second").await;
    let before = log_size(&api).await;
    let storm: Vec<&String> = fleet.iter().cycle().take(300).collect();
    let answers = join_all(storm.iter().map(|image| sign(&api, image))).await;
    let mut signed: Vec<String> = Vec::new();
    for answer in &answers {
        assert!(matches!(answer.status, 200 | 201), "{}", answer.body);
        if answer.body["deduplicated"] == false {
            signed.push(answer.body["id"].to_string());
        }
    }
    signed.sort();
    signed.dedup();
    assert_eq!(signed.len(), 3, "{signed:?}");
    assert_eq!(log_size(&api).await, before + 3);
}

/// Shown to fail where all registries share one gate: the images of the good one then wait for the one that hangs.
#[tokio::test(flavor = "multi_thread")]
async fn p19_a_registry_that_hangs_slows_nothing_but_its_own_images() {
    let (good, bad) = (Images::new().await, Images::new().await);
    let server = Server::start(Setup::default()).unwrap();
    let api = server.api().unwrap();
    let known = good.many("known", 1).await.remove(0);
    assert_eq!(sign(&api, &known).await.status, 201);
    let verify = json!({ "image": known });
    assert_eq!(
        api.post("/api/v1/verifications", &verify).await.unwrap().body["verified"],
        true
    );
    let stuck = bad.many("stuck", 1_200).await;
    let also_known = bad.many("known", 1).await.remove(0);
    assert_eq!(sign(&api, &also_known).await.status, 201);
    bad.registry.fault(|plan| plan.hang = true);
    let waiting: Vec<_> = stuck
        .into_iter()
        .map(|image| {
            let api = api.clone();
            tokio::spawn(async move { api.post("/api/v1/signatures", &json!({ "image": image })).await })
        })
        .collect();
    let clock = SystemClock::new();
    let standing = async || {
        let metrics = String::from_utf8(api.bytes("/metrics").await.unwrap()).unwrap();
        let value = |name: &str| {
            let line = metrics
                .lines()
                .find(|line| line.starts_with(name))
                .unwrap()
                .to_owned();
            line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
        };
        (
            value("portcullis_queue_running{gate=\"work\"}"),
            value("portcullis_queue_waiting{class=\"sign\",gate=\"work\"}"),
        )
    };
    let began = clock.monotonic();
    while standing().await != (64.0, 1_024.0) {
        let waited = clock.monotonic().since(began);
        assert!(waited < Duration::from_secs(20), "{:?}", standing().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let fresh = good.many("fresh", 5).await;
    for _ in 0..10 {
        let began = clock.monotonic();
        assert_eq!(sign(&api, &known).await.status, 200);
        assert_eq!(sign(&api, &also_known).await.status, 200);
        assert_eq!(
            api.post("/api/v1/verifications", &verify).await.unwrap().body["verified"],
            true
        );
        let took = clock.monotonic().since(began);
        assert!(took < Duration::from_secs(1), "known images took {took:?}");
    }
    for image in &fresh {
        let began = clock.monotonic();
        assert_eq!(sign(&api, image).await.status, 201);
        let took = clock.monotonic().since(began);
        assert!(
            took < Duration::from_secs(5),
            "a new image elsewhere took {took:?}"
        );
    }
    // What did not fit is told so at once, with when to come again.
    let refused = sign(&api, &bad.many("more", 1).await[0]).await;
    assert_eq!((refused.status, &refused.body["code"]), (429, &json!("PC2002")));
    assert!(refused.retry_after.is_some_and(|seconds| seconds >= 1));
    bad.registry.fault(|plan| plan.hang = false);
    // And what was accepted is answered.
    let mut statuses = std::collections::BTreeMap::<u16, usize>::new();
    for task in waiting {
        *statuses.entry(task.await.unwrap().unwrap().status).or_default() += 1;
    }
    assert_eq!(statuses.get(&429), Some(&(1_200 - 64 - 1_024)), "{statuses:?}");
    assert!(
        statuses.keys().all(|status| matches!(status, 201 | 429 | 503)),
        "{statuses:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_for_new_work_only_and_shown_to_its_project() {
    let images = Images::new().await;
    let server = Server::start(Setup::default()).unwrap();
    let admin = server.api().unwrap();
    let all = images.many("app", 8).await;
    assert_eq!(sign(&admin, &all[0]).await.status, 201);
    let set = [
        "project",
        "set",
        "default",
        "--signatures-per-minute",
        "1",
        "--burst",
        "3",
    ];
    server.run(&set).unwrap().expect_ok();
    for image in &all[1..4] {
        assert_eq!(sign(&admin, image).await.status, 201);
    }
    let refused = sign(&admin, &all[4]).await;
    assert_eq!(
        (refused.status, &refused.body["code"]),
        (429, &json!("PC2001")),
        "{}",
        refused.body
    );
    // It is granted again in a minute; twice that with jitter.
    assert!(
        refused
            .retry_after
            .is_some_and(|seconds| (30..=121).contains(&seconds)),
        "{refused:?}"
    );
    for known in &all[..4] {
        assert_eq!(sign(&admin, known).await.status, 200);
    }
    let token = server
        .run(&["token", "create", "ci", "--role", "signer", "-q"])
        .unwrap()
        .expect_ok();
    let own = Api::new(&server.url(), token.stdout.trim()).unwrap();
    let quota = own.get("/api/v1/quota").await.unwrap().body;
    assert_eq!(
        quota,
        json!({ "project": "default", "signatures_per_minute": 1, "burst": 3, "left": 0 })
    );
    // A project has its own; who may sign may not change it.
    let mut change = server.command();
    change.env("PORTCULLIS_TOKEN", token.stdout.trim());
    let change = change
        .args(["project", "set", "default", "--default-quota"])
        .output()
        .unwrap();
    assert_eq!(change.status.code(), Some(5));
    server
        .run(&["project", "set", "default", "--default-quota"])
        .unwrap()
        .expect_ok();
    assert_eq!(sign(&admin, &all[5]).await.status, 201);
    let wrong = server
        .run(&["project", "set", "nope", "--default-quota"])
        .unwrap();
    assert_eq!(wrong.code, Some(4), "{}", wrong.text());
    assert_eq!(server.run(&["project", "set", "default"]).unwrap().code, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_away_cancels_nothing() {
    let images = Images::new().await;
    let server = Server::start(Setup::default()).unwrap();
    let api = server.api().unwrap();
    let (tag, digest) = (
        images.tags("tag", 1, "").await.remove(0),
        images.many("digest", 1).await.remove(0),
    );
    images
        .registry
        .fault(|plan| plan.latency = Duration::from_millis(150));
    for image in [&tag, &digest] {
        let body = json!({ "image": image }).to_string();
        let address = server.url().trim_start_matches("http://").to_owned();
        let mut stream = TcpStream::connect(&address).unwrap();
        write!(
            stream,
            "POST /api/v1/signatures HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            server.token(),
            body.len()
        )
        .unwrap();
        stream.flush().unwrap();
        // Long enough for the request to be read, too short for the first call to the registry.
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(stream);
    }
    let signatures = async || -> Vec<Value> {
        let listed = api.get("/api/v1/signatures").await.unwrap().body;
        listed["items"].as_array().unwrap().clone()
    };
    for _ in 0..200 {
        if signatures().await.len() == 2 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not signed: {:?}", signatures().await);
}
