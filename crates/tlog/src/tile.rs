//! Tiles as C2SP tlog-tiles lays them out: paths, hash tiles of height 8, entry bundles; and the part of
//! the tree that one tile spans, in memory.

use crate::merkle::{Hash, Node, cover, fold, leaf_hash, node_hash};

/// Hashes in a full tile and entries in a full bundle (C2SP tlog-tiles, height 8).
pub const TILE_WIDTH: u64 = 256;
/// The highest level there is: 256^8 is more entries than an index can count.
pub const LEVEL_MAX: u8 = 7;
/// An entry's length is written in 16 bits (C2SP tlog-tiles, "Log entries").
pub const ENTRY_BYTES_MAX: usize = u16::MAX as usize;

/// Which tile: `level` is `None` for an entry bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TilePath {
    pub level: Option<u8>,
    pub index: u64,
    /// From 1 to 256; below 256 it is a partial tile.
    pub width: u16,
}

/// What is wrong with the path or the bytes of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TileError {
    #[error(
        "the path is not one of a tile: tile/<level>/<index>[.p/<width>] or tile/entries/<index>[.p/<width>]"
    )]
    Path,
    #[error("the tile has {found} bytes and should have {expected}")]
    Length { expected: usize, found: usize },
    #[error("the bundle ends in the middle of an entry")]
    Truncated,
    #[error("the bundle has {found} entries and should have {expected}")]
    Count { expected: usize, found: usize },
    #[error("the entry has {0} bytes; a bundle holds at most {ENTRY_BYTES_MAX}")]
    EntryTooLarge(usize),
}

impl TilePath {
    #[must_use]
    pub const fn full(level: u8, index: u64) -> Self {
        Self {
            level: Some(level),
            index,
            width: TILE_WIDTH as u16,
        }
    }

    #[must_use]
    pub const fn bundle(index: u64) -> Self {
        Self {
            level: None,
            index,
            width: TILE_WIDTH as u16,
        }
    }

    #[must_use]
    pub const fn with_width(self, width: u16) -> Self {
        Self { width, ..self }
    }

    /// Reads `<level>/<index>[.p/<width>]`, where `<level>` is a number or `entries`.
    ///
    /// # Errors
    /// If it is not exactly what the specification writes: no leading zeros but those of the three-digit
    /// elements, no `x` on the last, a width from 1 to 255.
    pub fn parse(text: &str) -> Result<Self, TileError> {
        let (level, rest) = text.split_once('/').ok_or(TileError::Path)?;
        let level = match level {
            "entries" => None,
            digits => Some(
                number(digits)
                    .filter(|level| *level <= u64::from(LEVEL_MAX))
                    .ok_or(TileError::Path)? as u8,
            ),
        };
        let (index, width) = match rest.split_once(".p/") {
            None => (rest, TILE_WIDTH as u16),
            Some((index, width)) => {
                let width = number(width)
                    .filter(|width| (1..TILE_WIDTH).contains(width))
                    .ok_or(TileError::Path)?;
                (index, width as u16)
            }
        };
        let path = Self {
            level,
            index: parse_index(index).ok_or(TileError::Path)?,
            width,
        };
        // The one check that leaves a single spelling for each tile.
        if path.to_string() == format!("tile/{text}") {
            Ok(path)
        } else {
            Err(TileError::Path)
        }
    }

    /// How many hashes or entries this tile has in a tree of `size` entries, at most 256.
    #[must_use]
    pub fn width_at(level: Option<u8>, index: u64, size: u64) -> u16 {
        let in_level = size >> (8 * u32::from(level.unwrap_or(0)));
        in_level
            .saturating_sub(index.saturating_mul(TILE_WIDTH))
            .min(TILE_WIDTH) as u16
    }
}

fn number(digits: &str) -> Option<u64> {
    (!digits.is_empty() && digits.len() <= 3 && digits.bytes().all(|b| b.is_ascii_digit()))
        .then(|| digits.parse().ok())
        .flatten()
}

fn parse_index(text: &str) -> Option<u64> {
    let mut index = 0_u64;
    for element in text.split('/') {
        let digits = element.strip_prefix('x').unwrap_or(element);
        index = index.checked_mul(1_000)?.checked_add(number(digits)?)?;
    }
    Some(index)
}

