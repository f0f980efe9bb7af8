//! Starts on a seal that is damaged, lost or another one.

use e2e::{Server, Setup};
use serde_json::json;

use super::tamper::started;
use super::{assert_found, assert_whole, records, sealed, token};

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_audit_key_is_never_replaced_and_another_is_refused() {
    let mut server = Server::start(Setup::default()).unwrap();
    token(&server.api().unwrap(), "t", "viewer").await;
    assert_eq!(server.stop().unwrap(), Some(0));
    let key = server.data().join("secrets/audit.json");
    let good = std::fs::read_to_string(&key).unwrap();
    let other = std::fs::read_to_string(server.data().join("secrets/log.json")).unwrap();
    for (what, text, named) in [
        ("lost", None, "audit.json is missing"),
        ("damaged", Some(&good[..40]), "audit.json is damaged"),
        ("another", Some(other.as_str()), "audit.json"),
    ] {
        match text {
            Some(text) => std::fs::write(&key, text).unwrap(),
            None => std::fs::remove_file(&key).unwrap(),
        }
        let before = server.log().len();
        assert!(!server.launch(None).unwrap(), "{what}: the server started");
        let said = server.log().split_off(before);
        assert!(said.contains(named), "{what}: {said}");
        std::fs::write(&key, &good).unwrap();
    }
    server.restart().unwrap();
    assert_whole(&server);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_older_than_its_seal_is_told_and_stops_nobody() {
    let mut server = Server::start(Setup::default()).unwrap();
    let api = server.api().unwrap();
    sealed(&api, 3).await;
    assert_eq!(server.stop().unwrap(), Some(0));
    let path = server.data().join("portcullis.db");
    let old = std::fs::read(&path).unwrap();
    server.restart().unwrap();
    token(&api, "t", "viewer").await;
    sealed(&api, 4).await;
    assert_eq!(server.stop().unwrap(), Some(0));
    std::fs::write(&path, &old).unwrap();
    server.restart().unwrap();
    let found = server.run(&["audit", "verify"]).unwrap();
    assert_found(
        "put back from an older copy",
        &found,
        &["PC1405", "audit.checkpoint"],
    );
    // It works, records, and seals nothing.
    token(&api, "u", "viewer").await;
    assert_eq!(records(&api, "order=unsealed").await.len(), 1);
    assert_eq!(
        api.post("/api/v1/keys", &json!({ "name": "k" }))
            .await
            .unwrap()
            .status,
        201
    );
}

/// Shown to fail: without the seal's error in the trail's status neither `status` nor `doctor` says a word.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_seal_is_in_status_and_doctor_until_it_is_put_back() {
    let mut server = started(String::new()).await;
    let api = server.api().unwrap();
    let tile = server.data().join("blobs/audit/tile/0/000");
    assert!(
        testkit::wait_for(|| tile.is_file().then_some(())).is_some(),
        "no tile was written"
    );
    let tells = |server: &Server, word: &str| {
        let status = server.run(&["status"]).unwrap().expect_ok();
        let doctor = server.run(&["doctor"]).unwrap();
        let says = [&status.stdout, &doctor.stdout].map(|told| told.contains(word));
        (says, doctor.code, status.text() + &doctor.text())
    };
    let (says, code, text) = tells(&server, "audit trail");
    assert_eq!((says, code), ([false, false], Some(0)), "{text}");
    let good = std::fs::read(&tile).unwrap();
    let mut changed = good.clone();
    changed[100] ^= 1;
    std::fs::write(&tile, changed).unwrap();
    server.restart().unwrap();
    token(&api, "t", "viewer").await;
    token(&api, "u", "viewer").await;
    let (says, code, text) = tells(&server, "2 records wait for their seal, the oldest for ");
    assert_eq!((says, code), ([true, true], Some(9)), "{text}");
    assert!(
        text.contains("the audit log was damaged when the server started")
            && text.contains("audit-unsealed.md"),
        "{text}"
    );
    std::fs::write(&tile, good).unwrap();
    server.restart().unwrap();
    sealed(&api, 264).await;
    let (says, code, text) = tells(&server, "audit trail");
    assert_eq!((says, code), ([false, false], Some(0)), "{text}");
}
