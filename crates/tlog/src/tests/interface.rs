//! The HTTP interface, as clients of Rekor v2 use it.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::merkle::{Hash, verify_inclusion};
use crate::router;
use crate::tile::{parse_bundle, parse_hashes};

async fn call(tlog: &Tlog, request: Request<Body>) -> (StatusCode, Vec<u8>) {
    let answer = router(tlog.clone()).oneshot(request).await.unwrap();
    let status = answer.status();
    (
        status,
        answer.into_body().collect().await.unwrap().to_bytes().to_vec(),
    )
}

async fn post(tlog: &Tlog, body: impl Into<Body>) -> (StatusCode, Value) {
    let request = Request::post("/api/v2/log/entries").body(body.into()).unwrap();
    let (status, body) = call(tlog, request).await;
    (status, serde_json::from_slice(&body).unwrap())
}

async fn read(tlog: &Tlog, path: &str) -> (StatusCode, Vec<u8>) {
    call(tlog, Request::get(path).body(Body::empty()).unwrap()).await
}

/// The request as sigstore-go writes it.
fn request(entry: &HashedRekord) -> Value {
    json!({"hashedRekordRequestV002": {
        "digest": STANDARD.encode(&entry.digest),
        "signature": {
            "content": STANDARD.encode(&entry.signature),
            "verifier": {
                "publicKey": {"rawBytes": STANDARD.encode(entry.verifier.spki().unwrap())},
                "keyDetails": "PKIX_ECDSA_P256_SHA_256",
            },
        },
    }})
}

fn hash(value: &Value) -> Hash {
    STANDARD
        .decode(value.as_str().unwrap())
        .unwrap()
        .try_into()
        .unwrap()
}

#[tokio::test]
async fn an_entry_comes_back_with_everything_that_verifies_it() {
    let data = Data::new();
    let tlog = data.open().await;
    fill(&tlog, 0, 300).await;
    let entry = signed("message");
    let (status, answer) = post(&tlog, request(&entry).to_string()).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    assert_eq!(answer["logIndex"], "300");
    assert_eq!(
        answer["kindVersion"],
        json!({"kind": "hashedrekord", "version": "0.0.2"})
    );
    assert_eq!(hash(&answer["logId"]["keyId"]), tlog.verifier().log_id());
    let body = STANDARD
        .decode(answer["canonicalizedBody"].as_str().unwrap())
        .unwrap();
    assert_eq!(body, entry.accept().unwrap().body);
    let proof = &answer["inclusionProof"];
    let checkpoint = tlog
        .verifier()
        .verify(proof["checkpoint"]["envelope"].as_str().unwrap())
        .unwrap();
    assert_eq!(proof["treeSize"], checkpoint.size.to_string());
    assert_eq!(hash(&proof["rootHash"]), checkpoint.root);
    let hashes: Vec<Hash> = proof["hashes"].as_array().unwrap().iter().map(hash).collect();
    verify_inclusion(&leaf_hash(&body), 300, checkpoint.size, &hashes, &checkpoint.root).unwrap();

    let (status, again) = post(&tlog, request(&entry).to_string()).await;
    assert_eq!((status, &again["logIndex"]), (StatusCode::CREATED, &json!("300")));
}

#[tokio::test]
async fn a_dsse_request_of_an_older_cosign_is_logged_as_hashedrekord() {
    let data = Data::new();
    let tlog = data.open().await;
    let entry = signed("DSSEv1 4 text 5 hello");
    let verifier = request(&entry)["hashedRekordRequestV002"]["signature"]["verifier"].clone();
    let dsse = json!({"dsseRequestV002": {
        "envelope": {
            "payload": STANDARD.encode("hello"), "payloadType": "text",
            "signatures": [{"sig": STANDARD.encode(&entry.signature), "keyid": ""}],
        },
        "verifiers": [verifier],
    }});
    let (status, answer) = post(&tlog, dsse.to_string()).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    let body = STANDARD
        .decode(answer["canonicalizedBody"].as_str().unwrap())
        .unwrap();
    assert_eq!(body, entry.accept().unwrap().body);
    // The newer request for the same signature is the same entry.
    assert_eq!(
        post(&tlog, request(&entry).to_string()).await.1["logIndex"],
        answer["logIndex"]
    );
}

#[tokio::test]
async fn bad_requests_are_refused_in_the_words_of_grpc_gateway() {
    let data = Data::new();
    let tlog = data.open().await;
    let mut forged = signed("message");
    forged.digest[0] ^= 1;
    for (body, status, code, says) in [
        (request(&forged).to_string(), 400, 3, "PC1411"),
        ("{}".to_owned(), 400, 3, "PC1413"),
        ("[".repeat(10_000), 400, 3, "deeper"),
        (
            " ".repeat(kernel::limits::REQUEST_BYTES_MAX + 1),
            413,
            8,
            "REQUEST_BYTES_MAX",
        ),
    ] {
        let (found, answer) = post(&tlog, body).await;
        assert_eq!(
            (found.as_u16(), &answer["code"]),
            (status, &json!(code)),
            "{answer}"
        );
        assert!(answer["message"].as_str().unwrap().contains(says), "{answer}");
    }
    assert_eq!(tlog.checkpoint().await.unwrap().size, 0);
}

#[tokio::test]
async fn tiles_are_served_at_every_width_and_agree_with_the_checkpoint() {
    let data = Data::new();
    let tlog = data.open().await;
    fill(&tlog, 0, 600).await;
    tiled(&tlog).await;
    let (_, note) = read(&tlog, "/api/v2/checkpoint").await;
    assert_eq!(
        tlog.verifier()
            .verify(&String::from_utf8(note).unwrap())
            .unwrap()
            .size,
        600
    );
    for (path, width) in [
        ("0/000", 256),
        ("0/001", 256),
        ("0/001.p/7", 7),
        ("0/002.p/88", 88),
        ("1/000.p/2", 2),
    ] {
        let (status, bytes) = read(&tlog, &format!("/api/v2/tile/{path}")).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        let hashes = parse_hashes(&bytes, width).unwrap();
        if let Some(start) = path
            .strip_prefix("0/00")
            .and_then(|rest| rest[..1].parse::<u64>().ok())
        {
            assert_eq!(hashes[1], accepted(start * 256 + 1).leaf);
        }
    }
    for (path, width) in [
        ("entries/000", 256),
        ("entries/001.p/3", 3),
        ("entries/002.p/88", 88),
    ] {
        let (status, bytes) = read(&tlog, &format!("/api/v2/tile/{path}")).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        assert_eq!(parse_bundle(&bytes, width).unwrap().len(), usize::from(width));
    }
    for path in [
        "0/002",
        "0/002.p/89",
        "0/003.p/1",
        "1/000",
        "2/000.p/1",
        "entries/002",
        "7/x999/x999/x999/x999/x999/999",
    ] {
        assert_eq!(
            read(&tlog, &format!("/api/v2/tile/{path}")).await.0,
            StatusCode::NOT_FOUND,
            "{path}"
        );
    }
    for path in ["9/000", "0/0", "0/000.p/0", "0/000.p/256", "entries/abc", "x/000"] {
        assert_eq!(
            read(&tlog, &format!("/api/v2/tile/{path}")).await.0,
            StatusCode::BAD_REQUEST,
            "{path}"
        );
    }
}