impl std::fmt::Display for TilePath {
    /// `tile/0/x001/067`, `tile/entries/000.p/5`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.level {
            Some(level) => write!(f, "tile/{level}/")?,
            None => f.write_str("tile/entries/")?,
        }
        let mut elements = vec![format!("{:03}", self.index % 1_000)];
        let mut rest = self.index / 1_000;
        while rest > 0 {
            elements.push(format!("x{:03}/", rest % 1_000));
            rest /= 1_000;
        }
        for element in elements.iter().rev() {
            f.write_str(element)?;
        }
        if u64::from(self.width) < TILE_WIDTH {
            write!(f, ".p/{}", self.width)?;
        }
        Ok(())
    }
}

/// The bytes of a hash tile, as hashes.
///
/// # Errors
/// If there are not exactly `width` of them.
pub fn parse_hashes(bytes: &[u8], width: u16) -> Result<Vec<Hash>, TileError> {
    let expected = usize::from(width) * 32;
    if bytes.len() != expected {
        return Err(TileError::Length {
            expected,
            found: bytes.len(),
        });
    }
    Ok(bytes.as_chunks::<32>().0.to_vec())
}

/// The bytes of an entry bundle: each entry behind its length in 16 bits, big endian.
///
/// # Errors
/// If an entry is too large for that.
pub fn encode_bundle(entries: &[Vec<u8>]) -> Result<Vec<u8>, TileError> {
    let mut out = Vec::with_capacity(entries.iter().map(|entry| entry.len() + 2).sum());
    for entry in entries {
        let length = u16::try_from(entry.len()).map_err(|_| TileError::EntryTooLarge(entry.len()))?;
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(entry);
    }
    Ok(out)
}

/// The entries of a bundle.
///
/// # Errors
/// If it ends inside an entry or has not exactly `width` entries.
pub fn parse_bundle(mut bytes: &[u8], width: u16) -> Result<Vec<Vec<u8>>, TileError> {
    let mut entries = Vec::with_capacity(usize::from(width));
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length));
        let (entry, rest) = rest.split_at_checked(length).ok_or(TileError::Truncated)?;
        if entries.len() >= TILE_WIDTH as usize {
            return Err(TileError::Count {
                expected: usize::from(width),
                found: entries.len() + 1,
            });
        }
        entries.push(entry.to_vec());
        bytes = rest;
    }
    if !bytes.is_empty() {
        return Err(TileError::Truncated);
    }
    if entries.len() != usize::from(width) {
        return Err(TileError::Count {
            expected: usize::from(width),
            found: entries.len(),
        });
    }
    Ok(entries)
}

/// A tile in memory with every complete node inside it, so that a proof is a few look-ups. 16 KiB when full.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tile {
    /// `rows[r]` holds the nodes of height `r` above the tile's own hashes; `rows[8]` is its root.
    rows: [Vec<Hash>; 9],
}

impl Tile {
    /// A tile of these hashes; those beyond the 256th are left out.
    #[must_use]
    pub fn of(hashes: &[Hash]) -> Self {
        let mut tile = Self::default();
        hashes
            .iter()
            .take(TILE_WIDTH as usize)
            .for_each(|hash| tile.push(*hash));
        tile
    }

    /// Adds the next hash. A full tile stays as it is.
    pub fn push(&mut self, hash: Hash) {
        if self.is_full() {
            return;
        }
        let mut next = hash;
        for row in &mut self.rows {
            row.push(next);
            let &[.., left, right] = row.as_slice() else {
                return;
            };
            if row.len() % 2 == 1 {
                return;
            }
            next = node_hash(&left, &right);
        }
    }

    /// How many hashes it has.
    #[must_use]
    pub fn width(&self) -> u16 {
        self.rows[0].len() as u16
    }

    #[must_use]
    pub fn is_full(&self) -> bool {
        self.rows[0].len() as u64 == TILE_WIDTH
    }

    #[must_use]
    pub fn hashes(&self) -> &[Hash] {
        &self.rows[0]
    }

    /// The root of a full tile: a hash of the level above.
    #[must_use]
    pub fn root(&self) -> Option<Hash> {
        self.rows[8].first().copied()
    }

