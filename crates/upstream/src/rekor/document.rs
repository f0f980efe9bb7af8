//! What a Rekor's answers mean (rekor `openapi.yaml`; rekor-tiles `rekor_service.proto`). Pure, and for any bytes an
//! answer or an error: each error says in a few words what the bytes are instead.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use kernel::limits::too_deep;
use serde::Deserialize;
use serde_json::value::RawValue;
use tlog::Checkpoint;
use tlog::merkle::Hash;

/// Hashes of a proof at most: a tree of 2^64 entries has no longer one.
const PROOF_HASHES_MAX: usize = 130;

/// A log in a trusted root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootLog {
    pub base_url: String,
    /// SubjectPublicKeyInfo, base64.
    pub raw_bytes: String,
    pub ends: Option<Timestamp>,
}

/// An entry with the proof of its inclusion, as either API gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Included {
    /// Its index in the log; over all trees with Rekor v1.
    pub log_index: u64,
    /// Its index in the tree of the proof.
    pub tree_index: u64,
    pub size: u64,
    pub hashes: Vec<Hash>,
    pub checkpoint: String,
    pub body: Vec<u8>,
    /// When Rekor v1 says it was logged.
    pub at: Option<Timestamp>,
    /// Rekor v1's promise, a signature over time, place and body; empty where it gave none. It is handed on unchecked:
    /// whoever verifies with it checks it.
    pub promise: String,
}

/// Reads JSON that does not nest deeper than our own limit.
fn json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    if too_deep(bytes) {
        return Err("it nests too deep".to_owned());
    }
    serde_json::from_slice(bytes).map_err(|error| kernel::words(&format!("it does not read: {error}")))
}

/// The body of `/api/v2/checkpoint`: a signed note. Whether the signature is right is not looked at.
///
/// # Errors
/// If it is not one.
pub fn note(bytes: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text".to_owned())?;
    let checkpoint = Checkpoint::parse(text).map_err(|_| "it is not a signed checkpoint".to_owned())?;
    Ok(checkpoint.note)
}

/// `signedTreeHead` of `/api/v1/log`, a signed note as in [`note`].
///
/// # Errors
/// If the answer has none.
pub fn signed_tree_head(bytes: &[u8]) -> Result<String, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct LogInfo {
        signed_tree_head: String,
    }
    note(json::<LogInfo>(bytes)?.signed_tree_head.as_bytes())
}

/// The hashes of `/api/v1/log/proof`.
///
/// # Errors
/// If the answer is not a proof.
pub fn consistency_proof(bytes: &[u8]) -> Result<Vec<Hash>, String> {
    #[derive(Deserialize)]
    struct Proof {
        hashes: Vec<String>,
    }
    hashes(&json::<Proof>(bytes)?.hashes, |text| hex::decode(text).ok())
}

fn hashes(texts: &[String], decode: impl Fn(&str) -> Option<Vec<u8>>) -> Result<Vec<Hash>, String> {
    if texts.len() > PROOF_HASHES_MAX {
        return Err(format!("a proof of {} hashes", texts.len()));
    }
    let hash = |text: &String| decode(text).and_then(|bytes| Hash::try_from(bytes).ok());
    let all: Option<Vec<Hash>> = texts.iter().map(hash).collect();
    all.ok_or_else(|| "its proof has something that is no hash".to_owned())
}

