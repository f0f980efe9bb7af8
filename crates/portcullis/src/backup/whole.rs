//! Is a log in an archive whole? What `log fsck` asks of a server's log, asked of the archive alone.
//!
//! ```text
//!   tiles, bundles ─────────────┐
//!   rows of the tail ──▶ right edge ──▶ every entry hashed again ──▶ the checkpoint's root
//!   rows of the leaves ─────────────────▶ are these its hashes?
//! ```
//!
//! Each part is read when it is asked for, so memory does not grow with the log: of a row in the tail its place in the
//! file is kept and of one among the leaves a sum, unless the entry is in no tile yet.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use kernel::Digest;
use store::Value;
use store::archive::{ArchiveError, LogState, Manifest, Member, Part, parse_header};
use tlog::merkle::{Hash, leaf_hash};
use tlog::tile::{TILE_WIDTH, Tile, TilePath, encode_bundle, leaf_hashes, parse_hashes};
use tlog::{Damage, Files, LogVerifier, TlogError, View};

use super::make::is_tiled;
use crate::failure::Failure;

/// Tar counts in blocks of so many bytes. The member that every archive begins with takes two.
const BLOCK_BYTES: u64 = 512;

/// A log as it lies in an archive.
pub struct Packed<'a> {
    archive: Archive<'a>,
    log: &'a LogState,
    /// Its tiles and bundles among the members.
    blobs: HashMap<&'a str, usize>,
    /// The first line of each part of the tail.
    head: Vec<u8>,
    /// The entries that are in no tile, by their index.
    tail: BTreeMap<u64, Line>,
    /// The hashes that are listed for them.
    listed: BTreeMap<u64, Vec<u8>>,
    /// All hashes that are listed.
    leaves: Sum,
}

/// Where the row of an entry lies in the file.
struct Line {
    offset: u64,
    bytes: usize,
}

/// What hashes add up to, each with its index, in whatever order they come.
#[derive(Default, PartialEq, Eq)]
struct Sum {
    count: u64,
    sum: u128,
}

impl Sum {
    fn add(&mut self, index: u64, leaf: &[u8]) {
        let digest = Digest::of(&[&index.to_be_bytes(), leaf].concat());
        let number = digest
            .hex()
            .get(..32)
            .and_then(|hex| u128::from_str_radix(hex, 16).ok());
        self.count += 1;
        self.sum = self.sum.wrapping_add(number.unwrap_or_default());
    }
}

/// The members of an archive that was written or checked already, in any order.
struct Archive<'a> {
    file: &'a File,
    manifest: &'a Manifest,
    /// Where each of the manifest's members begins.
    offsets: Vec<u64>,
}

impl<'a> Archive<'a> {
    fn new(file: &'a File, manifest: &'a Manifest) -> Self {
        let mut next = 2 * BLOCK_BYTES;
        let offsets = manifest.members.iter().map(|member| {
            let offset = next;
            next += (1 + member.bytes.div_ceil(BLOCK_BYTES)) * BLOCK_BYTES;
            offset
        });
        Self {
            offsets: offsets.collect(),
            file,
            manifest,
        }
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), ArchiveError> {
        let failed = |source| ArchiveError::Io {
            operation: "reading",
            source,
        };
        self.file.read_exact_at(buffer, offset).map_err(failed)
    }

    /// A member, which has to be what the manifest says: the file may be another one than a moment ago.
    fn member(&self, at: usize) -> Result<Member, ArchiveError> {
        let (said, offset) = (&self.manifest.members[at], self.offsets[at]);
        let mut header = [0; BLOCK_BYTES as usize];
        self.read(&mut header, offset)?;
        if parse_header(&header) != Some((said.name.clone(), said.bytes)) {
            return Err(ArchiveError::damaged(
                &*said.name,
                "something else stands in its place",
            ));
        }
        let mut bytes = vec![0; usize::try_from(said.bytes).unwrap_or_default()];
        self.read(&mut bytes, offset + BLOCK_BYTES)?;
        let name = said.name.clone();
        let member = Member { name, bytes };
        self.manifest.check(at, &member)?;
        Ok(member)
    }

