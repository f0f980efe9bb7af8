//! Writing to the log.
//!
//! What comes back is evidence for a bundle, and is made of what was proven alone: nothing of an answer is handed on as
//! it came. A log that says only that it has the entry already, as rekor-tiles does, is searched for it.

use std::sync::PoisonError;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use kernel::Fault as _;
use reqwest::StatusCode;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use signing::ports::TreeHead;
use tlog::merkle::{Hash, leaf_hash, verify_inclusion};
use tlog::tile::{TILE_WIDTH, TilePath, parse_hashes};
use tlog::{Accepted, Checkpoint, Files as _, HashedRekord, Verifier, View, transparency_log_entry};
use tracing::Instrument as _;
use tracing::field::Empty;

use super::contain::head;
use super::document::{self, Included};
use super::error::{RekorError, RekorReason};
use super::tiles::Tiles;
use super::transport::{Answer, Connections};
use super::{Api, Client, unproven};

/// Tiles that are searched for an entry that the log has already, the newest first: the last quarter of a million
/// entries. Who asks again after an answer that was lost does so within minutes or hours.
const SEARCH_TILES_MAX: u64 = 1_024;
/// Each next search for the same entry reads half as many, and no fewer than these: what was not there then does not come
/// there later.
const SEARCH_TILES_MIN: u64 = 8;
/// Entries that are known to have been searched for in vain; beyond it all are forgotten.
const MISSED_MAX: usize = 4_096;

/// An entry that is in the log, which was proven.
#[derive(Debug, Clone)]
pub struct Logged {
    /// Over all trees with Rekor v1.
    pub index: u64,
    /// The `TransparencyLogEntry` of the Sigstore protobuf specification as JSON, ready for a bundle.
    pub entry: Box<RawValue>,
    /// When Rekor v1 says it was logged.
    pub at: Option<Timestamp>,
    /// What it was proven under. Whoever signs so has the log's key, and may be a fork of it all the same.
    pub head: TreeHead,
    /// Whether the log had it already.
    pub already: bool,
}

impl Client {
    /// Has the log include a signature. One that it has already is a success: this may be called again after any
    /// failure, and the log has the entry once. Where it lay once, if that is known, it is looked for first.
    ///
    /// # Errors
    /// [`RekorReason::Refused`] if whoever answers there says that it does not take it, [`RekorReason::Unproven`] if it says that it did and
    /// does not prove it, [`RekorReason::WrongLog`] if the proof is another log's.
    pub async fn append(&self, entry: &HashedRekord, last_index: Option<u64>) -> Result<Logged, RekorError> {
        let work = async {
            match self.api() {
                // Not found out yet: a checkpoint tells, and that it is the right log.
                Api::Auto => match self.checkpoint().await.map_err(|error| error.reason)?.api {
                    Api::V1 => self.append_v1(entry).await,
                    Api::V2 | Api::Auto => self.append_v2(entry, last_index).await,
                },
                Api::V1 => self.append_v1(entry).await,
                Api::V2 => self.append_v2(entry, last_index).await,
            }
        };
        let span =
            tracing::info_span!("append to external log", error.type = Empty, otel.status_code = Empty);
        let outcome = self.failed("writing an entry", work.instrument(span.clone()).await);
        if let Err(error) = &outcome {
            span.record("error.type", error.code().id);
            span.record("otel.status_code", "ERROR");
        }
        outcome
    }

