//! What people and programs are told about the server's surroundings: `status`, `doctor`, the canary, a real Rekor.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom as Rng;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use e2e::{Api, Server, Setup};
use kernel::{Digest, SystemClock};
use probing::{Marks, Probe as _, References, State};
use registry::{Options, Registry};
use serde_json::{Value, json};
use testkit::{Process, peer, wait_for};
use tlog::{HashedRekord, Verifier};
use upstream::rekor::{self, LogProbe, Settings};

/// One dependency, when `question` is content with it; a minute is waited.
async fn dependency(api: &Api, name: &str, question: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    for _ in 0..1_200 {
        let all = api.get("/api/v1/dependencies").await.unwrap().body;
        let mut found = all["dependencies"].as_array().into_iter().flatten();
        last = found.find(|one| one["name"] == name).cloned().unwrap_or_default();
        if question(&last) {
            return last;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{name} did not come to that: {last}");
}

/// What stands before a rekor-tiles in practice: its server only takes entries, and the log is read as files of its
/// storage, both under one name.
async fn front(writes: String, storage: PathBuf) -> String {
    let read = move |axum::extract::Path(path): axum::extract::Path<String>| {
        let file = storage.join(path);
        async move {
            let bytes = tokio::fs::read(file).await;
            bytes.map_err(|_| axum::http::StatusCode::NOT_FOUND)
        }
    };
    let http = reqwest::Client::new();
    let write = move |body: String| {
        let request = http.post(format!("{writes}/api/v2/log/entries")).body(body);
        async move {
            let answer = request
                .header("content-type", "application/json")
                .send()
                .await
                .unwrap();
            (answer.status(), answer.bytes().await.unwrap())
        }
    };
    let router = axum::Router::new()
        .route("/api/v2/log/entries", axum::routing::post(write))
        .route("/api/v2/{*path}", axum::routing::get(read));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}

/// rekor-tiles with its defaults, but that it does not take seconds for each step.
pub struct RekorTiles {
    _process: Process,
    pub url: String,
    pub public_key: String,
    _folder: tempfile::TempDir,
}

impl RekorTiles {
    pub async fn start(program: &Path, openssl: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (key, public) = (folder.path().join("key.pem"), folder.path().join("rekor.pub"));
        let run = |command: &mut Command| assert!(command.output().unwrap().status.success());
        run(Command::new(openssl)
            .args(["genpkey", "-algorithm", "ed25519", "-out"])
            .arg(&key));
        run(Command::new(openssl)
            .args(["pkey", "-pubout", "-in"])
            .arg(&key)
            .arg("-out")
            .arg(&public));
        let free = || {
            std::net::TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .port()
        };
        let ports = [free(), free(), free()];
        let mut command = Command::new(program);
        command
            .args([
                "serve",
                "--hostname",
                "rekor.example",
                "--persistent-antispam=true",
            ])
            .args(["--checkpoint-interval", "100ms", "--batch-max-age", "10ms"])
            .arg(format!("--http-port={}", ports[0]))
            .arg(format!("--grpc-port={}", ports[1]))
            .arg(format!("--http-metrics-port={}", ports[2]))
            .arg(format!("--storage-dir={}", folder.path().join("log").display()))
            .arg(format!("--signer-filepath={}", key.display()));
        let process = Process::start(&mut command, &folder.path().join("rekor.log")).unwrap();
        let writes = format!("http://127.0.0.1:{}", ports[0]);
        let answers = || std::net::TcpStream::connect(("127.0.0.1", ports[0])).ok();
        wait_for(answers).unwrap();
        let url = front(writes, folder.path().join("log")).await;
        Self {
            _process: process,
            url,
            public_key: public.display().to_string(),
            _folder: folder,
        }
    }

    fn settings(&self) -> Settings {
        Settings {
            url: self.url.clone(),
            origin: Some("rekor.example".to_owned()),
            public_key: Some(self.public_key.clone().into()),
            trusted_root: None,
            api: rekor::Api::Auto,
            ca_pem: None,
            call_seconds_max: 20,
            entries_per_second_max: 50,
        }
    }
}

fn rekord(message: &[u8]) -> HashedRekord {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let key = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap();
    HashedRekord {
        digest: Digest::of(message).as_bytes().to_vec(),
        signature: pair.sign(&Rng::new(), message).unwrap().as_ref().to_vec(),
        verifier: Verifier::PublicKey(key.as_ref().to_vec()),
    }
}

/// Real rekor-tiles: its checkpoints, its tiles, its answers and its duplicates are what our client takes them for.
#[tokio::test(flavor = "multi_thread")]
async fn a_real_rekor_is_written_to_watched_and_proven() {
    let (program, openssl) = (peer!("rekor-tiles-2.3.0"), peer!("openssl"));
    let rekor = RekorTiles::start(&program, &openssl).await;
    let client = Arc::new(rekor::Client::new(&rekor.settings()).unwrap());
    for _ in 0..600 {
        if client.checkpoint().await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let first = client.checkpoint().await.unwrap();
    assert_eq!(first.api, rekor::Api::V2);
    let entry = rekord(b"one");
    let new = client.append(&entry, None).await.unwrap();
    assert_eq!((new.index, new.already), (0, false));
    let again = client.append(&entry, None).await.unwrap();
    // Which it answers with a bare 409: the entry is found in its tiles.
    assert_eq!((again.index, again.already), (0, true));
    let before = client.checkpoint().await.unwrap();
    let more: Vec<_> = (0..20_u8).map(|number| rekord(&[number])).collect();
    futures::future::join_all(more.iter().map(|entry| client.append(entry, None)))
        .await
        .into_iter()
        .for_each(|outcome| drop(outcome.unwrap()));
    let after = client.checkpoint().await.unwrap();
    assert!(after.checkpoint.size > before.checkpoint.size);
    client.follows(&before.checkpoint, &after).await.unwrap();

    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("marks.db").display());
    let db = store::Db::open(&url).await.unwrap();
    db.migrate(probing::MIGRATIONS).await.unwrap();
    let clock = Arc::new(SystemClock::new());
    let probe = LogProbe::new(
        client.clone(),
        LogProbe::mark(&client, &Marks::new(db)),
        clock,
        References::default(),
    );
    let found = probe.look().await;
    assert_eq!(found.state, State::Ok, "{found:?}");
    client.append(&rekord(b"last"), None).await.unwrap();
    let found = probe.look().await;
    assert_eq!(found.state, State::Ok, "{found:?}");
}

/// The canary signs, logs, publishes and verifies as users do; without its registry it is named, and nothing else
/// stops.
#[tokio::test(flavor = "multi_thread")]
async fn the_canary_comes_through_or_names_its_step() {
    let registry = Registry::memory(Options::default());
    let running = registry.serve_on_loopback().await.unwrap();
    let mut server = Server::start(Setup::default()).unwrap();
    let made = server
        .run(&["token", "create", "canary", "--role", "signer", "-o", "json"])
        .unwrap()
        .expect_ok();
    let made: Value = serde_json::from_str(&made.stdout).unwrap();
    let token = server.folder().join("canary.token");
    std::fs::write(&token, made["token"].as_str().unwrap()).unwrap();
    let config = format!(
        "[canary]\nimage = \"{}/canary\"\ntoken_file = {:?}\n",
        running.host(),
        token.display().to_string()
    );
    std::fs::write(server.folder().join("portcullis.toml"), &config).unwrap();
    server.restart().unwrap();
    let api = server.api().unwrap();
    let looked = |one: &Value| one["checked_at"].is_string();
    let ran = dependency(&api, "canary", looked).await;
    assert_eq!(ran["state"], "OK", "{ran}");
    let found = ran["found"].as_str().unwrap();
    for step in ["log entry 0", "pushed", "signed and logged", "verified"] {
        assert!(found.contains(step), "{found}");
    }
    let count = |text: String, outcome: &str| {
        let name = format!("portcullis_canary_runs_total{{outcome=\"{outcome}\"}} ");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name.as_str()).map(str::to_owned));
        line.unwrap()
    };
    let metrics = async || String::from_utf8(api.bytes("/metrics").await.unwrap()).unwrap();
    assert_eq!(count(metrics().await, "ok"), "1");
    assert_eq!(count(metrics().await, "failed"), "0");

    let gone = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    std::fs::write(
        server.folder().join("portcullis.toml"),
        config.replace(&running.host(), &gone.to_string()),
    )
    .unwrap();
    server.restart().unwrap();
    let failed = dependency(&api, "canary", looked).await;
    assert_eq!(failed["state"], "FAILING", "{failed}");
    assert!(
        failed["found"].as_str().unwrap().starts_with("pushing: "),
        "{failed}"
    );
    assert_eq!(count(metrics().await, "failed"), "1");
    assert_eq!(api.get("/readyz").await.unwrap().status, 200);
}

