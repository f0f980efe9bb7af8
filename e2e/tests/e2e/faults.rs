//! What goes wrong around a server, each by itself: the answer is orderly, whoever has nothing to do with it notices
//! nothing, and what was asked for is done when it is over.

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use e2e::{Answer, Api, Server, Setup};
use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use kernel::{Clock as _, SystemClock};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::images::Images;

/// How long whoever has nothing to do with a fault may wait.
const SOON: Duration = Duration::from_secs(2);

/// The request to sign or verify a new image.
async fn put(images: &Images, name: &str) -> Value {
    json!({ "image": images.put(name, name).await })
}

async fn sign(api: &Api, image: &Value) -> Answer {
    api.post("/api/v1/signatures", image).await.unwrap()
}

/// A server, and an image in each of two registries that it has signed.
struct World {
    server: Server,
    api: Api,
    good: Images,
    bad: Images,
    known_good: Value,
    known_bad: Value,
}

impl World {
    async fn new(setup: Setup) -> Self {
        let server = Server::start(setup).unwrap();
        let (api, good, bad) = (server.api().unwrap(), Images::new().await, Images::new().await);
        let (known_good, known_bad) = (put(&good, "known").await, put(&bad, "known").await);
        for known in [&known_good, &known_bad] {
            assert_eq!(sign(&api, known).await.status, 201);
            let verdict = api.post("/api/v1/verifications", known).await.unwrap();
            assert_eq!(verdict.body["verified"], true);
        }
        Self {
            server,
            api,
            good,
            bad,
            known_good,
            known_bad,
        }
    }

