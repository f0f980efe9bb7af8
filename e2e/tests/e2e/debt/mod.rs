//! What is owed to a log of somebody else's: paid whoever dies meanwhile, once, and to nobody else.

mod elsewhere;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse as _;
use e2e::{Api, Server, Setup};
use kernel::{Clock as _, SystemClock};
use registry::{Options, Registry, Running};
use serde_json::{Value, json};
use testkit::{Postgres, ReferrersRegistry, peer};

use crate::cosign::{Home, push};
use crate::outlook::RekorTiles;
use crate::outside::{Name, OutsideLog, Target};

const ORIGIN: &str = "rekor.example";
/// From a log that is back to the last entry: a pause of a minute at most, and then the rate.
const PAID_WITHIN: Duration = Duration::from_secs(110);

/// A log under a name that can change, and images to sign.
struct Scene {
    log: OutsideLog,
    name: Name,
    registry: Registry,
    running: Running,
    folder: tempfile::TempDir,
}

impl Scene {
    /// The log is there; there are no entries in it.
    async fn new() -> Self {
        let log = OutsideLog::start(ORIGIN, 1, &[]).await;
        let name = Name::leads(Target::To(log.address)).await;
        let registry = Registry::memory(Options::default());
        let running = registry.serve_on_loopback().await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("rekor.pub"), log.pem()).unwrap();
        Self {
            log,
            name,
            registry,
            running,
            folder,
        }
    }

    fn config(&self, per_second: u32) -> String {
        format!(
            "[external_log]\nurl = \"http://{}\"\norigin = {ORIGIN:?}\npublic_key = {:?}\napi = \"v2\"\n\
             call_seconds_max = 3\nentries_per_second_max = {per_second}\n",
            self.name.address,
            self.folder.path().join("rekor.pub").display().to_string()
        )
    }

    /// A server of its own that owes the log.
    fn server(&self, per_second: u32) -> Server {
        let config = self.config(per_second);
        Server::start(Setup {
            config,
            ..Setup::default()
        })
        .unwrap()
    }

    async fn size(&self) -> u64 {
        self.log.tlog.checkpoint().await.unwrap().size
    }

    /// Signs so many new images; of several servers, one that has to wait for the log is asked again.
    async fn sign(&self, api: &Api, what: &str, count: usize) {
        let mut images = Vec::new();
        for number in 0..count {
            let tag = format!("{what}-{number}");
            self.registry.put_image("team/app", &tag, &tag).await.unwrap();
            images.push(json!({ "image": format!("{}/team/app:{tag}", self.running.host()) }));
        }
        for attempt in 0.. {
            let signed = api
                .post("/api/v1/signatures:batch", &json!({ "items": images }))
                .await;
            let signed = signed.unwrap();
            let lines = signed.body.as_array().unwrap();
            let missing = lines.iter().find(|line| !line["signature"]["id"].is_string());
            if lines.len() == count && missing.is_none() {
                return;
            }
            assert!(attempt < 100, "{missing:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn debt(api: &Api) -> Value {
    api.get("/api/v1/external-log").await.unwrap().body
}

/// Waits until nothing is owed and everything is published.
async fn paid(api: &Api) {
    until(api, |standing| {
        standing["owed"] == 0 && standing["unpublished"] == 0
    })
    .await;
}

/// Waits until the debt stands so; a server that does not answer is asked again.
async fn until(api: &Api, stands: impl Fn(&Value) -> bool) {
    let clock = SystemClock::new();
    let began = clock.monotonic();
    loop {
        let answer = api.get("/api/v1/external-log").await;
        let last = answer.map(|answer| answer.body).unwrap_or_default();
        if stands(&last) {
            return;
        }
        assert!(clock.monotonic().since(began) < PAID_WITHIN, "{last}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The first steps of paying, each between two durable writes.
const POINTS: [&str; 3] = ["debt.answered", "debt.settled", "debt.published"];

/// Shown to fail: without `debt::owe` in `Draft::finish`, nothing is ever in the log.
#[tokio::test(flavor = "multi_thread")]
async fn p13_the_server_that_pays_is_killed_at_each_step_and_all_is_paid_once() {
    let scene = Scene::new().await;
    let mut server = scene.server(40);
    let api = server.api().unwrap();
    scene.name.now_leads(Target::Closed);
    for (nth, point) in POINTS.iter().enumerate() {
        scene.sign(&api, point, 10).await;
        let owed = debt(&api).await;
        assert_eq!(
            (&owed["owed"], &owed["configured"]),
            (&json!(10), &json!(true)),
            "{owed}"
        );
        let status = server.run(&["status"]).unwrap();
        assert!(
            status.stdout.contains("external log    10 owed"),
            "{}",
            status.text()
        );
        server.kill();
        scene.name.now_leads(Target::To(scene.log.address));
        assert!(server.launch(Some(point)).unwrap(), "{}", server.log());
        for _ in 0..600 {
            if !server.is_running() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(!server.is_running(), "it did not pass {point}");
        server.restart().unwrap();
        paid(&api).await;
        assert_eq!(scene.size().await, 10 * (nth as u64 + 1), "after {point}");
        scene.name.now_leads(Target::Closed);
    }
    let metrics = String::from_utf8(api.bytes("/metrics").await.unwrap()).unwrap();
    assert!(
        metrics.contains("portcullis_external_log_entries{stage=\"owed\"} 0\n"),
        "{metrics}"
    );
    // A policy that asks for the external log's own proof is content with it.
    scene.name.now_leads(Target::To(scene.log.address));
    asks_for_proof(&scene, &server, &api).await;
    // Both bundles are at every image.
    let tree = format!("{}/team/app:{}-3", scene.running.host(), POINTS[0]);
    let tree = server.run(&["image", "tree", &tree]).unwrap().expect_ok();
    assert_eq!(
        tree.stdout.matches("cosign/sign/v1").count(),
        2,
        "{}",
        tree.stdout
    );
}

/// Makes a policy that says `log: required` and one that gives it an hour, and looks at an old image and at a new one.
async fn asks_for_proof(scene: &Scene, server: &Server, api: &Api) {
    let key = server.run(&["key", "get", "default"]).unwrap().expect_ok().stdout;
    let image = |tag: &str| format!("{}/team/app:{tag}", scene.running.host());
    for (name, log) in [("proof", "required"), ("hour", "within 1h")] {
        let policy = json!({
            "apiVersion": "policy.sigstore.dev/v1beta1", "kind": "ClusterImagePolicy", "metadata": { "name": name },
            "spec": { "images": [{ "glob": "**" }], "authorities": [{ "key": { "data": key }, "log": log }] },
        });
        let file = server.folder().join(format!("{name}.json"));
        std::fs::write(&file, policy.to_string()).unwrap();
        let applied = server.run(&["image-policy", "apply", &file.display().to_string()]);
        applied.unwrap().expect_ok();
    }
    let old = image(&format!("{}-3", POINTS[0]));
    let verdict = async |policy: &str, image: &str| {
        let question = json!({ "image": image, "policy": policy });
        api.post("/api/v1/verifications", &question).await.unwrap().body
    };
    assert_eq!(verdict("proof", &old).await["verified"], true);
    scene.name.now_leads(Target::Closed);
    scene.sign(api, "young", 1).await;
    let young = image("young-0");
    let refused = verdict("proof", &young).await;
    assert_eq!(refused["verified"], false, "{refused}");
    let accepted = verdict("hour", &young).await;
    assert_eq!(accepted["verified"], true, "{accepted}");
    assert!(accepted["evidence"][0]["owed_since"].is_string(), "{accepted}");
    scene.name.now_leads(Target::To(scene.log.address));
    paid(api).await;
}

/// That the one that was frozen writes nothing is shown beside the code; here both are processes, and all of it is real.
#[tokio::test(flavor = "multi_thread")]
async fn p13_of_two_servers_on_one_postgresql_one_pays_and_the_other_takes_over() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let (scene, blobs) = (Scene::new().await, tempfile::tempdir().unwrap());
    let config = format!(
        "[database]\nurl = {:?}\n[blobs]\nurl = {:?}\n{}",
        postgres.database(),
        blobs.path(),
        scene.config(20)
    );
    let setup = Setup {
        config,
        ..Setup::default()
    };
    let mut first = Server::start(setup.clone()).unwrap();
    let second = joined(&first, setup);
    let (one, other) = (first.api().unwrap(), second.api().unwrap());
    scene.sign(&one, "before", 10).await;
    paid(&one).await;
    assert_eq!(scene.size().await, 10);

    // Frozen while it owes, and awake again when the other has paid.
    scene.name.now_leads(Target::Silent);
    scene.sign(&one, "frozen", 40).await;
    let process = first.take_process().unwrap();
    process.signal("STOP").unwrap();
    scene.name.now_leads(Target::To(scene.log.address));
    paid(&other).await;
    assert_eq!(scene.size().await, 50);
    process.signal("CONT").unwrap();
    scene.sign(&other, "awake", 10).await;
    paid(&one).await;
    assert_eq!(scene.size().await, 60);

    // Dead while it owes.
    scene.name.now_leads(Target::Closed);
    scene.sign(&other, "dead", 20).await;
    let mut process = process;
    process.kill();
    scene.name.now_leads(Target::To(scene.log.address));
    paid(&other).await;
    assert_eq!(scene.size().await, 80);
}

/// One more server, with the secrets of the first.
fn joined(first: &Server, setup: Setup) -> Server {
    let secrets = first.data().join("secrets");
    let file = |name: &str| secrets.join(name).display().to_string();
    let environment = vec![
        ("PORTCULLIS_LOG_KEY_FILE".to_owned(), file("log.json")),
        ("PORTCULLIS_AUDIT_KEY_FILE".to_owned(), file("audit.json")),
        ("PORTCULLIS_KEYS_PASSWORD_FILE".to_owned(), file("keys.password")),
    ];
    let setup = Setup { environment, ..setup };
    Server::join(setup, first.token()).unwrap()
}

/// The log itself refuses, and a look finds it well after that; later it takes what it refused. Shown to fail: without
/// `owe_again` the entries stay refused, and `paid` ends before the log has them.
#[tokio::test(flavor = "multi_thread")]
async fn p13_what_the_log_refused_is_named_and_owed_again_by_an_administrator() {
    let scene = Scene::new().await;
    let refuses = Arc::new(AtomicBool::new(true));
    let own = refuses.clone();
    let door = move |request: Request, next: Next| {
        let refused = own.load(Ordering::SeqCst) && request.method() == Method::POST;
        async move {
            match refused {
                true => (StatusCode::BAD_REQUEST, "not today").into_response(),
                false => next.run(request).await,
            }
        }
    };
    let router = tlog::router(scene.log.tlog.clone()).layer(from_fn(door));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    scene.name.now_leads(Target::To(listener.local_addr().unwrap()));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let server = scene.server(50);
    let api = server.api().unwrap();
    scene.sign(&api, "refused", 5).await;
    until(&api, |standing| standing["refused"] == 5).await;
    let status = server.run(&["status"]).unwrap();
    assert!(
        status.stdout.contains("refused the entry: status 400"),
        "{}",
        status.text()
    );

    refuses.store(false, Ordering::SeqCst);
    let again = server.run(&["external-log", "retry"]).unwrap().expect_ok();
    assert!(again.stdout.starts_with("5 refused entries"), "{}", again.stdout);
    paid(&api).await;
    assert_eq!(
        (scene.size().await, debt(&api).await["refused"].as_u64()),
        (5, Some(0))
    );
    let audit = ["audit", "list", "--action", "external-log.retry", "-o", "json"];
    let audit = server.run(&audit).unwrap().expect_ok();
    assert!(audit.stdout.contains("5 entries owed again"), "{}", audit.stdout);
}

/// Shown to fail: without `given_up_registry` in `evidence::images`, the evidence stays unpublished.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_gone_for_good_is_given_up_by_an_administrator() {
    let scene = Scene::new().await;
    let server = scene.server(50);
    let api = server.api().unwrap();
    scene.name.now_leads(Target::Closed);
    scene.sign(&api, "gone", 3).await;
    scene.registry.fault(|plan| plan.fail_reads = u32::MAX);
    scene.name.now_leads(Target::To(scene.log.address));
    until(&api, |standing| standing["unpublished"] == 3).await;
    let give_up = |registry: &str, reason: &str| {
        let arguments = [
            "external-log",
            "give-up",
            "--registry",
            registry,
            "--reason",
            reason,
        ];
        server.run(&arguments).unwrap()
    };
    let other = give_up("mistyped.example", "gone");
    assert!(
        other.code == Some(4) && other.text().contains("PC1220"),
        "{:?} {}",
        other.code,
        other.text()
    );
    let host = scene.running.host();
    assert!(!give_up(&host, " ").ok());
    let done = give_up(&host, "switched off").expect_ok();
    assert!(done.stdout.contains("evidence of 3 entries"), "{}", done.stdout);
    paid(&api).await;
    let audit = ["audit", "list", "--action", "external-log.give-up", "-o", "json"];
    let audit = server.run(&audit).unwrap().expect_ok();
    assert!(
        audit.stdout.contains("switched off") && audit.stdout.contains(&host),
        "{}",
        audit.stdout
    );
    // It is there all the same: who repairs an image gets what was given up, and once; what is new gets it anyway.
    scene.registry.fault(|plan| plan.fail_reads = 0);
    scene.sign(&api, "new", 1).await;
    let gone = format!("{host}/team/app:gone-0");
    let repair = || {
        server
            .run(&["sign", "--repair", &gone, "-o", "json"])
            .unwrap()
            .expect_ok()
    };
    assert!(repair().stdout.contains("\"repaired\": true"));
    paid(&api).await;
    assert!(repair().stdout.contains("\"repaired\": false"));
    for (tag, bundles) in [("new-0", 2), ("gone-0", 2), ("gone-1", 1)] {
        let tree = server
            .run(&["image", "tree", &format!("{host}/team/app:{tag}")])
            .unwrap();
        let tree = tree.expect_ok().stdout;
        assert_eq!(tree.matches("cosign/sign/v1").count(), bundles, "{tree}");
    }
}

/// Real rekor-tiles, away and back; real cosign, which believes that log and not ours.
#[tokio::test(flavor = "multi_thread")]
async fn cosign_verifies_with_the_external_log_alone_when_the_debt_is_paid() {
    let (rekor, openssl) = (peer!("rekor-tiles-2.3.0"), peer!("openssl"));
    let (cosign, crane) = (peer!("cosign-3.1.3"), peer!("crane-0.22.1"));
    let registry = ReferrersRegistry::start(&peer!("referrers-registry-0.22.1")).unwrap();
    let rekor = RekorTiles::start(&rekor, &openssl).await;
    let backend = rekor.url.trim_start_matches("http://").parse().unwrap();
    let name = Name::leads(Target::Closed).await;
    let server = Server::start(Setup {
        config: format!(
            "[external_log]\nurl = \"http://{}\"\norigin = {ORIGIN:?}\npublic_key = {:?}\n",
            name.address, rekor.public_key
        ),
        ..Setup::default()
    })
    .unwrap();
    let api = server.api().unwrap();
    let image = push(&crane, registry.address(), "one", "one");
    let signed = api
        .post("/api/v1/signatures", &json!({ "image": image }))
        .await
        .unwrap();
    assert_eq!(signed.status, 201, "{signed:?}");
    let home = Home::new(&cosign, server.folder());
    let key = server.run(&["key", "get", "default"]).unwrap().expect_ok();
    std::fs::write(server.folder().join("portcullis.pub"), &key.stdout).unwrap();
    let root = ["trusted-root", "create", "--out", "external.json", "--rekor"];
    let spec = format!(
        "url=https://{ORIGIN},public-key={},start-time=2020-01-01T00:00:00Z,origin={ORIGIN}",
        rekor.public_key
    );
    home.run(&[&root[..], &[&spec]].concat()).expect_ok();
    let verify = || {
        home.run(&[
            "verify",
            "--key",
            "portcullis.pub",
            "--trusted-root",
            "external.json",
            "--allow-http-registry",
            &image,
        ])
    };
    let owed = verify();
    assert!(!owed.ok(), "{}", owed.text());
    name.now_leads(Target::To(backend));
    paid(&api).await;
    verify().expect_ok();
    evidence_is_of(&server, &image, &server.folder().join("external.json"));
}

/// `portcullis verify --local` believes it too.
fn evidence_is_of(server: &Server, image: &str, root: &Path) {
    let mut command = server.command();
    command.args([
        "verify",
        "--local",
        "--key",
        "portcullis.pub",
        "--allow-plain-http",
    ]);
    let host = image.split('/').next().unwrap();
    command.arg(host).arg("--trusted-root").arg(root).arg(image);
    e2e::run(&mut command).unwrap().expect_ok();
}
