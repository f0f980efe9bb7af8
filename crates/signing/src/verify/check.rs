//! Whether one candidate counts. Pure: bytes, a digest and a policy in, a reason out.

use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::{SignedDuration, Timestamp};
use kernel::Digest;
use sigstore_types::bundle::{SignatureContent, VerificationMaterialContent};
use sigstore_types::{Bundle, DsseEnvelope};

use super::evidence::{self, Evidence};
use super::owed::or_owed;
use super::report::{Accepted, Outcome};
use super::{Authority, Identity, Policy, Rejected};
use crate::Formats;
use crate::format::{Annotations, check_message, dsse, legacy, statement};
use crate::key::PublicKey;
use crate::trust::TrustRoot;

/// How far a log's or a timestamp authority's clock may be ahead of ours: clocks of different machines differ, and a
/// signature of this second must not be refused for it.
const CLOCK_SKEW_MAX: SignedDuration = SignedDuration::from_secs(60);

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
    let annotations = signs(envelope, digest)?;
    let pae = dsse::pae(dsse::IN_TOTO, envelope.payload.as_bytes());
    let signature = envelope.signature.sig.as_bytes();
    let artifact = sigstore_types::Sha256Hash::new(*digest.as_bytes());
    let accepted = any(
        policy,
        |formats| formats.bundle,
        |authority| {
            let by = Check {
                bundle: &bundle,
                policy,
                authority,
                now,
            };
            by.key_or_identity(artifact, |key| key.verifies(&pae, signature))
        },
    )?;
    annotated(accepted, annotations, policy)
}

/// What an envelope says of `digest`, if it says that it is signed: an attestation of something else about it, such
/// as "verdict: rejected", is no signature.
fn signs(envelope: &DsseEnvelope, digest: Digest) -> Result<Annotations, Rejected> {
    if envelope.payload_type != dsse::IN_TOTO {
        return Err(Rejected::new(
            "not-a-signature",
            format!("its payload is {}", envelope.payload_type),
        ));
    }
    let statement = statement::read(envelope.payload.as_bytes())
        .map_err(|error| Rejected::new("malformed", error.to_string()))?;
    if statement.predicate_type != statement::PREDICATE {
        let kind = statement.predicate_type;
        return Err(Rejected::new(
            "predicate-type",
            format!("it says {kind}, not that the image is signed"),
        ));
    }
    let mut subjects = statement.subjects.into_iter();
    let subject = subjects.find(|subject| subject.digest == Some(digest));
    let subject = subject.ok_or_else(|| Rejected::new("other-subject", "it signs another image"))?;
    Ok(subject.annotations)
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
    if let SignatureContent::DsseEnvelope(envelope) = &bundle.content {
        signs(envelope, digest)?;
    }
    let signed_by = |key: &PublicKey| match &bundle.content {
        SignatureContent::DsseEnvelope(envelope) => key.verifies(
            &dsse::pae(dsse::IN_TOTO, envelope.payload.as_bytes()),
            envelope.signature.sig.as_bytes(),
        ),
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
    let artifact = sigstore_types::Sha256Hash::new(*digest.as_bytes());
    any(
        policy,
        |formats| formats.bundle,
        |authority| {
            let by = Check {
                bundle: &bundle,
                policy,
                authority,
                now,
            };
            by.key_or_identity(artifact, signed_by)
        },
    )
}

/// Checks one layer of a legacy signature tag.
///
/// # Errors
/// Why it does not count.
pub fn check_legacy(
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
    let evidence = match evidence::legacy_bundle(payload, &signature, layer) {
        Evidence::Malformed(detail) => return Err(malformed(&detail)),
        Evidence::Bundle(bundle) => Some(bundle),
        Evidence::None => None,
    };
    let signed_by = |key: &PublicKey| key.verifies(payload, &signature);
    let accepted = any(
        policy,
        |formats| formats.legacy,
        |authority| {
            if let Some(bundle) = &evidence {
                let by = Check {
                    bundle,
                    policy,
                    authority,
                    now,
                };
                return by.key_or_identity(payload, signed_by);
            }
            let key = by_key(authority, "", signed_by)?;
            without_log(authority)?;
            let accepted = Accepted {
                key_id: Some(key.id().to_string()),
                ..Accepted::default()
            };
            accepted.in_time(policy)?;
            Ok(accepted)
        },
    )?;
    annotated(accepted, read.annotations, policy)
}

fn parse(bytes: &[u8]) -> Result<Bundle, Rejected> {
    let malformed = |why: &str| Rejected::new("malformed", format!("the bundle does not read: {why}"));
    check_message(bytes).map_err(|why| malformed(&why))?;
    let text = std::str::from_utf8(bytes).map_err(|_| malformed("it is not text"))?;
    let bundle = Bundle::from_json(text).map_err(|error| malformed(&kernel::chain(&error)))?;
    let material = &bundle.verification_material;
    // Who counts witnesses must not count one twice; other verifiers refuse such bundles too.
    let mut entries = HashSet::new();
    for entry in &material.tlog_entries {
        if !entries.insert((entry.log_id.key_id.as_bytes(), entry.log_index.get())) {
            return Err(malformed("the same log entry stands twice"));
        }
    }
    let mut timestamps = HashSet::new();
    for timestamp in &material.timestamp_verification_data.rfc3161_timestamps {
        if !timestamps.insert(timestamp.signed_timestamp.as_bytes()) {
            return Err(malformed("the same timestamp stands twice"));
        }
    }
    Ok(bundle)
}

/// What the first authority says that accepts. Where none does, each says why.
fn any(policy: &Policy, takes: impl Fn(Formats) -> bool, check: impl Fn(&Authority) -> Outcome) -> Outcome {
    let mut refused = Vec::new();
    for authority in &policy.authorities {
        let outcome = if takes(authority.formats) {
            check(authority)
        } else {
            let detail = format!("the policy takes only the format {}", authority.formats);
            Err(Rejected::new("format", detail))
        };
        match outcome {
            Ok(accepted) => return Ok(accepted),
            Err(rejected) => refused.push((&authority.name, rejected)),
        }
    }
    if refused.len() == 1 {
        return Err(refused.remove(0).1);
    }
    // Another's signature is the plainest of reasons; where one authority has a better one, that is the reason.
    let foreign = |reason: &str| matches!(reason, "no-matching-key" | "identity" | "format");
    let plain = refused.iter().map(|(_, rejected)| rejected.reason);
    let reason = plain
        .clone()
        .find(|reason| !foreign(reason))
        .or(plain.clone().next());
    let details: Vec<String> = refused
        .iter()
        .map(|(name, rejected)| format!("{name}: {}", rejected.detail))
        .collect();
    Err(Rejected::new(
        reason.unwrap_or("no-matching-key"),
        details.join("; "),
    ))
}

/// The name of its key that a bundle carries. Nothing vouches for it: it only helps to say what is wrong.
fn hint(bundle: &Bundle) -> &str {
    match &bundle.verification_material.content {
        VerificationMaterialContent::PublicKey(key) => &key.hint,
        _ => "",
    }
}

/// The policy's key that made the signature.
fn by_key<'a>(
    authority: &'a Authority,
    hint: &str,
    signed_by: impl Fn(&PublicKey) -> bool,
) -> Result<&'a PublicKey, Rejected> {
    if let Some(key) = authority.keys.iter().find(|key| signed_by(key)) {
        return Ok(key);
    }
    let named = authority.keys.iter().find(|key| key.hint() == hint);
    let detail = match (named, authority.keys.len()) {
        (Some(key), _) => format!("it names key {} and does not verify with it", key.id()),
        (None, 0) => "it is signed by a key, and the policy names none".to_owned(),
        (None, _) if !hint.is_empty() => {
            let hint: String = hint.chars().take(60).collect();
            format!("it is signed by another key, which it calls {hint:?}")
        }
        (None, 1) => "it does not verify with the policy's key".to_owned(),
        (None, count) => format!("it verifies with none of the policy's {count} keys"),
    };
    Err(Rejected::new("no-matching-key", detail))
}

