//! The legacy format's evidence, in the words of a bundle.
//!
//! A legacy layer carries a Rekor v1 entry as an annotation of its own shape. Said as a bundle v0.1, one verifier
//! checks both.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kernel::Digest;
use serde::Deserialize;
use sigstore_types::Bundle;

use crate::format::Annotations;

const REKOR: &str = "dev.sigstore.cosign/bundle";
const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
const CHAIN: &str = "dev.sigstore.cosign/chain";
const TIMESTAMP: &str = "dev.sigstore.cosign/rfc3161timestamp";

/// What a legacy layer carries beside its signature.
pub(super) enum Evidence {
    None,
    Bundle(Box<Bundle>),
    Malformed(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RekorBundle {
    signed_entry_timestamp: String,
    payload: RekorPayload,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RekorPayload {
    body: String,
    integrated_time: i64,
    log_index: i64,
    #[serde(rename = "logID")]
    log_id: String,
}

#[derive(Deserialize)]
struct TimestampBundle {
    #[serde(rename = "SignedRFC3161Timestamp")]
    token: String,
}

/// What the layer's annotations say of the signature over `payload`.
pub(super) fn legacy_bundle(payload: &[u8], signature: &[u8], layer: &Annotations) -> Evidence {
    if ![REKOR, CERTIFICATE, TIMESTAMP]
        .iter()
        .any(|name| layer.contains_key(*name))
    {
        return Evidence::None;
    }
    match convert(payload, signature, layer) {
        Ok(bundle) => Evidence::Bundle(Box::new(bundle)),
        Err(detail) => Evidence::Malformed(detail),
    }
}

fn convert(payload: &[u8], signature: &[u8], layer: &Annotations) -> Result<Bundle, String> {
    let mut material = match layer.get(CERTIFICATE) {
        Some(certificate) => {
            let mut certificates = certificates(certificate)?;
            certificates.extend(
                layer
                    .get(CHAIN)
                    .map_or(Ok(Vec::new()), |chain| self::certificates(chain))?,
            );
            serde_json::json!({ "x509CertificateChain": { "certificates": certificates } })
        }
        None => serde_json::json!({ "publicKey": { "hint": "" } }),
    };
    if let Some(text) = layer.get(REKOR) {
        material["tlogEntries"] = serde_json::json!([entry(text)?]);
    }
    if let Some(text) = layer.get(TIMESTAMP) {
        let read: TimestampBundle =
            serde_json::from_str(text).map_err(|error| format!("the timestamp does not read: {error}"))?;
        let token = serde_json::json!([{ "signedTimestamp": read.token }]);
        material["timestampVerificationData"] = serde_json::json!({ "rfc3161Timestamps": token });
    }
    let digest = BASE64.encode(Digest::of(payload).as_bytes());
    let bundle = serde_json::json!({
        "mediaType": "application/vnd.dev.sigstore.bundle+json;version=0.1",
        "verificationMaterial": material,
        "messageSignature": {
            "messageDigest": { "algorithm": "SHA2_256", "digest": digest },
            "signature": BASE64.encode(signature),
        },
    });
    Bundle::from_json(&bundle.to_string()).map_err(|error| kernel::chain(&error))
}

/// A Rekor v1 entry as a `TransparencyLogEntry`.
fn entry(text: &str) -> Result<serde_json::Value, String> {
    if kernel::limits::too_deep(text.as_bytes()) {
        return Err("the log entry nests too deep".to_owned());
    }
    let RekorBundle {
        signed_entry_timestamp,
        payload,
    } = serde_json::from_str(text).map_err(|error| format!("the log entry does not read: {error}"))?;
    let body = BASE64
        .decode(&payload.body)
        .map_err(|_| "the log entry's body is not base64".to_owned())?;
    let body: serde_json::Value = serde_json::from_slice(&body)
        .map_err(|error| format!("the log entry's body does not read: {error}"))?;
    let id = hex_bytes(&payload.log_id).ok_or("the log's id is not hex")?;
    Ok(serde_json::json!({
        "logIndex": payload.log_index.to_string(),
        "logId": { "keyId": BASE64.encode(id) },
        "kindVersion": { "kind": body["kind"], "version": body["apiVersion"] },
        "integratedTime": payload.integrated_time.to_string(),
        "inclusionPromise": { "signedEntryTimestamp": signed_entry_timestamp },
        "canonicalizedBody": payload.body,
    }))
}

fn hex_bytes(text: &str) -> Option<Vec<u8>> {
    let pair = |at: usize| {
        text.get(at..at + 2)
            .and_then(|pair| u8::from_str_radix(pair, 16).ok())
    };
    if text.len().is_multiple_of(2) {
        (0..text.len()).step_by(2).map(pair).collect()
    } else {
        None
    }
}

fn certificates(text: &str) -> Result<Vec<serde_json::Value>, String> {
    let blocks = pem::parse_many(text).map_err(|error| format!("the certificate does not read: {error}"))?;
    Ok(blocks
        .iter()
        .map(|block| serde_json::json!({ "rawBytes": BASE64.encode(block.contents()) }))
        .collect())
}