    /// A node `row` steps above the tile's hashes, the `at`-th from the left, if it is complete.
    #[must_use]
    pub fn node(&self, row: u8, at: usize) -> Option<Hash> {
        self.rows.get(usize::from(row))?.get(at).copied()
    }

    /// The bytes that are stored and served.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.rows[0].concat()
    }
}

/// Where a node lies: in the tile `(level, index)`, `row` steps up, the `at`-th from the left.
#[must_use]
pub fn place(node: Node) -> (u8, u64, u8, usize) {
    let (level, row) = (node.height / 8, node.height % 8);
    let in_row = 8 - u32::from(row);
    (
        level,
        node.index >> in_row,
        row,
        (node.index & ((1 << in_row) - 1)) as usize,
    )
}

/// The right edge of the tree: on each level the tile that is not yet full. Enough to append and to know
/// the root; at most eight tiles whatever the size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edge {
    size: u64,
    tiles: Vec<std::sync::Arc<Tile>>,
}

impl Edge {
    /// An edge from the incomplete tiles, lowest level first. `None` if their widths are not those of a
    /// tree of `size` entries.
    #[must_use]
    pub fn new(size: u64, tiles: Vec<Tile>) -> Option<Self> {
        let fits = tiles.iter().enumerate().all(|(level, tile)| {
            let in_level = size.checked_shr(8 * level as u32).unwrap_or(0);
            u64::from(tile.width()) == in_level % TILE_WIDTH
        });
        let reach = size.checked_shr(8 * tiles.len() as u32).unwrap_or(0);
        (fits && reach == 0).then(|| Self {
            size,
            tiles: tiles.into_iter().map(Into::into).collect(),
        })
    }

    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The incomplete tiles with their level and index.
    pub fn tiles(&self) -> impl Iterator<Item = (u8, u64, &std::sync::Arc<Tile>)> {
        self.tiles
            .iter()
            .enumerate()
            .filter(|(_, tile)| tile.width() > 0)
            .map(|(level, tile)| (level as u8, (self.size >> (8 * level)) / TILE_WIDTH, tile))
    }

    /// Adds a leaf hash; each tile that becomes full is handed to `full` with its level and index.
    pub fn push(&mut self, leaf: Hash, full: &mut Vec<(u8, u64, std::sync::Arc<Tile>)>) {
        let mut next = Some(leaf);
        let mut level = 0_usize;
        while let Some(hash) = next.take() {
            if level == self.tiles.len() {
                self.tiles.push(std::sync::Arc::default());
            }
            let tile = &mut self.tiles[level];
            std::sync::Arc::make_mut(tile).push(hash);
            if let Some(root) = tile.root() {
                full.push((level as u8, self.size >> (8 * (level + 1)), std::mem::take(tile)));
                next = Some(root);
                level += 1;
            }
        }
        self.size += 1;
    }

    /// The root hash over all entries.
    #[must_use]
    pub fn root(&self) -> Hash {
        let nodes = cover(0, self.size).into_iter().filter_map(|node| {
            let (level, _, row, at) = place(node);
            self.tiles.get(usize::from(level))?.node(row, at)
        });
        fold(&nodes.collect::<Vec<_>>()).unwrap_or_else(crate::merkle::empty_root)
    }
}

