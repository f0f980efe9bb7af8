//! The log seen from outside: what it answered, and every checkpoint that it ever showed.

use std::collections::BTreeMap;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use e2e::{Api, Server};
use kernel::Digest;
use serde_json::{Value, json};
use tlog::merkle::{Hash, leaf_hash, verify_inclusion};
use tlog::tile::{TILE_WIDTH, TilePath, parse_bundle};
use tlog::{Checkpoint, Files as _, Folder, LogVerifier};

/// The DER before a P-256 point in a SubjectPublicKeyInfo (RFC 5480).
const P256_SPKI_PREFIX: &str = "3059301306072a8648ce3d020106082a8648ce3d030107034200";

/// An entry that was acknowledged: where it is, and its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledged {
    pub index: u64,
    pub body: Vec<u8>,
}

/// What somebody who watches the log remembers of it.
pub struct Ledger {
    verifier: LogVerifier,
    seen: Vec<Checkpoint>,
}

impl Ledger {
    /// Learns the log's key, once: another key later is another log.
    pub async fn new(api: &Api) -> Self {
        let root = api.get("/api/v1/trust/trusted_root.json").await.unwrap().body;
        let log = &root["tlogs"][0];
        let origin = log["baseUrl"].as_str().unwrap().strip_prefix("https://").unwrap();
        let key = BASE64
            .decode(log["publicKey"]["rawBytes"].as_str().unwrap())
            .unwrap();
        Self {
            verifier: LogVerifier::from_spki(origin, &key).unwrap(),
            seen: Vec::new(),
        }
    }

    /// Looks at the checkpoint: it is signed by the log and not smaller than any before.
    pub async fn look(&mut self, api: &Api) -> u64 {
        let note = String::from_utf8(api.bytes("/api/v2/checkpoint").await.unwrap()).unwrap();
        self.remember(&note)
    }

    /// A checkpoint that was kept elsewhere.
    pub fn remember(&mut self, note: &str) -> u64 {
        let checkpoint = self.verifier.verify(note).unwrap();
        let size = checkpoint.size;
        if let Some(last) = self.seen.last() {
            assert!(size >= last.size, "the log shrank from {} to {size}", last.size);
        }
        self.seen.push(checkpoint);
        size
    }

    /// Checks an answer to an entry: the proof leads from the entry to a root that the log signed.
    pub fn check(&self, answer: &Value) -> Acknowledged {
        let number = |value: &Value| value.as_str().unwrap().parse::<u64>().unwrap();
        let bytes = |value: &Value| BASE64.decode(value.as_str().unwrap()).unwrap();
        let hash = |value: &Value| -> Hash { bytes(value).try_into().unwrap() };
        let proof = &answer["inclusionProof"];
        let body = bytes(&answer["canonicalizedBody"]);
        let index = number(&answer["logIndex"]);
        let checkpoint = self
            .verifier
            .verify(proof["checkpoint"]["envelope"].as_str().unwrap())
            .unwrap();
        let hashes: Vec<Hash> = proof["hashes"].as_array().unwrap().iter().map(hash).collect();
        assert_eq!(number(&proof["treeSize"]), checkpoint.size);
        verify_inclusion(
            &leaf_hash(&body),
            index,
            checkpoint.size,
            &hashes,
            &checkpoint.root,
        )
        .unwrap();
        Acknowledged { index, body }
    }