/// SQLite's file, or the one of its write-ahead log, is replaced under the running server, which would write into the old
/// one and lose it all: it signs nothing new, verifies what there is, and goes on when the right file is back.
///
/// Shown to fail: without `DatabaseProbe::replaced`, it is OK until the server stops; without `Db::refuse_changes`, the
/// signature is made and lost; with the database alone in `files`, the second one is never named.
#[tokio::test(flavor = "multi_thread")]
async fn p14_a_database_file_that_is_replaced_under_the_server_is_named_and_not_written_to() {
    let registry = Registry::memory(Options::default());
    let running = registry.serve_on_loopback().await.unwrap();
    let mut images = Vec::new();
    for content in ["known", "new", "newer"] {
        let digest = registry.put_image("team/app", content, content).await.unwrap();
        images.push(json!({ "image": format!("{}/team/app@{digest}", running.host()) }));
    }
    let server = Server::start(Setup::default()).unwrap();
    let api = server.api().unwrap();
    let signed = api.post("/api/v1/signatures", &images[0]).await.unwrap();
    assert_eq!(signed.status, 201, "{signed:?}");
    dependency(&api, "database", |one| one["state"] == "OK").await;
    is_named_when_replaced(&server, &api, "portcullis.db", [&images[0], &images[1]]).await;
    is_named_when_replaced(&server, &api, "portcullis.db-wal", [&images[0], &images[2]]).await;
}

