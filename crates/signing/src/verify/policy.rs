//! What a verifier asks for.

use std::fmt;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use kernel::Digest;
use regex::Regex;

use crate::Formats;
use crate::debt::tables::Owing;
use crate::format::Annotations;
use crate::key::PublicKey;
use crate::trust::TrustRoot;

/// What an image's signature has to be: accepted by one of the authorities, with all of the annotations.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Shown in reports.
    pub name: String,
    pub authorities: Vec<Authority>,
    pub annotations: Annotations,
    /// The oldest signature that counts. Its time has to be proven, by a log or a timestamp authority of the
    /// authority's trusted root: without proof a signature counts as too old.
    pub not_before: Option<Timestamp>,
    /// What this server owes the external log for the image at hand. Who has no records gives nobody time.
    pub records: Option<Records>,
}

/// What is owed to the external log for one image, as this server has it.
#[derive(Debug, Clone)]
pub struct Records(pub(crate) Arc<[Owing]>);

/// Who may have signed. It accepts a signature by any of its keys or identities in one of its formats, and, if it asks
/// for a log, only with proof that a trusted log holds the signature.
#[derive(Debug, Clone)]
pub struct Authority {
    /// Shown where several authorities say why they do not accept.
    pub name: String,
    pub keys: Vec<PublicKey>,
    pub identities: Vec<Identity>,
    /// Whether a signature without proof of a trusted log counts. This is the policy's to say; nothing in a bundle,
    /// such as its version, changes it.
    pub log_required: bool,
    /// Logs, certificate authorities and timestamp authorities that are believed.
    pub trust: Option<Arc<TrustRoot>>,
    /// For how long a signature of this server's counts while it is owed to the log, without its proof.
    pub within: Option<SignedDuration>,
    pub formats: Formats,
}

/// A keyless signer: who the certificate names, and who vouched for it.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate's subject alternative name.
    pub subject: Matcher,
    /// The OIDC issuer.
    pub issuer: Matcher,
}

/// A name that has to be met.
#[derive(Debug, Clone)]
pub enum Matcher {
    /// The whole name, byte by byte.
    Exact(String),
    /// Found anywhere in the name, unless the expression is anchored (`^…$`): what `ClusterImagePolicy` and cosign
    /// mean by it.
    Regex(Regex),
}

impl Matcher {
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::Regex(regex) => regex.is_match(name),
        }
    }
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(exact) => f.write_str(exact),
            Self::Regex(regex) => write!(f, "/{regex}/"),
        }
    }
}

impl Identity {
    /// Both names exactly.
    #[must_use]
    pub fn exact(subject: &str, issuer: &str) -> Self {
        Self {
            subject: Matcher::Exact(subject.to_owned()),
            issuer: Matcher::Exact(issuer.to_owned()),
        }
    }
}

impl Authority {
    /// Keys, without a log, in any format.
    #[must_use]
    pub fn keys(name: &str, keys: Vec<PublicKey>) -> Self {
        Self {
            name: name.to_owned(),
            keys,
            identities: Vec::new(),
            log_required: false,
            trust: None,
            within: None,
            formats: Formats::BOTH,
        }
    }

    fn fingerprint(&self) -> serde_json::Value {
        let keys: Vec<String> = self.keys.iter().map(|key| key.id().hex()).collect();
        let words = |matcher: &Matcher| match matcher {
            Matcher::Exact(exact) => ["exact", exact].map(str::to_owned),
            Matcher::Regex(regex) => ["regex", regex.as_str()].map(str::to_owned),
        };
        let identities: Vec<_> = self
            .identities
            .iter()
            .map(|own| [words(&own.subject), words(&own.issuer)])
            .collect();
        let trust = self.trust.as_ref().map(|trust| trust.fingerprint().hex());
        let formats = self.formats.to_string();
        let within = self.within.map(|within| within.as_secs());
        serde_json::json!([
            self.name,
            keys,
            identities,
            self.log_required,
            trust,
            within,
            formats
        ])
    }
}

impl Policy {
    /// A policy of keys that asks for no log.
    #[must_use]
    pub fn keys(name: &str, keys: Vec<PublicKey>) -> Self {
        Self::of(Authority::keys(name, keys))
    }

    /// A policy of one authority, and of its name.
    #[must_use]
    pub fn of(authority: Authority) -> Self {
        Self {
            name: authority.name.clone(),
            authorities: vec![authority],
            annotations: Annotations::new(),
            not_before: None,
            records: None,
        }
    }

    #[must_use]
    pub fn with_annotations(mut self, annotations: Annotations) -> Self {
        self.annotations = annotations;
        self
    }

    /// Asks every authority for proof by a log of this root.
    #[must_use]
    pub fn with_log(mut self, trust: Arc<TrustRoot>) -> Self {
        for authority in &mut self.authorities {
            authority.trust = Some(trust.clone());
            authority.log_required = true;
        }
        self
    }

    /// Whether any authority gives a debt time.
    pub(crate) fn gives_time(&self) -> bool {
        self.authorities
            .iter()
            .any(|authority| authority.within.is_some())
    }

    /// The same for two policies that decide the same on the same records.
    #[must_use]
    pub fn fingerprint(&self) -> Digest {
        let authorities: Vec<_> = self.authorities.iter().map(Authority::fingerprint).collect();
        let not_before = self.not_before.map(|time| time.to_string());
        let parts = serde_json::json!([self.name, authorities, self.annotations, not_before]);
        Digest::of(parts.to_string().as_bytes())
    }
}

/// A length of time in its largest unit that says it exactly, or in seconds.
pub(super) fn said(time: SignedDuration) -> String {
    let seconds = time.as_secs();
    for (unit, name) in [(86_400, "d"), (3_600, "h"), (60, "m")] {
        if seconds != 0 && seconds % unit == 0 {
            return format!("{}{name}", seconds / unit);
        }
    }
    format!("{seconds}s")
}