    async fn append_v2(&self, entry: &HashedRekord, last_index: Option<u64>) -> Result<Logged, RekorReason> {
        let refused = |error: tlog::EntryError| RekorReason::Refused(error.to_string());
        // What the log will make of it; it is not sent if it cannot be right.
        let accepted = entry.accept().map_err(refused)?;
        let algorithm = entry.verifier.algorithm().map_err(refused)?;
        let key = match &entry.verifier {
            Verifier::PublicKey(key) => json!({ "publicKey": { "rawBytes": STANDARD.encode(key) } }),
            Verifier::Certificate(der) => json!({ "x509Certificate": { "rawBytes": STANDARD.encode(der) } }),
        };
        let mut verifier = key;
        verifier["keyDetails"] = Value::from(algorithm.key_details);
        let request = json!({ "hashedRekordRequestV002": {
            "digest": STANDARD.encode(&entry.digest),
            "signature": { "content": STANDARD.encode(&entry.signature), "verifier": verifier },
        }});
        let answer = self
            .transport
            .post("api/v2/log/entries", request.to_string())
            .await?;
        match answer.status {
            StatusCode::CONFLICT => self.search(&accepted, last_index).await,
            StatusCode::OK | StatusCode::CREATED => {
                let included = document::v2_entry(&answer.body).map_err(RekorReason::Unproven)?;
                if included.body != accepted.body {
                    return Err(RekorReason::Unproven("it logged another entry".to_owned()));
                }
                let checkpoint = self.included(Api::V2, &included, &answer)?;
                self.logged_v2(
                    &included.body,
                    included.tree_index,
                    &included.hashes,
                    &checkpoint,
                    false,
                )
            }
            _ => Err(refusal(answer)),
        }
    }

    fn logged_v2(
        &self,
        body: &[u8],
        index: u64,
        proof: &[Hash],
        checkpoint: &Checkpoint,
        already: bool,
    ) -> Result<Logged, RekorReason> {
        let id = self.verifier(Api::V2).log_id();
        let entry = transparency_log_entry(&id, index, body, proof, checkpoint);
        let entry = entry.map_err(|error| RekorReason::Unproven(error.to_string()))?;
        Ok(Logged {
            index,
            entry,
            at: None,
            head: head(checkpoint),
            already,
        })
    }

    /// Finds an entry that a Rekor v2 has already, by its hash where it lay once and in the newest tiles, and proves it.
    /// Whoever said that it has it is asked: over the connection that was kept.
    async fn search(&self, accepted: &Accepted, last_index: Option<u64>) -> Result<Logged, RekorReason> {
        let observed = self.checkpoint_by(Api::V2, Connections::Kept).await?;
        let tiles = Tiles(&self.transport, Connections::Kept);
        let view = View::new(tiles, self.verifier(Api::V2), &observed.checkpoint.note).map_err(unproven)?;
        let size = observed.checkpoint.size;
        let newest = size.div_ceil(TILE_WIDTH);
        let tiles = self.tiles_to_search(&accepted.leaf);
        let last = last_index
            .map(|index| index / TILE_WIDTH)
            .filter(|tile| *tile < newest);
        let newest_first = (newest.saturating_sub(tiles)..newest)
            .rev()
            .map(|tile| (tile, false));
        for (tile, is_last) in last.map(|tile| (tile, true)).into_iter().chain(newest_first) {
            let hashes = match leaves(&view, tile, size).await {
                // An old tile may have been put away.
                Err(_) if is_last => continue,
                hashes => hashes?,
            };
            let Some(at) = hashes.iter().position(|hash| *hash == accepted.leaf) else {
                continue;
            };
            let index = tile * TILE_WIDTH + at as u64;
            let proof = view.path(index).await.map_err(unproven)?;
            let root = &observed.checkpoint.root;
            verify_inclusion(&accepted.leaf, index, size, &proof, root)
                .map_err(|error| RekorReason::Unproven(error.to_string()))?;
            return self.logged_v2(&accepted.body, index, &proof, &observed.checkpoint, true);
        }
        self.missed(accepted.leaf);
        let last = size.min(tiles * TILE_WIDTH);
        let why = format!(
            "it says that it has the entry, which is none of its last {last}: it is older, or whoever said so and whoever was \
             searched are two copies of the log"
        );
        Err(RekorReason::Unproven(why))
    }

    fn tiles_to_search(&self, leaf: &Hash) -> u64 {
        let missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        let times = missed.get(leaf).copied().unwrap_or_default();
        (SEARCH_TILES_MAX >> times.min(63)).max(SEARCH_TILES_MIN)
    }

    fn missed(&self, leaf: Hash) {
        let mut missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        if missed.len() >= MISSED_MAX {
            missed.clear();
        }
        *missed.entry(leaf).or_default() += 1;
    }