    /// Each part of a table, with the place of its first byte in the file.
    fn parts(&self, table: &str) -> impl Iterator<Item = Result<(Member, u64), ArchiveError>> {
        let prefix = format!("tables/{table}/");
        let found = self.manifest.members.iter().enumerate();
        let found = found.filter(move |(_, member)| member.name.starts_with(&prefix));
        found.map(|(at, _)| Ok((self.member(at)?, self.offsets[at] + BLOCK_BYTES)))
    }
}

/// The rows of a part as the index of an entry and what stands beside it, its body or its hash.
fn rows(bytes: &[u8], column: &str) -> Result<Vec<(u64, Vec<u8>)>, ArchiveError> {
    let part = Part::parse(bytes)?;
    let wrong = |column: &str| {
        let what = format!("{column} of the table {}", part.table);
        ArchiveError::damaged(what, "a row has no such value")
    };
    let place = |name: &str| {
        let found = part.columns.iter().position(|column| column.name == name);
        found.ok_or_else(|| wrong(name))
    };
    let (index, content) = (place("entry_index")?, place(column)?);
    let row = |row: &Vec<Value>| {
        let Value::Int(Some(index)) = row[index] else {
            return Err(wrong("entry_index"));
        };
        let Value::Blob(Some(content)) = &row[content] else {
            return Err(wrong(column));
        };
        let index = u64::try_from(index).map_err(|_| wrong("entry_index"))?;
        Ok((index, content.clone()))
    };
    part.rows.iter().map(row).collect()
}

/// A log of the archive as it is at its checkpoint.
pub fn view<'a>(
    file: &'a File,
    manifest: &'a Manifest,
    log: &'a LogState,
    verifier: LogVerifier,
) -> Result<View<Packed<'a>>, Failure> {
    let of_log = format!("blobs/{}/", log.name);
    let members = manifest.members.iter().enumerate();
    let blobs = members.filter(|(_, member)| member.name.starts_with(&of_log));
    let mut packed = Packed {
        blobs: blobs.map(|(at, member)| (&*member.name, at)).collect(),
        archive: Archive::new(file, manifest),
        log,
        head: Vec::new(),
        tail: BTreeMap::new(),
        listed: BTreeMap::new(),
        leaves: Sum::default(),
    };
    packed.find_tail()?;
    packed.add_leaves()?;
    View::new(packed, verifier, &log.checkpoint).map_err(Failure::log)
}

/// Goes through all of a log; the first thing that does not lead to its checkpoint.
pub async fn damage(view: &View<Packed<'_>>) -> Result<Option<Damage>, Failure> {
    let packed = view.files();
    if let Some(found) = packed.compare_tail()? {
        return Ok(Some(found));
    }
    let entries = Mutex::new(Sum::default());
    let visit = |index, entry: &[u8]| {
        let mut entries = entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.add(index, &leaf_hash(entry));
    };
    let audit = match view.replay(&visit, &mut |_| {}).await {
        Err(error) if error.is_damage() => {
            let (what, found) = ("its tiles".to_owned(), kernel::chain(&error));
            return Ok(Some(Damage { what, found }));
        }
        audit => audit.map_err(Failure::log)?,
    };
    let found = audit.damage.into_iter().next();
    let entries = entries.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(found.or_else(|| {
        let table = format!("table {}_leaf", packed.log.name);
        (entries != packed.leaves).then(|| damaged(table, "its hashes are not those of the entries"))
    }))
}

fn damaged(what: String, found: &str) -> Damage {
    let found = found.to_owned();
    Damage { what, found }
}

