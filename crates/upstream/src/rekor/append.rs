//! Writing to the log.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tlog::merkle::{leaf_hash, verify_inclusion};
use tlog::{HashedRekord, Verifier};

use super::document::{self, Included};
use super::error::{RekorError, RekorReason};
use super::transport::{Answer, Connections};
use super::{Api, Client};

/// An entry that is in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// `None` if the log had it already and does not say where, which Rekor v2 does not.
    pub index: Option<u64>,
    /// What the log answered with its proof, which was verified; `None` as for `index`.
    pub answer: Option<String>,
    /// When Rekor v1 says it was logged.
    pub at: Option<Timestamp>,
    /// Whether the log had it already.
    pub already: bool,
}

impl Client {
    /// Has the log include a signature. One that it has already is a success: this may be called again after any
    /// failure, and the log has the entry once.
    ///
    /// # Errors
    /// [`RekorReason::Refused`] if the log will never take it, [`RekorReason::Unproven`] if it says that it did and
    /// does not prove it, [`RekorReason::WrongLog`] if the proof is another log's.
    pub async fn append(&self, entry: &HashedRekord) -> Result<Logged, RekorError> {
        let work = async {
            match self.api() {
                // Not found out yet: a checkpoint tells, and that it is the right log.
                Api::Auto => match self.checkpoint().await.map_err(|error| error.reason)?.api {
                    Api::V1 => self.append_v1(entry).await,
                    Api::V2 | Api::Auto => self.append_v2(entry).await,
                },
                Api::V1 => self.append_v1(entry).await,
                Api::V2 => self.append_v2(entry).await,
            }
        };
        self.failed("writing an entry", work.await)
    }

    async fn append_v2(&self, entry: &HashedRekord) -> Result<Logged, RekorReason> {
        let refused = |error: tlog::EntryError| RekorReason::Refused(error.to_string());
        // What the log will make of it; it is not sent if it cannot be right.
        let body = entry.accept().map_err(refused)?.body;
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
            StatusCode::CONFLICT => Ok(Logged {
                index: None,
                answer: None,
                at: None,
                already: true,
            }),
            StatusCode::OK | StatusCode::CREATED => {
                let included = document::v2_entry(&answer.body).map_err(RekorReason::Unproven)?;
                if included.body != body {
                    return Err(RekorReason::Unproven("it logged another entry".to_owned()));
                }
                self.included(Api::V2, &included, &answer)?;
                Ok(logged(&included, &answer, false))
            }
            _ => Err(refusal(answer)),
        }
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
                return Ok(Logged {
                    index: None,
                    answer: None,
                    at: None,
                    already,
                });
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
        self.included(Api::V1, &included, &answer)?;
        Ok(logged(&included, &answer, already))
    }

    /// Checks the proof of an entry under a checkpoint of this log.
    fn included(&self, api: Api, included: &Included, answer: &Answer) -> Result<(), RekorReason> {
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
            .map_err(|error| RekorReason::Unproven(error.to_string()))
    }
}

fn logged(included: &Included, answer: &Answer, already: bool) -> Logged {
    Logged {
        index: Some(included.log_index),
        answer: Some(String::from_utf8_lossy(&answer.body).into_owned()),
        at: included.at,
        already,
    }
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
