//! Immutable objects by name, in a folder or in S3.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use crate::StoreError;
use crate::lock::make_private;

/// A store of immutable objects. Cheap to clone.
#[derive(Clone)]
pub struct Blobs {
    objects: Arc<dyn ObjectStore>,
}

impl Blobs {
    /// Objects as files under `folder`, which is made if need be. Each write is synced to the disk, with its
    /// directory, before it returns.
    ///
    /// # Errors
    /// If the folder cannot be used.
    pub fn folder(folder: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Folder {
            path: folder.to_owned(),
            source,
        };
        make_private(folder).map_err(failed)?;
        let objects = LocalFileSystem::new_with_prefix(folder)
            .map_err(|error| failed(std::io::Error::other(error)))?
            .with_fsync(true);
        Ok(Self {
            objects: Arc::new(objects),
        })
    }

    /// Objects in this process's memory, gone when it ends.
    #[must_use]
    pub fn memory() -> Self {
        Self {
            objects: Arc::new(InMemory::new()),
        }
    }

    /// Objects in an S3 bucket, or anything that speaks its protocol.
    #[must_use]
    pub fn over(objects: Arc<dyn ObjectStore>) -> Self {
        Self { objects }
    }

    /// Stores an object; durable when it returns. The same content again is fine, other content under a name
    /// that is taken is refused.
    ///
    /// # Errors
    /// [`StoreError::BlobDiffers`] for other content; [`StoreError::Blob`] if the store does not answer.
    pub async fn put(&self, path: &str, bytes: Bytes) -> Result<(), StoreError> {
        let failed = |source| StoreError::Blob {
            operation: "writing",
            path: path.to_owned(),
            source,
        };
        let options = PutOptions {
            mode: PutMode::Create,
            ..PutOptions::default()
        };
        match self
            .objects
            .put_opts(&ObjectPath::from(path), bytes.clone().into(), options)
            .await
        {
            Ok(_) => Ok(()),
            Err(object_store::Error::AlreadyExists { .. }) => match self.get(path).await? {
                Some(found) if found == bytes => Ok(()),
                Some(_) => Err(StoreError::BlobDiffers {
                    path: path.to_owned(),
                }),
                None => Err(failed(object_store::Error::NotFound {
                    path: path.to_owned(),
                    source: "it vanished".into(),
                })),
            },
            Err(source) => Err(failed(source)),
        }
    }

    /// An object's bytes, or `None` if there is none of that name.
    ///
    /// # Errors
    /// [`StoreError::Blob`] if the store does not answer.
    pub async fn get(&self, path: &str) -> Result<Option<Bytes>, StoreError> {
        let failed = |source| StoreError::Blob {
            operation: "reading",
            path: path.to_owned(),
            source,
        };
        match self.objects.get(&ObjectPath::from(path)).await {
            Ok(found) => found.bytes().await.map(Some).map_err(failed),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(failed(source)),
        }
    }
}
