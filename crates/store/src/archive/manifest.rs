//! The last member: what the backup holds.

use std::collections::BTreeMap;

use kernel::Digest;
use serde::{Deserialize, Serialize};

use super::{ArchiveError, MANIFEST, Member};

/// The manifest in bytes: a hundred for each member, so two million of them, a log of hundreds of millions of entries.
pub(super) const MANIFEST_BYTES_MAX: u64 = 256 << 20;

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of the program that made it.
    pub program: String,
    /// RFC 3339.
    pub made_at: String,
    /// Whether the secrets are in it.
    pub secrets: bool,
    /// The schema's version of each domain.
    pub schema: BTreeMap<String, i64>,
    /// Rows of each table.
    pub rows: BTreeMap<String, u64>,
    pub logs: Vec<LogState>,
    /// Every member before the manifest, but the first.
    pub members: Vec<MemberState>,
}

/// How far a log was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogState {
    /// How the names of its tables and blobs begin.
    pub name: String,
    pub origin: String,
    /// PEM.
    pub public_key: String,
    /// Entries.
    pub size: u64,
    /// Entries that lie in blobs; the rest are rows.
    pub tiled: u64,
    /// The signed note.
    pub checkpoint: String,
}

/// A member and what it has to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberState {
    pub name: String,
    pub bytes: u64,
    /// Hexadecimal.
    pub sha256: String,
}

impl MemberState {
    pub(crate) fn of(member: &Member) -> Self {
        Self {
            name: member.name.clone(),
            bytes: member.bytes.len() as u64,
            sha256: Digest::of(&member.bytes).hex(),
        }
    }
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, ArchiveError> {
        serde_json::from_slice(bytes).map_err(|error| ArchiveError::damaged(MANIFEST, error.to_string()))
    }

    /// The same as bytes.
    ///
    /// # Errors
    /// If it cannot be written as JSON, which cannot be.
    pub fn render(&self) -> Result<Vec<u8>, ArchiveError> {
        serde_json::to_vec(self).map_err(|error| ArchiveError::writing(error.into()))
    }

    /// That this is the member that stands at this place.
    ///
    /// # Errors
    /// If it is another one, or has other bytes.
    pub fn check(&self, at: usize, member: &Member) -> Result<(), ArchiveError> {
        compare(self.members.get(at), Some(&MemberState::of(member)))
    }

    pub(super) fn compare(&self, found: &[MemberState]) -> Result<(), ArchiveError> {
        for at in 0..self.members.len().max(found.len()) {
            compare(self.members.get(at), found.get(at))?;
        }
        let mut names: Vec<&str> = found.iter().map(|member| &*member.name).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(ArchiveError::damaged(pair[0], "it is there twice")),
            None => Ok(()),
        }
    }
}

fn compare(said: Option<&MemberState>, found: Option<&MemberState>) -> Result<(), ArchiveError> {
    match (said, found) {
        (Some(said), Some(found)) if said.name != found.name => {
            let found = format!("{} stands in its place", found.name);
            Err(ArchiveError::damaged(&*said.name, found))
        }
        (Some(said), Some(found)) if said != found => Err(ArchiveError::damaged(
            &*said.name,
            "its bytes are not those that were backed up",
        )),
        (Some(said), None) => Err(ArchiveError::damaged(&*said.name, "it is missing")),
        (None, Some(found)) => Err(ArchiveError::damaged(
            &*found.name,
            "the manifest does not name it",
        )),
        _ => Ok(()),
    }
}
