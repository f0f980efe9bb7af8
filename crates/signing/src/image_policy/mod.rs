//! Image policies: rules with a name, which say who has to have signed which images.
//!
//! They have the shape of `ClusterImagePolicy`, so that a policy of a cluster is a policy here. A policy covers the
//! images that its globs name; an image that it covers needs a signature that one of its authorities accepts. What
//! it asks for beyond that and is not known here is refused when the policy is read ([`document`]).

mod document;
mod glob;
mod tables;

use access::audit::{self, Record};
use access::{Action, Context};
use kernel::{Clock, Digest, Random, Reference};
use std::collections::BTreeMap;
use std::sync::Arc;
use store::{Db, Kept, Recent};

pub use document::{Root, TrustRoots};
pub(crate) use tables::MIGRATION;

use crate::SigningError;
use crate::trust::TrustRoot;
use crate::verify::{Authority, Policy};
use glob::Glob;

/// A policy that was read, with everything that it refers to.
#[derive(Debug, Clone)]
pub struct ImagePolicy {
    name: String,
    globs: Vec<Glob>,
    authorities: Vec<Authority>,
}

impl ImagePolicy {
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the policy asks of an image.
    ///
    /// # Errors
    /// [`SigningError::NotCovered`] if it says nothing about it.
    pub fn policy_for(&self, image: &Reference) -> Result<Policy, SigningError> {
        if !self.covers(image.repository(), image.tag(), image.digest()) {
            return Err(SigningError::NotCovered {
                policy: self.name.clone(),
                image: Box::new(image.clone()),
            });
        }
        Ok(Policy {
            name: self.name.clone(),
            authorities: self.authorities.clone(),
            annotations: BTreeMap::new(),
            not_before: None,
            records: None,
        })
    }
}

/// A policy as it stands in the database.
#[derive(Debug, Clone)]
pub struct StoredPolicy {
    pub name: String,
    /// As it was written: JSON.
    pub document: serde_json::Value,
    /// Of the document; another one for each change.
    pub digest: Digest,
}

/// The image policies of projects. Cheap to clone.
#[derive(Clone)]
pub struct ImagePolicies {
    db: Db,
    /// Policies by project and name, for whoever verifies with them.
    recent: Arc<Recent<(String, String), StoredPolicy>>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    /// What this server's own log proves; counts where a policy names no root.
    own: Arc<TrustRoot>,
    /// What the external log proves, if there is one.
    external: Option<Arc<TrustRoot>>,
    /// Trusted roots that policies may name.
    named: Arc<BTreeMap<String, Arc<TrustRoot>>>,
}

impl ImagePolicies {
    #[must_use]
    pub fn new(
        db: Db,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        own: Arc<TrustRoot>,
        named: BTreeMap<String, Arc<TrustRoot>>,
    ) -> Self {
        let named = Arc::new(named);
        Self {
            db,
            recent: Arc::new(Recent::new("image_policy", clock.clone(), |changed, key, _| {
                changed == place(&key.0, &key.1)
            })),
            clock,
            random,
            own,
            external: None,
            named,
        }
    }

    /// What is kept in memory of the rows that other servers may change.
    #[must_use]
    pub fn kept(&self) -> Arc<dyn Kept> {
        self.recent.clone()
    }

    /// The same with an external log, which policies may ask for.
    #[must_use]
    pub fn with_external(self, external: Option<Arc<TrustRoot>>) -> Self {
        Self { external, ..self }
    }

    /// One policy, ready to verify with: as it was a moment ago, or, while the database is away, as it was last read.
    ///
    /// # Errors
    /// [`SigningError::NoImagePolicy`] if the project has none of that name.
    pub async fn read(&self, context: &Context, name: &str) -> Result<ImagePolicy, SigningError> {
        context.require(Action::ReadPolicies)?;
        let key = (context.project.to_string(), name.to_owned());
        let read = tables::get(&self.db, context.project.as_str(), name);
        let stored = self.recent.read(key, read).await?;
        self.parse(&stored.ok_or_else(|| none_such(name))?.document)
    }

