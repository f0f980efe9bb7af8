//! Workloads: jobs of a build system that show a token of their own issuer (OpenID Connect) instead of one of ours.
//!
//! A trust [`Rule`] names an issuer, an audience and claims, each exactly, and the project and role that they give. A
//! token is a JSON Web Token in compact form (RFC 7519, RFC 7515 section 7.1), signed with RS256 or ES256 (RFC 7518)
//! by a key that its issuer publishes (RFC 7517, OpenID Connect Discovery 1.0).
//!
//! ```text
//!   eyJ… ─▶ token (form) ─▶ rules of its issuer and audience ─▶ issuer (keys: memory, disk, Fetch) ─▶ signature
//!                                                                                                        │
//!                    Workload{rule, issuer, subject} ◀─ time ◀─ claims of a rule, each exactly ◀──────────┘
//! ```
//!
//! Keys are fetched when the server starts, every ten minutes, and when a token names an unknown one, at most every
//! half a minute for each issuer. What was fetched last is kept, on disk too: an issuer that is down, hangs or answers
//! nonsense stops nobody whose key is known. What was never heard of is then neither right nor wrong, and gets a 503.
//!
//! Pure rules: [`json`], [`token`], [`keys`], [`discovery`], [`rule`]. The edges: [`Fetch`], which is implemented
//! outside, and the files of `shelf`.

pub mod discovery;
mod error;
mod issuer;
pub mod json;
pub mod keys;
pub mod rule;
mod shelf;
pub mod token;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use kernel::{Clock, Random, words};
use url::Url;

pub use error::{OidcError, codes};
pub use rule::{Rule, RuleError, check_rules};

use crate::{Actor, ProjectName};
use issuer::Issuer;
use rule::Mismatch;
use token::{Claims, Jwt};

/// What an issuer answered, or why it did not. The implementation keeps to `https` (plain HTTP on loopback only),
/// follows no redirect, and calls no link-local address.
#[async_trait]
pub trait Fetch: Send + Sync + 'static {
    /// The body of `GET url`, a place on the issuer's own host, within `bytes_max`.
    async fn get(&self, issuer: &str, url: &Url, bytes_max: usize) -> Result<Vec<u8>, FetchError>;
}

/// Why there is no answer; the text is for people.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FetchError(pub String);

/// The trust rules with the keys of their issuers. Cheap to clone.
#[derive(Clone)]
pub struct Oidc(Arc<Inner>);

struct Inner {
    rules: Vec<Arc<Rule>>,
    issuers: BTreeMap<String, Arc<Issuer>>,
    clock: Arc<dyn Clock>,
}

/// When an issuer was heard last, and why it was not when it was asked last.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    pub at: Option<Timestamp>,
    pub failure: Option<String>,
}

/// A token whose signature is its issuer's and whose claims are those of a rule; its time is not looked at yet.
#[derive(Debug)]
pub struct Workload {
    /// At least one.
    rules: Vec<Arc<Rule>>,
    claims: Claims,
}

impl Oidc {
    /// Puts rules and issuers together and reads the keys that `folder` keeps; no issuer is called.
    #[must_use]
    pub fn new(
        rules: Vec<Rule>,
        fetch: &Arc<dyn Fetch>,
        folder: &Path,
        clock: Arc<dyn Clock>,
        random: &Arc<dyn Random>,
    ) -> Self {
        let mut issuers = BTreeMap::new();
        for rule in &rules {
            issuers
                .entry(rule.issuer.clone())
                .or_insert_with(|| Issuer::open(&rule.issuer, fetch, folder, &clock, random));
        }
        let rules = rules.into_iter().map(Arc::new).collect();
        Self(Arc::new(Inner {
            rules,
            issuers,
            clock,
        }))
    }

    /// Without rules: every workload's token is refused.
    #[must_use]
    pub fn none(clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner {
            rules: Vec::new(),
            issuers: BTreeMap::new(),
            clock,
        }))
    }

    /// Fetches the keys of every issuer now and every few minutes, until the last clone is gone.
    pub fn start(&self) {
        for issuer in self.0.issuers.values() {
            issuer::keep_fresh(issuer);
        }
    }

    /// The issuers of the rules.
    pub fn issuers(&self) -> impl Iterator<Item = &str> {
        self.0.issuers.keys().map(String::as_str)
    }

    /// What is known of an issuer; nothing, if no rule names it.
    #[must_use]
    pub fn heard(&self, issuer: &str) -> Heard {
        let issuer = self.0.issuers.get(issuer);
        issuer.map_or_else(Heard::default, |issuer| issuer.heard())
    }

    /// Whose token this is, whether or not its time is right.
    ///
    /// # Errors
    /// Everything of [`OidcError`] except the wrong time of a token whose key is known.
    pub async fn identify(&self, text: &str) -> Result<Workload, OidcError> {
        let jwt = Jwt::parse(text)?;
        let claims = &jwt.claims;
        let of_issuer = || self.0.rules.iter().filter(|rule| rule.issuer == claims.issuer);
        let Some(issuer) = self.0.issuers.get(&claims.issuer) else {
            return Err(OidcError::Issuer {
                issuer: words(&claims.issuer),
            });
        };
        let of_audience: Vec<_> = of_issuer()
            .filter(|rule| claims.audiences.contains(&rule.audience))
            .collect();
        if of_audience.is_empty() {
            return Err(OidcError::Audience {
                issuer: words(&claims.issuer),
                audiences: words(&claims.audiences.join(", ")),
            });
        }
        let keys = match issuer.known(&jwt.kid, jwt.algorithm) {
            Some(keys) => keys,
            None => {
                // Nobody is asked about a token that is over whoever signed it.
                claims.require_current(self.0.clock.now())?;
                issuer.asked(&jwt.kid, jwt.algorithm).await?
            }
        };
        if !keys.verify(&jwt) {
            return Err(OidcError::Signature {
                issuer: words(&claims.issuer),
                kid: words(&jwt.kid),
            });
        }
        let mut mismatches = Vec::new();
        let mut rules = Vec::new();
        for rule in of_audience {
            match rule.mismatch(claims) {
                None => rules.push(rule.clone()),
                Some(mismatch) => mismatches.push(mismatch),
            }
        }
        if rules.is_empty() {
            return Err(OidcError::Claims {
                issuer: words(&claims.issuer),
                subject: words(&claims.subject),
                why: Mismatch::nearest(&mismatches),
            });
        }
        let claims = jwt.claims;
        Ok(Workload { rules, claims })
    }

    /// Whether the token may be used now.
    ///
    /// # Errors
    /// If its time is over, or has not come.
    pub fn require_current(&self, workload: &Workload) -> Result<(), OidcError> {
        workload.claims.require_current(self.0.clock.now())
    }
}

impl Workload {
    /// The rule that counts: of those that take the token the first for the project that is wanted, or the first.
    #[must_use]
    pub fn rule(&self, wanted: Option<&ProjectName>) -> &Rule {
        let of_wanted = self.rules.iter().find(|rule| Some(&rule.project) == wanted);
        of_wanted.unwrap_or(&self.rules[0])
    }

    /// When the token ends, without the grace for clocks that differ.
    #[must_use]
    pub fn expires_at(&self) -> Timestamp {
        token::timestamp(self.claims.expires_at)
    }

    #[must_use]
    pub fn actor(&self, rule: &Rule) -> Actor {
        Actor::Workload {
            rule: rule.name.clone(),
            issuer: self.claims.issuer.clone(),
            subject: words(&self.claims.subject),
        }
    }
}
