//! The fuzz targets, for a second each, on examples that were changed a little. The same functions run for hours under
//! `cargo +nightly fuzz run TARGET`.

use kernel::{Digest, Random as _, SeededRandom};
use signing::format::{Annotations, legacy, referrer};
use signing::key::Signer as _;
use signing::trust::{LogIdentity, trusted_root};

use crate::ca::Ca;
use crate::forge::*;

#[path = "../../../../fuzz/src/lib.rs"]
mod targets;

/// An audit record as it is sealed.
const AUDIT_RECORD: &str = r#"{"action":"token.create","actor":"token ci (tok_1)","at_us":1700000000000000,"code":"","detail":"d","id":"aud_1","outcome":"success","project":"default","request_id":"req_1","resource":"tok_1","times":1}"#;

/// Changes of each example.
const ROUNDS: usize = 1_500;
/// The same for those that derive a key from a password when they get far.
const SLOW_ROUNDS: usize = 60;

struct Dice(SeededRandom);

impl Dice {
    fn below(&self, limit: usize) -> usize {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        usize::try_from(u64::from_be_bytes(bytes) % limit.max(1) as u64).unwrap()
    }

    /// One to four changes: a bit, a byte, a cut, a piece twice, a piece of another example.
    fn change(&self, example: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
        let mut out = example.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(out.len());
            match self.below(6) {
                0 if !out.is_empty() => out[at] ^= 1 << self.below(8),
                1 if !out.is_empty() => out[at] = b"\0\"\\{}[]:/@.,-_9 \xff\n"[self.below(17)],
                2 => out.truncate(at),
                3 => out.insert(at, b"\"{[0/:\0"[self.below(7)]),
                4 => {
                    let piece = out[at..out.len().min(at + self.below(40))].to_vec();
                    out.splice(at..at, piece);
                }
                _ => {
                    let other = &others[self.below(others.len())];
                    let from = self.below(other.len());
                    let piece = other[from..other.len().min(from + self.below(60))].to_vec();
                    out.splice(at..at, piece);
                }
            }
        }
        out
    }
}

/// A small backup, or what is in it.
fn backup(target: &str) -> Vec<u8> {
    use store::archive::{Column, ColumnKind, LogState, Manifest, PartWriter, Writer};
    let column = |name: &str, kind| Column {
        name: name.to_owned(),
        kind,
    };
    let columns = [column("id", ColumnKind::Text), column("bytes", ColumnKind::Blob)];
    let mut part = PartWriter::new("one", &columns);
    part.row(&[store::Value::from("a\n"), store::Value::from(&[0, 255][..])]);
    part.row(&[store::Value::from(""), store::Value::Blob(None)]);
    let part = part.take();
    let manifest = Manifest {
        program: "0.1.0".to_owned(),
        made_at: "2026-01-01T00:00:00Z".to_owned(),
        secrets: true,
        schema: [("one".to_owned(), 1)].into(),
        rows: [("one".to_owned(), 2)].into(),
        logs: vec![LogState {
            name: "tlog".to_owned(),
            origin: "log.example".to_owned(),
            public_key: "PEM".to_owned(),
            size: 1,
            tiled: 0,
            checkpoint: "log.example\n1\n".to_owned(),
        }],
        members: Vec::new(),
    };
    let mut writer = Writer::new(Vec::new()).unwrap();
    writer.add("tables/one/00000001", &part).unwrap();
    writer.add("secrets/log.json", b"{}").unwrap();
    let (archive, manifest) = writer.finish(manifest).unwrap();
    match target {
        "backup_archive" => archive,
        "backup_manifest" => manifest.render().unwrap(),
        _ => part,
    }
}