    fn parse(&self, document: &serde_json::Value) -> Result<ImagePolicy, SigningError> {
        ImagePolicy::read(document, &|root| match root {
            Root::Own => Some(self.own.clone()),
            Root::External => self.external.clone(),
            Root::Named(name) => self.named.get(name).cloned(),
        })
    }

    /// One policy as it was written.
    ///
    /// # Errors
    /// [`SigningError::NoImagePolicy`] if the project has none of that name.
    pub async fn get(&self, context: &Context, name: &str) -> Result<StoredPolicy, SigningError> {
        context.require(Action::ReadPolicies)?;
        let found = tables::get(&self.db, context.project.as_str(), name).await?;
        found.ok_or_else(|| none_such(name))
    }

    /// Policies of the project after a name, in the order of their names.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn list(
        &self,
        context: &Context,
        after: &str,
        limit: u32,
    ) -> Result<Vec<StoredPolicy>, SigningError> {
        context.require(Action::ReadPolicies)?;
        tables::list(&self.db, context.project.as_str(), after, limit).await
    }

    /// Writes a policy under its name; the answer says whether it is new. With `expected`, only if the policy that
    /// stands has this digest.
    ///
    /// # Errors
    /// If the document cannot be used, or another one stands than was expected.
    pub async fn put(
        &self,
        context: &Context,
        name: &str,
        document: serde_json::Value,
        expected: Option<Digest>,
    ) -> Result<(StoredPolicy, bool), SigningError> {
        context.require(Action::ManagePolicies)?;
        let read = self.parse(&document)?;
        if read.name != name {
            let why = format!("{:?} is not {name:?}, the name in the address", read.name);
            return Err(SigningError::image_policy("metadata.name", why));
        }
        let digest = Digest::of(document.to_string().as_bytes());
        let stored = StoredPolicy {
            name: name.to_owned(),
            document,
            digest,
        };
        let project = context.project.as_str();
        let mut tx = self.db.begin().await?;
        let _change = self
            .recent
            .change(&mut tx, &place(context.project.as_str(), name))
            .await?;
        let before = tables::put(&mut tx, project, &stored, self.clock.now_us()).await?;
        if expected.is_some() && before != expected {
            return Err(SigningError::ImagePolicyChanged(name.to_owned()));
        }
        let detail = digest.to_string();
        self.record(&mut tx, context, "image-policy.put", name, &detail)
            .await?;
        tx.commit().await?;
        Ok((stored, before.is_none()))
    }

    /// Removes a policy.
    ///
    /// # Errors
    /// [`SigningError::NoImagePolicy`] if the project has none of that name.
    pub async fn delete(&self, context: &Context, name: &str) -> Result<(), SigningError> {
        context.require(Action::ManagePolicies)?;
        let mut tx = self.db.begin().await?;
        let _change = self
            .recent
            .change(&mut tx, &place(context.project.as_str(), name))
            .await?;
        if !tables::delete(&mut tx, context.project.as_str(), name).await? {
            return Err(none_such(name));
        }
        self.record(&mut tx, context, "image-policy.delete", name, "")
            .await?;
        Ok(tx.commit().await?)
    }

    async fn record(
        &self,
        tx: &mut store::Tx,
        context: &Context,
        action: &str,
        resource: &str,
        detail: &str,
    ) -> Result<(), SigningError> {
        let record = Record {
            action,
            resource,
            detail,
        };
        Ok(audit::record(tx, context, &*self.clock, &*self.random, record).await?)
    }
}

/// One policy of all projects; a project's name has no slash.
fn place(project: &str, name: &str) -> String {
    format!("{project}/{name}")
}

fn none_such(name: &str) -> SigningError {
    SigningError::NoImagePolicy(name.chars().take(100).collect())
}
