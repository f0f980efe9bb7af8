//! What a verifier believes, and the two files by which unmodified cosign believes us.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use kernel::Digest;
use sigstore_trust_root::{CertificateAuthority, TransparencyLog, TrustedRoot};
use sigstore_types::TimeRange;
use sigstore_verify::Verifier;
use sigstore_verify::crypto::{Checkpoint, CheckpointSignature};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use crate::SigningError;

/// A trusted root, prepared for verifying.
pub struct TrustRoot {
    pub(crate) verifier: Verifier,
    root: TrustedRoot,
    /// What was read, for comparing.
    json: String,
}

impl fmt::Debug for TrustRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustRoot({} bytes)", self.json.len())
    }
}

/// The most that a trusted root may have; the public one has 7 KiB.
const BYTES_MAX: usize = 1 << 20;

impl TrustRoot {
    /// Reads JSON of `application/vnd.dev.sigstore.trustedroot+json`.
    ///
    /// # Errors
    /// If it does not read, or holds keys that cannot be used.
    pub fn from_json(json: &str) -> Result<Self, SigningError> {
        if json.len() > BYTES_MAX || kernel::limits::too_deep(json.as_bytes()) {
            return Err(SigningError::TrustedRoot(format!(
                "it is over {BYTES_MAX} bytes or nests too deep"
            )));
        }
        let bad = |error: &dyn std::error::Error| SigningError::TrustedRoot(kernel::chain(error));
        let mut root = TrustedRoot::from_json(json).map_err(|error| bad(&error))?;
        for authority in &mut root.certificate_authorities {
            narrow(authority).map_err(|error| bad(&error))?;
        }
        let verifier = Verifier::new(&root).map_err(|error| bad(&error))?;
        Ok(Self {
            verifier,
            root,
            json: json.to_owned(),
        })
    }

    /// A verifier that knows only the logs whose keys were valid at all of `times`; `None` if those are all logs.
    pub(crate) fn valid_at(&self, times: &[Timestamp]) -> Result<Option<Verifier>, sigstore_verify::Error> {
        let valid = |log: &TransparencyLog| {
            let window = log.public_key.valid_for;
            window.is_none_or(|window| times.iter().all(|time| window.contains(*time)))
        };
        if self.root.tlogs.iter().all(valid) {
            return Ok(None);
        }
        let mut root = self.root.clone();
        root.tlogs.retain(valid);
        Verifier::new(&root).map(Some)
    }

    /// Whether a log of the id `id` signed the checkpoint `note` (C2SP signed-note).
    pub(crate) fn log_signed(&self, id: &[u8], note: &str, now: Timestamp) -> bool {
        let mut root = self.root.clone();
        root.tlogs.retain(|log| log.log_id.key_id.as_bytes() == id);
        let (Ok(keys), Ok(note)) = (root.rekor_keys(), Checkpoint::from_text(note)) else {
            return false;
        };
        let signed = |signature: &CheckpointSignature| {
            let mut named = keys.keys_by_hint(&signature.key_id, now);
            named.any(|key| key.verify(note.signed_data(), &signature.signature).is_ok())
        };
        note.signatures().iter().any(signed)
    }

    /// The same, believing only the logs whose `baseUrl` this is; `None` if there is none.
    #[must_use]
    pub fn only_log(&self, url: &str) -> Option<Self> {
        let bare = |url: &str| url.trim_end_matches('/').to_owned();
        let mut root = self.root.clone();
        root.tlogs.retain(|log| bare(&log.base_url) == bare(url));
        if root.tlogs.is_empty() {
            return None;
        }
        Some(Self {
            verifier: Verifier::new(&root).ok()?,
            root,
            json: format!("{} {url}", self.json),
        })
    }

