//! Verifying in the server: the project's keys, this server's log, and verdicts that are known.

use std::sync::Arc;
use std::time::Duration;

use access::{Action, Context};
use flow::{Caller, Class, Pass};
use kernel::{Reference, Repository};
use tracing::Instrument as _;

use crate::format::Annotations;
use crate::image_policy::ImagePolicies;
use crate::key::PublicKey;
use crate::verdicts::VerdictKey;
use crate::verify::{self, Candidate, Policy, Records, Report};
use crate::{Signing, SigningError, debt, resolve, sign};

/// Verifies for the API. Cheap to clone.
#[derive(Clone)]
pub struct Verifying {
    signing: Signing,
    policies: ImagePolicies,
}

/// What is to be verified, and how.
#[derive(Debug, Clone)]
pub struct VerifyRequest {
    pub image: Reference,
    pub asked: Asked,
    pub annotations: Annotations,
    pub recursive: bool,
}

/// By what an image is to be verified.
#[derive(Debug, Clone)]
pub enum Asked {
    /// The image policy of this name.
    Policy(String),
    /// These keys, the project's own if empty, and this server's log if it is required.
    Keys {
        keys: Vec<PublicKey>,
        log_required: bool,
    },
}

/// A report and its age.
#[derive(Debug, Clone)]
pub struct Verdict {
    pub report: Arc<Report>,
    pub age: Duration,
}

impl Verifying {
    #[must_use]
    pub fn new(signing: Signing, policies: ImagePolicies) -> Self {
        Self { signing, policies }
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
        let span = sign::span("verify image", &request.image);
        let outcome = self.verify_now(context, request).instrument(span.clone()).await;
        sign::failed(&span, &outcome);
        outcome
    }

    async fn verify_now(
        &self,
        context: &Context,
        request: &VerifyRequest,
    ) -> Result<Vec<Verdict>, SigningError> {
        context.require(Action::VerifyImages)?;
        let policy = {
            let _turn = self.signing.parts.door.look_up(caller(context)).await?;
            self.policy(context, request).await?
        };
        let verdicts = self.verdicts(context, request, &policy).await?;
        self.require_keys(context, request, &verdicts).await?;
        Ok(verdicts)
    }

    /// Where a key of the project is damaged, a signature that no other key made may be its own: that is not
    /// "unsigned".
    async fn require_keys(
        &self,
        context: &Context,
        request: &VerifyRequest,
        verdicts: &[Verdict],
    ) -> Result<(), SigningError> {
        let own = matches!(&request.asked, Asked::Keys { keys, .. } if keys.is_empty());
        let foreign = |candidate: &Candidate| {
            let rejected = candidate.outcome.as_ref().err();
            rejected.is_some_and(|rejected| rejected.reason == "no-matching-key")
        };
        let open =
            |verdict: &Verdict| !verdict.report.verified && verdict.report.candidates.iter().any(foreign);
        if !own || !verdicts.iter().any(open) {
            return Ok(());
        }
        match self.signing.keyring().damaged(context.project.as_str()).await? {
            Some(key) => Err(SigningError::KeyDamaged(Box::new(key))),
            None => Ok(()),
        }
    }

    async fn verdicts(
        &self,
        context: &Context,
        request: &VerifyRequest,
        policy: &Policy,
    ) -> Result<Vec<Verdict>, SigningError> {
        if let (Some(digest), false) = (request.image.digest(), request.recursive) {
            let repository = request.image.repository();
            let key = VerdictKey {
                project: context.project.to_string(),
                repository: repository.to_string(),
                digest,
                policy: policy.fingerprint(),
            };
            return Ok(vec![self.one(context, repository, key, policy).await?]);
        }
        let (parts, project) = (&self.signing.parts, context.project.as_str());
        let subjects = {
            let _turn = self.turn(context, request.image.repository()).await?;
            resolve::subjects(
                &*parts.registry,
                caller(context),
                &request.image,
                request.recursive,
            )
            .await?
        };
        let mut verdicts = Vec::new();
        for subject in subjects {
            let repository = request.image.repository();
            let key = VerdictKey {
                project: project.to_owned(),
                repository: repository.to_string(),
                digest: subject.digest,
                policy: policy.fingerprint(),
            };
            verdicts.push(self.one(context, repository, key, policy).await?);
        }
        Ok(verdicts)
    }

    async fn one(
        &self,
        context: &Context,
        repository: &Repository,
        key: VerdictKey,
        policy: &Policy,
    ) -> Result<Verdict, SigningError> {
        let parts = &self.signing.parts;
        if let Some((report, age)) = parts.verdicts.get(&key) {
            return Ok(Verdict { report, age });
        }
        let report = {
            let _turn = self.turn(context, repository).await?;
            let policy = &self.with_records(policy, &key).await?;
            let (registry, now) = (&*parts.registry, parts.clock.now());
            verify::verify_digest(registry, caller(context), repository, key.digest, policy, now).await?
        };
        let report = Arc::new(report);
        parts.verdicts.put(key, report.clone());
        Ok(Verdict {
            report,
            age: Duration::ZERO,
        })
    }

    /// The policy with what this server owes the external log for the image, where it asks for that.
    async fn with_records(&self, policy: &Policy, key: &VerdictKey) -> Result<Policy, SigningError> {
        let mut policy = policy.clone();
        if policy.gives_time() {
            let db = &self.signing.parts.db;
            let owing = debt::at_image(db, &key.project, &key.repository, key.digest).await?;
            policy.records = Some(Records(owing.into()));
        }
        Ok(policy)
    }

    /// A turn to read at the image's registry.
    async fn turn(&self, context: &Context, repository: &Repository) -> Result<Pass, SigningError> {
        let door = &self.signing.parts.door;
        Ok(door.work(caller(context), repository.registry(), 1).await?)
    }

    async fn policy(&self, context: &Context, request: &VerifyRequest) -> Result<Policy, SigningError> {
        let policy = match &request.asked {
            Asked::Policy(name) => self
                .policies
                .read(context, name)
                .await?
                .policy_for(&request.image)?,
            Asked::Keys { keys, log_required } => {
                let policy = if keys.is_empty() {
                    let own = self.signing.keyring().verifying(context.project.as_str()).await?;
                    Policy::keys("the project's keys", own)
                } else {
                    Policy::keys("keys of the request", keys.clone())
                };
                match log_required {
                    true => policy.with_log(self.signing.parts.log.trust().clone()),
                    false => policy,
                }
            }
        };
        Ok(policy.with_annotations(request.annotations.clone()))
    }
}

fn caller(context: &Context) -> Caller<'_> {
    Caller::new(context.project.as_str(), Class::Verify)
}
