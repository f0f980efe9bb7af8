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
//!   registry adapter tells the two apart (`RegistryReason::Unreadable` and `RegistryReason::Malformed`).
//! - What was not read in time is an error too, unless something that was read counts: a registry may list hundreds of
//!   candidates and take seconds for each.

mod check;
mod evidence;
mod gather;
mod look;
mod owed;
mod policy;
mod report;

use flow::Caller;
use jiff::Timestamp;
use kernel::{Digest, Reference, Repository};

pub use check::{check_blob, check_bundle, check_legacy};
pub use policy::{Authority, Identity, Matcher, Policy, Records};
pub use report::{Candidate, Rejected, Report};

use crate::SigningError;
use crate::ports::Registry;
use crate::resolve;
use look::{LOOK_TIME_MAX, Look};

/// Verifies an image under a policy. With `recursive`, every manifest under it too; the image's report comes first.
///
/// # Errors
/// If anything could not be asked: that is never "unsigned".
pub async fn verify(
    registry: &dyn Registry,
    caller: Caller<'_>,
    image: &Reference,
    policy: &Policy,
    recursive: bool,
    now: Timestamp,
) -> Result<Vec<Report>, SigningError> {
    let mut reports = Vec::new();
    for subject in resolve::subjects(registry, caller, image, recursive).await? {
        reports.push(verify_digest(registry, caller, image.repository(), subject.digest, policy, now).await?);
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
    caller: Caller<'_>,
    repository: &Repository,
    digest: Digest,
    policy: &Policy,
    now: Timestamp,
) -> Result<Report, SigningError> {
    look(registry, caller, repository, digest, policy, now)
        .report()
        .await
}

/// Everything that is attached to one digest, also behind the first candidate that counts.
///
/// # Errors
/// If anything could not be asked.
pub(crate) async fn survey(
    registry: &dyn Registry,
    caller: Caller<'_>,
    repository: &Repository,
    digest: Digest,
    policy: &Policy,
    now: Timestamp,
) -> Result<Report, SigningError> {
    let mut look = look(registry, caller, repository, digest, policy, now);
    look.to_the_end = true;
    look.report().await
}

fn look<'a>(
    registry: &'a dyn Registry,
    caller: Caller<'a>,
    repository: &'a Repository,
    digest: Digest,
    policy: &'a Policy,
    now: Timestamp,
) -> Look<'a> {
    Look {
        registry,
        caller,
        repository,
        digest,
        policy,
        now,
        to_the_end: false,
        time_max: LOOK_TIME_MAX,
    }
}
