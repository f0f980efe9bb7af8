//! The Sigstore bundle (v0.3 to write).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::value::RawValue;

use super::dsse::IN_TOTO;
use crate::key::PublicKey;

/// The media type of a bundle of version 0.3, also of the blob and the manifest that carry it.
pub const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// Every media type that a bundle may be called by begins so.
pub const MEDIA_TYPE_PREFIX: &str = "application/vnd.dev.sigstore.bundle";

#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Bundle<'a> {
    media_type: &'static str,
    verification_material: Material<'a>,
    dsse_envelope: Envelope,
}

#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Material<'a> {
    public_key: Hint,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tlog_entries: &'a [&'a RawValue],
}

#[derive(serde::Serialize)]
struct Hint {
    hint: String,
}

#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: &'static str,
    signatures: [Signature; 1],
}

#[derive(serde::Serialize)]
struct Signature {
    sig: String,
}

/// Writes the bundle of one signed statement. `entry` is the log's `TransparencyLogEntry`, if it was logged.
/// The same input always gives the same bytes.
#[must_use]
pub fn write(key: &PublicKey, statement: &[u8], signature: &[u8], entry: Option<&RawValue>) -> Vec<u8> {
    let bundle = Bundle {
        media_type: MEDIA_TYPE,
        verification_material: Material {
            public_key: Hint { hint: key.hint() },
            tlog_entries: entry.as_slice(),
        },
        dsse_envelope: Envelope {
            payload: BASE64.encode(statement),
            payload_type: IN_TOTO,
            signatures: [Signature {
                sig: BASE64.encode(signature),
            }],
        },
    };
    // Strings and JSON that was parsed before always have a JSON form.
    serde_json::to_vec(&bundle).unwrap_or_default()
}
