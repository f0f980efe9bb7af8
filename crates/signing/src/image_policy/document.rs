//! The document: `ClusterImagePolicy` of `policy.sigstore.dev` (v1beta1 and v1alpha1), field by field.
//!
//! A field that is not known here is refused, with its place: a rule that is silently left out would accept what the
//! policy's author meant to refuse.

use std::sync::Arc;

use jiff::SignedDuration;
use kernel::Repository;
use regex::RegexBuilder;
use serde::{Deserialize, Serialize};

use super::ImagePolicy;
use super::glob::Glob;
use crate::key::PublicKey;
use crate::trust::TrustRoot;
use crate::verify::{Authority, Identity, Matcher};
use crate::{Formats, SigningError};

/// API versions that are read.
const API_VERSIONS: &[&str] = &["policy.sigstore.dev/v1beta1", "policy.sigstore.dev/v1alpha1"];
const KIND: &str = "ClusterImagePolicy";
/// Globs and authorities in one policy; far more than anybody writes, and few enough to try them all.
const PARTS_MAX: usize = 100;
/// A compiled regular expression, in bytes: a few lines of text can ask for megabytes, and with [`PARTS_MAX`] it
/// bounds what one policy takes.
const REGEX_BYTES_MAX: usize = 256 << 10;
/// The longest that a policy gives a debt: 30 days. Who gives it longer asks for no log.
const WITHIN_SECONDS_MAX: i64 = 30 * 86_400;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Document {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: Spec,
    /// Written by controllers; it asks for nothing.
    #[serde(default, rename = "status")]
    _status: serde::de::IgnoredAny,
}

