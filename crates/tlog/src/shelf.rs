//! The running log's tiles: full ones from blobs, the rest from the tail of the database, and the ones
//! used last in memory.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use lru::LruCache;
use store::{Blobs, StoreError};

use crate::error::TlogError;
use crate::merkle::Hash;
use crate::source::{Known, Source, hashes_of};
use crate::tables::Tables;
use crate::tile::{TILE_WIDTH, Tile, TilePath, leaf_hashes, parse_bundle};

/// Tiles kept in memory, 16 KiB each, so 1 MiB: the right edge, and what the last few batches of proofs used.
/// It does not grow with the log.
pub const CACHED_TILES_MAX: usize = 64;

/// Tiles that are read at once. Many calls that need the same one, as all of them do after a batch, read it once.
const LOADS_AT_ONCE: usize = 16;

pub(crate) struct Shelf {
    pub tables: Tables,
    pub blobs: Blobs,
    /// Entries that lie in durable tiles, as last heard.
    pub tiled: AtomicU64,
    /// Hashes are never changed once committed, only added: a cached tile may be too narrow, never wrong.
    cache: Mutex<LruCache<(u8, u64), Arc<Tile>>>,
    /// Who reads a tile holds its turn, one of these by its place.
    turns: [tokio::sync::Mutex<()>; LOADS_AT_ONCE],
}

impl Shelf {
    /// The name of an object of the log among the blobs.
    pub(crate) fn blob_name(&self, path: TilePath) -> String {
        format!("{}/{path}", self.tables.name.prefix())
    }

    pub(crate) fn new(tables: Tables, blobs: Blobs) -> Self {
        let cap = NonZeroUsize::new(CACHED_TILES_MAX).unwrap_or(NonZeroUsize::MIN);
        Self {
            tables,
            blobs,
            tiled: AtomicU64::new(0),
            cache: Mutex::new(LruCache::new(cap)),
            turns: std::array::from_fn(|_| tokio::sync::Mutex::default()),
        }
    }

    /// What is in memory of a tile, which may be too narrow.
    fn cached(&self, level: u8, index: u64) -> Option<Arc<Tile>> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.get(&(level, index)).cloned()
    }

    fn turn(&self, level: u8, index: u64) -> &tokio::sync::Mutex<()> {
        let at = (index + u64::from(level)) % LOADS_AT_ONCE as u64;
        &self.turns[at as usize]
    }

    /// Remembers a tile whose hashes are committed.
    pub(crate) fn remember(&self, level: u8, index: u64, tile: Arc<Tile>) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache
            .peek(&(level, index))
            .is_none_or(|known| known.width() < tile.width())
        {
            cache.put((level, index), tile);
        }
    }

    #[cfg(test)]
    pub(crate) fn cached_tiles(&self) -> usize {
        self.cache.lock().unwrap().len()
    }

    /// Reads everything from storage again.
    pub(crate) fn forget(&self) {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    async fn blob(&self, path: TilePath) -> Result<Option<Bytes>, TlogError> {
        self.blobs
            .get(&self.blob_name(path))
            .await
            .map_err(TlogError::store("reading a tile of the log"))
    }

    /// Makes an object durable.
    pub(crate) async fn write(&self, path: TilePath, bytes: Vec<u8>) -> Result<(), TlogError> {
        self.blobs
            .put(&self.blob_name(path), bytes.into())
            .await
            .map_err(|error| match error {
                StoreError::BlobDiffers { path } => TlogError::Damaged {
                    what: path,
                    found: "it is stored already and has other bytes than the entries of the database"
                        .to_owned(),
                },
                source => TlogError::store("writing a tile of the log")(source),
            })
    }

    /// A tile `width` hashes wide: as a blob if it is full, else what is in memory of it and the rest from storage.
    async fn load(&self, level: u8, index: u64, size: u64, width: u16) -> Result<Arc<Tile>, TlogError> {
        let known = self.cached(level, index).unwrap_or_default();
        if known.width() >= width {
            return Ok(known);
        }
        let path = TilePath::full(level, index);
        if u64::from(width) == TILE_WIDTH
            && let Some(bytes) = self.blob(path).await?
        {
            return Ok(Arc::new(Tile::of(&hashes_of(path, &bytes)?)));
        }
        let mut tile = Tile::clone(&known);
        if level == 0 {
            let from = index * TILE_WIDTH;
            let (known, end) = (from + u64::from(tile.width()), from + u64::from(width));
            let newer = match self.tables.tail(known, end).await? {
                Some(newer) => newer,
                None => {
                    let mut all = self.bundle(index, size).await?;
                    all.split_off(usize::from(tile.width()).min(all.len()))
                }
            };
            leaf_hashes(&newer).into_iter().for_each(|leaf| tile.push(leaf));
            return Ok(Arc::new(tile));
        }
        for child in u64::from(tile.width())..u64::from(width) {
            let child_index = index * TILE_WIDTH + child;
            let child = Box::pin(self.load(level - 1, child_index, size, TILE_WIDTH as u16)).await?;
            let missing = || TlogError::Missing {
                what: TilePath::full(level - 1, child_index).to_string(),
            };
            tile.push(child.root().ok_or_else(missing)?);
        }
        Ok(Arc::new(tile))
    }
}

