//! Verifying in the server: the project's keys, this server's log, and verdicts that are known.

use std::sync::Arc;
use std::time::Duration;

use access::{Action, Context};
use kernel::Reference;

use crate::format::Annotations;
use crate::key::PublicKey;
use crate::trust::TrustRoot;
use crate::verdicts::VerdictKey;
use crate::verify::{self, Policy, Report};
use crate::{Signing, SigningError, resolve};

/// Verifies for the API. Cheap to clone.
#[derive(Clone)]
pub struct Verifying {
    signing: Signing,
    trust: Arc<TrustRoot>,
}

/// What is to be verified, and how.
#[derive(Debug, Clone)]
pub struct VerifyRequest {
    pub image: Reference,
    /// The project's own keys if empty.
    pub keys: Vec<PublicKey>,
    pub annotations: Annotations,
    pub log_required: bool,
    pub recursive: bool,
}

/// A report and its age.
#[derive(Debug, Clone)]
pub struct Verdict {
    pub report: Arc<Report>,
    pub age: Duration,
}

impl Verifying {
    /// `trust` is this server's own trusted root.
    #[must_use]
    pub fn new(signing: Signing, trust: Arc<TrustRoot>) -> Self {
        Self { signing, trust }
    }

    /// Verifies an image, and with `recursive` every manifest under it. An image named by digest whose verdict is
    /// known is answered without any call.
    ///
    /// # Errors
    /// If anything could not be asked; that is never "unsigned".
    pub async fn verify(
        &self,
        context: &Context,
        request: &VerifyRequest,
    ) -> Result<Vec<Verdict>, SigningError> {
        context.require(Action::VerifyImages)?;
        let policy = self.policy(context, request).await?;
        if let (Some(digest), false) = (request.image.digest(), request.recursive) {
            let repository = request.image.repository();
            let key = VerdictKey {
                project: context.project.to_string(),
                repository: repository.to_string(),
                digest,
                policy: policy.fingerprint(),
            };
            return Ok(vec![self.one(context, repository, key, &policy).await?]);
        }
        let (parts, project) = (&self.signing.parts, context.project.as_str());
        let mut verdicts = Vec::new();
        for subject in resolve::subjects(&*parts.registry, project, &request.image, request.recursive).await?
        {
            let repository = request.image.repository();
            let key = VerdictKey {
                project: project.to_owned(),
                repository: repository.to_string(),
                digest: subject.digest,
                policy: policy.fingerprint(),
            };
            verdicts.push(self.one(context, repository, key, &policy).await?);
        }
        Ok(verdicts)
    }

    async fn one(
        &self,
        context: &Context,
        repository: &kernel::Repository,
        key: VerdictKey,
        policy: &Policy,
    ) -> Result<Verdict, SigningError> {
        let parts = &self.signing.parts;
        if let Some((report, age)) = parts.verdicts.get(&key) {
            return Ok(Verdict { report, age });
        }
        let (project, now) = (context.project.as_str(), parts.clock.now());
        let report =
            verify::verify_digest(&*parts.registry, project, repository, key.digest, policy, now).await?;
        let report = Arc::new(report);
        parts.verdicts.put(key, report.clone());
        Ok(Verdict {
            report,
            age: Duration::ZERO,
        })
    }

    async fn policy(&self, context: &Context, request: &VerifyRequest) -> Result<Policy, SigningError> {
        let keys = match request.keys.is_empty() {
            true => self.signing.keyring().verifying(context.project.as_str()).await?,
            false => request.keys.clone(),
        };
        let name = if request.keys.is_empty() {
            "the project's keys"
        } else {
            "keys of the request"
        };
        let policy = Policy::keys(name, keys).with_annotations(request.annotations.clone());
        Ok(if request.log_required {
            policy.with_log(self.trust.clone())
        } else {
            policy
        })
    }
}
