//! Where tiles and entries are read from: the running log or an exported folder. Proofs and checks are
//! written once over both.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;

use crate::checkpoint::Checkpoint;
use crate::error::TlogError;
use crate::merkle::{
    Hash, consistency_ranges, cover, fold, inclusion_ranges, verify_consistency, verify_inclusion,
};
use crate::tile::{Edge, TILE_WIDTH, Tile, TilePath, parse_hashes, place};

/// A place that holds a log. `size` is that of a checkpoint that the place has reached.
pub(crate) trait Source: Sync {
    /// The tile with as many hashes as it has in a log of `size` entries, at least.
    fn tile(
        &self,
        level: u8,
        index: u64,
        size: u64,
    ) -> impl Future<Output = Result<Arc<Tile>, TlogError>> + Send;

    /// The entries of a bundle, as many as it has in a log of `size` entries.
    fn bundle(&self, index: u64, size: u64) -> impl Future<Output = Result<Vec<Vec<u8>>, TlogError>> + Send;

    /// A stored object as it lies there.
    fn stored(&self, path: TilePath) -> impl Future<Output = Result<Option<Bytes>, TlogError>> + Send;

    /// Whether `path` must be stored.
    fn expects(&self, path: TilePath) -> bool;

    /// The indexes under which the leaves are known, where there is such a list.
    fn known(
        &self,
        leaves: &[Hash],
    ) -> impl Future<Output = Result<Option<Vec<Option<u64>>>, TlogError>> + Send;
}

/// Reads a stored hash tile.
pub(crate) fn hashes_of(path: TilePath, bytes: &[u8]) -> Result<Vec<Hash>, TlogError> {
    parse_hashes(bytes, path.width).map_err(|source| TlogError::Tile {
        what: path.to_string(),
        source,
    })
}

/// The hashes over `ranges` of entries in a log of `size` entries.
async fn hashes<S: Source>(source: &S, ranges: &[(u64, u64)], size: u64) -> Result<Vec<Hash>, TlogError> {
    let mut out = Vec::with_capacity(ranges.len());
    for &(from, to) in ranges {
        let mut nodes = Vec::new();
        for node in cover(from, to) {
            let (level, index, row, at) = place(node);
            let tile = source.tile(level, index, size).await?;
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
    verify_inclusion(leaf, index, checkpoint.size, &proof, &checkpoint.root).map_err(|error| {
        TlogError::Root {
            suspects: suspects(&ranges),
            source: error,
        }
    })?;
    Ok(proof)
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
    let root = found.first().copied().unwrap_or_else(crate::merkle::empty_root);
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

/// The right edge of the log as it was with `at` entries.
pub(crate) async fn edge<S: Source>(source: &S, at: u64, size: u64) -> Result<Edge, TlogError> {
    let mut tiles = Vec::new();
    let mut in_level = at;
    while in_level > 0 {
        let (level, width) = (tiles.len() as u8, (in_level % TILE_WIDTH) as usize);
        tiles.push(match width {
            0 => Tile::default(),
            _ => {
                let tile = source.tile(level, in_level / TILE_WIDTH, size).await?;
                Tile::of(tile.hashes().get(..width).unwrap_or_default())
            }
        });
        in_level /= TILE_WIDTH;
    }
    Edge::new(at, tiles).ok_or_else(|| TlogError::Missing {
        what: "a hash of the right edge".to_owned(),
    })
}