/// An entry of `/api/v1/log/entries`: an object of one member, named after the entry.
///
/// # Errors
/// If it is not one, or lacks the proof.
pub fn v1_entry(bytes: &[u8]) -> Result<Included, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Entry {
        body: String,
        integrated_time: i64,
        log_index: u64,
        verification: Verification,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Verification {
        inclusion_proof: Proof,
        #[serde(default)]
        signed_entry_timestamp: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Proof {
        checkpoint: String,
        hashes: Vec<String>,
        log_index: u64,
        tree_size: u64,
    }
    let entries: std::collections::BTreeMap<String, Entry> = json(bytes)?;
    let mut entries = entries.into_values();
    let (Some(entry), None) = (entries.next(), entries.next()) else {
        return Err("it is not exactly one entry".to_owned());
    };
    let proof = entry.verification.inclusion_proof;
    Ok(Included {
        log_index: entry.log_index,
        tree_index: proof.log_index,
        size: proof.tree_size,
        hashes: hashes(&proof.hashes, |text| hex::decode(text).ok())?,
        checkpoint: proof.checkpoint,
        body: base64(&entry.body)?,
        at: Timestamp::from_second(entry.integrated_time).ok(),
        promise: STANDARD
            .decode(&entry.verification.signed_entry_timestamp)
            .map(|promise| STANDARD.encode(promise))
            .unwrap_or_default(),
    })
}

/// The `TransparencyLogEntry` that `/api/v2/log/entries` answers (sigstore `sigstore_rekor.proto`).
///
/// # Errors
/// If it is not one, or lacks the proof.
pub fn v2_entry(bytes: &[u8]) -> Result<Included, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Entry {
        #[serde(default, deserialize_with = "number")]
        log_index: u64,
        inclusion_proof: Proof,
        canonicalized_body: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Proof {
        #[serde(default, deserialize_with = "number")]
        log_index: u64,
        #[serde(deserialize_with = "number")]
        tree_size: u64,
        // protobuf leaves an empty list out: the only entry of a log has no hashes.
        #[serde(default)]
        hashes: Vec<String>,
        checkpoint: Note,
    }
    #[derive(Deserialize)]
    struct Note {
        envelope: String,
    }
    let entry: Entry = json(bytes)?;
    let proof = entry.inclusion_proof;
    Ok(Included {
        log_index: entry.log_index,
        tree_index: proof.log_index,
        size: proof.tree_size,
        hashes: hashes(&proof.hashes, |text| STANDARD.decode(text).ok())?,
        checkpoint: proof.checkpoint.envelope,
        body: base64(&entry.canonicalized_body)?,
        at: None,
        promise: String::new(),
    })
}

/// A proven entry of a Rekor v1 as the `TransparencyLogEntry` of a bundle (sigstore `sigstore_rekor.proto`).
///
/// # Errors
/// Those of serialisation, which strings do not cause.
pub fn v1_evidence(
    log_id: &Hash,
    included: &Included,
    checkpoint: &Checkpoint,
) -> Result<Box<RawValue>, String> {
    let hashes: Vec<String> = included.hashes.iter().map(|hash| STANDARD.encode(hash)).collect();
    let mut entry = serde_json::json!({
        "logIndex": included.log_index.to_string(),
        "logId": { "keyId": STANDARD.encode(log_id) },
        "kindVersion": { "kind": "hashedrekord", "version": "0.0.1" },
        "integratedTime": included.at.map_or(0, Timestamp::as_second).to_string(),
        "inclusionProof": {
            "logIndex": included.tree_index.to_string(),
            "rootHash": STANDARD.encode(checkpoint.root),
            "treeSize": included.size.to_string(),
            "hashes": hashes,
            "checkpoint": { "envelope": included.checkpoint },
        },
        "canonicalizedBody": STANDARD.encode(&included.body),
    });
    if !included.promise.is_empty() {
        entry["inclusionPromise"] = serde_json::json!({ "signedEntryTimestamp": included.promise });
    }
    serde_json::value::to_raw_value(&entry).map_err(|error| error.to_string())
}

fn base64(text: &str) -> Result<Vec<u8>, String> {
    STANDARD
        .decode(text)
        .map_err(|_| "its body is not base64".to_owned())
}

/// A 64-bit number, which protobuf's JSON writes as text.
fn number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Text(String),
        Plain(u64),
    }
    match Number::deserialize(deserializer)? {
        Number::Plain(number) => Ok(number),
        Number::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}

