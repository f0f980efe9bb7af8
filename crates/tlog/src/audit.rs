//! Hashes entries again and compares: with the stored tiles, with the list of known leaves, with the root of
//! the checkpoint. Streams: one bundle is in memory at a time.

use std::fmt;

use crate::checkpoint::Checkpoint;
use crate::error::TlogError;
use crate::merkle::Hash;
use crate::proof::culprit;
use crate::source::{self, Source, hashes_of};
use crate::tile::{Edge, TILE_WIDTH, Tile, TilePath, leaf_hashes};

/// Findings that are kept; a log with more is damaged beyond what a list helps with.
pub const DAMAGE_MAX: usize = 100;

/// A durable part of the log that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Damage {
    /// Which file or row.
    pub what: String,
    pub found: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.found)
    }
}

/// What a check of the log looked at and found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Audit {
    /// Size of the checkpoint.
    pub size: u64,
    /// The checkpoint's root hash, hex.
    pub root: String,
    pub entries_checked: u64,
    pub tiles_checked: u64,
    /// Empty if all is well; at most [`DAMAGE_MAX`].
    pub damage: Vec<Damage>,
}

struct Auditor<'a, S> {
    source: &'a S,
    checkpoint: &'a Checkpoint,
    report: Audit,
}

/// Checks a log from bundle `from` on; `every_leaf`: also that each entry is in the list of known leaves.
/// `progress` is told how many entries are done. The answer has the right edge as it was recomputed.
pub(crate) async fn audit<S: Source>(
    source: &S,
    checkpoint: &Checkpoint,
    from: u64,
    every_leaf: bool,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<(Edge, Audit), TlogError> {
    let size = checkpoint.size;
    let report = Audit {
        size,
        root: hex::encode(checkpoint.root),
        entries_checked: 0,
        tiles_checked: 0,
        damage: vec![],
    };
    let mut auditor = Auditor {
        source,
        checkpoint,
        report,
    };
    let mut edge = source::edge(source, from * TILE_WIDTH, size).await?;
    for index in from..size.div_ceil(TILE_WIDTH) {
        let leaves = auditor.bundle(index, every_leaf).await?;
        let mut full = Vec::new();
        leaves.iter().for_each(|leaf| edge.push(*leaf, &mut full));
        for (level, index, tile) in full.into_iter().filter(|(level, ..)| *level > 0) {
            auditor.tile(TilePath::full(level, index), &tile).await?;
        }
        auditor.report.entries_checked += leaves.len() as u64;
        progress(edge.size());
        if auditor.report.damage.len() >= DAMAGE_MAX {
            return Ok((edge, auditor.report));
        }
    }
    for (level, index, tile) in edge.tiles().filter(|(level, ..)| *level > 0) {
        auditor
            .tile(TilePath::full(level, index).with_width(tile.width()), tile)
            .await?;
    }
    if edge.root() != checkpoint.root && auditor.report.damage.is_empty() {
        auditor.damage("the checkpoint", "the entries lead to another root hash");
    }
    Ok((edge, auditor.report))
}

impl<S: Source> Auditor<'_, S> {
    fn damage(&mut self, what: impl fmt::Display, found: impl fmt::Display) {
        if self.report.damage.len() < DAMAGE_MAX {
            self.report.damage.push(Damage {
                what: what.to_string(),
                found: found.to_string(),
            });
        }
    }

    /// A stored tile's hashes. What is wrong with it is noted.
    async fn stored(&mut self, path: TilePath) -> Result<Option<Vec<Hash>>, TlogError> {
        match self.source.stored(path).await? {
            Some(bytes) => match hashes_of(path, &bytes) {
                Ok(hashes) => {
                    self.report.tiles_checked += 1;
                    return Ok(Some(hashes));
                }
                Err(TlogError::Tile { what, source }) => self.damage(what, source),
                Err(error) => return Err(error),
            },
            None if self.source.expects(path) => self.damage(path, "it is missing"),
            None => {}
        }
        Ok(None)
    }

    async fn tile(&mut self, path: TilePath, expected: &Tile) -> Result<(), TlogError> {
        if let Some(hashes) = self.stored(path).await?
            && hashes != expected.hashes()
        {
            self.damage(path, "its hashes are not those of the tiles under it");
        }
        Ok(())
    }

    /// Checks one bundle against its tile and gives the leaf hashes to go on with: those that are known to
    /// be right where the two differ.
    async fn bundle(&mut self, index: u64, every_leaf: bool) -> Result<Vec<Hash>, TlogError> {
        let width = TilePath::width_at(None, index, self.checkpoint.size);
        let path = TilePath::full(0, index).with_width(width);
        let tile = self.stored(path).await?;
        let first = index * TILE_WIDTH;
        let leaves = match self.source.bundle(index, self.checkpoint.size).await {
            Ok(entries) => leaf_hashes(&entries),
            Err(error @ (TlogError::Tile { .. } | TlogError::Missing { .. })) => {
                let cause =
                    std::error::Error::source(&error).map_or("it is missing".to_owned(), ToString::to_string);
                self.damage(TilePath::bundle(index).with_width(width), cause);
                return tile.ok_or(error);
            }
            Err(error) => return Err(error),
        };
        let differs = tile.as_ref().is_some_and(|tile| *tile != leaves);
        let known = if every_leaf || differs || tile.is_none() {
            self.source.known(&leaves).await?
        } else {
            None
        };
        let Some(known) = known else {
            return self.unlisted(path, tile.filter(|_| differs), leaves).await;
        };
        let unknown: Vec<u64> = (first..)
            .zip(&known.indexes)
            .filter(|(index, known)| **known != Some(*index))
            .map(|(index, _)| index)
            .collect();
        match (unknown.first(), differs) {
            (None, true) => self.damage(path, "its hashes are not those of the entries"),
            (None, false) => {}
            (Some(entry), true) => {
                self.damage(
                    TilePath::bundle(index),
                    format!("entry {entry} is not the one that was logged"),
                );
            }
            (Some(entry), false) if tile.is_some() => {
                self.damage(
                    format!("entry {entry} in {}", known.log.table("leaf")),
                    "its hash is missing or has another index",
                );
            }
            (Some(entry), false) => {
                self.damage(
                    format!("row {entry} of {}", known.log.table("tail")),
                    "its hash is not the one that was logged",
                );
            }
        }
        Ok(if unknown.is_empty() {
            leaves
        } else {
            tile.unwrap_or(leaves)
        })
    }

    /// Where no list says which leaves are known, the checkpoint says whether the bundle is wrong or `tile`, the
    /// hashes of its tile where they differ from its own.
    async fn unlisted(
        &mut self,
        path: TilePath,
        tile: Option<Vec<Hash>>,
        leaves: Vec<Hash>,
    ) -> Result<Vec<Hash>, TlogError> {
        let Some(tile) = tile else { return Ok(leaves) };
        let bundle = TilePath { level: None, ..path };
        let culprit = culprit(self.source, path.index, self.checkpoint).await;
        match culprit {
            Ok(Some(found)) if found.level.is_none() => {
                self.damage(bundle, "its entries are not those that were logged");
                return Ok(tile);
            }
            Ok(Some(_)) => self.damage(path, "its hashes are not those of the entries"),
            // A tile above is damaged too, and has its own finding.
            Ok(None) | Err(TlogError::Tile { .. } | TlogError::Missing { .. }) => {
                self.damage(path, format!("the hashes of the entries in {bundle} are others"));
            }
            Err(error) => return Err(error),
        }
        Ok(leaves)
    }
}