fn without_log(authority: &Authority) -> Result<(), Rejected> {
    if authority.log_required {
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
struct Check<'a> {
    bundle: &'a Bundle,
    policy: &'a Policy,
    authority: &'a Authority,
    now: Timestamp,
}

impl Check<'_> {
    /// A bundle names a key or carries a certificate; what it carries decides who has to vouch for it.
    fn key_or_identity<'b>(
        &self,
        artifact: impl Into<sigstore_types::Artifact<'b>> + Clone,
        signed_by: impl Fn(&PublicKey) -> bool,
    ) -> Outcome {
        let artifact = || artifact.clone();
        match &self.bundle.verification_material.content {
            VerificationMaterialContent::PublicKey(_) => {
                let key = by_key(self.authority, hint(self.bundle), signed_by)?;
                let outcome = self.key(key, |verifier, policy| {
                    verifier.verify(artifact(), self.bundle, policy)
                });
                let SignatureContent::DsseEnvelope(envelope) = &self.bundle.content else {
                    return outcome;
                };
                let signature = envelope.signature.sig.as_bytes();
                or_owed(outcome, key, signature, self.authority, self.policy, self.now)
            }
            _ => self.identity(|verifier, policy| verifier.verify(artifact(), self.bundle, policy)),
        }
    }

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
        let material = &self.bundle.verification_material;
        let bare = material.tlog_entries.is_empty();
        if bare {
            without_log(self.authority)?;
        }
        // What the policy does not ask for is not checked, and not claimed.
        if !self.authority.log_required && self.policy.not_before.is_none() {
            return Ok(accepted);
        }
        if bare && material.timestamp_verification_data.rfc3161_timestamps.is_empty() {
            accepted.in_time(self.policy)?;
        }
        let der = sigstore_types::DerPublicKey::from_bytes(key.spki());
        let policy = sigstore_verify::PublicKeyVerificationPolicy::new(der);
        let policy = if bare { policy.skip_tlog_unsafe() } else { policy };
        let result = self.verified(|verifier| verify(verifier, &policy))?;
        let result = result.map_err(|error| Rejected::new("log", kernel::chain(&error)))?;
        self.complete(&mut accepted, &result)?;
        Ok(accepted)
    }

    /// A certificate made the signature; chain, identity, log and time are one check.
    fn identity(
        &self,
        verify: impl Fn(&sigstore_verify::Verifier, &sigstore_verify::VerificationPolicy) -> Verified,
    ) -> Outcome {
        if self.authority.identities.is_empty() {
            let detail = "it is signed keyless, by a certificate, and the policy names no identity";
            return Err(Rejected::new("identity", detail));
        }
        // Whom it names is compared below: the library knows only exact names.
        let anybody = sigstore_verify::VerificationPolicy::any_identity();
        let result = self.verified(|verifier| verify(verifier, &anybody))?;
        let result = result.map_err(|error| Rejected::new("identity", kernel::chain(&error)))?;
        let (subject, issuer) = (result.identity().map(|name| name.as_str()), result.issuer());
        let named = |own: &Identity| {
            subject.is_some_and(|subject| own.subject.matches(subject))
                && issuer.is_some_and(|issuer| own.issuer.matches(issuer))
        };
        if !self.authority.identities.iter().any(named) {
            let (subject, issuer) = (subject.unwrap_or("nobody"), issuer.unwrap_or("nobody"));
            let detail = format!("it is signed by {subject:?}, for whom {issuer:?} vouched");
            return Err(Rejected::new("identity", detail));
        }
        let mut accepted = Accepted {
            identity: subject.map(str::to_owned),
            issuer: issuer.map(str::to_owned),
            ..Accepted::default()
        };
        self.complete(&mut accepted, &result)?;
        Ok(accepted)
    }

    /// Verifies with all logs of the trusted root, and once more without those whose key was not valid at the time
    /// that was found: the library lets a key that is no longer valid prove inclusion at any time. Where no time is
    /// proven it is now: whoever holds a retired key can still sign checkpoints with it.
    fn verified(
        &self,
        verify: impl Fn(&sigstore_verify::Verifier) -> Verified,
    ) -> Result<Verified, Rejected> {
        let Some(trust) = &self.authority.trust else {
            let detail = "the policy asks for proof by a log and has no trusted root to check it";
            return Err(Rejected::new("log", detail));
        };
        let first = verify(&trust.verifier);
        let Ok(result) = &first else {
            return Ok(first);
        };
        self.proven(trust)?;
        let times = match result.verified_timestamps() {
            [] => &[self.now],
            times => times,
        };
        let valid = trust.valid_at(times);
        let valid = valid.map_err(|error| Rejected::new("log", kernel::chain(&error)))?;
        Ok(valid.map_or(first, |verifier| verify(&verifier)))
    }

    /// Every entry has to prove what it claims, by the log that it names: the library passes over entries without
    /// evidence and takes a checkpoint by any log that it knows, where other verifiers refuse the bundle.
    fn proven(&self, trust: &TrustRoot) -> Result<(), Rejected> {
        for entry in &self.bundle.verification_material.tlog_entries {
            if entry.inclusion_proof.is_none() && entry.inclusion_promise.is_none() {
                let detail = "a log entry carries neither a proof nor a promise";
                return Err(Rejected::new("log", detail));
            }
            let id = entry.log_id.key_id.as_bytes();
            let note = entry
                .inclusion_proof
                .as_ref()
                .map(|proof| proof.checkpoint.envelope());
            if note.is_some_and(|note| !trust.log_signed(id, note, self.now)) {
                let detail = "a log entry names another log than the one that signed its checkpoint";
                return Err(Rejected::new("log", detail));
            }
        }
        Ok(())
    }

    fn complete(
        &self,
        accepted: &mut Accepted,
        result: &sigstore_verify::VerificationResult,
    ) -> Result<(), Rejected> {
        accepted.logged = result.tlog_verified();
        let entry = self.bundle.verification_material.tlog_entries.first();
        accepted.log_index = entry
            .filter(|_| accepted.logged)
            .map(|entry| entry.log_index.get());
        // The earliest is the strongest: it existed by then.
        accepted.time = result.verified_timestamps().iter().min().copied();
        let latest = self.now.saturating_add(CLOCK_SKEW_MAX).unwrap_or(Timestamp::MAX);
        if result.verified_timestamps().iter().any(|time| *time > latest) {
            return Err(Rejected::new("log", "the log says that it saw it in the future"));
        }
        accepted.in_time(self.policy)
    }
}
