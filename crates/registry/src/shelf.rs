//! Where content lies: one object each, written whole.
//!
//! ```text
//!   blobs/<hex>                                   the bytes, of blobs and manifests
//!   repositories/<name>/_blobs/<hex>              empty: the blob is in this repository
//!   repositories/<name>/_manifests/<hex>          the descriptor of the manifest (JSON)
//!   repositories/<name>/_referrers/<hex>/<hex>    the descriptor of a referrer, under its subject
//!   repositories/<name>/_tags/<tag>               a digest
//! ```
//!
//! A component of a repository's name never begins with an underscore, so the folders cannot collide.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use kernel::Digest;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};

use crate::RegistryError;

pub struct Shelf {
    store: Arc<dyn ObjectStore>,
}

/// A manifest with its media type.
pub struct Held {
    pub media_type: String,
    pub bytes: Bytes,
}

/// A descriptor as the referrers API lists it (OCI image specification, "Content Descriptors").
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What the registry reads in a manifest.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Outline {
    pub subject: Option<Pointer>,
    pub config: Option<Pointer>,
    pub layers: Vec<Pointer>,
    pub artifact_type: Option<String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pointer {
    pub digest: String,
    #[serde(default)]
    pub media_type: Option<String>,
}

impl Shelf {
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store }
    }

    pub async fn put_blob(&self, repository: &str, bytes: Bytes) -> Result<Digest, RegistryError> {
        let digest = Digest::of(&bytes);
        self.put(&content(digest), bytes).await?;
        self.put(
            &within(repository, &format!("_blobs/{}", digest.hex())),
            Bytes::new(),
        )
        .await?;
        Ok(digest)
    }

    pub async fn has_blob(&self, repository: &str, digest: Digest) -> Result<bool, RegistryError> {
        Ok(self
            .get(&within(repository, &format!("_blobs/{}", digest.hex())))
            .await?
            .is_some())
    }

    pub async fn blob(&self, repository: &str, digest: Digest) -> Result<Option<Bytes>, RegistryError> {
        if !self.has_blob(repository, digest).await? {
            return Ok(None);
        }
        self.get(&content(digest)).await
    }

    /// Bytes first, then what points at them: whoever finds a pointer finds the bytes.
    pub async fn put_manifest(
        &self,
        repository: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, RegistryError> {
        let digest = Digest::of(&bytes);
        let outline: Outline = serde_json::from_slice(&bytes).unwrap_or_default();
        let config_type = outline.config.and_then(|config| config.media_type);
        let descriptor = Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size: bytes.len(),
            artifact_type: outline
                .artifact_type
                .filter(|kind| !kind.is_empty())
                .or(config_type),
            annotations: outline.annotations,
        };
        let record = Bytes::from(serde_json::to_vec(&descriptor).map_err(RegistryError::Record)?);
        self.put(&content(digest), bytes).await?;
        self.put(
            &within(repository, &format!("_manifests/{}", digest.hex())),
            record.clone(),
        )
        .await?;
        if let Some(Ok(subject)) = outline.subject.map(|subject| subject.digest.parse::<Digest>()) {
            let place = format!("_referrers/{}/{}", subject.hex(), digest.hex());
            self.put(&within(repository, &place), record).await?;
        }
        Ok(digest)
    }

    pub async fn manifest(&self, repository: &str, digest: Digest) -> Result<Option<Held>, RegistryError> {
        let Some(record) = self
            .get(&within(repository, &format!("_manifests/{}", digest.hex())))
            .await?
        else {
            return Ok(None);
        };
        let descriptor: Descriptor = serde_json::from_slice(&record).map_err(RegistryError::Record)?;
        let bytes = self.get(&content(digest)).await?;
        Ok(bytes.map(|bytes| Held {
            media_type: descriptor.media_type,
            bytes,
        }))
    }

    pub async fn put_tag(&self, repository: &str, tag: &str, digest: Digest) -> Result<(), RegistryError> {
        self.put(
            &within(repository, &format!("_tags/{tag}")),
            Bytes::from(digest.to_string()),
        )
        .await
    }

    pub async fn tag(&self, repository: &str, tag: &str) -> Result<Option<Digest>, RegistryError> {
        let held = self.get(&within(repository, &format!("_tags/{tag}"))).await?;
        Ok(held.and_then(|bytes| std::str::from_utf8(&bytes).ok()?.parse().ok()))
    }

    /// Tags in lexical order (distribution specification, "Listing Tags").
    pub async fn tags(&self, repository: &str) -> Result<Vec<String>, RegistryError> {
        self.names(&within(repository, "_tags")).await
    }

    /// Referrers of `subject`, ordered by digest.
    pub async fn referrers(
        &self,
        repository: &str,
        subject: Digest,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let folder = format!("_referrers/{}", subject.hex());
        let mut found = Vec::new();
        for name in self.names(&within(repository, &folder)).await? {
            if let Some(record) = self.get(&within(repository, &format!("{folder}/{name}"))).await? {
                found.push(serde_json::from_slice(&record).map_err(RegistryError::Record)?);
            }
        }
        Ok(found)
    }

    async fn names(&self, folder: &Path) -> Result<Vec<String>, RegistryError> {
        let listed: Vec<_> = self
            .store
            .list(Some(folder))
            .try_collect()
            .await
            .map_err(storage("listing"))?;
        let mut names: Vec<String> = listed
            .iter()
            .filter_map(|object| object.location.filename().map(str::to_owned))
            .collect();
        names.sort();
        Ok(names)
    }

    async fn put(&self, place: &Path, bytes: Bytes) -> Result<(), RegistryError> {
        self.store
            .put(place, bytes.into())
            .await
            .map(drop)
            .map_err(storage("writing"))
    }

    async fn get(&self, place: &Path) -> Result<Option<Bytes>, RegistryError> {
        match self.store.get(place).await {
            Ok(found) => found.bytes().await.map(Some).map_err(storage("reading")),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(storage("reading")(error)),
        }
    }
}

fn storage(operation: &'static str) -> impl FnOnce(object_store::Error) -> RegistryError {
    move |source| RegistryError::Storage { operation, source }
}

fn content(digest: Digest) -> Path {
    Path::from(format!("blobs/{}", digest.hex()))
}

fn within(repository: &str, place: &str) -> Path {
    Path::from(format!("repositories/{repository}/{place}"))
}