impl Packed<'_> {
    fn is_in_tail(&self, index: u64) -> bool {
        (self.log.tiled..self.log.size).contains(&index)
    }

    fn find_tail(&mut self) -> Result<(), ArchiveError> {
        let (mut head, mut tail) = (Vec::new(), BTreeMap::new());
        for part in self.archive.parts(&format!("{}_tail", self.log.name)) {
            let (member, mut offset) = part?;
            let mut lines = member.bytes.split_inclusive(|byte| *byte == b'\n');
            head = lines.next().unwrap_or_default().to_vec();
            offset += head.len() as u64;
            for ((index, _), line) in rows(&member.bytes, "body")?.iter().zip(lines) {
                let bytes = line.len();
                if self.is_in_tail(*index) {
                    tail.insert(*index, Line { offset, bytes });
                }
                offset += bytes as u64;
            }
        }
        (self.head, self.tail) = (head, tail);
        Ok(())
    }

    fn add_leaves(&mut self) -> Result<(), ArchiveError> {
        let (mut leaves, mut listed) = (Sum::default(), BTreeMap::new());
        for part in self.archive.parts(&format!("{}_leaf", self.log.name)) {
            for (index, leaf) in rows(&part?.0.bytes, "leaf")? {
                leaves.add(index, &leaf);
                if self.is_in_tail(index) {
                    listed.insert(index, leaf);
                }
            }
        }
        (self.leaves, self.listed) = (leaves, listed);
        Ok(())
    }

    /// The first row of the tail that is not there, or not what the list of hashes says. With it the row has a name;
    /// that neither was changed, the checkpoint tells.
    fn compare_tail(&self) -> Result<Option<Damage>, ArchiveError> {
        for index in self.log.tiled..self.log.size {
            let row = || format!("row {index} of table {}_tail", self.log.name);
            let Some(body) = self.body(index)? else {
                return Ok(Some(damaged(row(), "it is missing")));
            };
            let listed = self.listed.get(&index);
            if listed.is_none_or(|listed| **listed != leaf_hash(&body)) {
                return Ok(Some(damaged(row(), "its hash is not the one that was logged")));
            }
        }
        Ok(None)
    }

    /// The body of an entry that is in no tile.
    fn body(&self, index: u64) -> Result<Option<Vec<u8>>, ArchiveError> {
        let Some(line) = self.tail.get(&index) else {
            return Ok(None);
        };
        let mut part = self.head.clone();
        part.resize(self.head.len() + line.bytes, 0);
        self.archive.read(&mut part[self.head.len()..], line.offset)?;
        Ok(rows(&part, "body")?.pop().map(|(_, body)| body))
    }

    /// A tile or bundle: a member of the archive, or, at the right edge, made from what is under it.
    fn part(&self, path: TilePath) -> Result<Option<Bytes>, Failure> {
        if is_tiled(path, self.log.tiled) {
            let name = format!("blobs/{}/{path}", self.log.name);
            let Some(at) = self.blobs.get(&*name) else {
                return Err(ArchiveError::damaged(name, "it is missing").into());
            };
            return Ok(Some(self.archive.member(*at)?.bytes.into()));
        }
        let first = path.index * TILE_WIDTH;
        let under = first..first + u64::from(path.width);
        if let Some(above) = path.level.filter(|level| *level > 0) {
            let roots = under.map(|index| self.root(TilePath::full(above - 1, index)));
            let roots: Option<Vec<Hash>> = roots.collect::<Result<_, _>>()?;
            return Ok(roots.map(|roots| roots.concat().into()));
        }
        let bodies: Option<Vec<Vec<u8>>> = under.map(|index| self.body(index)).collect::<Result<_, _>>()?;
        let Some(bodies) = bodies else {
            return Ok(None);
        };
        let bytes = match path.level {
            Some(_) => Ok(leaf_hashes(&bodies).concat()),
            None => encode_bundle(&bodies),
        };
        let large = |error| ArchiveError::damaged(path.to_string(), kernel::chain(&error));
        Ok(Some(bytes.map_err(large)?.into()))
    }

    /// The root of a full tile, if it is one.
    fn root(&self, path: TilePath) -> Result<Option<Hash>, Failure> {
        let hashes = self
            .part(path)?
            .and_then(|bytes| parse_hashes(&bytes, path.width).ok());
        Ok(hashes.and_then(|hashes| Tile::of(&hashes).root()))
    }
}

impl Files for Packed<'_> {
    async fn file(&self, path: TilePath) -> Result<Option<Bytes>, TlogError> {
        self.part(path).map_err(|failure| TlogError::Fetch {
            what: path.to_string(),
            source: Box::new(failure),
        })
    }
}
