//! What a verifier asks for.

use std::sync::Arc;

use jiff::Timestamp;
use kernel::Digest;

use crate::format::Annotations;
use crate::key::PublicKey;
use crate::trust::TrustRoot;

/// What an image's signature has to be. A policy accepts a signature by any of its keys or identities that carries
/// all of its annotations, and, if it asks for a log, proof that a trusted log holds the signature.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Shown in reports.
    pub name: String,
    pub keys: Vec<PublicKey>,
    pub identities: Vec<Identity>,
    pub annotations: Annotations,
    /// Whether a signature without proof of a trusted log counts. This is the policy's to say; nothing in a bundle,
    /// such as its version, changes it.
    pub log_required: bool,
    /// Logs, certificate authorities and timestamp authorities that are believed.
    pub trust: Option<Arc<TrustRoot>>,
    /// The oldest signature that counts. Its time has to be proven, by a log or a timestamp authority of `trust`:
    /// without proof a signature counts as too old.
    pub not_before: Option<Timestamp>,
}

/// A keyless signer: who the certificate names, and who vouched for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate's subject alternative name, exactly.
    pub identity: String,
    /// The OIDC issuer, exactly.
    pub issuer: String,
}

impl Policy {
    /// A policy of keys that asks for no log.
    #[must_use]
    pub fn keys(name: &str, keys: Vec<PublicKey>) -> Self {
        Self {
            name: name.to_owned(),
            keys,
            identities: Vec::new(),
            annotations: Annotations::new(),
            log_required: false,
            trust: None,
            not_before: None,
        }
    }

    #[must_use]
    pub fn with_annotations(mut self, annotations: Annotations) -> Self {
        self.annotations = annotations;
        self
    }

    /// Asks for proof by a log of this root.
    #[must_use]
    pub fn with_log(mut self, trust: Arc<TrustRoot>) -> Self {
        self.trust = Some(trust);
        self.log_required = true;
        self
    }

    /// The same for two policies that decide the same.
    #[must_use]
    pub fn fingerprint(&self) -> Digest {
        let keys: Vec<String> = self.keys.iter().map(|key| key.id().hex()).collect();
        let identities: Vec<_> = self
            .identities
            .iter()
            .map(|own| (&own.identity, &own.issuer))
            .collect();
        let trust = self
            .trust
            .as_ref()
            .map(|trust| Digest::of(trust.json().as_bytes()).hex());
        let not_before = self.not_before.map(|time| time.to_string());
        let parts = serde_json::json!([
            self.name,
            keys,
            identities,
            self.annotations,
            self.log_required,
            trust,
            not_before
        ]);
        Digest::of(parts.to_string().as_bytes())
    }
}
