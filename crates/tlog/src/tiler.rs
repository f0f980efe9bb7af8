//! The task that moves entries from the tail of the database into full tiles, off the path of answers.
//!
//! Takes no input: it reads how far the tiles reach and how far the log does, and closes the gap. What it
//! writes is decided by committed entries, so a stale server that still runs it writes the same bytes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::core::{Core, become_true};
use crate::error::TlogError;
use crate::faults::{BUNDLE_WRITTEN, TILE_WRITTEN, UPPER_TILE_WRITTEN};
use crate::source::Source;
use crate::tile::{TILE_WIDTH, Tile, TilePath, encode_bundle, leaf_hashes};

/// Entries that may wait in the tail for their tiles; beyond it appending is refused. About 50 MB of rows,
/// and ten seconds of the highest rate.
pub const TAIL_ENTRIES_MAX: u64 = 65_536;
/// Bundles that are written before their rows are pruned in one transaction, to keep that transaction short.
const PRUNE_BUNDLES_MAX: u64 = 16;
/// How long the task sleeps when nobody wakes it, and before it tries again after a failure, in seconds.
const POLL_S: u64 = 1;

/// Runs until the sequencer has ended.
pub(crate) async fn run(core: Arc<Core>) {
    let mut ended = core.sequencer_ended.subscribe();
    loop {
        if let Err(error) = tile_all(&core).await {
            tracing::warn!(
                error = kernel::chain(&error),
                "writing tiles of the log failed; the entries stay in the tail"
            );
            tokio::time::sleep(Duration::from_secs(POLL_S)).await;
        }
        tokio::select! {
            () = core.wake_tiler.notified() => {}
            () = tokio::time::sleep(Duration::from_secs(POLL_S)) => {}
            () = become_true(&mut ended) => return,
        }
    }
}

/// Writes every full tile that is not yet written, as long as this server holds the lease.
pub(crate) async fn tile_all(core: &Core) -> Result<(), TlogError> {
    loop {
        let fence = core.fence.load(Ordering::Acquire);
        let size = core.size.load(Ordering::Acquire);
        let heard = core.shelf.tiled.load(Ordering::Acquire);
        if fence != 0 && size.saturating_sub(heard) < TILE_WIDTH {
            // Nobody else moves it while this server leads: after most batches there is nothing to ask.
            return Ok(());
        }
        let tiled = core.tables.tiled().await?;
        core.shelf.tiled.store(tiled, Ordering::Release);
        let bundles = (size.saturating_sub(tiled) / TILE_WIDTH).min(PRUNE_BUNDLES_MAX);
        if fence == 0 || bundles == 0 {
            return Ok(());
        }
        let first = tiled / TILE_WIDTH;
        require_owner(core).await?;
        require_store(core, first).await?;
        for index in first..first + bundles {
            write_bundle(core, index).await?;
        }
        let new = tiled + bundles * TILE_WIDTH;
        if !core.tables.prune(fence, tiled, new).await? {
            return Ok(());
        }
        core.shelf.tiled.store(new, Ordering::Release);
    }
}

/// That the blobs belong to whom the database belongs, before rows leave it for them. A new store has its blob a moment
/// after the first start; it is asked for each time, since a folder can be replaced under a running server.
async fn require_owner(core: &Core) -> Result<(), TlogError> {
    let Some(owner) = &core.owner else { return Ok(()) };
    let found = core.shelf.blobs.get(owner.blob).await;
    match found.map_err(TlogError::store("asking whose the blobs are"))? {
        Some(found) if found == owner.id.as_bytes() => Ok(()),
        Some(found) => Err(TlogError::OtherStore {
            blob: owner.blob,
            expected: owner.id.clone(),
            found: kernel::words(&String::from_utf8_lossy(&found)),
        }),
        None => Err(TlogError::OtherStore {
            blob: owner.blob,
            expected: owner.id.clone(),
            found: "nothing".to_owned(),
        }),
    }
}

/// That the blobs have what this log wrote last, before rows leave the database for them: a server whose configuration names
/// another place would take what it tiles away from all others.
async fn require_store(core: &Core, first: u64) -> Result<(), TlogError> {
    let Some(last) = first.checked_sub(1) else {
        return Ok(());
    };
    let path = TilePath::bundle(last);
    match core.shelf.stored(path).await? {
        Some(_) => Ok(()),
        None => Err(TlogError::Missing {
            what: format!(
                "{}, which was written before: the blobs are others than this log's, or were lost; nothing is tiled",
                core.shelf.blob_name(path)
            ),
        }),
    }
}

/// Writes one full bundle, its hash tile, and the tiles above that it completes.
async fn write_bundle(core: &Core, index: u64) -> Result<(), TlogError> {
    let (from, to) = (index * TILE_WIDTH, (index + 1) * TILE_WIDTH);
    let tail = core.tables.name.table("tail");
    let rows = || format!("rows {from} to {} of {tail}", to - 1);
    let entries = core
        .tables
        .tail(from, to)
        .await?
        .ok_or_else(|| TlogError::Missing { what: rows() })?;
    let leaves = leaf_hashes(&entries);
    // The rows go away afterwards, so a row that changed by itself must not become a tile.
    let known = core.tables.find(&leaves).await?;
    for (leaf, index) in leaves.iter().zip(from..) {
        if known.get(leaf) != Some(&index) {
            let found = "its hash is not the one that was logged".to_owned();
            return Err(TlogError::Damaged {
                what: format!("row {index} of {tail}"),
                found,
            });
        }
    }
    let path = TilePath::bundle(index);
    let bundle = encode_bundle(&entries).map_err(|source| TlogError::Tile {
        what: path.to_string(),
        source,
    })?;
    core.shelf.write(path, bundle).await?;
    core.tables.pass(BUNDLE_WRITTEN)?;
    core.shelf
        .write(TilePath::full(0, index), Tile::of(&leaves).bytes())
        .await?;
    core.tables.pass(TILE_WRITTEN)?;
    let (mut level, mut count) = (1, index + 1);
    while count % TILE_WIDTH == 0 {
        let upper = count / TILE_WIDTH - 1;
        let tile = core.shelf.tile(level, upper, to).await?;
        core.shelf
            .write(TilePath::full(level, upper), tile.bytes())
            .await?;
        core.tables.pass(UPPER_TILE_WRITTEN)?;
        count /= TILE_WIDTH;
        level += 1;
    }
    Ok(())
}