/// Labels and what else Kubernetes keeps there ask for nothing.
#[derive(Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Spec {
    images: Vec<ImageSpec>,
    authorities: Vec<AuthoritySpec>,
    /// What a gate does with the answer; the answer is the same.
    #[serde(default, rename = "mode")]
    _mode: Mode,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Enforce,
    Warn,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ImageSpec {
    glob: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct AuthoritySpec {
    name: Option<String>,
    key: Option<KeySpec>,
    keyless: Option<KeylessSpec>,
    ctlog: Option<LogSpec>,
    /// Ours, and no field of `ClusterImagePolicy`: what is asked of the external log.
    log: Option<String>,
    signature_format: Option<FormatSpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct KeySpec {
    /// PEM of one or more public keys.
    data: String,
    #[serde(default, rename = "hashAlgorithm")]
    _hash_algorithm: HashAlgorithm,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum HashAlgorithm {
    #[default]
    Sha256,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct KeylessSpec {
    identities: Vec<IdentitySpec>,
    trust_root_ref: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentitySpec {
    issuer: Option<String>,
    #[serde(rename = "issuerRegExp")]
    issuer_regex: Option<String>,
    subject: Option<String>,
    #[serde(rename = "subjectRegExp")]
    subject_regex: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct LogSpec {
    url: Option<String>,
    trust_root_ref: Option<String>,
}

#[derive(Deserialize, Serialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum FormatSpec {
    Legacy,
    Bundle,
}

/// Which trusted root a policy means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root<'a> {
    /// The one that counts where a policy names none.
    Own,
    /// That of the external log.
    External,
    Named(&'a str),
}

/// Finds a trusted root.
pub type TrustRoots<'a> = &'a dyn Fn(Root<'_>) -> Option<Arc<TrustRoot>>;

impl ImagePolicy {
    /// Reads a policy, and everything that it refers to.
    ///
    /// # Errors
    /// [`SigningError::ImagePolicy`] with the place of what cannot be used.
    pub fn read(document: &serde_json::Value, roots: TrustRoots<'_>) -> Result<Self, SigningError> {
        let document: Document = serde_path_to_error::deserialize(document).map_err(|error| {
            let place = error.path().to_string();
            SigningError::image_policy(&place, error.inner())
        })?;
        if !API_VERSIONS.contains(&document.api_version.as_str()) {
            let why = format!(
                "{:?} is none of {}",
                document.api_version,
                API_VERSIONS.join(", ")
            );
            return Err(SigningError::image_policy("apiVersion", why));
        }
        if document.kind != KIND {
            return Err(SigningError::image_policy(
                "kind",
                format!("{:?} is not {KIND}", document.kind),
            ));
        }
        let name = document.metadata.name;
        if name.parse::<access::ProjectName>().is_err() {
            let why = "a name is 1 to 63 lower-case letters, digits and dashes";
            return Err(SigningError::image_policy("metadata.name", why));
        }
        let Spec {
            images, authorities, ..
        } = document.spec;
        let keyless = authorities.iter().filter_map(|own| own.keyless.as_ref());
        let identities: usize = keyless.map(|own| own.identities.len()).sum();
        for (place, count, at_least) in [
            ("spec.images", images.len(), 1),
            ("spec.authorities", authorities.len(), 1),
            ("spec.authorities[*].keyless.identities", identities, 0),
        ] {
            if !(at_least..=PARTS_MAX).contains(&count) {
                let why = format!("it has {count} parts, and {at_least} to {PARTS_MAX} are possible");
                return Err(SigningError::image_policy(place, why));
            }
        }
        let glob = |(nth, image): (usize, &ImageSpec)| {
            let place = format!("spec.images[{nth}].glob");
            Glob::new(&image.glob).map_err(|why| SigningError::image_policy(&place, why))
        };
        let globs = images.iter().enumerate().map(glob).collect::<Result<_, _>>()?;
        let authority = |(nth, spec): (usize, &AuthoritySpec)| {
            Place(format!("spec.authorities[{nth}]")).authority(nth, spec, roots)
        };
        let authorities = authorities
            .iter()
            .enumerate()
            .map(authority)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            name,
            globs,
            authorities,
        })
    }

    /// Whether the policy is about an image.
    #[must_use]
    pub fn covers(&self, repository: &Repository, tag: Option<&str>, digest: Option<kernel::Digest>) -> bool {
        self.globs
            .iter()
            .any(|glob| glob.matches(repository, tag, digest))
    }
}

/// `required`, or `within` a number of seconds, minutes, hours or days: for how long a debt counts.
fn log_rule(text: &str) -> Result<Option<SignedDuration>, String> {
    let wrong = || format!("{text:?} is neither \"required\" nor \"within 1h\" (s, m, h, d; at most 30d)");
    if text == "required" {
        return Ok(None);
    }
    let time = text.strip_prefix("within ").ok_or_else(wrong)?;
    let unit = match time.bytes().last() {
        Some(b's') => 1,
        Some(b'm') => 60,
        Some(b'h') => 3_600,
        Some(b'd') => 86_400,
        _ => return Err(wrong()),
    };
    let digits = &time[..time.len() - 1];
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
    let count: i64 = digits.parse().ok().filter(|_| plain).ok_or_else(wrong)?;
    let seconds = count
        .checked_mul(unit)
        .filter(|seconds| *seconds <= WITHIN_SECONDS_MAX);
    Ok(Some(SignedDuration::from_secs(seconds.ok_or_else(wrong)?)))
}

/// Where in the document, for errors.
struct Place(String);

impl Place {
    fn refused(&self, field: &str, why: impl std::fmt::Display) -> SigningError {
        SigningError::image_policy(&format!("{}{field}", self.0), why)
    }

    fn authority(
        &self,
        nth: usize,
        spec: &AuthoritySpec,
        roots: TrustRoots<'_>,
    ) -> Result<Authority, SigningError> {
        let name = spec.name.clone().unwrap_or_else(|| format!("authority-{nth}"));
        let mut authority = Authority::keys(&name, Vec::new());
        authority.formats = match spec.signature_format {
            None => Formats::BOTH,
            Some(FormatSpec::Bundle) => Formats::BUNDLE,
            Some(FormatSpec::Legacy) => Formats::LEGACY,
        };
        let root_ref = match (&spec.key, &spec.keyless) {
            (Some(key), None) => {
                authority.keys = self.keys(key)?;
                None
            }
            (None, Some(keyless)) => {
                authority.identities = self.identities(keyless)?;
                keyless.trust_root_ref.as_deref()
            }
            _ => return Err(self.refused("", "it needs a key or keyless, and not both")),
        };
        if let Some(log) = &spec.log {
            if spec.keyless.is_some() || spec.ctlog.is_some() {
                let why = "it goes with key alone: ctlog and keyless name another log, and each signature proves one";
                return Err(self.refused(".log", why));
            }
            authority.within = log_rule(log).map_err(|why| self.refused(".log", why))?;
            let root = roots(Root::External);
            authority.trust = Some(root.ok_or_else(|| {
                self.refused(
                    ".log",
                    "no external log is known here: it is set under [external_log]",
                )
            })?);
            authority.log_required = true;
            return Ok(authority);
        }
        if spec.ctlog.is_none() && spec.keyless.is_none() {
            // In this format a key without `ctlog` means: without a log.
            return Ok(authority);
        }
        let log_ref = spec.ctlog.as_ref().and_then(|log| log.trust_root_ref.as_deref());
        if let (Some(own), Some(log)) = (root_ref, log_ref)
            && own != log
        {
            return Err(self.refused(".ctlog.trustRootRef", "it is not the trusted root of keyless"));
        }
        let named = root_ref.or(log_ref);
        let root = roots(named.map_or(Root::Own, Root::Named)).ok_or_else(|| match named {
            Some(name) => self.refused("", format!("there is no trusted root {name:?}")),
            None => self.refused("", "no trusted root says which log to believe"),
        })?;
        if spec.keyless.is_some() && !root.knows_authorities() {
            let why = "the trusted root names no certificate authority; name another with trustRootRef";
            return Err(self.refused(".keyless", why));
        }
        authority.trust = Some(match spec.ctlog.as_ref().and_then(|log| log.url.as_deref()) {
            None => root,
            Some(url) => Arc::new(root.only_log(url).ok_or_else(|| {
                self.refused(".ctlog.url", format!("the trusted root knows no log {url:?}"))
            })?),
        });
        authority.log_required = true;
        Ok(authority)
    }

    fn keys(&self, spec: &KeySpec) -> Result<Vec<PublicKey>, SigningError> {
        let blocks = pem::parse_many(&spec.data).map_err(|error| self.refused(".key.data", error))?;
        if blocks.is_empty() {
            return Err(self.refused(".key.data", "it holds no PEM of a public key"));
        }
        let key = |block: &pem::Pem| {
            PublicKey::from_pem(&pem::encode(block)).map_err(|error| self.refused(".key.data", error))
        };
        blocks.iter().map(key).collect()
    }

    fn identities(&self, spec: &KeylessSpec) -> Result<Vec<Identity>, SigningError> {
        if spec.identities.is_empty() {
            return Err(self.refused(".keyless.identities", "it names nobody"));
        }
        let mut identities = Vec::with_capacity(spec.identities.len());
        for (nth, own) in spec.identities.iter().enumerate() {
            let place = |field: &str| format!(".keyless.identities[{nth}].{field}");
            identities.push(Identity {
                subject: self.matcher(
                    &place("subject"),
                    own.subject.as_deref(),
                    own.subject_regex.as_deref(),
                )?,
                issuer: self.matcher(
                    &place("issuer"),
                    own.issuer.as_deref(),
                    own.issuer_regex.as_deref(),
                )?,
            });
        }
        Ok(identities)
    }

    fn matcher(
        &self,
        field: &str,
        exact: Option<&str>,
        regex: Option<&str>,
    ) -> Result<Matcher, SigningError> {
        match (exact, regex) {
            (Some(exact), None) if !exact.is_empty() => Ok(Matcher::Exact(exact.to_owned())),
            (None, Some(regex)) if !regex.is_empty() => RegexBuilder::new(regex)
                .size_limit(REGEX_BYTES_MAX)
                .build()
                .map(Matcher::Regex)
                .map_err(|error| self.refused(&format!("{field}RegExp"), error)),
            _ => Err(self.refused(field, "it needs either the name or the RegExp, and not both")),
        }
    }
}