impl Source for Shelf {
    async fn tile(&self, level: u8, index: u64, size: u64) -> Result<Arc<Tile>, TlogError> {
        let width = TilePath::width_at(Some(level), index, size);
        if let Some(tile) = self.cached(level, index).filter(|tile| tile.width() >= width) {
            return Ok(tile);
        }
        let _turn = self.turn(level, index).lock().await;
        let tile = self.load(level, index, size, width).await?;
        self.remember(level, index, tile.clone());
        Ok(tile)
    }

    async fn bundle(&self, index: u64, size: u64) -> Result<Vec<Vec<u8>>, TlogError> {
        let width = TilePath::width_at(None, index, size);
        let (from, path) = (index * TILE_WIDTH, TilePath::bundle(index));
        // Rows leave the tail only when the blob is durable, so whoever finds neither looks for the blob again.
        for (blob, tail) in [(self.expects(path), true), (true, false)] {
            if blob && let Some(bytes) = self.blob(path).await? {
                let entries = parse_bundle(&bytes, TILE_WIDTH as u16);
                let mut entries = entries.map_err(|source| TlogError::Tile {
                    what: path.to_string(),
                    source,
                })?;
                entries.truncate(usize::from(width));
                return Ok(entries);
            }
            if tail && let Some(entries) = self.tables.tail(from, from + u64::from(width)).await? {
                return Ok(entries);
            }
        }
        let rows = format!(
            "rows {from} to {} of {}",
            from + u64::from(width) - 1,
            self.tables.name.table("tail")
        );
        Err(TlogError::Missing {
            what: format!("{path} and {rows}"),
        })
    }

    async fn stored(&self, path: TilePath) -> Result<Option<Bytes>, TlogError> {
        if u64::from(path.width) == TILE_WIDTH {
            self.blob(path).await
        } else {
            Ok(None)
        }
    }

    fn expects(&self, path: TilePath) -> bool {
        let each = u32::from(path.level.unwrap_or(0)) + 1;
        let end = TILE_WIDTH
            .checked_pow(each)
            .and_then(|span| span.checked_mul(path.index + 1));
        u64::from(path.width) == TILE_WIDTH
            && end.is_some_and(|end| end <= self.tiled.load(Ordering::Acquire))
    }

    async fn known(&self, leaves: &[Hash]) -> Result<Option<Known>, TlogError> {
        let found = self.tables.find(leaves).await?;
        Ok(Some(Known {
            log: self.tables.name,
            indexes: leaves.iter().map(|leaf| found.get(leaf).copied()).collect(),
        }))
    }
}
