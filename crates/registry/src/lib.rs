//! A small OCI registry in the process: a true subset of the OCI distribution specification 1.1.
//!
//! `portcullis demo` keeps its images here, and the tests of everything that talks to a registry talk to
//! this one. It answers pull, push (one `PUT`, one `POST`, or chunks), the list of tags and the referrers
//! API, which can be switched off because many registries lack it. What is pushed is checked against its
//! digest. Content lies in an [`object_store`]: memory or a folder.
//!
//! ```text
//!   serve ──> routes ──> ask (what), access (who), faults (what tests break)
//!                │
//!                ├──> pull, push ──> shelf ──> object_store
//!                └──> answer (status, spec error JSON)
//!   sample: small real images, put on the shelf without HTTP
//! ```
//!
//! What it does not do: delete, resume an upload after a restart, range requests, mount blobs across
//! repositories (it answers 202 and takes the upload, as the specification allows). It is no place to keep
//! images that matter: an upload is held in memory until it is whole.

mod access;
mod answer;
mod ask;
mod faults;
mod pull;
mod push;
mod routes;
mod sample;
mod serve;
mod shelf;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::Router;
use bytes::Bytes;
use kernel::{Code, Digest, Fault, Kind};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;

pub use access::Auth;
pub use faults::{Calls, Plan};
pub use serve::Running;

use access::Access;
use faults::Faults;
use push::Uploads;
use shelf::Shelf;

/// How a registry behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether there is a referrers API. Without it, `/referrers/` is 404 and no `PUT` is answered with
    /// `OCI-Subject`, as in distribution 2.8 and 3.1.
    pub referrers: bool,
    /// Entries on one page of the referrers API.
    pub referrers_per_page: usize,
    /// Who may come in.
    pub auth: Auth,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            referrers: true,
            referrers_per_page: 100,
            auth: Auth::None,
        }
    }
}

/// A registry. Clones share the content.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    options: Options,
    shelf: Shelf,
    access: Access,
    uploads: Uploads,
    faults: Faults,
    manifest_reads: AtomicU64,
}

impl Registry {
    /// A registry that forgets everything when it is dropped.
    #[must_use]
    pub fn memory(options: Options) -> Self {
        Self::over(Arc::new(InMemory::new()), options)
    }

    /// A registry whose content lies in the folder `path`, which is made if it is not there.
    ///
    /// # Errors
    /// When the folder cannot be made or opened.
    pub fn folder(path: &Path, options: Options) -> Result<Self, RegistryError> {
        let failed = |source| RegistryError::Folder {
            path: path.display().to_string(),
            source,
        };
        std::fs::create_dir_all(path).map_err(|error| failed(Box::new(error)))?;
        let store = LocalFileSystem::new_with_prefix(path).map_err(|error| failed(Box::new(error)))?;
        Ok(Self::over(Arc::new(store), options))
    }

    fn over(store: Arc<dyn object_store::ObjectStore>, options: Options) -> Self {
        Self(Arc::new(Inner {
            access: Access::new(options.auth.clone()),
            options,
            shelf: Shelf::new(store),
            uploads: Uploads::new(Arc::new(kernel::SystemClock::new())),
            faults: Faults::default(),
            manifest_reads: AtomicU64::new(0),
        }))
    }

    /// The routes, to be served by whoever has a listener.
    pub fn router(&self) -> Router {
        routes::router(self.clone())
    }

    /// Serves on a free port of 127.0.0.1 until the answer is dropped.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn serve_on_loopback(&self) -> Result<Running, RegistryError> {
        serve::on_loopback(self).await
    }

    /// Changes what the registry does wrong from now on.
    pub fn fault(&self, change: impl FnOnce(&mut Plan)) {
        self.0.faults.change(change);
    }

    /// How often it was called since it was made, by kind.
    #[must_use]
    pub fn calls(&self) -> Calls {
        self.0.faults.calls()
    }

    /// Forgets every bearer token that was handed out, as if they had run out.
    pub fn revoke_tokens(&self) {
        self.0.access.revoke();
    }

    /// Puts a manifest as it is, without a check: the way to have something wrong in a registry.
    ///
    /// # Errors
    /// When the storage fails.
    pub async fn put_manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest, RegistryError> {
        let digest = self
            .0
            .shelf
            .put_manifest(repository, media_type, Bytes::copy_from_slice(bytes))
            .await?;
        if let Some(tag) = tag {
            self.0.shelf.put_tag(repository, tag, digest).await?;
        }
        Ok(digest)
    }

    /// Puts a blob.
    ///
    /// # Errors
    /// When the storage fails.
    pub async fn put_blob(&self, repository: &str, bytes: &[u8]) -> Result<Digest, RegistryError> {
        self.0
            .shelf
            .put_blob(repository, Bytes::copy_from_slice(bytes))
            .await
    }

    /// The bytes of a manifest, if it is there; read past the HTTP door, so no call is counted.
    ///
    /// # Errors
    /// When the storage fails.
    pub async fn manifest_bytes(
        &self,
        repository: &str,
        digest: Digest,
    ) -> Result<Option<Bytes>, RegistryError> {
        Ok(self
            .0
            .shelf
            .manifest(repository, digest)
            .await?
            .map(|held| held.bytes))
    }

    /// The digest that a tag names, read past the HTTP door.
    ///
    /// # Errors
    /// When the storage fails.
    pub async fn tag_digest(&self, repository: &str, tag: &str) -> Result<Option<Digest>, RegistryError> {
        self.0.shelf.tag(repository, tag).await
    }
}

/// Why the registry itself failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("opening the registry folder {path}")]
    Folder {
        path: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("listening on loopback")]
    Listen(#[source] std::io::Error),
    #[error("{operation} in the registry's storage")]
    Storage {
        operation: &'static str,
        source: object_store::Error,
    },
    #[error("reading a record of the registry's storage")]
    Record(#[source] serde_json::Error),
}

impl Fault for RegistryError {
    fn kind(&self) -> Kind {
        Kind::Unavailable
    }

    fn code(&self) -> &'static Code {
        match self {
            Self::Listen(_) => &codes::LISTEN,
            Self::Folder { .. } | Self::Storage { .. } | Self::Record(_) => &codes::STORAGE,
        }
    }
}

/// The codes of the registry in the process.
pub mod codes {
    use kernel::Code;

    pub const STORAGE: Code = Code {
        id: "PC1561",
        title: "the storage of the registry in the process failed",
        explanation: "The small registry that the demonstration uses keeps its content in a folder or in \
memory. The folder could not be read or written.",
        hint: "check that the folder exists, belongs to this user and has room",
    };
    pub const LISTEN: Code = Code {
        id: "PC1562",
        title: "the registry in the process cannot listen",
        explanation: "The small registry that the demonstration uses listens on a free port of 127.0.0.1. None \
could be bound.",
        hint: "check that loopback is up and that the process may open more files",
    };
    pub const ALL: &[&Code] = &[&STORAGE, &LISTEN];
}
