//! Where tiles and entries are read from: the running log or an exported folder. Proofs, checks and exports
//! are written once over both.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::TlogError;
use crate::merkle::Hash;
use crate::name::Name;
use crate::tile::{Edge, TILE_WIDTH, Tile, TilePath, parse_hashes};

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
    fn known(&self, leaves: &[Hash]) -> impl Future<Output = Result<Option<Known>, TlogError>> + Send;
}

/// What a list of known leaves says.
pub(crate) struct Known {
    /// Whose list it is.
    pub log: Name,
    /// For each leaf the index under which it is known.
    pub indexes: Vec<Option<u64>>,
}

/// Reads a stored hash tile.
pub(crate) fn hashes_of(path: TilePath, bytes: &[u8]) -> Result<Vec<Hash>, TlogError> {
    parse_hashes(bytes, path.width).map_err(|source| TlogError::Tile {
        what: path.to_string(),
        source,
    })
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
