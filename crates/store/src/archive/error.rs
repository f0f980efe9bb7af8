//! Why a file is not taken for a backup.

use kernel::{Code, Fault, Kind};

/// A failure to read or write an archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("it is not a backup: {found}")]
    Foreign { found: String },
    #[error("it is of format {found}, and this program reads format {known}")]
    Newer { found: u32, known: u32 },
    #[error("its tables of {domain} have version {found}, and this program knows {known}")]
    Schema { domain: String, found: i64, known: i64 },
    #[error("{what}: {found}")]
    Damaged { what: String, found: String },
    #[error("{name:?} with {bytes} bytes does not fit into a backup")]
    Member { name: String, bytes: u64 },
    #[error("{operation} the backup")]
    Io {
        operation: &'static str,
        source: std::io::Error,
    },
}

impl ArchiveError {
    /// A part that is not what it has to be.
    pub fn damaged(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self::Damaged {
            what: what.into(),
            found: found.into(),
        }
    }

    pub(crate) fn writing(source: std::io::Error) -> Self {
        Self::Io {
            operation: "writing",
            source,
        }
    }

    pub(crate) fn reading(source: std::io::Error) -> Self {
        Self::Io {
            operation: "reading",
            source,
        }
    }
}

impl Fault for ArchiveError {
    fn kind(&self) -> Kind {
        match self {
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => Kind::Full,
            Self::Newer { .. } | Self::Schema { .. } => Kind::Conflict,
            _ => Kind::Invalid,
        }
    }

    fn code(&self) -> &'static Code {
        match self {
            Self::Foreign { .. } => &codes::FOREIGN,
            Self::Newer { .. } | Self::Schema { .. } => &codes::NEWER,
            Self::Damaged { .. } => &codes::DAMAGED,
            Self::Member { .. } | Self::Io { .. } => &codes::FILE,
        }
    }
}

/// The codes of backups.
pub mod codes {
    use kernel::Code;

    pub const FOREIGN: Code = Code {
        id: "PC1901",
        title: "the file is not a backup of Portcullis",
        explanation: "A backup is an uncompressed tar archive that begins with the member portcullis-backup. This file is \
something else, or was compressed or packed by another program. Nothing was restored.",
        hint: "name the file that portcullis backup wrote, unpacked to what it was: gzip -d FILE.gz",
    };
    pub const DAMAGED: Code = Code {
        id: "PC1902",
        title: "the backup is damaged",
        explanation: "A part of the backup is cut short, changed, renamed, missing, or there twice: it is not what its \
manifest says. Everything is checked before anything is written, so nothing was restored.",
        hint: "use another copy of this backup, or an older one; tar -tvf FILE shows what is in it",
    };
    pub const NEWER: Code = Code {
        id: "PC1903",
        title: "the backup was made by a newer program",
        explanation: "Its format, or the schema of its tables, is one that this program does not know.",
        hint: "restore it with the version of portcullis that made it, or a newer one",
    };
    pub const FILE: Code = Code {
        id: "PC1904",
        title: "the backup cannot be read or written",
        explanation: "The disk is full or broken, or a row or blob is larger than a part of a backup may be. A backup that \
was not finished is removed; one that stood under the name before is left as it was.",
        hint: "make room, or write the backup to another disk",
    };
    pub const ALL: &[&Code] = &[&FOREIGN, &DAMAGED, &NEWER, &FILE];
}