async fn is_named_when_replaced(server: &Server, api: &Api, name: &str, [known, new]: [&Value; 2]) {
    let (file, ours) = (server.data().join(name), server.data().join("ours"));
    std::fs::hard_link(&file, &ours).unwrap();
    std::fs::copy(&file, server.data().join("copy")).unwrap();
    std::fs::rename(server.data().join("copy"), &file).unwrap();
    let named = dependency(api, "database", |one| one["state"] != "OK").await;
    assert_eq!(named["state"], "WRONG_DATABASE", "{named}");
    assert!(
        named["found"].as_str().unwrap().contains(&format!("{name} is")),
        "{named}"
    );
    let status = server.run(&["status"]).unwrap();
    assert_eq!(status.code, Some(6), "{}", status.text());
    assert!(status.stdout.contains("NO"), "{}", status.text());
    let refused = api.post("/api/v1/signatures", new).await.unwrap();
    assert_eq!(
        (refused.status, &refused.body["code"]),
        (503, &json!("PC1111")),
        "{refused:?}"
    );
    let token = json!({ "name": "t", "role": "viewer" });
    assert_eq!(api.post("/api/v1/tokens", &token).await.unwrap().status, 503);
    let verdict = api.post("/api/v1/verifications", known).await.unwrap();
    assert_eq!(verdict.body["verified"], true, "{verdict:?}");
    assert_eq!(api.get("/api/v1/signatures").await.unwrap().status, 200);

    std::fs::rename(&ours, &file).unwrap();
    dependency(api, "database", |one| one["state"] == "OK").await;
    let signed = api.post("/api/v1/signatures", new).await.unwrap();
    assert_eq!(signed.status, 201, "{signed:?}");
}

