//! Verifying: everything that is attached to an image is a candidate, and one that a policy accepts is enough.
//!
//! Anybody who may push to the repository attaches what they like, so no candidate may stand in the way of another:
//!
//! - A candidate that was read and is wrong is a rejected candidate, with its reason in the report. Malformed, too
//!   deep, of an unknown type, over a cap, listed but gone: the registry has answered, and this is no signature.
//! - What could not be asked is an error, never "unsigned": a connection that fails, a server error, missing rights,
//!   too many requests, and every failure of the list itself, which says what there is.
//! - Bytes that do not have the digest that was asked for are nobody's content, and so an error too: a proxy's login
//!   page that comes with status 200 must not pass for a signature that was looked at and found wanting. The
//!   registry adapter tells the two apart ([`RegistryReason::Unreadable`] and [`RegistryReason::Malformed`]).

mod check;
mod evidence;
mod policy;
mod report;

use bytes::Bytes;
use jiff::Timestamp;
use kernel::limits::SIGNATURE_BLOB_BYTES_MAX;
use kernel::{Digest, Reference, Repository};
use serde::Deserialize;

pub use check::{check_blob, check_bundle, check_legacy};
pub use policy::{Authority, Identity, Matcher, Policy};
pub use report::{Candidate, Rejected, Report};

use crate::SigningError;
use crate::format::{bundle, legacy};
use crate::ports::{Descriptor, Manifest, Registry, RegistryError, RegistryReason};
use crate::resolve;

/// Verifies an image under a policy. With `recursive`, every manifest under it too; the image's report comes first.
///
/// # Errors
/// If anything could not be asked: that is never "unsigned".
pub async fn verify(
    registry: &dyn Registry,
    project: &str,
    image: &Reference,
    policy: &Policy,
    recursive: bool,
    now: Timestamp,
) -> Result<Vec<Report>, SigningError> {
    let mut reports = Vec::new();
    for subject in resolve::subjects(registry, project, image, recursive).await? {
        reports
            .push(verify_digest(registry, project, image.repository(), subject.digest, policy, now).await?);
    }
    Ok(reports)
}

/// Verifies one digest, whose bytes the caller has seen or does not need to see. The look ends with the first
/// candidate that counts; a report that is not verified lists them all.
///
/// # Errors
/// If anything could not be asked.
pub async fn verify_digest(
    registry: &dyn Registry,
    project: &str,
    repository: &Repository,
    digest: Digest,
    policy: &Policy,
    now: Timestamp,
) -> Result<Report, SigningError> {
    look(registry, project, repository, digest, policy, now, false).await
}

/// Everything that is attached to one digest, also behind the first candidate that counts.
///
/// # Errors
/// If anything could not be asked.
pub(crate) async fn survey(
    registry: &dyn Registry,
    project: &str,
    repository: &Repository,
    digest: Digest,
    policy: &Policy,
    now: Timestamp,
) -> Result<Report, SigningError> {
    look(registry, project, repository, digest, policy, now, true).await
}

async fn look(
    registry: &dyn Registry,
    project: &str,
    repository: &Repository,
    digest: Digest,
    policy: &Policy,
    now: Timestamp,
    to_the_end: bool,
) -> Result<Report, SigningError> {
    let look = Look {
        registry,
        project,
        repository,
        digest,
        policy,
        now,
        to_the_end,
    };
    let mut report = Report::new(repository.at(digest), policy);
    look.bundles(&mut report).await?;
    if !look.ends(&report) {
        look.legacy(&mut report).await?;
    }
    if report.candidates.is_empty() {
        // Of an image that is not there, or that may not be seen, nothing is known: an error, not "unsigned".
        registry.manifest(project, &repository.at(digest)).await?;
    }
    report.conclude();
    Ok(report)
}

/// One look at one image.
struct Look<'a> {
    registry: &'a dyn Registry,
    project: &'a str,
    repository: &'a Repository,
    digest: Digest,
    policy: &'a Policy,
    now: Timestamp,
    to_the_end: bool,
}

/// What matters of a referrer's manifest. The list entry's own artifact type is not to be trusted: registries and
/// cosign's fallback tag fill it with other things.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReferrerManifest {
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    subject: Option<Descriptor>,
}

/// The reason of a candidate that is not there.
const GONE: &str = "gone";

