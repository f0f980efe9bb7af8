//! What is recorded, who reads it, and what an export proves.

use std::path::Path;

use e2e::{Api, Ran, Server, Setup};
use registry::{Options, Registry};
use serde_json::{Value, json};

use super::{assert_found, assert_whole, records, sealed, token};

fn has(records: &[Value], action: &str, outcome: &str, code: &str, resource: &str) -> bool {
    let is = |record: &&Value| {
        record["action"] == action
            && record["outcome"] == outcome
            && record["code"] == code
            && record["resource"].as_str().unwrap().contains(resource)
    };
    records.iter().any(|record| is(&record))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_and_every_refusal_is_recorded_with_who_what_and_why() {
    let registry = Registry::memory(Options::default());
    let running = registry.serve_on_loopback().await.unwrap();
    registry.put_image("team/app", "v1", "one").await.unwrap();
    registry.put_image("other/app", "v1", "two").await.unwrap();
    let image = |name: &str| json!({ "image": format!("{}/{name}:v1", running.host()) });
    let server = Server::start(Setup::default()).unwrap();
    let api = server.api().unwrap();
    let team = format!("{}/team/*", running.host());
    server
        .run(&["project", "create", "team", "--image", &team])
        .unwrap()
        .expect_ok();
    server
        .run(&["--project", "team", "key", "create", "default"])
        .unwrap()
        .expect_ok();
    let in_team = api.in_project("team");
    let signer = token(&in_team, "ci", "signer").await;
    let admin = token(&in_team, "boss", "admin").await;
    let auditor = token(&api, "eye", "auditor").await;
    let as_signer = Api::new(&server.url(), signer["token"].as_str().unwrap()).unwrap();
    let as_admin = Api::new(&server.url(), admin["token"].as_str().unwrap()).unwrap();

    assert_eq!(
        as_signer
            .post("/api/v1/signatures", &image("team/app"))
            .await
            .unwrap()
            .status,
        201
    );
    for (path, body, status) in [
        ("/api/v1/signatures", image("other/app"), 403),
        ("/api/v1/keys", json!({ "name": "mine" }), 403),
        ("/api/v1/tokens", json!({ "name": "more", "role": "admin" }), 403),
    ] {
        assert_eq!(
            as_signer.post(path, &body).await.unwrap().status,
            status,
            "{path}"
        );
    }
    let batch = json!({ "items": [image("team/app"), image("other/app")] });
    assert_eq!(
        as_signer
            .post("/api/v1/signatures:batch", &batch)
            .await
            .unwrap()
            .status,
        200
    );
    assert_eq!(
        as_signer
            .in_project("default")
            .get("/api/v1/keys")
            .await
            .unwrap()
            .status,
        404
    );
    assert_eq!(
        api.post("/api/v1/keys/none:rotate", &json!({}))
            .await
            .unwrap()
            .status,
        404
    );
    let revoke = format!("/api/v1/tokens/{}:revoke", signer["id"].as_str().unwrap());
    assert_eq!(api.post(&revoke, &json!({})).await.unwrap().status, 204);
    assert_eq!(as_signer.get("/api/v1/keys").await.unwrap().status, 401);
    let nobody = Api::new(&server.url(), "pcl_nonsense").unwrap();
    assert_eq!(nobody.get("/api/v1/keys").await.unwrap().status, 401);
    // What is only not there, or asked for in vain, is no refusal.
    assert_eq!(api.get("/api/v1/keys/none").await.unwrap().status, 404);

    sealed(&api, 16).await;
    let all = records(&api, "").await;
    for (action, outcome, code, resource) in [
        ("project.create", "success", "", "team"),
        ("token.create", "success", "", "tok_"),
        ("token.revoke", "success", "", signer["id"].as_str().unwrap()),
        ("signature.create", "success", "", "team/app"),
        ("signature.create", "denied", "PC1603", "other/app"),
        ("key.create", "denied", "PC1602", "mine"),
        ("token.create", "denied", "PC1602", "more"),
        ("key.list", "denied", "PC1604", ""),
        ("key.rotate", "failed", "PC1201", "none"),
        ("key.list", "denied", "PC1601", ""),
    ] {
        assert!(
            has(&all, action, outcome, code, resource),
            "no {action} {outcome} {code}: {all:#?}"
        );
    }
    assert!(!has(&all, "key.get", "failed", "PC1201", ""), "{all:#?}");
    let of_image: i64 = records(&api, "action=signature.create&outcome=denied")
        .await
        .iter()
        .map(|record| record["times"].as_i64().unwrap())
        .sum();
    assert_eq!(
        of_image, 1,
        "the second one, of the batch, is counted at the end of the minute"
    );
    // The token had ended, and whose it was is known all the same.
    let ended = records(&api, "actor=ci&action=key.list&outcome=denied").await;
    assert!(
        ended.iter().any(|record| record["code"] == "PC1601"),
        "{ended:#?}"
    );
    assert!(
        all.iter()
            .all(|record| record["request_id"] != "" || record["actor"] == "server"),
        "{all:#?}"
    );

    // A project's own people read its own records, and no others.
    let own = records(&as_admin, "").await;
    assert!(
        !own.is_empty() && own.iter().all(|record| record["project"] == "team"),
        "{own:#?}"
    );
    assert_eq!(
        as_admin
            .get("/api/v1/audit?project=default")
            .await
            .unwrap()
            .status,
        404
    );
    assert_eq!(
        as_admin
            .get("/api/v1/audit/log/tile/entries/000.p/1")
            .await
            .unwrap()
            .status,
        403
    );
    let as_auditor = Api::new(&server.url(), auditor["token"].as_str().unwrap()).unwrap();
    assert!(
        records(&as_auditor, "")
            .await
            .iter()
            .all(|record| record["project"] == "default")
    );
    assert_whole(&server);
    exports_prove_themselves(&server, admin["token"].as_str().unwrap());
}

/// Exports are checked without the server, and name what was done to them.
fn exports_prove_themselves(server: &Server, of_team: &str) {
    let path = server.folder().join("audit.jsonl");
    let file = path.to_str().unwrap();
    server
        .run(&["audit", "export", "--file", file])
        .unwrap()
        .expect_ok();
    let verify = |arguments: &[&str]| {
        server
            .run(&[&["audit", "verify", "--file", file], arguments].concat())
            .unwrap()
    };
    let whole = verify(&[]).expect_ok();
    assert!(whole.stdout.contains("0 wait for it"), "{}", whole.text());
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let id = |at: usize| {
        let line: Value = serde_json::from_str(lines[at]).unwrap();
        line["record"]["id"].as_str().unwrap().to_owned()
    };
    let last = lines.len() - 1;
    let without = |at: usize| {
        let mut lines = lines.clone();
        lines.remove(at);
        lines
    };
    let altered = lines[3].replace("success", "denied");
    let mut with_altered = lines.clone();
    with_altered[3] = &altered;
    let renumbered = lines[5].replace("\"sequence\":5", "\"sequence\":6");
    let mut with_renumbered = lines.clone();
    with_renumbered[5] = &renumbered;
    let mut swapped = lines.clone();
    swapped.swap(2, 4);
    let mut twice = lines.clone();
    twice.insert(4, lines[2]);
    let mut cut = lines.clone();
    let half = &lines[6][..40];
    cut[6] = half;
    for (what, lines, words) in [
        (
            "removed",
            without(3),
            vec!["removed: record  (sequence 3)".to_owned()],
        ),
        (
            "the last removed",
            without(last),
            vec![format!("(sequence {last})")],
        ),
        (
            "altered",
            with_altered,
            vec![format!("altered: record {} (sequence 3)", id(3))],
        ),
        (
            "renumbered",
            with_renumbered,
            vec![format!("altered: record {}", id(5))],
        ),
        (
            "swapped",
            swapped,
            vec![format!("reordered: record {} (sequence 2)", id(2))],
        ),
        (
            "twice",
            twice,
            vec![format!("reordered: record {} (sequence 2)", id(2))],
        ),
        ("cut short", cut, vec!["line 7 of the file".to_owned()]),
        (
            "empty",
            Vec::new(),
            vec!["removed: record  (sequence 0)".to_owned()],
        ),
    ] {
        std::fs::write(&path, lines.join("\n")).unwrap();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        assert_found(what, &verify(&[]), &words);
    }
    std::fs::write(&path, without(3).join("\n")).unwrap();
    verify(&["--partial"]).expect_ok();
    another_key_or_checkpoint(server, &path, &text, &verify);

    // A project's own export proves each of its records, though not that they are all.
    let own = server.folder().join("team.jsonl");
    let own = own.to_str().unwrap();
    server
        .run(&["--token", of_team, "audit", "export", "--file", own])
        .unwrap()
        .expect_ok();
    server
        .run(&["audit", "verify", "--file", own, "--partial"])
        .unwrap()
        .expect_ok();
    assert!(
        !std::fs::read_to_string(own)
            .unwrap()
            .contains("\"project\":\"default\"")
    );
    server
        .run(&["--token", of_team, "audit", "verify"])
        .unwrap()
        .expect_refused("PC1602");

    let ocsf = server
        .run(&["audit", "export", "--format", "ocsf"])
        .unwrap()
        .expect_ok();
    for line in ocsf.stdout.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        let (class, activity) = (
            event["class_uid"].as_u64().unwrap(),
            event["activity_id"].as_u64().unwrap(),
        );
        assert!(matches!(class, 6003 | 3002), "{event}");
        assert_eq!(event["type_uid"], class * 100 + activity, "{event}");
    }
    assert!(ocsf.stdout.lines().count() > last);
}