/// A database that was put back without its last writes stops nothing, and is named over a restart until the administrator
/// says that they have looked.
///
/// Shown to fail: without the row of `probing::loss`, it is OK at the second look.
#[tokio::test(flavor = "multi_thread")]
async fn p14_a_database_that_lost_writes_is_named_until_it_is_acknowledged_and_signs_on() {
    let registry = Registry::memory(Options::default());
    let running = registry.serve_on_loopback().await.unwrap();
    let digest = registry.put_image("team/app", "x", "x").await.unwrap();
    let image = json!({ "image": format!("{}/team/app@{digest}", running.host()) });
    let mut server = Server::start(Setup::default()).unwrap();
    let api = server.api().unwrap();
    dependency(&api, "database", |one| one["state"] == "OK").await;
    server.stop().unwrap();
    let url = format!("sqlite:{}", server.data().join("portcullis.db").display());
    let db = store::Db::open(&url).await.unwrap();
    let mut tx = db.begin().await.unwrap();
    tx.execute("UPDATE installation SET beat = beat - 1", Vec::new())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    db.close().await;
    for _ in 0..2 {
        server.restart().unwrap();
        let looked = |one: &Value| one["checked_at"].is_string();
        let named = dependency(&api, "database", looked).await;
        assert_eq!(named["state"], "ROLLED_BACK", "{named}");
        assert!(named["hint"].as_str().unwrap().contains("--acknowledge database"));
    }
    let signed = api.post("/api/v1/signatures", &image).await.unwrap();
    assert_eq!(signed.status, 201, "{signed:?}");
    let status = server.run(&["status"]).unwrap().expect_ok();
    assert!(status.stdout.contains("DEGRADED"), "{}", status.stdout);

    let bare = server.run(&["status", "--acknowledge", "database"]).unwrap();
    assert_eq!(bare.code, Some(2), "{}", bare.text());
    let acknowledge = [
        "status",
        "--acknowledge",
        "database",
        "--reason",
        "no token is back",
    ];
    let done = server.run(&acknowledge).unwrap().expect_ok();
    assert!(done.stdout.contains("count 0 was found"), "{}", done.stdout);
    dependency(&api, "database", |one| one["state"] == "OK").await;
    let audit = server
        .run(&["audit", "list", "--output", "json"])
        .unwrap()
        .expect_ok();
    assert!(audit.stdout.contains("dependency.acknowledge") && audit.stdout.contains("no token is back"));
    let again = server.run(&acknowledge).unwrap();
    assert_eq!(again.code, Some(4), "{}", again.text());
}

/// `doctor` finds nothing on a healthy server, and names each thing that is wrong from the user's side with a hint.
#[tokio::test(flavor = "multi_thread")]
async fn doctor_goes_on_after_failures_and_gives_a_hint_for_each() {
    let registry = Registry::memory(Options::default());
    let running = registry.serve_on_loopback().await.unwrap();
    registry.put_image("team/app", "v1", "hello").await.unwrap();
    let image = format!("{}/team/app:v1", running.host());
    let server = Server::start(Setup::default()).unwrap();
    let api = server.api().unwrap();
    let looked = |one: &Value| one["checked_at"].is_string();
    for name in ["database", "log", "blobs", "clock", "disk"] {
        dependency(&api, name, looked).await;
    }
    let well = server.run(&["doctor", &image]).unwrap().expect_ok();
    assert!(well.stdout.contains("not signed yet"), "{}", well.stdout);
    let signed = api.get("/api/v1/signatures").await.unwrap();
    assert_eq!(signed.body["items"], json!([]), "doctor signed something");

    // A project that does not cover the image, a viewer's token, an image that is not there, another log's root.
    server
        .run(&["project", "create", "other", "--image", "r.example/other/**"])
        .unwrap()
        .expect_ok();
    let other = server.folder().join("other.json");
    std::fs::write(
        &other,
        json!({ "tlogs": [{ "baseUrl": "https://x" }] }).to_string(),
    )
    .unwrap();
    let missing = image.replace("v1", "v2");
    let args = [
        "--project",
        "other",
        "doctor",
        &missing,
        "-o",
        "json",
        "--trusted-root",
    ];
    let ill = e2e::run(server.command().args(args).arg(&other)).unwrap();
    assert_eq!(ill.code, Some(9), "{}", ill.text());
    let found: Value = serde_json::from_str(&ill.stdout).unwrap();
    let outcome = |name: &str| {
        let mut checks = found["checks"].as_array().unwrap().iter();
        let check = checks.find(|check| check["name"] == name).unwrap();
        if check["outcome"] == "problem" {
            assert!(!check["hint"].as_str().unwrap().is_empty(), "{check}");
        }
        check["outcome"].as_str().unwrap().to_owned()
    };
    for name in [
        "may sign",
        "image, from here",
        "image, from the server",
        "trusted root",
    ] {
        assert_eq!(outcome(name), "problem", "{name}: {found}");
    }
    for name in ["server", "token", "clock", "log", "dependencies"] {
        assert_eq!(outcome(name), "ok", "{name}: {found}");
    }
    assert_eq!(found["problems"], 4);

    // Nobody there at all: every check says so, none is left out.
    let mut alone = server.command();
    alone.args(["doctor", "-o", "json", "--server", "http://127.0.0.1:9"]);
    let alone = e2e::run(&mut alone).unwrap();
    assert_eq!(alone.code, Some(9), "{}", alone.text());
    let found: Value = serde_json::from_str(&alone.stdout).unwrap();
    assert_eq!(found["checks"].as_array().map(Vec::len), Some(11), "{found}");
    assert!(found["problems"].as_u64() > Some(5), "{found}");
}
