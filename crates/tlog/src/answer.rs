//! What clients get: `TransparencyLogEntry` of the Sigstore protobuf specification (`sigstore_rekor.proto`)
//! as protobuf JSON, ready to be put into a bundle.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::checkpoint::Checkpoint;
use crate::merkle::Hash;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TransparencyLogEntry<'a> {
    log_index: String,
    log_id: LogId,
    kind_version: KindVersion,
    /// Rekor v2 has no time of its own; the field stays zero as its server writes it.
    integrated_time: &'static str,
    inclusion_proof: InclusionProof<'a>,
    canonicalized_body: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LogId {
    key_id: String,
}

#[derive(Serialize)]
struct KindVersion {
    kind: &'static str,
    version: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InclusionProof<'a> {
    log_index: String,
    root_hash: String,
    tree_size: String,
    hashes: Vec<String>,
    checkpoint: Envelope<'a>,
}

#[derive(Serialize)]
struct Envelope<'a> {
    envelope: &'a str,
}

/// The JSON for the entry `index` with `body`, proven by `proof` against `checkpoint`.
///
/// # Errors
/// Those of serialisation, which strings do not cause.
pub fn transparency_log_entry(
    log_id: &[u8; 32],
    index: u64,
    body: &[u8],
    proof: &[Hash],
    checkpoint: &Checkpoint,
) -> Result<Box<RawValue>, serde_json::Error> {
    serde_json::value::to_raw_value(&TransparencyLogEntry {
        log_index: index.to_string(),
        log_id: LogId {
            key_id: STANDARD.encode(log_id),
        },
        kind_version: KindVersion {
            kind: "hashedrekord",
            version: "0.0.2",
        },
        integrated_time: "0",
        inclusion_proof: InclusionProof {
            log_index: index.to_string(),
            root_hash: STANDARD.encode(checkpoint.root),
            tree_size: checkpoint.size.to_string(),
            hashes: proof.iter().map(|hash| STANDARD.encode(hash)).collect(),
            checkpoint: Envelope {
                envelope: &checkpoint.note,
            },
        },
        canonicalized_body: STANDARD.encode(body),
    })
}
