//! Who may what, and what is too much.

use e2e::{Answer, Api, Server, Setup};
use kernel::Fault as _;
use registry::{Options, Registry};
use serde_json::{Value, json};
use store::{Db, args};

/// A project with a pattern of its own, and a token for it.
async fn project(server: &Server, name: &str, pattern: &str) -> (Api, String) {
    let admin = server.api().unwrap();
    let made = admin
        .post("/api/v1/projects", &json!({ "name": name, "images": [pattern] }))
        .await
        .unwrap();
    assert_eq!(made.status, 201, "{made:?}");
    let new = json!({ "name": "ci", "role": "signer", "project": name });
    let token = admin.post("/api/v1/tokens", &new).await.unwrap();
    assert_eq!(token.status, 201, "{token:?}");
    let text = |field: &str| token.body[field].as_str().unwrap().to_owned();
    let key = admin
        .in_project(name)
        .post("/api/v1/keys", &json!({ "name": "default" }))
        .await
        .unwrap();
    assert_eq!(key.status, 201, "{key:?}");
    (Api::new(&server.url(), &text("token")).unwrap(), text("id"))
}

fn code(answer: &Answer) -> (u16, &str) {
    (answer.status, answer.body["code"].as_str().unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_one_project_neither_reads_nor_signs_for_another() {
    let registry = Registry::memory(Options::default());
    let running = registry.serve_on_loopback().await.unwrap();
    let host = running.host();
    for repository in ["a/app", "b/app"] {
        registry.put_image(repository, "v1", repository).await.unwrap();
    }
    let server = Server::start(Setup::default()).unwrap();
    let (a, _) = project(&server, "a", &format!("{host}/a/**")).await;
    let (b, _) = project(&server, "b", &format!("{host}/b/**")).await;

    let of_a = json!({ "image": format!("{host}/a/app:v1") });
    let signed = a.post("/api/v1/signatures", &of_a).await.unwrap();
    assert_eq!(signed.status, 201, "{signed:?}");
    let path = format!("/api/v1/signatures/{}", signed.body["id"].as_str().unwrap());
    assert_eq!(a.get(&path).await.unwrap().status, 200);

    // B does not sign A's image, and A's signature does not make it look as if it had.
    let refused = b.post("/api/v1/signatures", &of_a).await.unwrap();
    assert_eq!(refused.status, 403, "{refused:?}");
    let batch = b
        .post("/api/v1/signatures:batch", &json!({ "items": [of_a] }))
        .await
        .unwrap();
    assert_eq!(batch.body[0]["problem"]["status"], 403, "{batch:?}");
    // B does not learn that there is such a signature, nor see A's keys, nor act as A.
    assert_eq!(b.get(&path).await.unwrap().status, 404);
    let list = b.get("/api/v1/signatures").await.unwrap();
    assert_eq!((list.status, &list.body["items"]), (200, &json!([])));
    let key = |answer: Answer| answer.body["items"][0]["id"].clone();
    let (key_a, key_b) = (
        a.get("/api/v1/keys").await.unwrap(),
        b.get("/api/v1/keys").await.unwrap(),
    );
    assert_ne!(key(key_a), key(key_b));
    for (what, path) in [("read", path.as_str()), ("list", "/api/v1/signatures")] {
        let answer = b.in_project("a").get(path).await.unwrap();
        assert!(
            matches!(answer.status, 403 | 404),
            "{what} as project a: {answer:?}"
        );
    }
    let answer = b.in_project("a").post("/api/v1/signatures", &of_a).await.unwrap();
    assert!(matches!(answer.status, 403 | 404), "{answer:?}");
    // What A signed does not verify for B, who asks for B's keys.
    let verdict = b.post("/api/v1/verifications", &of_a).await.unwrap();
    assert_ne!(verdict.body["verified"], true, "{verdict:?}");
    // A signer makes neither tokens nor projects.
    let token = json!({ "name": "x", "role": "admin" });
    assert_eq!(a.post("/api/v1/tokens", &token).await.unwrap().status, 403);
    let project = json!({ "name": "c", "images": ["**"] });
    assert_eq!(a.post("/api/v1/projects", &project).await.unwrap().status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_revoked_expired_or_no_token_is_refused_with_its_code() {
    let mut server = Server::start(Setup::default()).unwrap();
    let (revoked, id) = project(&server, "a", "registry.example/a/**").await;
    let (expired, expired_id) = project(&server, "b", "registry.example/b/**").await;
    assert_eq!(revoked.get("/api/v1/keys").await.unwrap().status, 200);
    let path = format!("/api/v1/tokens/{id}:revoke");
    assert_eq!(
        server
            .api()
            .unwrap()
            .post(&path, &Value::Null)
            .await
            .unwrap()
            .status,
        204
    );
    let answer = revoked.get("/api/v1/keys").await.unwrap();
    assert_eq!(answer.status, 401, "{answer:?}");

    // Nobody waits thirty days: the end of the other token is moved into the past.
    assert_eq!(expired.get("/api/v1/keys").await.unwrap().status, 200);
    assert_eq!(server.stop().unwrap(), Some(0));
    let db = Db::open(&format!(
        "sqlite:{}",
        server.data().join("portcullis.db").display()
    ))
    .await
    .unwrap();
    let mut tx = db.begin().await.unwrap();
    let rows = tx
        .execute("UPDATE token SET expires_at = 1 WHERE id = $1", args![expired_id])
        .await
        .unwrap();
    assert_eq!(rows, 1);
    tx.commit().await.unwrap();
    db.close().await;
    server.restart().unwrap();
    let answer = expired.get("/api/v1/keys").await.unwrap();
    assert_eq!(answer.status, 401, "{answer:?}");
    assert_eq!(
        revoked.get("/api/v1/keys").await.unwrap().status,
        401,
        "revoked stays revoked"
    );

    let nobody = Api::new(&server.url(), "pcl_000000000000000000000000000000000000").unwrap();
    assert_eq!(nobody.get("/api/v1/keys").await.unwrap().status, 401);
    let output = e2e::run(
        server
            .command()
            .args(["key", "list"])
            .env("PORTCULLIS_TOKEN", "nonsense"),
    )
    .unwrap();
    assert_eq!(output.code, Some(5), "{}", output.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_a_cap_is_refused_and_the_cap_is_named() {
    let server = Server::start(Setup::default()).unwrap();
    let api = server.api().unwrap();
    let sign = "/api/v1/signatures";
    let cap = kernel::limits::REQUEST_BYTES_MAX;
    let large = api.post_bytes(sign, vec![b' '; cap + 1]).await.unwrap();
    assert_eq!(code(&large), (413, "PC1801"), "{large:?}");
    assert!(large.body.to_string().contains("REQUEST_BYTES_MAX"), "{large:?}");
    let deep = api
        .post_bytes(sign, [vec![b'['; 10_000], vec![b']'; 10_000]].concat())
        .await
        .unwrap();
    assert_eq!(deep.status, 422, "{deep:?}");
    assert!(deep.body.to_string().contains("JSON_DEPTH_MAX"), "{deep:?}");
    let items = vec![json!({ "image": "registry.example/app:v1" }); 1_001];
    let many = api
        .post("/api/v1/signatures:batch", &json!({ "items": items }))
        .await
        .unwrap();
    assert_eq!(many.status, 422, "{many:?}");
    assert!(many.body.to_string().contains("BATCH_ITEMS_MAX"), "{many:?}");
    // The command line does not make two releases of one that is too large.
    let list = server.folder().join("images.txt");
    std::fs::write(&list, "registry.example/app:v1\n".repeat(1_100)).unwrap();
    let mut command = server.command();
    let release = e2e::run(command.args(["sign", "--release", "--from-file"]).arg(&list)).unwrap();
    assert_eq!(release.code, Some(2), "{}", release.text());
    assert!(
        release.stderr.contains("at most 1000 images, not 1100"),
        "{}",
        release.text()
    );
    let large = api
        .post_bytes("/api/v2/log/entries", vec![b' '; cap + 1])
        .await
        .unwrap();
    assert_eq!(large.status, 413, "{large:?}");

    let bad = json!({ "image": "Not/A Reference" });
    let answer = api.post(sign, &bad).await.unwrap();
    assert_eq!(
        code(&answer),
        (422, kernel::reference_codes::REFERENCE.id),
        "{answer:?}"
    );
    // Whatever was refused, the server goes on.
    assert_eq!(api.get("/readyz").await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_the_same_data_is_refused() {
    let server = Server::start(Setup::default()).unwrap();
    let mut second = server.command();
    second
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(server.data());
    let refused = e2e::run(&mut second).unwrap();
    let locked = store::StoreError::Locked { path: server.data() };
    assert_eq!(refused.code, Some(7), "{}", refused.text());
    assert!(refused.stderr.contains(locked.code().id), "{}", refused.text());
    assert_eq!(
        server.api().unwrap().get("/readyz").await.unwrap().status,
        200,
        "the first one goes on"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_tokens_have_ended_a_new_one_is_made_beside_the_stopped_server() {
    let mut server = Server::start(Setup::default()).unwrap();
    let create = |server: &Server, data: &std::path::Path| {
        let args = [
            "token",
            "create",
            "rescue",
            "--role",
            "admin",
            "--everywhere",
            "--local",
            "--data",
        ];
        e2e::run(server.command().args(args).arg(data).env("PORTCULLIS_TOKEN", "")).unwrap()
    };
    let data = server.data();
    let refused = create(&server, &data);
    assert_eq!(refused.code, Some(7), "{}", refused.text());
    assert!(
        refused.stderr.contains("PC1105") && refused.stderr.contains("stop the server first"),
        "{}",
        refused.text()
    );
    assert!(refused.stdout.is_empty());

    assert_eq!(server.stop().unwrap(), Some(0));
    let url = format!("sqlite:{}", data.join("portcullis.db").display());
    let db = Db::open(&url).await.unwrap();
    let mut tx = db.begin().await.unwrap();
    assert_eq!(
        tx.execute("UPDATE token SET expires_at = 1", args![])
            .await
            .unwrap(),
        1
    );
    tx.commit().await.unwrap();
    db.close().await;
    server.restart().unwrap();
    let answer = server.api().unwrap().get("/api/v1/tokens").await.unwrap();
    assert_eq!(code(&answer), (401, "PC1601"), "{answer:?}");
    assert!(
        answer.body["hint"].as_str().unwrap().contains("--local"),
        "{answer:?}"
    );

    assert_eq!(server.stop().unwrap(), Some(0));
    let made = create(&server, &data).expect_ok();
    let db = Db::open(&url).await.unwrap();
    let sql = "SELECT actor FROM audit WHERE action = 'token.create' ORDER BY id DESC LIMIT 1";
    assert_eq!(
        db.read_one(sql, args![])
            .await
            .unwrap()
            .unwrap()
            .text("actor")
            .unwrap(),
        "local"
    );
    db.close().await;
    server.restart().unwrap();
    let rescued = Api::new(&server.url(), made.stdout.trim()).unwrap();
    let who = rescued.get("/api/v1/auth/whoami").await.unwrap();
    assert_eq!(
        (&who.body["role"], &who.body["everywhere"]),
        (&json!("admin"), &json!(true)),
        "{who:?}"
    );

    // Where no server ever was, none is begun.
    let nowhere = server.folder().join("nowhere");
    assert_eq!(create(&server, &nowhere).code, Some(4));
    assert!(!nowhere.exists());
    std::fs::create_dir(&nowhere).unwrap();
    assert_eq!(create(&server, &nowhere).code, Some(4));
    assert_eq!(std::fs::read_dir(&nowhere).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_or_a_method_that_is_none_is_a_problem_with_a_code() {
    let server = Server::start(Setup::default()).unwrap();
    let api = server.api().unwrap();
    for path in ["/", "/nothing", "/api/v1/nothing", "/api/v1/tokens/a/b"] {
        let answer = api.get(path).await.unwrap();
        assert_eq!(code(&answer), (404, "PC1803"), "{path}: {answer:?}");
    }
    for path in ["/api/v1/auth/whoami", "/api/v1/openapi.json", "/readyz"] {
        let answer = api.post(path, &json!({})).await.unwrap();
        assert_eq!(code(&answer), (405, "PC1804"), "{path}: {answer:?}");
        assert_eq!(answer.body["status"], 405);
    }
    assert_eq!(
        code(&api.get("/api/v1/signatures:batch").await.unwrap()),
        (405, "PC1804")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_of_one_project_is_told_what_is_not_theirs() {
    let server = Server::start(Setup::default()).unwrap();
    project(&server, "a", "registry.example/a/**").await;
    let new = json!({ "name": "lead", "role": "admin", "project": "a" });
    let made = server.api().unwrap().post("/api/v1/tokens", &new).await.unwrap();
    let lead = made.body["token"].as_str().unwrap();
    let run = |args: &[&str]| e2e::run(server.command().args(args).env("PORTCULLIS_TOKEN", lead)).unwrap();
    run(&["token", "create", "ci", "--role", "signer"]).expect_ok();
    let token = ["token", "create", "x", "--role", "viewer", "--everywhere"];
    for args in [
        &token[..],
        &["project", "create", "b", "--image", "registry.example/b/*"],
    ] {
        let refused = run(args);
        assert_eq!(refused.code, Some(5), "{}", refused.text());
        for words in ["PC1602", "for the whole server", "good for every project"] {
            assert!(refused.stderr.contains(words), "{}", refused.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_shown_without_its_pem_and_named_once() {
    let server = Server::start(Setup::default()).unwrap();
    let run = |args: &[&str]| server.run(args).unwrap().expect_ok();
    let made = run(&["key", "create", "release"]);
    assert!(
        made.stdout.contains("version") && !made.text().contains("BEGIN PUBLIC KEY"),
        "{}",
        made.text()
    );
    assert!(
        made.stderr.contains("portcullis key get release"),
        "{}",
        made.text()
    );
    let rotated = run(&["key", "rotate", "release"]);
    assert!(!rotated.text().contains("BEGIN PUBLIC KEY"), "{}", rotated.text());
    assert!(
        run(&["key", "get", "release"])
            .stdout
            .starts_with("-----BEGIN PUBLIC KEY-----\n")
    );
    assert_eq!(run(&["-o", "name", "key", "list"]).stdout, "default\nrelease\n");
    assert_eq!(run(&["key", "list"]).stdout.matches("release").count(), 2);
    let json: Value = serde_json::from_str(&run(&["-o", "json", "key", "create", "other"]).stdout).unwrap();
    assert!(json["public_key"].as_str().unwrap().contains("BEGIN PUBLIC KEY"));
}

#[test]
fn a_data_folder_that_cannot_be_made_is_called_so() {
    let mut serve = std::process::Command::new(e2e::program().unwrap());
    let refused =
        e2e::run(serve.args(["serve", "--listen", "127.0.0.1:0", "--data", "/dev/null/x"])).unwrap();
    assert_eq!(refused.code, Some(1), "{}", refused.text());
    assert!(
        refused.stderr.contains("PC1108") && refused.stderr.contains("/dev/null/x"),
        "{}",
        refused.text()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_that_does_not_exist_is_404_for_every_call() {
    let server = Server::start(Setup::default()).unwrap();
    let (admin, (a, _)) = (server.api().unwrap(), project(&server, "a", "r.example/**").await);
    let nope = admin.in_project("nope");
    let missing = admin.get("/api/v1/projects/nope").await.unwrap();
    assert_eq!(code(&missing), (404, "PC1604"));
    for path in [
        "keys",
        "tokens",
        "signatures",
        "image-policies",
        "projects",
        "auth/whoami",
    ] {
        let answer = nope.get(&format!("/api/v1/{path}")).await.unwrap();
        assert_eq!(code(&answer), code(&missing), "{path}: {answer:?}");
        assert_eq!(answer.body["detail"], missing.body["detail"], "{path}");
    }
    let image = json!({ "image": "r.example/app:v1" });
    for (path, body) in [
        ("keys", &json!({ "name": "k" })),
        ("tokens", &json!({ "name": "t", "role": "admin" })),
        (
            "tokens",
            &json!({ "name": "t", "role": "admin", "everywhere": true }),
        ),
        ("verifications", &image),
        ("signatures", &image),
        ("signatures:batch", &json!({ "items": [image] })),
    ] {
        let answer = nope.post(&format!("/api/v1/{path}"), body).await.unwrap();
        assert_eq!(code(&answer), code(&missing), "{path}: {answer:?}");
    }
    for args in [
        &["key", "create", "k"][..],
        &["key", "list"],
        &["token", "create", "t", "--role", "admin"],
        &["verify", "r.example/app:v1"],
    ] {
        let ran = server.run(&[&["--project", "nope"], args].concat()).unwrap();
        assert_eq!(ran.code, Some(4), "{args:?}: {}", ran.text());
        ran.expect_refused("PC1604");
    }
    // A project's own token learns nothing of others: that they exist or not is the same answer.
    assert_eq!(
        admin.in_project("a").get("/api/v1/keys").await.unwrap().status,
        200
    );
    for path in ["keys", "auth/whoami"] {
        let ask = async |name: &str| a.in_project(name).get(&format!("/api/v1/{path}")).await.unwrap();
        let (other, none) = (ask("default").await, ask("nope").await);
        assert_eq!(code(&other), (404, "PC1604"));
        assert_eq!(code(&other), code(&none));
    }
    // A name that is none is not taken for no name.
    for wrong in ["t\u{e9}am", "No", ""] {
        let answer = admin.in_project(wrong).get("/api/v1/keys").await.unwrap();
        assert_eq!(code(&answer), (422, "PC1606"), "{wrong:?}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_keys_comes_a_page_at_a_time() {
    let server = Server::start(Setup::default()).unwrap();
    let api = server.api().unwrap();
    for name in ["a", "a-b", "z"] {
        let made = api.post("/api/v1/keys", &json!({ "name": name })).await.unwrap();
        assert_eq!(made.status, 201, "{made:?}");
    }
    let rotated = api.post("/api/v1/keys/a:rotate", &json!({})).await.unwrap();
    assert_eq!(rotated.status, 201, "{rotated:?}");
    let (mut seen, mut next) = (Vec::new(), Some("/api/v1/keys?limit=2".to_owned()));
    while let Some(path) = next {
        let page = api.get(&path).await.unwrap();
        let items = page.body["items"].as_array().unwrap();
        assert!((1..=2).contains(&items.len()), "{page:?}");
        seen.extend(
            items
                .iter()
                .map(|key| format!("{} {}", key["name"].as_str().unwrap(), key["version"])),
        );
        next = page.body["next"].as_str().map(str::to_owned);
    }
    assert_eq!(seen, ["a 1", "a 2", "a-b 1", "default 1", "z 1"]);
    for list in ["keys", "tokens", "projects", "signatures", "image-policies"] {
        for limit in ["0", "201", "x"] {
            let answer = api.get(&format!("/api/v1/{list}?limit={limit}")).await.unwrap();
            assert_eq!(answer.status, 422, "{list} {limit}: {answer:?}");
        }
    }
}