/// An export is of one seal: with another key or another checkpoint it proves nothing.
fn another_key_or_checkpoint(server: &Server, path: &Path, text: &str, verify: &dyn Fn(&[&str]) -> Ran) {
    std::fs::write(path, text).unwrap();
    let beside = |extension: &str| format!("{}.{extension}", path.display());
    let note = std::fs::read_to_string(beside("checkpoint")).unwrap();
    // The other log's key, which signs the same kind of note.
    let folder = server.folder().join("log-copy");
    server
        .run(&["log", "export", folder.to_str().unwrap()])
        .unwrap()
        .expect_ok();
    let key = folder.join("log.pub");
    assert_found(
        "another key",
        &verify(&["--audit-key", key.to_str().unwrap()]),
        &["PC1620"],
    );
    let mut lines: Vec<String> = note.lines().map(str::to_owned).collect();
    lines[1] = (lines[1].parse::<u64>().unwrap() + 1).to_string();
    std::fs::write(beside("checkpoint"), lines.join("\n") + "\n").unwrap();
    assert_found("another checkpoint", &verify(&[]), &["PC1620"]);
    std::fs::write(beside("checkpoint"), note).unwrap();
    verify(&[]).expect_ok();
    // The server has grown from the checkpoint that was kept.
    let kept = beside("checkpoint");
    server
        .run(&["audit", "verify", "--checkpoint", &kept])
        .unwrap()
        .expect_ok();
}