    /// What of it ends, and when. Of logs or authorities of one address the last end counts: that is how a root changes
    /// its keys. What has no end is left out.
    #[must_use]
    pub fn ends(&self) -> Vec<(String, Timestamp)> {
        let logs = self.root.tlogs.iter();
        let logs = logs.map(|log| (format!("the log {}", log.base_url), log.public_key.valid_for));
        let authorities = self.root.certificate_authorities.iter();
        let authorities =
            authorities.map(|authority| (format!("the authority {}", authority.uri), authority.valid_for));
        let mut latest: BTreeMap<String, Option<Timestamp>> = BTreeMap::new();
        for (name, window) in logs.chain(authorities) {
            let end = window.and_then(|window| window.end);
            let entry = latest.entry(kernel::words(&name)).or_insert(end);
            *entry = match (*entry, end) {
                (Some(one), Some(other)) => Some(one.max(other)),
                _ => None,
            };
        }
        let ends = latest.into_iter().filter_map(|(name, end)| Some((name, end?)));
        ends.collect()
    }

    /// Whether certificates can be believed at all.
    #[must_use]
    pub fn knows_authorities(&self) -> bool {
        !self.root.certificate_authorities.is_empty()
    }

    /// The same for two roots that believe the same.
    pub(crate) fn fingerprint(&self) -> Digest {
        Digest::of(self.json.as_bytes())
    }
}

/// Ends an authority's time when its first certificate ends. The verifier takes every certificate of the trusted root
/// as an anchor, and looks at the validity of none of them: an intermediate that has expired would go on to vouch.
fn narrow(authority: &mut CertificateAuthority) -> Result<(), x509_cert::der::Error> {
    for certificate in &authority.cert_chain.certificates {
        let certificate = Certificate::from_der(certificate.raw_bytes.as_bytes())?;
        let validity = certificate.tbs_certificate.validity;
        let time = |time: x509_cert::time::Time| {
            let seconds = i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX);
            Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
        };
        let (start, end) = (time(validity.not_before), time(validity.not_after));
        let window = authority.valid_for.unwrap_or(TimeRange::new(start, None));
        let start = window.start.max(start);
        // A window that is empty is one moment long: the verifier refuses the whole root for one that ends before it
        // starts, though the other authorities are good.
        let end = window.end.map_or(end, |own| own.min(end)).max(start);
        authority.valid_for = Some(TimeRange::new(start, Some(end)));
    }
    Ok(())
}

/// A log, as those who verify have to know it.
#[derive(Debug, Clone)]
pub struct LogIdentity {
    /// The name in its checkpoints; verifiers take it from the trusted root's `baseUrl`, not from the address that
    /// they write to.
    pub origin: String,
    /// `SubjectPublicKeyInfo` DER, of Ed25519 or ECDSA P-256.
    pub public_key: Vec<u8>,
    /// The log's id, as entries carry it (32 bytes).
    pub id: Vec<u8>,
    /// Since when the key signs.
    pub since: Timestamp,
}

/// `trusted_root.json`: verifies what is in this log, and nothing of anybody else's.
#[must_use]
pub fn trusted_root(log: &LogIdentity) -> String {
    serde_json::json!({
        "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
        "tlogs": [{
            "baseUrl": format!("https://{}", log.origin),
            "hashAlgorithm": "SHA2_256",
            "publicKey": {
                "rawBytes": BASE64.encode(&log.public_key),
                "keyDetails": key_details(&log.public_key),
                "validFor": { "start": seconds(log.since) },
            },
            "logId": { "keyId": BASE64.encode(&log.id) },
        }],
    })
    .to_string()
}

/// `PublicKeyDetails` (sigstore `sigstore_common.proto`) of the two kinds of keys that logs sign with. Ed25519 has one
/// encoding, of one length (RFC 8410).
fn key_details(spki: &[u8]) -> &'static str {
    const ED25519_BYTES: usize = 44;
    match spki.len() {
        ED25519_BYTES => "PKIX_ED25519",
        _ => "PKIX_ECDSA_P256_SHA_256",
    }
}

/// `signing_config.json`: makes cosign write to the log at `url`, and to nothing else.
#[must_use]
pub fn signing_config(log: &LogIdentity, url: &str) -> String {
    serde_json::json!({
        "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
        "rekorTlogUrls": [{
            "url": url, "majorApiVersion": 2, "operator": log.origin, "validFor": { "start": seconds(log.since) },
        }],
        "rekorTlogConfig": { "selector": "ANY" },
        "tsaConfig": {},
    })
    .to_string()
}

/// RFC 3339 in whole seconds, which every protobuf reader takes.
fn seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second())
        .unwrap_or(time)
        .to_string()
}