fn examples(target: &str) -> Vec<Vec<u8>> {
    let (signer, image, log) = (signer(), Digest::of(targets::IMAGE), Rekor2::new("fuzz"));
    let work = image_work(&signer, image);
    let entry = log.entry(&work.rekord);
    let pem = signer.public_key().to_pem();
    let repository = "r.example:5000/team/app".parse().unwrap();
    let texts: Vec<String> = match target {
        "audit_export_line" => vec![format!(
            r#"{{"sequence":7,"at":"2023-11-14T22:13:20Z","record":{AUDIT_RECORD},"proof":["{}"]}}"#,
            "01".repeat(32)
        )],
        "audit_record" => vec![AUDIT_RECORD.to_owned()],
        "backup_archive" | "backup_manifest" | "backup_part" => return vec![backup(target)],
        "bundle" => {
            let file = message_work(&signer, targets::IMAGE);
            return vec![
                key_bundle(&signer, &work, &[entry]),
                key_bundle(&signer, &file, &[]),
            ];
        }
        "certificate" | "tls_certificate" => {
            let ca = Ca::new((60, -60), (60, -60));
            return vec![ca.issue((30, -30)).der, signer.public_key().spki().to_vec()];
        }
        "challenge" => vec![
            r#"Bearer realm="https://auth.example/token",service="r.example",scope="repository:a:pull""#
                .to_owned(),
            "Basic realm=x\nbearer Realm = \"https://r/t\\\"\" , SERVICE=s".to_owned(),
        ],
        "checkpoint" => vec![
            entry["inclusionProof"]["checkpoint"]["envelope"]
                .as_str()
                .unwrap()
                .to_owned(),
        ],
        "credential_helper" => vec![
            r#"{"ServerURL":"https://r.example","Username":"robot","Secret":"a-secret-of-a-registry-user"}"#
                .to_owned(),
            r#"{"Username":"<token>","Secret":"an-identity-token-of-a-registry"}"#.to_owned(),
        ],
        "cursor" => vec![kernel::Cursor::after("sig_0123456789").encode()],
        "digest" => vec![image.to_string()],
        "docker_config" => vec![
            serde_json::json!({
                "auths": { "https://r.example:5000/v1/": { "auth": b64(b"robot:secret") }, "b.example": {} },
                "credHelpers": { "c.example": "pass" }, "credsStore": "desktop",
            })
            .to_string(),
            serde_json::json!({ "auths": { "r.example:5000": { "identitytoken": "token" } } }).to_string(),
        ],
        "entry_bundle" => {
            let body = work.rekord.accept().unwrap().body;
            return vec![tlog::tile::encode_bundle(&[body.clone(), body]).unwrap()];
        }
        "http_date" => vec!["Wed, 21 Oct 2015 07:28:00 GMT".to_owned()],
        "image_index" | "image_manifest" => {
            let entry = serde_json::json!({
                "mediaType": referrer::IMAGE_MANIFEST, "digest": image, "size": 7, "artifactType": "text/plain",
                "annotations": { "a": "b" },
            });
            vec![
                serde_json::json!({
                    "schemaVersion": 2, "mediaType": referrer::IMAGE_INDEX, "manifests": [entry.clone(), entry],
                })
                .to_string(),
                serde_json::json!({ "schemaVersion": 2, "config": {}, "layers": [] }).to_string(),
            ]
        }
        "image_policy" => vec![
            serde_json::json!({
                "apiVersion": "policy.sigstore.dev/v1beta1", "kind": "ClusterImagePolicy",
                "metadata": { "name": "release" },
                "spec": { "images": [{ "glob": "r.example/**" }], "mode": "warn", "authorities": [
                    { "name": "a", "key": { "data": pem, "hashAlgorithm": "sha256" }, "signatureFormat": "bundle" },
                    { "key": { "data": pem }, "ctlog": { "url": "https://fuzz.log.example" } },
                    { "keyless": { "identities": [{ "subjectRegExp": "^a+", "issuer": "b" }] } },
                ] },
            })
            .to_string(),
            serde_json::json!({
                "apiVersion": "policy.sigstore.dev/v1alpha1", "kind": "ClusterImagePolicy",
                "metadata": { "name": "x" },
                "spec": { "images": [{ "glob": "**" }], "authorities": [{ "key": { "data": pem } }] },
            })
            .to_string(),
            serde_json::json!({
                "apiVersion": "policy.sigstore.dev/v1beta1", "kind": "ClusterImagePolicy",
                "metadata": { "name": "owed" },
                "spec": { "images": [{ "glob": "**" }], "authorities": [
                    { "key": { "data": pem }, "log": "within 90m" },
                    { "key": { "data": pem }, "log": "required" },
                ] },
            })
            .to_string(),
        ],
        "key_file" => vec![include_str!("fixtures/cosign-3.1.3.key").to_owned()],
        "legacy_layer" => {
            let log = Rekor1::new();
            let body = hashedrekord1(image, b"signature", &pem);
            vec![
                serde_json::json!({
                    legacy::SIGNATURE: b64(b"signature"),
                    "dev.sigstore.cosign/bundle": log.annotation(&body, ago(0)),
                    "dev.sigstore.cosign/certificate": pem,
                    "dev.sigstore.cosign/rfc3161timestamp": r#"{"SignedRFC3161Timestamp":"AAAA"}"#,
                })
                .to_string(),
            ]
        }
        "legacy_manifest" => {
            let payload = legacy::payload(&repository, image, &Annotations::new());
            let signature = signer.sign_now(Digest::of(&payload)).unwrap();
            return vec![
                legacy::add(None, signer.public_key(), &payload, &signature)
                    .unwrap()
                    .unwrap()
                    .bytes,
            ];
        }
        "link" => vec![
            r#"</v2/team/app/referrers/x?last=y&n=10>; rel="next""#.to_owned(),
            "<https://r.example:5000/p>; rel=prev, <//r.example:5000/n>; rel=next".to_owned(),
        ],
        "location" => vec![
            "/v2/team/app/blobs/uploads/7?_state=x".to_owned(),
            "https://storage.example:443/a?X-Signature=0".to_owned(),
        ],
        "log_public_key" => {
            let pkcs8 = tlog::LogKey::generate(&SeededRandom::new(1)).unwrap();
            let key = tlog::LogKey::new("fuzz", &pkcs8).unwrap();
            return vec![key.verifier().pem().into_bytes(), key.verifier().spki()];
        }
        "pattern" => vec!["r.example/team/app".to_owned(), "*.example/team/**".to_owned()],
        "public_key" => return vec![pem.into_bytes(), signer.public_key().spki().to_vec()],
        "reference" => vec![
            format!("r.example:5000/team/app:v1@{image}"),
            "localhost/a".to_owned(),
            "[::1]:5000/a/b".to_owned(),
            "alpine".to_owned(),
        ],
        "registry_error" => {
            vec![r#"{"errors":[{"code":"DENIED","message":"no\nway","detail":{}}]}"#.to_owned()]
        }
        "registry_token" => vec![
            r#"{"token":"a.b.c","expires_in":300,"issued_at":"2026-01-01T00:00:00Z"}"#.to_owned(),
            r#"{"access_token":"a.b.c","refresh_token":"x"}"#.to_owned(),
        ],
        "rekor_answer" => {
            let (note, hash) = (&entry["inclusionProof"]["checkpoint"]["envelope"], image.hex());
            let v1 = serde_json::json!({ "24296fb24b8ad77a": {
                "body": "e30=", "integratedTime": 7, "logIndex": 3, "logID": hash,
                "verification": { "signedEntryTimestamp": "", "inclusionProof": {
                    "checkpoint": note, "hashes": [hash], "logIndex": 2, "rootHash": hash, "treeSize": 3,
                }},
            }});
            vec![
                note.as_str().unwrap().to_owned(),
                serde_json::json!({ "signedTreeHead": note, "treeID": "1", "treeSize": 1 }).to_string(),
                serde_json::json!({ "rootHash": hash, "hashes": [hash] }).to_string(),
                v1.to_string(),
                entry.to_string(),
                r#"{"code":6,"message":"an equivalent entry\nis there"}"#.to_owned(),
                r#"{"tlogs":[{"baseUrl":"https://a","publicKey":{"rawBytes":"","validFor":{"end":"2030-01-01T00:00:00Z"}}}]}"#
                    .to_owned(),
            ]
        }
        "issuer_description" => vec![
            r#"{"issuer":"https://ci.example","jwks_uri":"https://ci.example/keys"}"#.to_owned(),
            "https://ci.example:8443/sub".to_owned(),
        ],
        "issuer_keys" => vec![
            targets::ISSUER_KEYS.to_owned(),
            format!(
                r#"{{"keys":[{{"kty":"RSA","use":"sig","kid":"k1","n":"{}","e":"AQAB"}}]}}"#,
                "x".repeat(342)
            ),
        ],
        "workload_token" => vec![
            format!(
                "{}\n{}",
                r#"{"alg":"ES256","kid":"k1","typ":"JWT"}"#,
                r#"{"iss":"https://ci.example","sub":"s","aud":["a"],"exp":9,"nbf":1,"iat":1,"repository_id":"74"}"#
            ),
            "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UifQ.AAAA".to_owned(),
        ],
        "rekor_request" => vec![
            serde_json::json!({ "hashedRekordRequestV002": {
                "digest": b64(&work.rekord.digest),
                "signature": { "content": b64(&work.rekord.signature), "verifier": {
                    "publicKey": { "rawBytes": b64(signer.public_key().spki()) },
                    "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                }},
            }})
            .to_string(),
        ],
        "retry_after" => vec!["120".to_owned(), "Wed, 21 Oct 2015 07:28:00 GMT".to_owned()],
        "simple_signing" => return vec![legacy::payload(&repository, image, &annotations(&[("a", "b")]))],
        "statement_json" => return vec![work.payload],
        "tile_hashes" => return vec![image.as_bytes().repeat(2)],
        "tile_path" => vec!["0/x001/x234/067".to_owned(), "entries/000.p/5".to_owned()],
        "token" => vec![
            access::TokenText::generate(&SeededRandom::new(1))
                .expose()
                .to_owned(),
        ],
        "trust_root" => vec![trusted_root(&LogIdentity {
            origin: "a.example".to_owned(),
            public_key: signer.public_key().spki().to_vec(),
            id: image.as_bytes().to_vec(),
            since: ago(0),
        })],
        other => panic!("there is no example for {other}"),
    };
    texts.into_iter().map(String::into_bytes).collect()
}

#[test]
fn no_parser_of_outside_bytes_breaks_on_what_is_almost_right() {
    for (name, target) in targets::TARGETS {
        let dice = Dice(SeededRandom::new(7));
        let examples = examples(name);
        let rounds = if *name == "key_file" { SLOW_ROUNDS } else { ROUNDS };
        for example in &examples {
            target(example);
            for _ in 0..rounds / examples.len() {
                target(&dice.change(example, &examples));
            }
        }
    }
}

#[test]
fn every_target_has_its_file_and_is_built() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz");
    let manifest = std::fs::read_to_string(format!("{folder}/Cargo.toml")).unwrap();
    for (name, _) in targets::TARGETS {
        let text = std::fs::read_to_string(format!("{folder}/fuzz_targets/{name}.rs")).unwrap();
        assert!(text.contains(&format!("fuzz::{name}(bytes)")), "{name}");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
    let files = std::fs::read_dir(format!("{folder}/fuzz_targets"))
        .unwrap()
        .count();
    assert_eq!(files, targets::TARGETS.len());
}
