//! The log as a folder of files, to publish, to keep, and to check without the program that wrote it.
//!
//! ```text
//!   checkpoint          the signed note
//!   log.pub             the log's public key (PEM)
//!   tile/<L>/<N>[.p/W]  hash tiles, the partial ones of the right edge too
//!   tile/entries/<N>…   entry bundles
//! ```
//!
//! A copy is evidence of what the log once said. It only grows: what stands in the folder is checked first, and a log
//! that contradicts it is refused, with the copy left as it is.

use std::path::Path;

use store::{Blobs, StoreError};

use crate::audit::audit;
use crate::checkpoint::{Checkpoint, CheckpointError, LogVerifier};
use crate::error::TlogError;
use crate::merkle::ProofError;
use crate::proof::root;
use crate::source::{self, Source};
use crate::tile::{Edge, TILE_WIDTH, TilePath, encode_bundle, leaf_hashes};
use crate::view::{CHECKPOINT, Files, Folder, PUBLIC_KEY, View, unusable};

impl<F: Files> View<F> {
    /// Copies the log to a folder, as `Tlog::export` does.
    ///
    /// # Errors
    /// As for `Tlog::export`, and if the files cannot be read.
    pub async fn export(
        &self,
        folder: &Path,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), TlogError> {
        write(self, self.checkpoint(), self.verifier(), folder, progress).await
    }
}

/// Writes the log up to `checkpoint`; the checkpoint last, so that a folder never promises what it lacks. Of a folder
/// that has a copy only what is new is read from the log.
pub(crate) async fn write<S: Source>(
    log: &S,
    checkpoint: &Checkpoint,
    verifier: &LogVerifier,
    folder: &Path,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<(), TlogError> {
    let mut edge = standing(log, checkpoint, verifier, folder).await?;
    let blobs = Blobs::folder(folder).map_err(TlogError::store("writing a folder of the log"))?;
    let (blobs, size) = (&blobs, checkpoint.size);
    let put = async |path: TilePath, bytes: Vec<u8>| {
        let done = blobs.put(&path.to_string(), bytes.into()).await;
        done.map_err(|error| match error {
            StoreError::BlobDiffers { path } => TlogError::Damaged {
                what: format!("{path} in the folder {}", folder.display()),
                found: "it is there already, with other bytes".to_owned(),
            },
            source => TlogError::store("writing a folder of the log")(source),
        })
    };
    for index in edge.size() / TILE_WIDTH..size.div_ceil(TILE_WIDTH) {
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

/// Checks the copy that stands in the folder, if there is one: that it is whole, of this log, and that the log has
/// only grown since. Gives the right edge behind its last full bundle, from where to go on.
async fn standing<S: Source>(
    log: &S,
    checkpoint: &Checkpoint,
    verifier: &LogVerifier,
    folder: &Path,
) -> Result<Edge, TlogError> {
    let there = folder.join(CHECKPOINT);
    if !tokio::fs::try_exists(&there).await.map_err(unusable(&there))? {
        return Ok(Edge::default());
    }
    let conflict = |old: &Checkpoint, why: String| TlogError::Diverged {
        folder: folder.to_owned(),
        old: statement(old),
        new: statement(checkpoint),
        why,
    };
    let copy = match Folder::open(folder, Some(verifier.clone())).await {
        Err(TlogError::Checkpoint(
            error @ (CheckpointError::Origin { .. } | CheckpointError::NotSigned { .. }),
        )) => {
            let note = tokio::fs::read_to_string(&there)
                .await
                .map_err(unusable(&there))?;
            let old = Checkpoint::parse(&note).map_err(TlogError::Checkpoint)?;
            return Err(conflict(&old, format!("the copy is of another log: {error}")));
        }
        opened => opened?,
    };
    let old = copy.checkpoint();
    if old.size > checkpoint.size {
        return Err(conflict(old, "the log is smaller than the copy".to_owned()));
    }
    let was = root(log, old.size, checkpoint).await?;
    if was != old.root {
        let found = hex::encode(was);
        let why = format!("with {} entries the log has the root {found}", old.size);
        return Err(conflict(old, why));
    }
    let (_, report) = audit(&copy, old, 0, true, &mut |_| {}).await?;
    if let Some(damage) = report.damage.into_iter().next() {
        return Err(TlogError::Damaged {
            what: format!("{} in the copy {}", damage.what, folder.display()),
            found: damage.found,
        });
    }
    source::edge(&copy, old.size / TILE_WIDTH * TILE_WIDTH, old.size).await
}

/// What a checkpoint says, for a person.
fn statement(checkpoint: &Checkpoint) -> String {
    let Checkpoint {
        origin, size, root, ..
    } = checkpoint;
    format!("{size} entries under the root {} of {origin}", hex::encode(root))
}

/// Replaces a file whole, and durably: readers see the old or the new one.
async fn replace(path: &Path, text: String) -> Result<(), TlogError> {
    let staged = path.with_extension("new");
    let write = async || {
        let mut file = tokio::fs::File::create(&staged).await?;
        tokio::io::AsyncWriteExt::write_all(&mut file, text.as_bytes()).await?;
        file.sync_all().await?;
        tokio::fs::rename(&staged, path).await?;
        // The new name is durable when its folder is.
        match path.parent() {
            Some(folder) => tokio::fs::File::open(folder).await?.sync_all().await,
            None => Ok(()),
        }
    };
    write().await.map_err(unusable(path))
}
