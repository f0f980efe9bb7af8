//! Proofs from whatever holds a log, each verified before it is given out.

use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::error::TlogError;
use crate::merkle::{
    Hash, consistency_ranges, cover, empty_root, fold, inclusion_ranges, leaf_hash, verify_consistency,
    verify_inclusion,
};
use crate::source::Source;
use crate::tile::{TILE_WIDTH, Tile, TilePath, leaf_hashes, place};

/// An inclusion proof that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inclusion {
    pub index: u64,
    pub leaf: Hash,
    pub size: u64,
    pub root: Hash,
    pub hashes: Vec<Hash>,
}

/// A consistency proof that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consistency {
    pub old: u64,
    pub old_root: Hash,
    pub new: u64,
    pub new_root: Hash,
    pub hashes: Vec<Hash>,
}

/// The hashes over `ranges` of entries in a log of `size` entries.
pub(crate) async fn hashes<S: Source>(
    source: &S,
    ranges: &[(u64, u64)],
    size: u64,
) -> Result<Vec<Hash>, TlogError> {
    hashes_with(source, ranges, size, None).await
}

/// The same, with another tile in place of the one of level 0 that has this index.
async fn hashes_with<S: Source>(
    source: &S,
    ranges: &[(u64, u64)],
    size: u64,
    instead: Option<(u64, &Arc<Tile>)>,
) -> Result<Vec<Hash>, TlogError> {
    let mut out = Vec::with_capacity(ranges.len());
    for &(from, to) in ranges {
        let mut nodes = Vec::new();
        for node in cover(from, to) {
            let (level, index, row, at) = place(node);
            let tile = match instead {
                Some((own, tile)) if (level, index) == (0, own) => tile.clone(),
                _ => source.tile(level, index, size).await?,
            };
            let missing = || TlogError::Missing {
                what: format!("a hash of {}", TilePath::full(level, index)),
            };
            nodes.push(tile.node(row, at).ok_or_else(missing)?);
        }
        out.extend(fold(&nodes));
    }
    Ok(out)
}

/// The tiles that a proof was made from, for a person who looks for the damaged one.
fn suspects(ranges: &[(u64, u64)]) -> String {
    let nodes = ranges.iter().flat_map(|&(from, to)| cover(from, to));
    let mut paths: Vec<String> = nodes
        .map(|node| {
            let (level, index, ..) = place(node);
            TilePath::full(level, index).to_string()
        })
        .collect();
    paths.dedup();
    format!("one of these tiles is damaged: {}", paths.join(", "))
}

/// The inclusion proof of entry `index` in `checkpoint`, verified before it is given out.
pub(crate) async fn inclusion<S: Source>(
    source: &S,
    index: u64,
    leaf: &Hash,
    checkpoint: &Checkpoint,
) -> Result<Vec<Hash>, TlogError> {
    let ranges = inclusion_ranges(index, checkpoint.size);
    let proof = hashes(source, &ranges, checkpoint.size).await?;
    let Err(error) = verify_inclusion(leaf, index, checkpoint.size, &proof, &checkpoint.root) else {
        return Ok(proof);
    };
    let found = match culprit(source, index / TILE_WIDTH, checkpoint).await? {
        Some(path) => format!("{path} is damaged"),
        None => suspects(&ranges),
    };
    Err(TlogError::Root {
        suspects: found,
        source: error,
    })
}

/// Which of the two files over the same entries is damaged, the bundle or its hash tile: the one that does not lead
/// to the checkpoint's root where the other does. `None` if they agree, or neither does.
pub(crate) async fn culprit<S: Source>(
    source: &S,
    index: u64,
    checkpoint: &Checkpoint,
) -> Result<Option<TilePath>, TlogError> {
    let size = checkpoint.size;
    let tile = source.tile(0, index, size).await?;
    let entries = Arc::new(Tile::of(&leaf_hashes(&source.bundle(index, size).await?)));
    if tile.hashes().starts_with(entries.hashes()) {
        return Ok(None);
    }
    let width = TilePath::width_at(None, index, size);
    if leads(source, index, &tile, checkpoint).await? {
        return Ok(Some(TilePath::bundle(index).with_width(width)));
    }
    let entries = leads(source, index, &entries, checkpoint).await?;
    Ok(entries.then(|| TilePath::full(0, index).with_width(width)))
}

