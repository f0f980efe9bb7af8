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