/// The logs of a `trusted_root.json` (sigstore `sigstore_trustroot.proto`).
///
/// # Errors
/// If it is not one.
pub fn trusted_logs(bytes: &[u8]) -> Result<Vec<RootLog>, String> {
    #[derive(Deserialize)]
    struct Root {
        #[serde(default)]
        tlogs: Vec<Log>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Log {
        base_url: String,
        public_key: Key,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Key {
        raw_bytes: String,
        valid_for: Option<Window>,
    }
    #[derive(Deserialize)]
    struct Window {
        end: Option<Timestamp>,
    }
    let root: Root = json(bytes)?;
    let logs = root.tlogs.into_iter().map(|log| RootLog {
        base_url: log.base_url,
        raw_bytes: log.public_key.raw_bytes,
        ends: log.public_key.valid_for.and_then(|window| window.end),
    });
    Ok(logs.collect())
}

/// What a refusal says: `message` of either API's error document, or nothing.
#[must_use]
pub fn refusal(bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Words {
        message: String,
    }
    json::<Words>(bytes)
        .map(|words| kernel::words(&words.message))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTE: &str =
        "rekor.example - 12\n3\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n— rekor.example AAAAAAE=\n";

    #[test]
    fn answers_of_both_apis_are_read() {
        assert_eq!(note(NOTE.as_bytes()).unwrap(), NOTE);
        let info = serde_json::json!({
            "rootHash": "00", "signedTreeHead": NOTE, "treeID": "12", "treeSize": 3, "inactiveShards": [],
        });
        assert_eq!(signed_tree_head(info.to_string().as_bytes()).unwrap(), NOTE);
        let proof = serde_json::json!({ "rootHash": "00", "hashes": ["11".repeat(32)] });
        assert_eq!(
            consistency_proof(proof.to_string().as_bytes()).unwrap(),
            [[0x11; 32]]
        );
        let v1 = serde_json::json!({ "24296fb2": {
            "body": "aGk=", "integratedTime": 7, "logIndex": 1_000, "logID": "c0",
            "verification": { "signedEntryTimestamp": "", "inclusionProof": {
                "checkpoint": NOTE, "hashes": ["22".repeat(32)], "logIndex": 2, "rootHash": "", "treeSize": 3,
            }},
        }});
        let entry = v1_entry(v1.to_string().as_bytes()).unwrap();
        assert_eq!((entry.log_index, entry.tree_index, entry.size), (1_000, 2, 3));
        assert_eq!(entry.body, b"hi");
        let v2 = serde_json::json!({
            "logId": { "keyId": "" }, "canonicalizedBody": "aGk=",
            "inclusionProof": { "rootHash": "", "treeSize": "1", "checkpoint": { "envelope": NOTE } },
        });
        let entry = v2_entry(v2.to_string().as_bytes()).unwrap();
        assert_eq!((entry.log_index, entry.size, entry.hashes.len()), (0, 1, 0));
    }

    #[test]
    fn what_is_no_answer_of_a_log_is_an_error() {
        let deep = "[".repeat(100_000);
        for bytes in ["", "<html>", "{}", "[]", "null", deep.as_str(), "\u{0}"] {
            let bytes = bytes.as_bytes();
            assert!(note(bytes).is_err());
            assert!(signed_tree_head(bytes).is_err());
            assert!(consistency_proof(bytes).is_err());
            assert!(v1_entry(bytes).is_err());
            assert!(v2_entry(bytes).is_err());
            assert_eq!(refusal(bytes), "");
        }
        assert!(v1_entry(br#"{"a":{},"b":{}}"#).is_err());
        assert!(consistency_proof(br#"{"hashes":["00"]}"#).is_err());
        let long = serde_json::json!({ "hashes": vec!["11".repeat(32); PROOF_HASHES_MAX + 1] });
        assert!(consistency_proof(long.to_string().as_bytes()).is_err());
    }
}