    /// Copies the log out and goes through all of it: every tile hashes to the checkpoint, every checkpoint
    /// ever seen is an earlier state of the same log, every acknowledged entry is where it was said to be.
    pub async fn audit(&mut self, server: &Server, acknowledged: &[Acknowledged]) {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("log").display().to_string();
        server.run(&["log", "export", &to]).unwrap().expect_ok();
        server.run(&["log", "fsck"]).unwrap().expect_ok();
        server.run(&["log", "fsck", &to]).unwrap().expect_ok();
        let copy = Folder::open(to.as_ref(), Some(self.verifier.clone()))
            .await
            .unwrap();
        let size = self.remember(&copy.checkpoint().note.clone());
        for pair in self.seen.windows(2) {
            let known = copy.consistency(pair[0].size, pair[1].size).await.unwrap();
            assert_eq!(
                known.old_root, pair[0].root,
                "a fork: another log of {} entries",
                pair[0].size
            );
            assert_eq!(
                known.new_root, pair[1].root,
                "a fork: another log of {} entries",
                pair[1].size
            );
        }
        // `log fsck` has led every bundle of the copy to the checkpoint, so reading each of them once is enough.
        let mut by_bundle: BTreeMap<u64, Vec<&Acknowledged>> = BTreeMap::new();
        for entry in acknowledged {
            assert!(entry.index < size, "entry {} is gone", entry.index);
            by_bundle.entry(entry.index / TILE_WIDTH).or_default().push(entry);
        }
        for (bundle, expected) in by_bundle {
            let path = TilePath::bundle(bundle).with_width(TilePath::width_at(None, bundle, size));
            let bytes = copy.files().file(path).await.unwrap().unwrap();
            let entries = parse_bundle(&bytes, path.width).unwrap();
            for entry in expected {
                let at = usize::try_from(entry.index % TILE_WIDTH).unwrap();
                assert!(entries[at] == entry.body, "entry {} is another", entry.index);
            }
        }
    }
}

/// Makes requests to log signatures; each is another one.
pub struct Signatures {
    key: EcdsaKeyPair,
    made: u64,
}

impl Signatures {
    pub fn new() -> Self {
        Self {
            key: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap(),
            made: 0,
        }
    }

    fn next(&mut self) -> ([u8; 32], Vec<u8>, Vec<u8>) {
        self.made += 1;
        let message = format!("message {}", self.made);
        let signature = self.key.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        let key = [&hex(P256_SPKI_PREFIX)[..], self.key.public_key().as_ref()].concat();
        (
            *Digest::of(message.as_bytes()).as_bytes(),
            signature.as_ref().to_vec(),
            key,
        )
    }

    /// A request as cosign sends it.
    pub fn request(&mut self) -> Value {
        let (digest, signature, key) = self.next();
        json!({ "hashedRekordRequestV002": {
            "digest": BASE64.encode(digest),
            "signature": {
                "content": BASE64.encode(signature),
                "verifier": {
                    "publicKey": { "rawBytes": BASE64.encode(key) },
                    "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                },
            },
        } })
    }

    /// The same for a log in this process.
    pub fn entry(&mut self) -> tlog::HashedRekord {
        let (digest, signature, key) = self.next();
        tlog::HashedRekord {
            digest: digest.to_vec(),
            signature,
            verifier: tlog::Verifier::PublicKey(key),
        }
    }
}

fn hex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digit).collect()
}

/// Sends requests, at most 64 at a time, until all are answered or the server is gone. The answer has what was
/// acknowledged, by the number of the request.
pub async fn send(api: &Api, ledger: &Ledger, requests: &[Value]) -> Vec<(usize, Acknowledged)> {
    use futures::StreamExt as _;
    let one = |(at, request)| async move {
        // No whole answer: what became of it is unknown, and nothing was promised.
        let answer = api.post("/api/v2/log/entries", request).await.ok()?;
        (answer.status == 201).then_some((at, answer.body))
    };
    let answers: Vec<_> = futures::stream::iter(requests.iter().enumerate().map(one))
        .buffer_unordered(64)
        .collect()
        .await;
    answers
        .into_iter()
        .flatten()
        .map(|(at, body)| (at, ledger.check(&body)))
        .collect()
}

/// How many times over the kill tests do their kills: once in the test run, `$PORTCULLIS_KILLS_TIMES` in
/// `cargo xtask bench kill`.
pub fn times() -> u32 {
    let text = std::env::var("PORTCULLIS_KILLS_TIMES").unwrap_or_default();
    text.parse().unwrap_or(1)
}