/// What was read, or why it is no signature, or that it could not be asked for; see the top of this module.
fn read<T>(answer: Result<T, RegistryError>, what: &str) -> Result<Result<T, Rejected>, SigningError> {
    let error = match answer {
        Ok(read) => return Ok(Ok(read)),
        Err(error) => error,
    };
    let rejected = match &error.reason {
        // A list may name what was deleted since.
        RegistryReason::NotFound => Rejected::new(GONE, format!("the registry does not have {what}")),
        RegistryReason::TooLarge { name, bytes_max } => {
            Rejected::new("too-large", format!("{what} is over {name} of {bytes_max} bytes"))
        }
        RegistryReason::Unreadable { why, .. } => {
            Rejected::new("malformed", format!("{what} does not read: {why}"))
        }
        _ => return Err(error.into()),
    };
    Ok(Err(rejected))
}

impl Look<'_> {
    /// Whether there is nothing left to find out: each candidate costs two calls to the registry.
    fn ends(&self, report: &Report) -> bool {
        !self.to_the_end
            && report
                .candidates
                .iter()
                .any(|candidate| candidate.outcome.is_ok())
    }

    async fn manifest(&self, reference: &Reference) -> Result<Result<Manifest, Rejected>, SigningError> {
        read(
            self.registry.manifest(self.project, reference).await,
            "its manifest",
        )
    }

    async fn blob(&self, digest: Digest) -> Result<Result<Bytes, Rejected>, SigningError> {
        let blob = self
            .registry
            .blob(self.project, self.repository, digest, SIGNATURE_BLOB_BYTES_MAX)
            .await;
        read(blob, "its content")
    }

    async fn bundles(&self, report: &mut Report) -> Result<(), SigningError> {
        let referrers = self
            .registry
            .referrers(self.project, self.repository, self.digest)
            .await?;
        for referrer in referrers {
            if self.ends(report) {
                break;
            }
            let candidate = Candidate::new("bundle", referrer.digest);
            let candidate = match self.bundle(&referrer).await? {
                Ok(accepted) => candidate.accepted(accepted),
                Err(rejected) => candidate.rejected(rejected),
            };
            report.candidates.push(candidate);
        }
        Ok(())
    }

    async fn bundle(
        &self,
        referrer: &Descriptor,
    ) -> Result<Result<report::Accepted, Rejected>, SigningError> {
        let manifest = match self.manifest(&self.repository.at(referrer.digest)).await? {
            Ok(manifest) => manifest,
            Err(rejected) => return Ok(Err(rejected)),
        };
        let Ok(read) = serde_json::from_slice::<ReferrerManifest>(&manifest.bytes) else {
            return Ok(Err(Rejected::new("malformed", "its manifest does not read")));
        };
        if read.subject.is_none_or(|subject| subject.digest != self.digest) {
            return Ok(Err(Rejected::new(
                "other-subject",
                "its manifest refers to another image",
            )));
        }
        let is_bundle = |kind: &str| kind.starts_with(bundle::MEDIA_TYPE_PREFIX);
        let Some(layer) = read.layers.iter().find(|layer| is_bundle(&layer.media_type)) else {
            let kind = read
                .artifact_type
                .unwrap_or_else(|| "nothing that says what".to_owned());
            return Ok(Err(Rejected::new("not-a-signature", format!("it is {kind}"))));
        };
        let blob = self.blob(layer.digest).await?;
        Ok(blob.and_then(|blob| check::check_bundle(&blob, self.digest, self.policy, self.now)))
    }

    async fn legacy(&self, report: &mut Report) -> Result<(), SigningError> {
        let tag = legacy::tag(self.digest);
        let manifest = match self.manifest(&self.repository.tagged(&tag)).await? {
            Ok(manifest) => manifest,
            Err(rejected) if rejected.reason == GONE => return Ok(()),
            Err(rejected) => {
                // Nobody named its digest: the image's stands for that of its tag.
                let rejected = Rejected::new(rejected.reason, format!("the tag {tag}: {}", rejected.detail));
                let candidate = Candidate::new("legacy", self.digest);
                report.candidates.push(candidate.rejected(rejected));
                return Ok(());
            }
        };
        let layers = match legacy::layers(&manifest) {
            Ok(layers) => layers,
            Err(error) => {
                let rejected = Rejected::new("malformed", error.to_string());
                report
                    .candidates
                    .push(Candidate::new("legacy", manifest.digest).rejected(rejected));
                return Ok(());
            }
        };
        for layer in layers {
            if self.ends(report) {
                break;
            }
            let candidate = Candidate::new("legacy", layer.digest);
            let outcome = self.blob(layer.digest).await?.and_then(|payload| {
                check::check_legacy(&payload, &layer.annotations, self.digest, self.policy, self.now)
            });
            report.candidates.push(match outcome {
                Ok(accepted) => candidate.accepted(accepted),
                Err(rejected) => candidate.rejected(rejected),
            });
        }
        Ok(())
    }
}