/// The hashes of the entries of a bundle.
#[must_use]
pub fn leaf_hashes(entries: &[Vec<u8>]) -> Vec<Hash> {
    entries.iter().map(|entry| leaf_hash(entry)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::merkle::empty_root;

    #[test]
    fn paths_are_those_of_the_specification() {
        let table = [
            (TilePath::full(0, 0), "tile/0/000"),
            (TilePath::full(0, 1_067), "tile/0/x001/067"),
            (TilePath::full(3, 1_234_067), "tile/3/x001/x234/067"),
            (TilePath::full(1, 255).with_width(7), "tile/1/255.p/7"),
            (TilePath::bundle(1_000), "tile/entries/x001/000"),
            (TilePath::bundle(999).with_width(255), "tile/entries/999.p/255"),
        ];
        for (path, text) in table {
            assert_eq!(path.to_string(), text);
            assert_eq!(TilePath::parse(&text["tile/".len()..]), Ok(path));
        }
    }

    #[test]
    fn other_spellings_of_a_path_are_refused() {
        for text in [
            "",
            "0",
            "0/",
            "0/0",
            "0/00",
            "0/0000",
            "8/000",
            "00/000",
            "-1/000",
            "+0/000",
            "0/x000/001",
            "0/001/002",
            "0/x001",
            "0/x001/x002",
            "0/000.p/0",
            "0/000.p/256",
            "0/000.p/01",
            "0/000.p/",
            "0/000.p/1/2",
            "entries",
            "data/000",
            "0/../000",
            "0/x999/x999/x999/x999/x999/x999/x999/999",
            "0/٠٠٠",
        ] {
            assert_eq!(TilePath::parse(text), Err(TileError::Path), "{text:?}");
        }
    }

    #[test]
    fn the_width_of_a_tile_follows_from_the_size() {
        assert_eq!(TilePath::width_at(Some(0), 0, 300), 256);
        assert_eq!(TilePath::width_at(Some(0), 1, 300), 44);
        assert_eq!(TilePath::width_at(None, 2, 300), 0);
        assert_eq!(TilePath::width_at(Some(1), 0, 70_000), 256);
        assert_eq!(TilePath::width_at(Some(1), 1, 70_000), 17);
        assert_eq!(TilePath::width_at(Some(7), u64::MAX, u64::MAX), 0);
    }

    proptest! {
        #[test]
        fn any_text_is_a_path_or_an_error(text in ".{0,40}") {
            if let Ok(path) = TilePath::parse(&text) {
                prop_assert_eq!(path.to_string(), format!("tile/{text}"));
            }
        }

        #[test]
        fn every_path_reads_back(level in prop::option::of(0_u8..8), index: u64, width in 1_u16..=256) {
            let path = TilePath { level, index, width };
            prop_assert_eq!(TilePath::parse(&path.to_string()["tile/".len()..]), Ok(path));
        }

        #[test]
        fn any_bytes_are_a_bundle_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400), width in 0_u16..=256) {
            if let Ok(entries) = parse_bundle(&bytes, width) {
                prop_assert_eq!(encode_bundle(&entries).unwrap(), bytes.clone());
            }
            if let Ok(hashes) = parse_hashes(&bytes, width) {
                prop_assert_eq!(hashes.concat(), bytes);
            }
        }

        #[test]
        fn bundles_read_back(entries in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..=256)) {
            let bytes = encode_bundle(&entries).unwrap();
            prop_assert_eq!(parse_bundle(&bytes, entries.len() as u16), Ok(entries));
        }
    }

    #[test]
    fn the_edge_knows_the_root_at_every_size_and_gives_out_full_tiles() {
        let (mut edge, mut full, mut leaves) = (Edge::default(), Vec::new(), Vec::new());
        assert_eq!(edge.root(), empty_root());
        for i in 0..66_000_u32 {
            let leaf = leaf_hash(&i.to_be_bytes());
            leaves.push(leaf);
            edge.push(leaf, &mut full);
            if i % 1_009 == 0 || (65_530..65_540).contains(&i) {
                let mut row: Vec<Hash> = leaves.clone();
                // The root, row by row: an odd last node moves up unchanged.
                while row.len() > 1 {
                    row = row
                        .chunks(2)
                        .map(|c| if let [l, r] = c { node_hash(l, r) } else { c[0] })
                        .collect();
                }
                assert_eq!(edge.root(), row[0], "{} entries", i + 1);
            }
        }
        let upper: Vec<_> = full
            .iter()
            .filter(|(level, ..)| *level == 1)
            .map(|(_, index, _)| *index)
            .collect();
        assert_eq!(upper, [0]);
        assert_eq!(full.len(), 66_000 / 256 + 1);
        let again = Edge::new(edge.size(), edge.tiles.iter().map(|t| (**t).clone()).collect());
        assert_eq!(again.as_ref(), Some(&edge));
        assert_eq!(
            Edge::new(
                edge.size() + 1,
                edge.tiles.iter().map(|t| (**t).clone()).collect()
            ),
            None
        );
    }
}
