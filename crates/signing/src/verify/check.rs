//! Whether one candidate counts. Pure: bytes, a digest and a policy in, a reason out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use kernel::Digest;
use sigstore_types::Bundle;
use sigstore_types::bundle::{SignatureContent, VerificationMaterialContent};

use super::evidence::{self, Evidence};
use super::report::Accepted;
use super::{Policy, Rejected};
use crate::format::{Annotations, dsse, legacy, statement};
use crate::key::PublicKey;

type Outcome = Result<Accepted, Rejected>;

/// Checks a bundle that is attached to the image `digest`.
///
/// # Errors
/// Why it does not count.
pub fn check_bundle(bytes: &[u8], digest: Digest, policy: &Policy, now: Timestamp) -> Outcome {
    let bundle = parse(bytes)?;
    let SignatureContent::DsseEnvelope(envelope) = &bundle.content else {
        return Err(Rejected::new(
            "not-a-signature",
            "the bundle signs a file, not a statement about an image",
        ));
    };
    if envelope.payload_type != dsse::IN_TOTO {
        return Err(Rejected::new(
            "not-a-signature",
            format!("its payload is {}", envelope.payload_type),
        ));
    }
    let payload = envelope.payload.as_bytes();
    let statement =
        statement::read(payload).map_err(|error| Rejected::new("malformed", error.to_string()))?;
    if statement.predicate_type != statement::PREDICATE {
        return Err(Rejected::new(
            "predicate-type",
            format!(
                "it says {}, not that the image is signed",
                statement.predicate_type
            ),
        ));
    }
    let subject = statement
        .subjects
        .iter()
        .find(|subject| subject.digest == Some(digest));
    let subject = subject.ok_or_else(|| Rejected::new("other-subject", "it signs another image"))?;
    let pae = dsse::pae(dsse::IN_TOTO, payload);
    let signature = envelope.signature.sig.as_bytes();
    let accepted = authority(&bundle, digest, policy, |key| key.verifies(&pae, signature), now)?;
    annotated(accepted, subject.annotations.clone(), policy)
}

/// Checks a bundle over a plain file, whose SHA-256 is `digest`. `content` is needed for keys that cannot sign a
/// digest (Ed25519).
///
/// # Errors
/// Why it does not count.
pub fn check_blob(
    bytes: &[u8],
    digest: Digest,
    content: Option<&[u8]>,
    policy: &Policy,
    now: Timestamp,
) -> Outcome {
    let bundle = parse(bytes)?;
    let signed_by = |key: &PublicKey| match &bundle.content {
        SignatureContent::DsseEnvelope(envelope) => {
            let payload = envelope.payload.as_bytes();
            let names_it = statement::read(payload).is_ok_and(|statement| {
                statement
                    .subjects
                    .iter()
                    .any(|subject| subject.digest == Some(digest))
            });
            names_it
                && key.verifies(
                    &dsse::pae(&envelope.payload_type, payload),
                    envelope.signature.sig.as_bytes(),
                )
        }
        SignatureContent::MessageSignature(signed) => {
            let named = signed
                .message_digest
                .as_ref()
                .is_none_or(|named| named.digest.as_bytes() == digest.as_bytes());
            let signature = signed.signature.as_bytes();
            named
                && match content {
                    Some(content) => key.verifies(content, signature),
                    None => key.verifies_digest(digest, signature),
                }
        }
        _ => false,
    };
    authority(&bundle, digest, policy, signed_by, now)
}

