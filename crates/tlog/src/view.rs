//! A log that is read file by file, from a folder or from a server. Nothing of it is believed: what it gives out
//! is proven by the checkpoint, whose signature is checked first.

use std::future::Future;
use std::io::ErrorKind;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use lru::LruCache;
use store::{Blobs, StoreError};

use crate::audit::{Audit, audit};
use crate::checkpoint::{Checkpoint, CheckpointError, LogVerifier, NOTE_BYTES_MAX};
use crate::error::TlogError;
use crate::merkle::{Hash, inclusion_ranges, leaf_hash};
use crate::proof::{Consistency, Inclusion, body, connect, hashes, inclusion, prove};
use crate::shelf::CACHED_TILES_MAX;
use crate::source::{Known, Source, hashes_of};
use crate::tile::{TILE_WIDTH, Tile, TilePath, parse_bundle};

/// The two texts of an exported log, beside its tiles.
pub(crate) const CHECKPOINT: &str = "checkpoint";
pub(crate) const PUBLIC_KEY: &str = "log.pub";

/// Where the files of a log are: a folder, a server.
pub trait Files: Send + Sync {
    /// The bytes of a tile or an entry bundle; `None` if there is no such file.
    ///
    /// # Errors
    /// [`TlogError::Fetch`] or [`TlogError::Store`] if the place does not answer.
    fn file(&self, path: TilePath) -> impl Future<Output = Result<Option<Bytes>, TlogError>> + Send;
}

impl Files for Blobs {
    async fn file(&self, path: TilePath) -> Result<Option<Bytes>, TlogError> {
        self.get(&path.to_string())
            .await
            .map_err(TlogError::store("reading a folder of the log"))
    }
}

/// A log as it is at one checkpoint, read from its files. A proof needs a handful of them.
pub struct View<F> {
    files: F,
    checkpoint: Checkpoint,
    verifier: LogVerifier,
    /// A proof asks one tile for many hashes.
    cache: Mutex<LruCache<(u8, u64), Arc<Tile>>>,
}

/// A log in a folder that was exported, or mirrored from anywhere.
pub type Folder = View<Blobs>;

impl View<Blobs> {
    /// Opens a folder. With `verifier` the checkpoint must be of that log; without, it is checked with the
    /// folder's own `log.pub`, which proves that the folder is whole but not whose it is.
    ///
    /// # Errors
    /// [`TlogError::NotExported`] if there is no exported log in it; else if the checkpoint does not verify or a
    /// file cannot be read.
    pub async fn open(folder: &Path, verifier: Option<LogVerifier>) -> Result<Self, TlogError> {
        let note = read(folder, CHECKPOINT).await?;
        let verifier = match verifier {
            Some(verifier) => verifier,
            None => {
                let origin = Checkpoint::parse(&note).map_err(TlogError::Checkpoint)?.origin;
                let pem = read(folder, PUBLIC_KEY).await?;
                LogVerifier::from_pem(&origin, &pem).map_err(TlogError::Key)?
            }
        };
        let blobs = Blobs::folder(folder).map_err(TlogError::store("reading a folder of the log"))?;
        Self::new(blobs, verifier, &note)
    }
}

impl<F: Files> View<F> {
    /// The log of `verifier` as it is at the checkpoint in `note`.
    ///
    /// # Errors
    /// If the note is no checkpoint that this log signed.
    pub fn new(files: F, verifier: LogVerifier, note: &str) -> Result<Self, TlogError> {
        let checkpoint = verifier.verify(note).map_err(TlogError::Checkpoint)?;
        let cap = NonZeroUsize::new(CACHED_TILES_MAX).unwrap_or(NonZeroUsize::MIN);
        Ok(Self {
            files,
            checkpoint,
            verifier,
            cache: Mutex::new(LruCache::new(cap)),
        })
    }

    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Where its files are.
    #[must_use]
    pub fn files(&self) -> &F {
        &self.files
    }

    #[must_use]
    pub fn verifier(&self) -> &LogVerifier {
        &self.verifier
    }

    /// Hashes everything again, as `Tlog::fsck` does.
    ///
    /// # Errors
    /// If a file cannot be read; damage is in the report.
    pub async fn fsck(&self, progress: &mut (dyn FnMut(u64) + Send)) -> Result<Audit, TlogError> {
        Ok(audit(self, &self.checkpoint, 0, true, progress).await?.1)
    }

