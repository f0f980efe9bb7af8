//! Makes evidence of every kind, good and bad: the tests' own keys, logs, entries and bundles.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use kernel::{Clock as _, Digest, SeededRandom, SystemClock};
use serde_json::{Value, json};
use signing::format::{Annotations, dsse, statement};
use signing::key::{LocalSigner, PublicKey, Signer as _};
use signing::trust::TrustRoot;
use signing::verify::{Authority, Policy};
use tlog::{HashedRekord, LogKey, merkle};

pub const V01: &str = "application/vnd.dev.sigstore.bundle+json;version=0.1";
pub const V02: &str = "application/vnd.dev.sigstore.bundle+json;version=0.2";
pub const V03: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
pub const ATTESTATION: &str = "https://example.com/verdict/v1";

pub fn now() -> Timestamp {
    SystemClock::new().now()
}

pub fn ago(seconds: i64) -> Timestamp {
    Timestamp::from_second(now().as_second() - seconds).unwrap()
}

pub fn b64(bytes: impl AsRef<[u8]>) -> String {
    BASE64.encode(bytes)
}

pub fn signer() -> LocalSigner {
    LocalSigner::generate().unwrap().0
}

pub fn annotations(pairs: &[(&str, &str)]) -> Annotations {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// A statement of any type about `image`.
pub fn statement_of(kind: &str, image: Digest) -> Vec<u8> {
    json!({
        "_type": "https://in-toto.io/Statement/v1", "predicateType": kind, "predicate": { "verdict": "REJECTED" },
        "subject": [{ "digest": { "sha256": image.hex() } }],
    })
    .to_string()
    .into_bytes()
}

/// Something that was signed: the bytes that the signature is over, and what a log is told of them.
pub struct Work {
    pub content: Value,
    pub rekord: HashedRekord,
    /// The bytes of the payload: of the statement, or of the message.
    pub payload: Vec<u8>,
}

/// A statement, signed.
pub fn dsse_work(signer: &LocalSigner, payload: &[u8]) -> Work {
    let pae = dsse::pae(dsse::IN_TOTO, payload);
    let signature = signer.sign_now(Digest::of(&pae)).unwrap();
    let content = json!({ "dsseEnvelope": {
        "payload": b64(payload), "payloadType": dsse::IN_TOTO, "signatures": [{ "sig": b64(&signature) }],
    }});
    Work {
        content,
        rekord: rekord(signer.public_key(), Digest::of(&pae), signature),
        payload: payload.to_vec(),
    }
}

/// The statement that `image` is signed, signed.
pub fn image_work(signer: &LocalSigner, image: Digest) -> Work {
    dsse_work(signer, &statement::write(&[image], &Annotations::new()))
}

/// A message, signed.
pub fn message_work(signer: &LocalSigner, message: &[u8]) -> Work {
    let digest = Digest::of(message);
    let signature = signer.sign_now(digest).unwrap();
    let content = json!({ "messageSignature": {
        "messageDigest": { "algorithm": "SHA2_256", "digest": b64(digest.as_bytes()) }, "signature": b64(&signature),
    }});
    Work {
        content,
        rekord: rekord(signer.public_key(), digest, signature),
        payload: message.to_vec(),
    }
}

pub fn rekord(key: &PublicKey, digest: Digest, signature: Vec<u8>) -> HashedRekord {
    HashedRekord {
        digest: digest.as_bytes().to_vec(),
        signature,
        verifier: tlog::Verifier::PublicKey(key.spki().to_vec()),
    }
}

/// A bundle around signed content.
pub fn bundle(media_type: &str, material: &Value, entries: &[Value], content: &Value) -> Value {
    let mut bundle = content.clone();
    bundle["mediaType"] = media_type.into();
    bundle["verificationMaterial"] = material.clone();
    if !entries.is_empty() {
        bundle["verificationMaterial"]["tlogEntries"] = entries.into();
    }
    bundle
}

pub fn by_hint(key: &PublicKey) -> Value {
    json!({ "publicKey": { "hint": key.hint() } })
}

/// A bundle of version 0.3 by a key.
pub fn key_bundle(signer: &LocalSigner, work: &Work, entries: &[Value]) -> Vec<u8> {
    bundle(V03, &by_hint(signer.public_key()), entries, &work.content)
        .to_string()
        .into_bytes()
}

/// A log of the second kind of Rekor, whose tree a test grows as it likes.
pub struct Rekor2 {
    key: LogKey,
    origin: String,
}

impl Rekor2 {
    pub fn new(name: &str) -> Self {
        let seed = Digest::of(name.as_bytes()).as_bytes()[..8].try_into().unwrap();
        let pkcs8 = LogKey::generate(&SeededRandom::new(u64::from_be_bytes(seed))).unwrap();
        let origin = format!("{name}.log.example");
        Self {
            key: LogKey::new(&origin, &pkcs8).unwrap(),
            origin,
        }
    }

    /// Its entry in a trusted root.
    pub fn trusted(&self, start: Timestamp, end: Option<Timestamp>) -> Value {
        let verifier = self.key.verifier();
        log_json(
            &self.origin,
            &verifier.spki(),
            "PKIX_ED25519",
            &verifier.log_id(),
            start,
            end,
        )
    }

    /// An entry in a tree of two, at index 1.
    pub fn entry(&self, rekord: &HashedRekord) -> Value {
        self.entry_of(&rekord.accept().unwrap().body)
    }

    pub fn entry_of(&self, body: &[u8]) -> Value {
        let (left, leaf) = (merkle::leaf_hash(b"before"), merkle::leaf_hash(body));
        let checkpoint = self.key.sign(2, merkle::node_hash(&left, &leaf));
        json!({
            "logIndex": "1", "logId": { "keyId": b64(self.key.verifier().log_id()) },
            "kindVersion": { "kind": "hashedrekord", "version": "0.0.2" }, "integratedTime": "0",
            "inclusionProof": {
                "logIndex": "1", "rootHash": b64(checkpoint.root), "treeSize": "2", "hashes": [b64(left)],
                "checkpoint": { "envelope": checkpoint.note },
            },
            "canonicalizedBody": b64(body),
        })
    }

    /// The checkpoint of a tree of one entry, which has no room for index 1.
    pub fn smaller_checkpoint(&self, body: &[u8]) -> String {
        self.key.sign(1, merkle::leaf_hash(body)).note
    }
}

/// A log of the first kind of Rekor: it promises with a signed time.
pub struct Rekor1 {
    pair: EcdsaKeyPair,
}

impl Rekor1 {
    pub fn new() -> Self {
        Self {
            pair: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap(),
        }
    }

    fn spki(&self) -> Vec<u8> {
        AsDer::<PublicKeyX509Der<'_>>::as_der(self.pair.public_key())
            .unwrap()
            .as_ref()
            .to_vec()
    }

    fn id(&self) -> Digest {
        Digest::of(&self.spki())
    }

    pub fn trusted(&self, start: Timestamp, end: Option<Timestamp>) -> Value {
        let id = self.id();
        log_json(
            "rekor.example",
            &self.spki(),
            "PKIX_ECDSA_P256_SHA_256",
            id.as_bytes(),
            start,
            end,
        )
    }

    /// The signed entry timestamp: ECDSA over the canonical JSON (RFC 8785) of the four members.
    pub fn promise(&self, body: &[u8], time: Timestamp, index: u64) -> String {
        let (body, id, time) = (b64(body), self.id().hex(), time.as_second());
        let text =
            format!(r#"{{"body":"{body}","integratedTime":{time},"logID":"{id}","logIndex":{index}}}"#);
        b64(self.pair.sign(&SystemRandom::new(), text.as_bytes()).unwrap())
    }

    /// An entry with a promise and no proof, as bundles of version 0.1 have it.
    pub fn entry(&self, kind: &str, body: &[u8], time: Timestamp) -> Value {
        json!({
            "logIndex": "7", "logId": { "keyId": b64(self.id().as_bytes()) },
            "kindVersion": { "kind": kind, "version": "0.0.1" }, "integratedTime": time.as_second().to_string(),
            "inclusionPromise": { "signedEntryTimestamp": self.promise(body, time, 7) },
            "canonicalizedBody": b64(body),
        })
    }

    /// The same as a legacy layer's annotation.
    pub fn annotation(&self, body: &[u8], time: Timestamp) -> String {
        json!({
            "SignedEntryTimestamp": self.promise(body, time, 7),
            "Payload": {
                "body": b64(body), "integratedTime": time.as_second(), "logIndex": 7, "logID": self.id().hex(),
            },
        })
        .to_string()
    }
}

/// The body of a `hashedrekord` 0.0.1.
pub fn hashedrekord1(digest: Digest, signature: &[u8], verifier_pem: &str) -> Vec<u8> {
    json!({
        "apiVersion": "0.0.1", "kind": "hashedrekord", "spec": {
            "data": { "hash": { "algorithm": "sha256", "value": digest.hex() } },
            "signature": { "content": b64(signature), "publicKey": { "content": b64(verifier_pem) } },
        },
    })
    .to_string()
    .into_bytes()
}

/// The body of a `dsse` 0.0.1.
pub fn dsse1(payload: &[u8], signature: &[u8], verifier_pem: &str) -> Vec<u8> {
    json!({
        "apiVersion": "0.0.1", "kind": "dsse", "spec": {
            "envelopeHash": { "algorithm": "sha256", "value": Digest::of(b"unknown").hex() },
            "payloadHash": { "algorithm": "sha256", "value": Digest::of(payload).hex() },
            "signatures": [{ "signature": b64(signature), "verifier": b64(verifier_pem) }],
        },
    })
    .to_string()
    .into_bytes()
}

fn log_json(
    name: &str,
    spki: &[u8],
    details: &str,
    id: &[u8],
    start: Timestamp,
    end: Option<Timestamp>,
) -> Value {
    let mut window = json!({ "start": start.to_string() });
    if let Some(end) = end {
        window["end"] = end.to_string().into();
    }
    json!({
        "baseUrl": format!("https://{name}"), "hashAlgorithm": "SHA2_256", "logId": { "keyId": b64(id) },
        "publicKey": { "rawBytes": b64(spki), "keyDetails": details, "validFor": window },
    })
}

/// A trusted root of these logs.
pub fn root(tlogs: &[Value]) -> std::sync::Arc<TrustRoot> {
    root_with(json!({ "tlogs": tlogs }))
}

pub fn root_with(mut parts: Value) -> std::sync::Arc<TrustRoot> {
    parts["mediaType"] = "application/vnd.dev.sigstore.trustedroot+json;version=0.1".into();
    std::sync::Arc::new(TrustRoot::from_json(&parts.to_string()).unwrap())
}

/// The same policy with its one authority changed.
pub fn changed(mut policy: Policy, change: impl FnOnce(&mut Authority)) -> Policy {
    change(&mut policy.authorities[0]);
    policy
}

/// A policy of one key.
pub fn by_key(signer: &LocalSigner) -> Policy {
    Policy::keys("test", vec![signer.public_key().clone()])
}
