//! What takes longer than its caller waits: accepted, durable, and done.

use std::time::Duration;

use e2e::{Answer, Api, Server, Setup};
use registry::{Options, Registry, Running};
use serde_json::{Value, json};

async fn images(count: usize) -> (Registry, Running, Vec<String>) {
    let registry = Registry::memory(Options::default());
    let running = registry.serve_on_loopback().await.unwrap();
    let mut images = Vec::new();
    for number in 0..count {
        let digest = registry
            .put_image("app", "x", &format!("app {number}"))
            .await
            .unwrap();
        images.push(format!("{}/app@{digest}", running.host()));
    }
    (registry, running, images)
}

/// Waits for the end of an operation, and gives its lines.
async fn done(api: &Api, accepted: &Answer) -> Vec<Value> {
    assert_eq!(accepted.status, 202, "{}", accepted.body);
    assert_eq!(accepted.body["state"], "running");
    let path = format!("/api/v1/operations/{}", accepted.body["id"].as_str().unwrap());
    for _ in 0..600 {
        let answer = api.get(&path).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        if answer.body["state"] == "done" {
            return answer.body["lines"].as_array().unwrap().clone();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{path} is not done");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_wait_gets_an_operation_and_who_waits_long_enough_the_signature() {
    let (registry, _running, images) = images(6).await;
    let server = Server::start(Setup::default()).unwrap();
    let api = server.api().unwrap();
    let one = |image: &str| json!({ "image": image });
    let answer = api
        .preferring("wait=30")
        .post("/api/v1/signatures", &one(&images[0]))
        .await
        .unwrap();
    assert_eq!(answer.status, 201, "{}", answer.body);
    registry.fault(|plan| plan.latency = Duration::from_millis(400));
    let accepted = api
        .preferring("wait=1")
        .post("/api/v1/signatures", &one(&images[1]))
        .await
        .unwrap();
    let lines = done(&api, &accepted).await;
    assert_eq!(lines[0]["signature"]["image"], images[1].as_str(), "{lines:?}");
    // A batch, and in it something that cannot be signed.
    let items = json!({ "items": [one(&images[2]), one("NOT A REFERENCE"), one(&images[3])] });
    let accepted = api
        .preferring("respond-async")
        .post("/api/v1/signatures:batch", &items)
        .await
        .unwrap();
    let lines = done(&api, &accepted).await;
    assert_eq!(lines.len(), 3);
    assert!(
        lines[0]["signature"].is_object() && lines[2]["signature"].is_object(),
        "{lines:?}"
    );
    assert_eq!(lines[1]["problem"]["status"], 422, "{lines:?}");
    // A release.
    let items = json!({ "items": [one(&images[4]), one(&images[5])], "release": true });
    let accepted = api
        .preferring("wait=0")
        .post("/api/v1/signatures:batch", &items)
        .await
        .unwrap();
    let lines = done(&api, &accepted).await;
    assert_eq!(
        lines[0]["signature"]["id"], lines[1]["signature"]["id"],
        "{lines:?}"
    );
    // Another project does not see it.
    server
        .run(&["project", "create", "other", "--image", "**"])
        .unwrap()
        .expect_ok();
    let path = format!("/api/v1/operations/{}", accepted.body["id"].as_str().unwrap());
    let other = api.in_project("other").get(&path).await.unwrap();
    assert_eq!((other.status, &other.body["code"]), (404, &json!("PC1219")));
}

/// Shown to fail without the claim that ends: nobody then takes the operation over.
#[tokio::test(flavor = "multi_thread")]
async fn p11_an_accepted_operation_is_done_after_kill_9() {
    for step in ["operation.accepted", "operation.fulfilled"] {
        let (registry, _running, images) = images(3).await;
        let mut server = Server::start(Setup::default()).unwrap();
        // So that a key is there and opened.
        let first = json!({ "image": images[0] });
        assert_eq!(
            server
                .api()
                .unwrap()
                .post("/api/v1/signatures", &first)
                .await
                .unwrap()
                .status,
            201
        );
        server.kill();
        assert!(server.launch(Some(step)).unwrap());
        registry.fault(|plan| plan.latency = Duration::from_millis(300));
        let items = json!({ "items": [{ "image": images[1] }, { "image": images[2] }] });
        let api = server.api().unwrap();
        // Killed before it could answer, or after.
        let answer = api
            .preferring("wait=0")
            .post("/api/v1/signatures:batch", &items)
            .await;
        for _ in 0..200 {
            if !server.is_running() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(!server.is_running(), "{step} was not reached");
        registry.fault(|plan| plan.latency = Duration::ZERO);
        server.restart().unwrap();
        let api = server.api().unwrap();
        if step == "operation.fulfilled" {
            let lines = done(&api, &answer.unwrap()).await;
            assert!(
                lines.iter().all(|line| line["signature"].is_object()),
                "{lines:?}"
            );
        }
        let signed = async || {
            api.get("/api/v1/signatures").await.unwrap().body["items"]
                .as_array()
                .unwrap()
                .len()
        };
        for _ in 0..600 {
            if signed().await == 3 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(signed().await, 3, "{step}");
    }
}

/// Shown to fail: without the sums in `Operations::accept`, nothing is ever refused.
#[tokio::test(flavor = "multi_thread")]
async fn p16_a_project_that_asks_for_months_of_work_is_refused_more_and_holds_up_no_other() {
    let (_registry, running, images) = images(6).await;
    let mut server = Server::start(Setup::default()).unwrap();
    for command in [
        &["project", "create", "flood", "--image", "**"][..],
        &[
            "project",
            "set",
            "flood",
            "--signatures-per-minute",
            "1",
            "--burst",
            "1",
        ],
        &["--project", "flood", "key", "create", "default"],
    ] {
        server.run(command).unwrap().expect_ok();
    }
    let token = ["--project", "flood", "token", "create", "ci", "--role", "signer"];
    let token = server.run(&token).unwrap().expect_ok();
    let flooding = Api::new(&server.url(), token.stdout.trim())
        .unwrap()
        .preferring("wait=0");
    let batch = |nth: usize| {
        let image = |number: usize| {
            let digest = kernel::Digest::of(format!("{nth} {number}").as_bytes());
            json!({ "image": format!("{}/app@{digest}", running.host()) })
        };
        json!({ "items": (0..1_000).map(image).collect::<Vec<_>>() })
    };
    let mut accepted = 0;
    let refused = loop {
        let answer = flooding
            .post("/api/v1/signatures:batch", &batch(accepted))
            .await
            .unwrap();
        if answer.status != 202 {
            break answer;
        }
        accepted += 1;
    };
    assert_eq!((accepted, refused.status), (32, 429), "{}", refused.body);
    assert_eq!(refused.body["code"], "PC2002");
    for half in [&images[..3], &images[3..]] {
        let api = server.api().unwrap();
        let items: Vec<_> = half.iter().map(|image| json!({ "image": image })).collect();
        let items = json!({ "items": items });
        let answer = api
            .preferring("wait=0")
            .post("/api/v1/signatures:batch", &items)
            .await
            .unwrap();
        let lines = done(&api, &answer).await;
        assert!(
            lines.iter().all(|line| line["signature"].is_object()),
            "{lines:?}"
        );
        let metrics = String::from_utf8(api.bytes("/metrics").await.unwrap()).unwrap();
        assert!(metrics.contains("portcullis_operations_open 32\n"), "{metrics}");
        server.kill();
        server.restart().unwrap();
    }
}