/// Whether the log has the checkpoint's root with `tile` as the tile of level 0 that has this index: the proof of
/// its first hash is made from all the others in it.
async fn leads<S: Source>(
    source: &S,
    index: u64,
    tile: &Arc<Tile>,
    checkpoint: &Checkpoint,
) -> Result<bool, TlogError> {
    let (first, size) = (index * TILE_WIDTH, checkpoint.size);
    let Some(leaf) = tile.hashes().first() else {
        return Ok(false);
    };
    let ranges = inclusion_ranges(first, size);
    let proof = hashes_with(source, &ranges, size, Some((index, tile))).await?;
    Ok(verify_inclusion(leaf, first, size, &proof, &checkpoint.root).is_ok())
}

/// The consistency proof between the first `old` and the first `new` entries, with both roots, verified.
/// `new` must not be above the size of `checkpoint`.
pub(crate) async fn consistency<S: Source>(
    source: &S,
    old: u64,
    new: u64,
    checkpoint: &Checkpoint,
) -> Result<(Hash, Hash, Vec<Hash>), TlogError> {
    if old > new || new > checkpoint.size {
        return Err(TlogError::Sizes {
            old,
            new,
            size: checkpoint.size,
        });
    }
    let new_root = root(source, new, checkpoint).await?;
    let old_root = root(source, old, checkpoint).await?;
    let ranges = consistency_ranges(old, new);
    let proof = hashes(source, &ranges, new).await?;
    verify_consistency(old, new, &old_root, &new_root, &proof).map_err(|error| TlogError::Root {
        suspects: suspects(&ranges),
        source: error,
    })?;
    Ok((old_root, new_root, proof))
}

/// The root over the first `size` entries, verified to be a prefix of the checkpoint's.
pub(crate) async fn root<S: Source>(
    source: &S,
    size: u64,
    checkpoint: &Checkpoint,
) -> Result<Hash, TlogError> {
    if size == checkpoint.size {
        return Ok(checkpoint.root);
    }
    let whole = [(0, size)];
    let found = hashes(source, &whole, checkpoint.size).await?;
    let root = found.first().copied().unwrap_or_else(empty_root);
    let ranges = consistency_ranges(size, checkpoint.size);
    let proof = hashes(source, &ranges, checkpoint.size).await?;
    verify_consistency(size, checkpoint.size, &root, &checkpoint.root, &proof).map_err(|error| {
        TlogError::Root {
            suspects: suspects(&ranges),
            source: error,
        }
    })?;
    Ok(root)
}

/// The body of entry `index`.
pub(crate) async fn body<S: Source>(source: &S, index: u64, size: u64) -> Result<Vec<u8>, TlogError> {
    let missing = || TlogError::NotFound {
        size,
        what: format!("entry {index}"),
    };
    if index >= size {
        return Err(missing());
    }
    let mut entries = source.bundle(index / TILE_WIDTH, size).await?;
    let at = (index % TILE_WIDTH) as usize;
    if at < entries.len() {
        Ok(entries.swap_remove(at))
    } else {
        Err(missing())
    }
}

/// The inclusion proof of an entry at some size of the log.
pub(crate) async fn prove<S: Source>(
    source: &S,
    index: u64,
    size: Option<u64>,
    checkpoint: &Checkpoint,
) -> Result<Inclusion, TlogError> {
    let size = size.unwrap_or(checkpoint.size);
    if size > checkpoint.size || index >= size {
        return Err(TlogError::NotFound {
            size: checkpoint.size,
            what: format!("entry {index} in a tree of {size}"),
        });
    }
    let leaf = leaf_hash(&body(source, index, checkpoint.size).await?);
    let root = root(source, size, checkpoint).await?;
    let at = Checkpoint {
        origin: String::new(),
        size,
        root,
        note: String::new(),
    };
    let hashes = inclusion(source, index, &leaf, &at).await?;
    Ok(Inclusion {
        index,
        leaf,
        size,
        root,
        hashes,
    })
}

/// The consistency proof between two sizes of the log.
pub(crate) async fn connect<S: Source>(
    source: &S,
    old: u64,
    new: u64,
    checkpoint: &Checkpoint,
) -> Result<Consistency, TlogError> {
    let (old_root, new_root, hashes) = consistency(source, old, new, checkpoint).await?;
    Ok(Consistency {
        old,
        old_root,
        new,
        new_root,
        hashes,
    })
}