/// Checks one layer of a legacy signature tag.
///
/// # Errors
/// Why it does not count.
pub(super) fn check_legacy(
    payload: &[u8],
    layer: &Annotations,
    digest: Digest,
    policy: &Policy,
    now: Timestamp,
) -> Outcome {
    let read =
        legacy::read_payload(payload).map_err(|error| Rejected::new("malformed", error.to_string()))?;
    if read.image != digest {
        return Err(Rejected::new("other-subject", format!("it signs {}", read.image)));
    }
    let malformed = |detail: &str| Rejected::new("malformed", detail);
    let signature = layer
        .get(legacy::SIGNATURE)
        .ok_or_else(|| malformed("the layer carries no signature"))?;
    let signature = BASE64
        .decode(signature)
        .map_err(|_| malformed("the signature is not base64"))?;
    let accepted = match evidence::legacy_bundle(payload, &signature, layer) {
        Evidence::Bundle(bundle) => authority_over(
            &bundle,
            payload,
            policy,
            |key| key.verifies(payload, &signature),
            now,
        )?,
        Evidence::None => {
            let key = by_key(policy, |key| key.verifies(payload, &signature))?;
            without_log(policy)?;
            Accepted {
                key_id: Some(key.id().to_string()),
                ..Accepted::default()
            }
        }
        Evidence::Malformed(detail) => return Err(malformed(&detail)),
    };
    annotated(accepted, read.annotations, policy)
}

fn parse(bytes: &[u8]) -> Result<Bundle, Rejected> {
    if kernel::limits::too_deep(bytes) {
        return Err(Rejected::new("malformed", "the bundle nests too deep"));
    }
    let text =
        std::str::from_utf8(bytes).map_err(|_| Rejected::new("malformed", "the bundle is not text"))?;
    Bundle::from_json(text).map_err(|error| Rejected::new("malformed", kernel::chain(&error)))
}

fn authority(
    bundle: &Bundle,
    digest: Digest,
    policy: &Policy,
    signed_by: impl Fn(&PublicKey) -> bool,
    now: Timestamp,
) -> Outcome {
    let artifact = sigstore_types::Sha256Hash::new(*digest.as_bytes());
    let by = Authority { bundle, policy, now };
    if matches!(
        bundle.verification_material.content,
        VerificationMaterialContent::PublicKey(_)
    ) {
        let key = by_key(policy, signed_by)?;
        return by.key(key, |verifier, policy| verifier.verify(artifact, bundle, policy));
    }
    by.identity(|verifier, policy| verifier.verify(artifact, bundle, policy))
}

/// The same for an artifact whose bytes are at hand.
fn authority_over(
    bundle: &Bundle,
    bytes: &[u8],
    policy: &Policy,
    signed_by: impl Fn(&PublicKey) -> bool,
    now: Timestamp,
) -> Outcome {
    let by = Authority { bundle, policy, now };
    if matches!(
        bundle.verification_material.content,
        VerificationMaterialContent::PublicKey(_)
    ) {
        let key = by_key(policy, signed_by)?;
        return by.key(key, |verifier, policy| verifier.verify(bytes, bundle, policy));
    }
    by.identity(|verifier, policy| verifier.verify(bytes, bundle, policy))
}

/// The policy's key that made the signature.
fn by_key(policy: &Policy, signed_by: impl Fn(&PublicKey) -> bool) -> Result<&PublicKey, Rejected> {
    let found = policy.keys.iter().find(|key| signed_by(key));
    found.ok_or_else(|| match policy.keys.len() {
        0 => Rejected::new(
            "no-matching-key",
            "it is signed by a key, and the policy names none",
        ),
        1 => Rejected::new("no-matching-key", "it does not verify with the policy's key"),
        count => Rejected::new(
            "no-matching-key",
            format!("it verifies with none of the policy's {count} keys"),
        ),
    })
}

fn without_log(policy: &Policy) -> Result<(), Rejected> {
    if policy.log_required {
        return Err(Rejected::new(
            "log",
            "it carries no proof of a log, and the policy requires one",
        ));
    }
    Ok(())
}

fn annotated(accepted: Accepted, annotations: Annotations, policy: &Policy) -> Outcome {
    for (name, value) in &policy.annotations {
        match annotations.get(name) {
            Some(found) if found == value => {}
            Some(found) => {
                return Err(Rejected::new(
                    "annotations",
                    format!("annotation {name} is {found:?}, not {value:?}"),
                ));
            }
            None => {
                return Err(Rejected::new(
                    "annotations",
                    format!("it has no annotation {name}"),
                ));
            }
        }
    }
    Ok(Accepted {
        annotations,
        ..accepted
    })
}