    /// Known images are answered, new ones of the other registry are signed, all soon.
    async fn others_go_on(&self, round: &str) {
        let clock = SystemClock::new();
        let began = clock.monotonic();
        for known in [&self.known_good, &self.known_bad] {
            assert_eq!(sign(&self.api, known).await.status, 200, "{round}");
            let verdict = self.api.post("/api/v1/verifications", known).await.unwrap();
            assert_eq!(verdict.body["verified"], true, "{round}: {verdict:?}");
        }
        let fresh = put(&self.good, &format!("fresh-{round}")).await;
        assert_eq!(sign(&self.api, &fresh).await.status, 201, "{round}");
        let took = clock.monotonic().since(began);
        assert!(took < SOON, "{round}: the others waited {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_says_429_until_a_date_is_waited_for_and_no_longer() {
    let world = World::new(Setup::default()).await;
    let until = |seconds: i64| {
        let date = SystemClock::new().now() + SignedDuration::from_secs(seconds);
        Some(date.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string())
    };
    world.bad.registry.fault(|plan| {
        plan.throttle_calls = 1;
        plan.retry_after_date = until(3);
    });
    let image = put(&world.bad, "soon").await;
    let clock = SystemClock::new();
    let began = clock.monotonic();
    assert_eq!(sign(&world.api, &image).await.status, 201);
    let waited = clock.monotonic().since(began);
    assert!(
        waited >= Duration::from_secs(1),
        "asked again after {waited:?}, before the date"
    );
    // A date that is far away is not waited for: the caller is told when to come again.
    world.bad.registry.fault(|plan| {
        plan.throttle_calls = u32::MAX;
        plan.retry_after_date = until(600);
    });
    let image = put(&world.bad, "late").await;
    let began = clock.monotonic();
    let refused = sign(&world.api, &image).await;
    assert_eq!(
        (refused.status, &refused.body["code"]),
        (503, &json!("PC1507")),
        "{refused:?}"
    );
    assert!(
        refused.retry_after.is_some_and(|seconds| seconds > 60),
        "{refused:?}"
    );
    assert!(clock.monotonic().since(began) < SOON);
    world.others_go_on("throttled").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_fails_writes_only_is_still_read_and_gets_the_signature_later() {
    let world = World::new(Setup::default()).await;
    world.bad.registry.fault(|plan| plan.fail_writes = u32::MAX);
    let image = put(&world.bad, "new").await;
    let refused = sign(&world.api, &image).await;
    assert_eq!(
        (refused.status, &refused.body["code"]),
        (503, &json!("PC1511")),
        "{refused:?}"
    );
    let verdict = world.api.post("/api/v1/verifications", &image).await.unwrap();
    assert_eq!(
        (verdict.status, &verdict.body["verified"]),
        (200, &json!(false)),
        "{verdict:?}"
    );
    world.others_go_on("no-writes").await;
    world.bad.registry.fault(|plan| plan.fail_writes = 0);
    assert_eq!(sign(&world.api, &image).await.status, 201);
    let tree = world
        .server
        .run(&["verify", image["image"].as_str().unwrap()])
        .unwrap();
    tree.expect_ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_hangs_in_the_middle_of_a_body_is_no_answer() {
    let world = World::new(Setup::default()).await;
    let image = put(&world.bad, "half").await;
    world.bad.registry.fault(|plan| plan.stall_manifests = true);
    let tag = json!({ "image": image["image"].as_str().unwrap().replace('@', ":v1@") });
    let (api, verifying) = (world.api.clone(), tag.clone());
    let verdict = tokio::spawn(async move { api.post("/api/v1/verifications", &verifying).await.unwrap() });
    for round in ["half-1", "half-2"] {
        world.others_go_on(round).await;
    }
    let verdict = verdict.await.unwrap();
    assert_eq!(verdict.status, 503, "half a manifest is no verdict: {verdict:?}");
    world.bad.registry.fault(|plan| plan.stall_manifests = false);
    assert_eq!(sign(&world.api, &image).await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_accepts_and_drops_is_away_at_once() {
    let world = World::new(Setup::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let digest = "sha256:".to_owned() + &"0".repeat(64);
    let image = json!({ "image": format!("{address}/app@{digest}") });
    let clock = SystemClock::new();
    for path in ["/api/v1/signatures", "/api/v1/verifications"] {
        let began = clock.monotonic();
        let refused = world.api.post(path, &image).await.unwrap();
        assert_eq!(
            (refused.status, &refused.body["code"]),
            (503, &json!("PC1511")),
            "{refused:?}"
        );
        let took = clock.monotonic().since(began);
        assert!(took < Duration::from_secs(10), "{path} took {took:?}");
    }
    world.others_go_on("dropped").await;
}

/// The server's own limit is used up by calls to a registry that hangs, and by connections that say nothing.
#[tokio::test(flavor = "multi_thread")]
async fn without_file_descriptors_answers_are_orderly_and_work_goes_on_after() {
    let world = World::new(Setup {
        descriptors: Some(96),
        ..Setup::default()
    })
    .await;
    world.bad.registry.fault(|plan| plan.hang = true);
    let mut images = Vec::new();
    for number in 0..120 {
        images.push(put(&world.bad, &format!("hang-{number}")).await);
    }
    let address = world.server.url().replace("http://", "");
    let idle: Vec<_> = (0..200)
        .filter_map(|_| TcpStream::connect(&address).ok())
        .collect();
    let asked: Vec<_> = images
        .iter()
        .map(|image| {
            let (api, image) = (world.api.clone(), image.clone());
            tokio::spawn(async move { api.post("/api/v1/signatures", &image).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.bad.registry.fault(|plan| plan.hang = false);
    let mut orderly = 0;
    for task in asked {
        // A connection for which there was no descriptor is closed without an answer.
        if let Ok(answer) = task.await.unwrap() {
            assert!(matches!(answer.status, 200 | 201 | 429 | 503), "{answer:?}");
            orderly += 1;
        }
    }
    assert!(orderly > 0, "nobody was answered");
    drop(idle);
    for image in &images {
        let answer = sign(&world.api, image).await;
        assert!(matches!(answer.status, 200 | 201), "{answer:?}");
    }
    world.others_go_on("descriptors").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_sockets_that_send_nothing_delay_nobody() {
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, all).unwrap();
    let world = World::new(Setup::default()).await;
    let address: std::net::SocketAddr = world.server.url().replace("http://", "").parse().unwrap();
    let mut silent = Vec::new();
    for number in 0..10_000 {
        match tokio::net::TcpStream::connect(address).await {
            Ok(stream) => silent.push(stream),
            // The machine's own limit: what is there is said, and has to be many.
            Err(error) => {
                println!("{number} sockets: {error}");
                break;
            }
        }
        if number % 2_500 == 0 {
            world.others_go_on(&format!("silent-{number}")).await;
        }
    }
    assert!(silent.len() > 9_000, "only {} sockets were opened", silent.len());
    world.others_go_on("silent").await;
    assert!(!world.server.log().contains("panicked"), "{}", world.server.log());
}

/// Shown to fail without the quota's charge (`door.charge`): nothing is then refused.
#[tokio::test(flavor = "multi_thread")]
async fn p16_a_token_that_floods_is_refused_in_order_and_others_go_on() {
    let world = World::new(Setup::default()).await;
    let patch = ["project", "create", "flood", "--image", "**"];
    world.server.run(&patch).unwrap().expect_ok();
    let quota = [
        "project",
        "set",
        "flood",
        "--signatures-per-minute",
        "60",
        "--burst",
        "20",
    ];
    world.server.run(&quota).unwrap().expect_ok();
    let key = ["--project", "flood", "key", "create", "default"];
    world.server.run(&key).unwrap().expect_ok();
    let token = ["--project", "flood", "token", "create", "ci", "--role", "signer"];
    let token = world.server.run(&token).unwrap().expect_ok();
    let flooding = Api::new(&world.server.url(), token.stdout.trim()).unwrap();
    let mut images = Vec::new();
    for number in 0..1_000 {
        images.push(put(&world.bad, &format!("flood-{number}")).await);
    }
    let clock = SystemClock::new();
    let flood = join_all(images.iter().map(async |image| {
        let began = clock.monotonic();
        (sign(&flooding, image).await, clock.monotonic().since(began))
    }));
    let others = async {
        for round in 0..5 {
            world.others_go_on(&format!("flood-{round}")).await;
        }
    };
    let (answers, ()) = futures::future::join(flood, others).await;
    let refused: Vec<_> = answers
        .iter()
        .filter(|(answer, _)| answer.status == 429)
        .collect();
    let signed = answers.iter().filter(|(answer, _)| answer.status == 201).count();
    assert_eq!(
        refused.len() + signed,
        images.len(),
        "nothing but signatures and refusals"
    );
    assert!(
        (20..60).contains(&signed),
        "{signed} were signed by a quota of 20 and one a second"
    );
    for (answer, _) in &refused {
        assert_eq!(answer.body["code"], "PC2001", "{answer:?}");
        assert!(
            answer.retry_after.is_some_and(|seconds| seconds >= 1),
            "{answer:?}"
        );
    }
}

/// Used where a date is made.
#[test]
fn a_date_is_written_as_http_writes_it() {
    let date: Timestamp = "1994-11-06T08:49:37Z".parse().unwrap();
    let text = date.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    assert_eq!(text, "Sun, 06 Nov 1994 08:49:37 GMT");
}