    /// The same, and shows `visit` each entry as it was checked, by its index. An entry of a damaged bundle may be
    /// shown twice, or not at all.
    ///
    /// # Errors
    /// As for [`View::fsck`].
    pub async fn replay(
        &self,
        visit: &(dyn Fn(u64, &[u8]) + Sync),
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<Audit, TlogError> {
        let seen = Seen { view: self, visit };
        Ok(audit(&seen, &self.checkpoint, 0, true, progress).await?.1)
    }

    /// The inclusion proof of an entry, verified, as `Tlog::proof` gives it.
    ///
    /// # Errors
    /// If there is no such entry or size, or the files do not lead to the checkpoint.
    pub async fn proof(&self, index: u64, size: Option<u64>) -> Result<Inclusion, TlogError> {
        prove(self, index, size, &self.checkpoint).await
    }

    /// The hashes of the inclusion proof of entry `index`, from its hash tiles alone. Nothing is verified: that is for
    /// whoever has the entry ([`crate::merkle::verify_inclusion`]).
    ///
    /// # Errors
    /// If there is no such entry, or a file cannot be read.
    pub async fn path(&self, index: u64) -> Result<Vec<Hash>, TlogError> {
        let size = self.checkpoint.size;
        if index >= size {
            return Err(TlogError::NotFound {
                size,
                what: format!("entry {index}"),
            });
        }
        hashes(self, &inclusion_ranges(index, size), size).await
    }

    /// The consistency proof between two sizes, verified.
    ///
    /// # Errors
    /// If the sizes are not in order or beyond the log, or the files do not lead to the checkpoint.
    pub async fn consistency(&self, old: u64, new: u64) -> Result<Consistency, TlogError> {
        connect(self, old, new, &self.checkpoint).await
    }

    /// The body of an entry, proven to be included.
    ///
    /// # Errors
    /// As for [`View::proof`].
    pub async fn entry(&self, index: u64) -> Result<Vec<u8>, TlogError> {
        // Read once: a second reading could be answered otherwise than the one that was proven.
        let body = body(self, index, self.checkpoint.size).await?;
        inclusion(self, index, &leaf_hash(&body), &self.checkpoint).await?;
        Ok(body)
    }

    async fn read(&self, path: TilePath) -> Result<Bytes, TlogError> {
        self.files.file(path).await?.ok_or_else(|| TlogError::Missing {
            what: path.to_string(),
        })
    }
}

pub(crate) fn unusable(path: &Path) -> impl Fn(std::io::Error) -> TlogError {
    move |source| {
        TlogError::store("using a folder of the log")(StoreError::Folder {
            path: path.to_owned(),
            source,
        })
    }
}

/// Reads one of the two texts without which a folder is no exported log.
async fn read(folder: &Path, name: &str) -> Result<String, TlogError> {
    let path = folder.join(name);
    let length = match tokio::fs::metadata(&path).await {
        Ok(file) if file.is_file() => file.len(),
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Err(unusable(&path)(error));
        }
        Ok(_) | Err(_) => {
            let (folder, found) = (folder.to_owned(), instead(folder, name).await);
            return Err(TlogError::NotExported { folder, found });
        }
    };
    if length > NOTE_BYTES_MAX as u64 {
        return Err(TlogError::Checkpoint(CheckpointError::Malformed));
    }
    let bytes = tokio::fs::read(&path).await.map_err(unusable(&path))?;
    String::from_utf8(bytes).map_err(|_| TlogError::Checkpoint(CheckpointError::Malformed))
}

/// What is there instead of a folder with the file `name`, for a person who named the wrong one.
async fn instead(folder: &Path, name: &str) -> String {
    match tokio::fs::metadata(folder).await {
        Err(_) => return "there is no such folder".to_owned(),
        Ok(found) if !found.is_dir() => return "it is a file, not a folder".to_owned(),
        Ok(_) => {}
    }
    let mut entries = tokio::fs::read_dir(folder).await.ok();
    let first = match &mut entries {
        Some(entries) => entries.next_entry().await.ok().flatten(),
        None => None,
    };
    match first {
        Some(_) => format!("there is no file `{name}` in it"),
        None => "it is empty".to_owned(),
    }
}

impl<F: Files> Source for View<F> {
    async fn tile(&self, level: u8, index: u64, size: u64) -> Result<Arc<Tile>, TlogError> {
        let known = |cache: &Mutex<LruCache<_, _>>| -> Option<Arc<Tile>> {
            let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.get(&(level, index)).cloned()
        };
        if let Some(tile) = known(&self.cache) {
            return Ok(tile);
        }
        // The files have the widths of their own checkpoint, which is never below `size`.
        let width = TilePath::width_at(Some(level), index, self.checkpoint.size.max(size));
        let path = TilePath::full(level, index).with_width(width);
        let tile = Arc::new(Tile::of(&hashes_of(path, &self.read(path).await?)?));
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.put((level, index), tile.clone());
        Ok(tile)
    }

    async fn bundle(&self, index: u64, size: u64) -> Result<Vec<Vec<u8>>, TlogError> {
        let width = TilePath::width_at(None, index, self.checkpoint.size.max(size));
        let path = TilePath::bundle(index).with_width(width);
        let entries = parse_bundle(&self.read(path).await?, width);
        let mut entries = entries.map_err(|source| TlogError::Tile {
            what: path.to_string(),
            source,
        })?;
        entries.truncate(usize::from(TilePath::width_at(None, index, size)));
        Ok(entries)
    }

    async fn stored(&self, path: TilePath) -> Result<Option<Bytes>, TlogError> {
        self.files.file(path).await
    }

    fn expects(&self, _: TilePath) -> bool {
        true
    }

    async fn known(&self, _: &[Hash]) -> Result<Option<Known>, TlogError> {
        Ok(None)
    }
}

/// A log whose entries somebody looks at while they are read.
struct Seen<'a, F> {
    view: &'a View<F>,
    visit: &'a (dyn Fn(u64, &[u8]) + Sync),
}

impl<F: Files> Source for Seen<'_, F> {
    async fn tile(&self, level: u8, index: u64, size: u64) -> Result<Arc<Tile>, TlogError> {
        self.view.tile(level, index, size).await
    }

    async fn bundle(&self, index: u64, size: u64) -> Result<Vec<Vec<u8>>, TlogError> {
        let entries = self.view.bundle(index, size).await?;
        for (at, entry) in (index * TILE_WIDTH..).zip(&entries) {
            (self.visit)(at, entry);
        }
        Ok(entries)
    }

    async fn stored(&self, path: TilePath) -> Result<Option<Bytes>, TlogError> {
        self.view.stored(path).await
    }

    fn expects(&self, path: TilePath) -> bool {
        self.view.expects(path)
    }

    async fn known(&self, leaves: &[Hash]) -> Result<Option<Known>, TlogError> {
        self.view.known(leaves).await
    }
}