    async fn append_v1(&self, entry: &HashedRekord) -> Result<Logged, RekorReason> {
        let (label, der) = match &entry.verifier {
            Verifier::PublicKey(key) => ("PUBLIC KEY", key),
            Verifier::Certificate(der) => ("CERTIFICATE", der),
        };
        let algorithm = match entry.digest.len() {
            32 => "sha256",
            48 => "sha384",
            _ => "sha512",
        };
        let (digest, signature) = (hex::encode(&entry.digest), STANDARD.encode(&entry.signature));
        let request = json!({ "apiVersion": "0.0.1", "kind": "hashedrekord", "spec": {
            "data": { "hash": { "algorithm": algorithm, "value": digest } },
            "signature": { "content": signature, "publicKey": { "content": STANDARD.encode(pem(label, der)) } },
        }});
        let mut answer = self
            .transport
            .post("api/v1/log/entries", request.to_string())
            .await?;
        let already = answer.status == StatusCode::CONFLICT;
        if already {
            // Its address is in the answer (rekor `openapi.yaml`, createLogEntry, 409).
            let path = answer.location.as_deref().unwrap_or_default();
            let path = path
                .rsplit_once("/api/v1/log/entries/")
                .map(|(_, uuid)| uuid.to_owned());
            let uuid = path.filter(|uuid| uuid.len() <= 80 && uuid.bytes().all(|b| b.is_ascii_hexdigit()));
            let Some(uuid) = uuid else {
                let why = "it says that it has the entry, and not where".to_owned();
                return Err(RekorReason::Unproven(why));
            };
            let path = format!("api/v1/log/entries/{uuid}");
            answer = self.transport.get(Connections::Kept, &path).await?;
        }
        if !matches!(answer.status, StatusCode::OK | StatusCode::CREATED) {
            return Err(refusal(answer));
        }
        let included = document::v1_entry(&answer.body).map_err(RekorReason::Unproven)?;
        let body: Value = serde_json::from_slice(&included.body).unwrap_or_default();
        let own = body["kind"] == "hashedrekord"
            && body["spec"]["data"]["hash"]["value"] == digest
            && body["spec"]["signature"]["content"] == signature;
        if !own {
            return Err(RekorReason::Unproven("it logged another entry".to_owned()));
        }
        let checkpoint = self.included(Api::V1, &included, &answer)?;
        let id = self.verifier(Api::V1).log_id();
        Ok(Logged {
            index: included.log_index,
            entry: document::v1_evidence(&id, &included, &checkpoint).map_err(RekorReason::Unproven)?,
            at: included.at,
            head: head(&checkpoint),
            already,
        })
    }

    /// Checks the proof of an entry under a checkpoint of this log, which is the answer.
    fn included(&self, api: Api, included: &Included, answer: &Answer) -> Result<Checkpoint, RekorReason> {
        let checkpoint = self.verified(api, &included.checkpoint, answer)?;
        if checkpoint.size != included.size {
            let why = format!(
                "its proof is for {} entries, its checkpoint for {}",
                included.size, checkpoint.size
            );
            return Err(RekorReason::Unproven(why));
        }
        let leaf = leaf_hash(&included.body);
        let (index, size) = (included.tree_index, included.size);
        verify_inclusion(&leaf, index, size, &included.hashes, &checkpoint.root)
            .map_err(|error| RekorReason::Unproven(error.to_string()))?;
        Ok(checkpoint)
    }
}

/// The leaf hashes in a tile of the lowest level, of a log of `size` entries.
async fn leaves(view: &View<Tiles<'_>>, tile: u64, size: u64) -> Result<Vec<Hash>, RekorReason> {
    let path = TilePath::full(0, tile).with_width(TilePath::width_at(Some(0), tile, size));
    let Some(bytes) = view.files().file(path).await.map_err(unproven)? else {
        return Err(RekorReason::Unreachable(format!("{path} is not there")));
    };
    let malformed = |error| RekorReason::Unproven(format!("{path}: {error}"));
    parse_hashes(&bytes, path.width).map_err(malformed)
}

/// What a status that is no success means for an entry.
fn refusal(answer: Answer) -> RekorReason {
    match answer.status.as_u16() {
        400 | 413 | 422 => RekorReason::Refused(answer.described(&document::refusal(&answer.body))),
        _ => match answer.found() {
            Err(reason) => reason,
            Ok(answer) => RekorReason::NotALog(answer.described("an answer to a write")),
        },
    }
}

/// A block of RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
