//! What verifying found.

use jiff::Timestamp;
use kernel::{Digest, Reference, words};

use super::{Authority, Identity, Policy, policy};
use crate::Formats;
use crate::format::Annotations;

/// What checking one candidate came to.
pub(super) type Outcome = Result<Accepted, Rejected>;

/// The outcome for one image: every candidate that was looked at, and why it did not count.
#[derive(Debug, Clone)]
pub struct Report {
    pub image: Reference,
    pub digest: Digest,
    pub policy: String,
    pub verified: bool,
    /// What the policy asked for, in words.
    pub checks: Vec<String>,
    pub candidates: Vec<Candidate>,
    /// Why it is not verified, in words; empty when it is.
    pub reasons: Vec<String>,
}

/// One thing that was attached to the image.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// `bundle` or `legacy`.
    pub format: &'static str,
    /// Of the referrer's manifest, or of the legacy layer.
    pub digest: Digest,
    pub outcome: Result<Accepted, Rejected>,
}

/// What speaks for a candidate.
#[derive(Debug, Clone, Default)]
pub struct Accepted {
    /// The key that it verifies with, as its id; absent for keyless.
    pub key_id: Option<String>,
    /// The certificate's identity; absent for keys.
    pub identity: Option<String>,
    pub issuer: Option<String>,
    pub annotations: Annotations,
    /// Proven to be in a trusted log.
    pub logged: bool,
    pub log_index: Option<u64>,
    /// When a log or a timestamp authority saw it.
    pub time: Option<Timestamp>,
    /// Since when the external log is owed it, where that is why it counts; it is a record of this server's.
    pub owed_since: Option<Timestamp>,
    /// Until when that counts.
    pub holds_until: Option<Timestamp>,
}

/// Why a candidate did not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// A stable word: `not-a-signature`, `malformed`, `predicate-type`, `other-subject`, `no-matching-key`,
    /// `format`, `annotations`, `log`, `identity`, `too-old`, `too-large`, `gone`.
    pub reason: &'static str,
    pub detail: String,
}

impl Rejected {
    /// `detail` may quote what was attached, which anybody may have written.
    pub(crate) fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: words(&detail.into()),
        }
    }
}

impl Candidate {
    pub(crate) fn new(format: &'static str, digest: Digest) -> Self {
        Self {
            format,
            digest,
            outcome: Err(Rejected::new("malformed", "")),
        }
    }

    pub(crate) fn accepted(self, accepted: Accepted) -> Self {
        Self {
            outcome: Ok(accepted),
            ..self
        }
    }

    pub(crate) fn rejected(self, rejected: Rejected) -> Self {
        Self {
            outcome: Err(rejected),
            ..self
        }
    }
}

impl Report {
    pub(crate) fn new(image: Reference, policy: &Policy) -> Self {
        let digest = image.digest().unwrap_or_else(|| Digest::of(b""));
        let mut checks = vec!["signs this digest".to_owned()];
        checks.extend(policy.authorities.iter().map(Authority::words));
        checks.extend(
            policy
                .annotations
                .iter()
                .map(|(name, value)| format!("with annotation {name}={value}")),
        );
        Self {
            image,
            digest,
            policy: policy.name.clone(),
            verified: false,
            checks,
            candidates: Vec::new(),
            reasons: Vec::new(),
        }
    }

    /// Decides: one accepted candidate is enough, and nothing else is.
    pub(crate) fn conclude(&mut self) {
        self.verified = self.candidates.iter().any(|candidate| candidate.outcome.is_ok());
        if self.verified {
            return;
        }
        if self.candidates.is_empty() {
            self.reasons
                .push("no signature is attached to it, neither a bundle nor a legacy tag".to_owned());
        }
        for candidate in &self.candidates {
            if let Err(rejected) = &candidate.outcome {
                let Candidate { format, digest, .. } = candidate;
                self.reasons.push(format!(
                    "{format} {digest}: {}: {}",
                    rejected.reason, rejected.detail
                ));
            }
        }
    }

    /// Until when it is verified by what was read; `None` if nothing of that ends by itself.
    pub(crate) fn holds_until(&self) -> Option<Timestamp> {
        let accepted = self
            .candidates
            .iter()
            .filter_map(|candidate| candidate.outcome.as_ref().ok());
        let ends: Option<Vec<Timestamp>> = accepted.map(|accepted| accepted.holds_until).collect();
        ends.and_then(|ends| ends.into_iter().max())
    }

    /// Whether a candidate of this format was accepted.
    #[must_use]
    pub fn accepted_in(&self, format: &str) -> bool {
        self.candidates
            .iter()
            .any(|candidate| candidate.format == format && candidate.outcome.is_ok())
    }
}

impl Authority {
    /// What it asks for: `by key sha256:…, or by NAME of ISSUER, in a trusted log`.
    fn words(&self) -> String {
        let keys = self.keys.iter().map(|key| format!("by key {}", key.id()));
        let named = |own: &Identity| format!("by {} of {}", own.subject, own.issuer);
        let who: Vec<String> = keys.chain(self.identities.iter().map(named)).collect();
        let log = if self.log_required {
            ", in a trusted log"
        } else {
            ""
        };
        let time = self.within.map_or_else(String::new, |within| {
            format!(", or owed to it for less than {}", policy::said(within))
        });
        let format = match self.formats {
            Formats::BOTH => String::new(),
            one => format!(", as {one}"),
        };
        format!("{}{log}{time}{format}", who.join(" or "))
    }
}

impl Accepted {
    /// Whether the signature's time, as far as it is proven, is one that the policy accepts.
    pub(super) fn in_time(&self, policy: &Policy) -> Result<(), Rejected> {
        let Some(limit) = policy.not_before else {
            return Ok(());
        };
        let detail = match self.time {
            Some(time) if time >= limit => return Ok(()),
            Some(time) => {
                format!("it was made at {time} or before, and the policy accepts none before {limit}")
            }
            None => format!("nothing proves when it was made, and the policy accepts none before {limit}"),
        };
        Err(Rejected::new("too-old", detail))
    }
}
