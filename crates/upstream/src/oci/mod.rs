//! The client of OCI registries (OCI distribution specification 1.1).
//!
//! [`Client`] is one value for the whole process: connections, tokens, limits and the turns at shared tags
//! are in it. Each call of the port is one deadline, one place in the registry's limit on concurrent calls,
//! and one operation in its error.
//!
//! What reads the bytes of others is public, as functions of text and bytes to values without any I/O:
//! [`challenge`], [`header`], [`document`] and [`login`].

mod auth;
pub mod challenge;
mod config;
mod docker;
pub mod document;
pub(crate) mod egress;
pub mod header;
mod identity;
pub mod login;
mod probe;
mod read;
mod session;
mod silence;

pub(crate) mod transport;
mod wait;
mod write;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use flow::Caller;
use kernel::{Clock, Digest, Random, Reference, Repository};
use rustls::{ClientConfig, RootCertStore};
use signing::ports::{Descriptor, Manifest, Merge, Registry, RegistryError, RegistryReason};

pub use config::{
    CALL_SECONDS_MAX_DEFAULT, CONCURRENT_CALLS_MAX_DEFAULT, Config, ConfigError, Credentials, RegistryConfig,
    codes,
};
pub use docker::user_docker_config;
pub(crate) use egress::is_loopback;
pub use probe::{REGISTRIES_PROBED_MAX, RegistryProbe};

use auth::{Authenticator, Scope};
use session::Session;
use transport::Host;

use crate::tls::tls;
use write::Turns;

/// Registries whose connections are kept. References come from callers, so their number has no bound of its
/// own; beyond this all are dropped and made again when called.
const HOSTS_MAX: usize = 1_000;

/// A client of every registry.
pub struct Client {
    config: Config,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    roots: RootCertStore,
    /// TLS for registries without a CA of their own.
    tls: ClientConfig,
    auth: Authenticator,
    turns: Turns,
    hosts: Mutex<HashMap<String, Arc<Host>>>,
}

impl Client {
    /// A client that trusts the system's certificates, and those of the configuration for their registry.
    ///
    /// # Errors
    /// When the configuration cannot be used.
    pub fn new(config: Config, clock: Arc<dyn Clock>, random: Arc<dyn Random>) -> Result<Self, ConfigError> {
        let config = config.checked()?;
        let mut roots = RootCertStore::empty();
        // A certificate of the system that cannot be read is one that nothing is verified with; a machine
        // without any can still use registries with a `ca_pem` and those on loopback.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        for (name, registry) in &config.registries {
            tls(&roots, registry.ca_pem.as_deref()).map_err(|error| ConfigError::tls(name, error))?;
        }
        Ok(Self {
            tls: tls(&roots, None).map_err(|error| ConfigError::tls("", error))?,
            roots,
            clock,
            random,
            auth: Authenticator::new(config.docker_config.clone(), config.docker_helpers.clone()),
            turns: Turns::default(),
            hosts: Mutex::default(),
            config,
        })
    }

    fn host(&self, name: &str) -> Result<Arc<Host>, RegistryReason> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = hosts.get(name) {
            return Ok(Arc::clone(host));
        }
        let config = self.config.registries.get(name).cloned().unwrap_or_default();
        let tls = match &config.ca_pem {
            None => self.tls.clone(),
            // It was read once when the client was made.
            Some(pem) => tls(&self.roots, Some(pem))
                .map_err(|error| RegistryReason::Unavailable(kernel::chain(&error)))?,
        };
        let host = Arc::new(Host::new(name, config, tls, Arc::clone(&self.clock))?);
        if hosts.len() >= HOSTS_MAX {
            hosts.clear();
        }
        hosts.insert(name.to_owned(), Arc::clone(&host));
        Ok(host)
    }

    fn session<'a>(
        &'a self,
        caller: Caller<'a>,
        host: &'a Host,
        repository: &'a Repository,
        push: bool,
    ) -> Session<'a> {
        let (clock, random) = (self.clock.as_ref(), self.random.as_ref());
        let scope = Scope {
            project: caller.project,
            host,
            repository: repository.path(),
            push,
            clock,
            random,
        };
        Session {
            scope,
            auth: &self.auth,
            caller,
        }
    }
}

fn failed(operation: impl Into<String>, repository: &Repository, reason: RegistryReason) -> RegistryError {
    RegistryError {
        operation: operation.into(),
        registry: repository.registry().to_owned(),
        reason,
    }
}

#[async_trait]
impl Registry for Client {
    async fn manifest(&self, caller: Caller<'_>, image: &Reference) -> Result<Manifest, RegistryError> {
        let repository = image.repository();
        let work = async {
            let host = self.host(repository.registry())?;
            let session = self.session(caller, &host, repository, false);
            session.counted("manifest", session.manifest(image)).await
        };
        work.await
            .map_err(|reason| failed(format!("reading the manifest of {image}"), repository, reason))
    }

    async fn blob(
        &self,
        caller: Caller<'_>,
        repository: &Repository,
        digest: Digest,
        bytes_max: usize,
    ) -> Result<Bytes, RegistryError> {
        let work = async {
            let host = self.host(repository.registry())?;
            let session = self.session(caller, &host, repository, false);
            session.counted("blob", session.blob(digest, bytes_max)).await
        };
        work.await.map_err(|reason| {
            failed(
                format!("reading the blob {repository}@{digest}"),
                repository,
                reason,
            )
        })
    }

    async fn referrers(
        &self,
        caller: Caller<'_>,
        repository: &Repository,
        subject: Digest,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let work = async {
            let host = self.host(repository.registry())?;
            let session = self.session(caller, &host, repository, false);
            session.counted("referrers", session.referrers(subject)).await
        };
        work.await.map_err(|reason| {
            failed(
                format!("listing the referrers of {repository}@{subject}"),
                repository,
                reason,
            )
        })
    }

    async fn push_blob(
        &self,
        caller: Caller<'_>,
        repository: &Repository,
        bytes: Bytes,
    ) -> Result<(), RegistryError> {
        let work = async {
            let host = self.host(repository.registry())?;
            let session = self.session(caller, &host, repository, true);
            session.counted("push_blob", session.push_blob(bytes)).await
        };
        work.await
            .map_err(|reason| failed(format!("storing a blob in {repository}"), repository, reason))
    }

    async fn attach(
        &self,
        caller: Caller<'_>,
        repository: &Repository,
        subject: Digest,
        manifest: &Descriptor,
        bytes: Bytes,
    ) -> Result<(), RegistryError> {
        let work = async {
            let host = self.host(repository.registry())?;
            let session = self.session(caller, &host, repository, true);
            session
                .within(session.attach(&self.turns, repository, subject, manifest, bytes))
                .await
        };
        work.await
            .map_err(|reason| failed(format!("attaching to {repository}@{subject}"), repository, reason))
    }

    async fn update_tag(
        &self,
        caller: Caller<'_>,
        repository: &Repository,
        tag: &str,
        merge: &Merge<'_>,
    ) -> Result<(), RegistryError> {
        let work = async {
            let host = self.host(repository.registry())?;
            let session = self.session(caller, &host, repository, true);
            session.within(session.update_tag(&self.turns, tag, merge)).await
        };
        work.await
            .map_err(|reason| failed(format!("updating the tag {repository}:{tag}"), repository, reason))
    }
}