type Verified = sigstore_verify::Result<sigstore_verify::VerificationResult>;

/// Who signed, and what a log and a timestamp authority say of it.
struct Authority<'a> {
    bundle: &'a Bundle,
    policy: &'a Policy,
    now: Timestamp,
}

impl Authority<'_> {
    /// A key made the signature; the log's proof is checked when the policy asks for it.
    fn key(
        &self,
        key: &PublicKey,
        verify: impl Fn(&sigstore_verify::Verifier, &sigstore_verify::PublicKeyVerificationPolicy) -> Verified,
    ) -> Outcome {
        let mut accepted = Accepted {
            key_id: Some(key.id().to_string()),
            ..Accepted::default()
        };
        if !self.policy.log_required {
            return Ok(accepted);
        }
        let entries = &self.bundle.verification_material.tlog_entries;
        if entries.is_empty() {
            without_log(self.policy)?;
        }
        let der = sigstore_types::DerPublicKey::from_bytes(key.spki());
        let result = verify(
            self.verifier()?,
            &sigstore_verify::PublicKeyVerificationPolicy::new(der),
        );
        let result = result.map_err(|error| Rejected::new("log", kernel::chain(&error)))?;
        self.complete(&mut accepted, &result)?;
        Ok(accepted)
    }

    /// A certificate made the signature; chain, identity, log and time are one check.
    fn identity(
        &self,
        verify: impl Fn(&sigstore_verify::Verifier, &sigstore_verify::VerificationPolicy) -> Verified,
    ) -> Outcome {
        if self.policy.identities.is_empty() {
            let detail = "it is signed keyless, by a certificate, and the policy names no identity";
            return Err(Rejected::new("identity", detail));
        }
        let verifier = self.verifier()?;
        let mut last = None;
        for own in &self.policy.identities {
            let policy = sigstore_verify::VerificationPolicy::new(own.identity.clone(), own.issuer.clone());
            match verify(verifier, &policy) {
                Ok(result) => {
                    let identity = result.identity().map(|name| name.as_str().to_owned());
                    let issuer = result.issuer().map(str::to_owned);
                    let mut accepted = Accepted {
                        identity,
                        issuer,
                        ..Accepted::default()
                    };
                    self.complete(&mut accepted, &result)?;
                    return Ok(accepted);
                }
                Err(error) => last = Some(kernel::chain(&error)),
            }
        }
        Err(Rejected::new("identity", last.unwrap_or_default()))
    }

    fn verifier(&self) -> Result<&sigstore_verify::Verifier, Rejected> {
        let trust = self.policy.trust.as_ref();
        let missing = || {
            Rejected::new(
                "log",
                "the policy requires proof of a log and has no trusted root to check it",
            )
        };
        trust.map(|trust| &trust.verifier).ok_or_else(missing)
    }

    fn complete(
        &self,
        accepted: &mut Accepted,
        result: &sigstore_verify::VerificationResult,
    ) -> Result<(), Rejected> {
        accepted.logged = result.tlog_verified();
        accepted.log_index = self
            .bundle
            .verification_material
            .tlog_entries
            .first()
            .map(|entry| entry.log_index.get());
        accepted.time = result.integrated_time();
        if accepted.time.is_some_and(|time| time > self.now) {
            return Err(Rejected::new("log", "the log says that it saw it in the future"));
        }
        let too_old = |limit: Timestamp| accepted.time.is_none_or(|time| time < limit);
        if self.policy.not_before.is_some_and(too_old) {
            return Err(Rejected::new(
                "too-old",
                "its time is before what the policy accepts, or unknown",
            ));
        }
        Ok(())
    }
}
