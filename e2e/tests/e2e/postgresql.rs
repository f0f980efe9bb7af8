//! The server on a real PostgreSQL.

use e2e::{Api, Server, Setup};
use registry::{Options, Registry};
use serde_json::{Value, json};
use testkit::Postgres;

use crate::ledger::{Ledger, Signatures, send};

#[tokio::test(flavor = "multi_thread")]
async fn the_server_works_on_postgresql_and_survives_a_kill() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let registry = Registry::memory(Options::default());
    let running = registry.serve_on_loopback().await.unwrap();
    registry.put_image("team/app", "v1", "one").await.unwrap();
    registry.put_image("team/app", "v2", "two").await.unwrap();
    let image = |tag: &str| json!({ "image": format!("{}/team/app:{tag}", running.host()) });

    let config = format!(
        "[database]\nurl = {:?}\n[blobs]\nurl = \"FOLDER/data/blobs\"\n",
        postgres.database()
    );
    let mut server = Server::start(Setup {
        config,
        ..Setup::default()
    })
    .unwrap();
    assert!(!server.data().join("portcullis.db").exists(), "it uses SQLite");
    let api = server.api().unwrap();
    let mut ledger = Ledger::new(&api).await;
    let signed = api.post("/api/v1/signatures", &image("v1")).await.unwrap();
    assert_eq!(signed.status, 201, "{signed:?}");
    // Enough for a tile of the log and its pruning.
    let mut signatures = Signatures::new();
    let requests: Vec<Value> = (0..300).map(|_| signatures.request()).collect();
    let entries: Vec<_> = send(&api, &ledger, &requests)
        .await
        .into_iter()
        .map(|(_, entry)| entry)
        .collect();
    assert_eq!(entries.len(), requests.len());

    server.restart().unwrap();
    let again = api.post("/api/v1/signatures", &image("v1")).await.unwrap();
    assert_eq!(
        (again.status, &again.body["id"]),
        (200, &signed.body["id"]),
        "{again:?}"
    );
    let verdict = api.post("/api/v1/verifications", &image("v1")).await.unwrap();
    assert_eq!(verdict.body["verified"], true, "{verdict:?}");
    let unsigned = api.post("/api/v1/verifications", &image("v2")).await.unwrap();
    assert_eq!(
        (unsigned.status, &unsigned.body["verified"]),
        (200, &json!(false)),
        "{unsigned:?}"
    );
    assert_eq!(
        api.post("/api/v1/signatures", &image("v2")).await.unwrap().status,
        201
    );
    let list = api.get("/api/v1/signatures?limit=1").await.unwrap();
    assert_eq!(list.body["items"].as_array().map(Vec::len), Some(1), "{list:?}");
    assert!(list.body["next"].is_string(), "{list:?}");
    ledger.audit(&server, &entries).await;

    for command in [
        &["project", "create", "a", "--image", "registry.example/a/**"][..],
        &["project", "list"],
    ] {
        server.run(command).unwrap().expect_ok();
    }
    server
        .run(&["token", "create", "ci", "--role", "signer", "--project", "a"])
        .unwrap()
        .expect_ok();
    server.run(&["token", "list"]).unwrap().expect_ok();
    // PostgreSQL is shared: a token is made in it beside the running server, from its configuration.
    let rescue = [
        "token",
        "create",
        "rescue",
        "--role",
        "admin",
        "--everywhere",
        "--local",
    ];
    let rescued = server.run(&rescue).unwrap().expect_ok();
    let rescued = Api::new(&server.url(), rescued.stdout.trim()).unwrap();
    assert_eq!(rescued.get("/api/v1/tokens").await.unwrap().status, 200);
    server.run(&["key", "rotate", "default"]).unwrap().expect_ok();
    assert_eq!(server.stop().unwrap(), Some(0));
}

/// PostgreSQL takes no text with one. Shown to fail: with the caller's texts as they come in records of refusals, none is
/// recorded after the first of these.
#[tokio::test(flavor = "multi_thread")]
async fn a_nul_character_is_no_outage_and_stops_no_audit_record() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let config = format!(
        "[database]\nurl = {:?}\n[blobs]\nurl = \"FOLDER/data/blobs\"\n",
        postgres.database()
    );
    let server = Server::start(Setup {
        config,
        ..Setup::default()
    })
    .unwrap();
    let api = server.api().unwrap();
    for (path, refused) in [
        ("/api/v1/keys/a%00b", (404, "PC1803")),
        ("/api/v1/audit?action=a%00b", (422, "PC1802")),
        // The cursor of a key with one.
        ("/api/v1/audit?cursor=610062", (422, "PC1802")),
    ] {
        let answer = api.get(path).await.unwrap();
        let code = answer.body["code"].as_str().unwrap_or_default();
        assert_eq!((answer.status, code), refused, "{path}: {answer:?}");
    }
    let made = json!({ "name": "looks", "role": "viewer" });
    let made = api.post("/api/v1/tokens", &made).await.unwrap();
    let viewer = Api::new(&server.url(), made.body["token"].as_str().unwrap()).unwrap();
    let name = json!({ "name": "a\u{0}b", "role": "signer", "days": 3 });
    assert_eq!(viewer.post("/api/v1/tokens", &name).await.unwrap().status, 403);
    let another = json!({ "name": "another", "role": "signer", "days": 3 });
    assert_eq!(viewer.post("/api/v1/tokens", &another).await.unwrap().status, 403);
    let recorded = async || {
        let denied = api
            .get("/api/v1/audit?outcome=denied&action=token.create")
            .await
            .unwrap();
        let items = denied.body["items"].as_array().unwrap().clone();
        items
            .iter()
            .map(|item| item["resource"].clone())
            .collect::<Vec<_>>()
    };
    for _ in 0..100 {
        if recorded().await.len() == 2 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let mut recorded = recorded().await;
    recorded.sort_by_key(Value::to_string);
    assert_eq!(recorded, ["a b", "another"]);
}
