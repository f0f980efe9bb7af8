//! The log as a folder of files, to publish, to keep, and to check without the program that wrote it.
//!
//! ```text
//!   checkpoint          the signed note
//!   log.pub             the log's public key (PEM)
//!   tile/<L>/<N>[.p/W]  hash tiles, the partial ones of the right edge too
//!   tile/entries/<N>…   entry bundles
//! ```

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use store::{Blobs, StoreError};

use crate::audit::{Audit, audit};
use crate::checkpoint::{Checkpoint, CheckpointError, LogVerifier, NOTE_BYTES_MAX};
use crate::error::TlogError;
use crate::merkle::{Hash, ProofError};
use crate::proof::{Consistency, Inclusion, body, connect, prove};
use crate::source::{Source, hashes_of};
use crate::tile::{Edge, TILE_WIDTH, Tile, TilePath, encode_bundle, leaf_hashes, parse_bundle};

const CHECKPOINT: &str = "checkpoint";
const PUBLIC_KEY: &str = "log.pub";

fn failed(path: &Path) -> impl Fn(std::io::Error) -> TlogError {
    move |source| {
        TlogError::store("using a folder of the log")(StoreError::Folder {
            path: path.to_owned(),
            source,
        })
    }
}

/// Writes the log up to `checkpoint`; the checkpoint last, so that a folder never promises what it lacks.
pub(crate) async fn write<S: Source>(
    log: &S,
    checkpoint: &Checkpoint,
    verifier: &LogVerifier,
    folder: &Path,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<(), TlogError> {
    let blobs = Blobs::folder(folder).map_err(TlogError::store("writing a folder of the log"))?;
    let (blobs, size) = (&blobs, checkpoint.size);
    let put = async |path: TilePath, bytes: Vec<u8>| {
        let done = blobs.put(&path.to_string(), bytes.into()).await;
        done.map_err(TlogError::store("writing a folder of the log"))
    };
    let mut edge = Edge::default();
    for index in 0..size.div_ceil(TILE_WIDTH) {
        let path = TilePath::bundle(index).with_width(TilePath::width_at(None, index, size));
        let entries = log.bundle(index, size).await?;
        let bytes = encode_bundle(&entries).map_err(|source| TlogError::Tile {
            what: path.to_string(),
            source,
        })?;
        put(path, bytes).await?;
        let mut full = Vec::new();
        leaf_hashes(&entries)
            .into_iter()
            .for_each(|leaf| edge.push(leaf, &mut full));
        for (level, index, tile) in full {
            put(TilePath::full(level, index), tile.bytes()).await?;
        }
        progress(edge.size());
    }
    for (level, index, tile) in edge.tiles() {
        put(
            TilePath::full(level, index).with_width(tile.width()),
            tile.bytes(),
        )
        .await?;
    }
    if edge.root() != checkpoint.root {
        let suspects = "nothing was published; run `portcullis log fsck`".to_owned();
        return Err(TlogError::Root {
            suspects,
            source: ProofError::Root,
        });
    }
    replace(&folder.join(PUBLIC_KEY), verifier.pem()).await?;
    replace(&folder.join(CHECKPOINT), checkpoint.note.clone()).await
}

/// Replaces a file whole: readers see the old or the new one.
async fn replace(path: &Path, text: String) -> Result<(), TlogError> {
    let staged = path.with_extension("new");
    let write = async || {
        let file = {
            let mut file = tokio::fs::File::create(&staged).await?;
            tokio::io::AsyncWriteExt::write_all(&mut file, text.as_bytes()).await?;
            file
        };
        file.sync_all().await?;
        tokio::fs::rename(&staged, path).await
    };
    write().await.map_err(failed(path))
}

/// A log in a folder that was exported, or mirrored from anywhere.
pub struct Folder {
    blobs: Blobs,
    checkpoint: Checkpoint,
    verifier: LogVerifier,
}

impl Folder {
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
        let checkpoint = verifier.verify(&note).map_err(TlogError::Checkpoint)?;
        let blobs = Blobs::folder(folder).map_err(TlogError::store("reading a folder of the log"))?;
        Ok(Self {
            blobs,
            checkpoint,
            verifier,
        })
    }

    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
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

    /// The inclusion proof of an entry, verified, as `Tlog::proof` gives it.
    ///
    /// # Errors
    /// If there is no such entry or size, or the files do not lead to the checkpoint.
    pub async fn proof(&self, index: u64, size: Option<u64>) -> Result<Inclusion, TlogError> {
        prove(self, index, size, &self.checkpoint).await
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
    /// As for [`Folder::proof`].
    pub async fn entry(&self, index: u64) -> Result<Vec<u8>, TlogError> {
        self.proof(index, None).await?;
        body(self, index, self.checkpoint.size).await
    }

    async fn read(&self, path: TilePath) -> Result<Bytes, TlogError> {
        self.stored(path).await?.ok_or_else(|| TlogError::Missing {
            what: path.to_string(),
        })
    }
}

/// Reads one of the two texts without which a folder is no exported log.
async fn read(folder: &Path, name: &str) -> Result<String, TlogError> {
    let path = folder.join(name);
    let length = match tokio::fs::metadata(&path).await {
        Ok(file) if file.is_file() => file.len(),
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Err(failed(&path)(error));
        }
        Ok(_) | Err(_) => {
            let (folder, found) = (folder.to_owned(), instead(folder, name).await);
            return Err(TlogError::NotExported { folder, found });
        }
    };
    if length > NOTE_BYTES_MAX as u64 {
        return Err(TlogError::Checkpoint(CheckpointError::Malformed));
    }
    let bytes = tokio::fs::read(&path).await.map_err(failed(&path))?;
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

impl Source for Folder {
    async fn tile(&self, level: u8, index: u64, size: u64) -> Result<Arc<Tile>, TlogError> {
        // The folder has the widths of its own checkpoint, which is never below `size`.
        let width = TilePath::width_at(Some(level), index, self.checkpoint.size.max(size));
        let path = TilePath::full(level, index).with_width(width);
        Ok(Arc::new(Tile::of(&hashes_of(path, &self.read(path).await?)?)))
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
        self.blobs
            .get(&path.to_string())
            .await
            .map_err(TlogError::store("reading a folder of the log"))
    }

    fn expects(&self, _: TilePath) -> bool {
        true
    }

    async fn known(&self, _: &[Hash]) -> Result<Option<Vec<Option<u64>>>, TlogError> {
        Ok(None)
    }
}
