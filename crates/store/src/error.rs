//! What can go wrong with the store.

use std::path::PathBuf;

use kernel::{Code, Fault, Kind};

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("opening the database {what}")]
    Open { what: String, source: sqlx::Error },
    #[error("the database address {url:?} is not one: {why}")]
    Address { url: String, why: &'static str },
    #[error("the database file {} is damaged: {found}", .path.display())]
    Damaged { path: PathBuf, found: String },
    #[error("{operation} in the database")]
    Query {
        operation: &'static str,
        source: sqlx::Error,
    },
    #[error("the database {what} is away")]
    Away { what: String },
    #[error("the database {what} answers, and takes no writes: it is a standby, or set to read-only")]
    ReadOnly { what: String },
    #[error("the database {what} answers, and has no room for another connection (max_connections)")]
    Crowded { what: String },
    #[error("this is not the database of this installation: {found}")]
    Wrong { found: String },
    #[error("reading column {column}: {why}")]
    Column { column: String, why: &'static str },
    #[error("the schema of {domain} in the database is version {found}, newer than this program's {known}")]
    Newer {
        domain: &'static str,
        found: i64,
        known: i64,
    },
    #[error("the restore of a backup into the database has begun and not ended")]
    Restoring,
    #[error("the database has the table {table} already")]
    NotEmpty { table: String },
    #[error("the data folder {} is in use by another server", .path.display())]
    Locked { path: PathBuf },
    #[error("making or using the folder {}", .path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("{operation} the blob {path}")]
    Blob {
        operation: &'static str,
        path: String,
        source: object_store::Error,
    },
    #[error("the blob {path} would be overwritten with other content")]
    BlobDiffers { path: String },
}

impl StoreError {
    pub(crate) fn query(operation: &'static str, source: sqlx::Error) -> Self {
        Self::Query { operation, source }
    }

    pub(crate) fn column(column: &str, why: &'static str) -> Self {
        Self::Column {
            column: column.to_owned(),
            why,
        }
    }

    /// Whether the cause is a disk without room.
    fn is_full(&self) -> bool {
        match self {
            Self::Query { source, .. } | Self::Open { source, .. } => {
                let code = source.as_database_error().and_then(|error| error.code());
                // SQLITE_FULL is 13; PostgreSQL's disk_full is 53100.
                matches!(code.as_deref(), Some("13" | "53100"))
            }
            Self::Folder { source, .. } => source.kind() == std::io::ErrorKind::StorageFull,
            Self::Blob { source, .. } => {
                let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(source);
                while let Some(error) = cause {
                    if let Some(io) = error.downcast_ref::<std::io::Error>()
                        && io.kind() == std::io::ErrorKind::StorageFull
                    {
                        return true;
                    }
                    cause = error.source();
                }
                false
            }
            _ => false,
        }
    }

    /// Whether the cause is a table that is not there: this is another database, or an empty one.
    #[must_use]
    pub fn is_missing_table(&self) -> bool {
        let Self::Query { source, .. } = self else {
            return false;
        };
        source.as_database_error().is_some_and(|error| {
            // PostgreSQL's undefined_table is 42P01; SQLite has one code for everything that does not compile.
            error.code().as_deref() == Some("42P01") || error.message().starts_with("no such table")
        })
    }

    /// Whether the cause is a table that others use (PostgreSQL's lock_not_available).
    pub(crate) fn is_lock_timeout(&self) -> bool {
        matches!(self, Self::Query { source, .. }
            if source.as_database_error().is_some_and(|error| error.code().as_deref() == Some("55P03")))
    }

    /// Whether the cause is a row that is there already (a unique constraint).
    #[must_use]
    pub fn is_duplicate(&self) -> bool {
        matches!(self, Self::Query { source, .. }
            if source.as_database_error().is_some_and(|error| error.is_unique_violation()))
    }
}

impl Fault for StoreError {
    fn kind(&self) -> Kind {
        match self {
            _ if self.is_full() => Kind::Full,
            Self::Column { .. } | Self::BlobDiffers { .. } => Kind::Bug,
            // Found at the start; trying again heals none of them.
            Self::Address { .. } | Self::Folder { .. } | Self::Damaged { .. } => Kind::Invalid,
            Self::Locked { .. } | Self::Newer { .. } | Self::Restoring | Self::NotEmpty { .. } => {
                Kind::Conflict
            }
            Self::Open { .. }
            | Self::Query { .. }
            | Self::Away { .. }
            | Self::Wrong { .. }
            | Self::ReadOnly { .. }
            | Self::Crowded { .. }
            | Self::Blob { .. } => Kind::Unavailable,
        }
    }

    fn code(&self) -> &'static Code {
        match self {
            _ if self.is_full() => &codes::FULL,
            Self::Address { .. } => &codes::ADDRESS,
            Self::Damaged { .. } => &codes::DAMAGED,
            Self::Newer { .. } => &codes::NEWER,
            Self::Locked { .. } => &codes::LOCKED,
            Self::Restoring => &codes::RESTORING,
            Self::NotEmpty { .. } => &codes::NOT_EMPTY,
            Self::Wrong { .. } => &codes::WRONG,
            Self::ReadOnly { .. } => &codes::READ_ONLY,
            Self::Crowded { .. } => &codes::CROWDED,
            Self::Open { .. } | Self::Query { .. } | Self::Away { .. } | Self::Column { .. } => {
                &codes::DATABASE
            }
            Self::Folder { .. } => &codes::FOLDER,
            Self::Blob { .. } | Self::BlobDiffers { .. } => &codes::BLOBS,
        }
    }
}

/// The codes of store failures.
pub mod codes {
    use kernel::Code;

    pub const DATABASE: Code = Code {
        id: "PC1101",
        title: "the database does not answer usefully",
        explanation: "A statement failed or the connection broke. Nothing was half done: every change is one \
transaction.",
        hint: "check that the database runs and that `database.url` names it",
    };
    pub const ADDRESS: Code = Code {
        id: "PC1102",
        title: "the database address is not one",
        explanation: "`database.url` is `sqlite:PATH` or `postgres://USER:PASSWORD@HOST:PORT/NAME`.",
        hint: "correct `database.url` in portcullis.toml, or leave it out to use SQLite in the data folder",
    };
    pub const DAMAGED: Code = Code {
        id: "PC1103",
        title: "the database file is damaged",
        explanation: "The check at the start found pages that contradict each other. The server does not start, \
so that it cannot make it worse. Images already signed stay verifiable: their signatures are in the registry.",
        hint: "stop here, keep a copy of the file, and put back the last backup of the data folder",
    };
    pub const NEWER: Code = Code {
        id: "PC1104",
        title: "the database was written by a newer program",
        explanation: "Its schema has a version that this program does not know. An older program could misread it.",
        hint: "start the newer version of portcullis",
    };
    pub const LOCKED: Code = Code {
        id: "PC1105",
        title: "another server uses the data folder",
        explanation: "SQLite and the log in a folder belong to one process. A second server on the same folder \
is refused before it can write.",
        hint: "stop the other server, or give this one its own --data folder, or use PostgreSQL for several servers",
    };
    pub const BLOBS: Code = Code {
        id: "PC1106",
        title: "a blob could not be read or written",
        explanation: "Tiles and other immutable objects lie in a folder or in S3. The store did not answer, or \
answered with an error.",
        hint: "check the folder's permissions or the bucket's address and credentials",
    };
    pub const FULL: Code = Code {
        id: "PC1107",
        title: "there is no room to write",
        explanation: "The disk or the quota is full. What changes something is refused at once; reading and \
verifying go on. Nothing that was answered with success is lost.",
        hint: "make room on the volume of the data folder; writes go on by themselves",
    };
    pub const FOLDER: Code = Code {
        id: "PC1108",
        title: "the data folder cannot be made or used",
        explanation: "The server keeps its database, its secrets and, unless a bucket is configured, the log's tiles in \
a folder, which it makes if need be. The path leads through something that is no folder, the server's user may not \
write there, or its disk is read-only.",
        hint: "name another folder with --data or `data.folder`, or let the server's user write to this one",
    };
    pub const RESTORING: Code = Code {
        id: "PC1109",
        title: "a backup is not wholly restored",
        explanation: "`portcullis restore` into this database has begun and not come to its end: it still runs, was killed, \
or found that what it restored is not whole. Nothing starts on such a database.",
        hint: "run portcullis restore again; if it says that the database is not empty, make a new one",
    };
    pub const NOT_EMPTY: Code = Code {
        id: "PC1110",
        title: "the place to restore to is not empty",
        explanation: "A backup is restored into an empty database and a data folder without other files, so that nothing \
is mixed or overwritten. What is there was left as it is: exit code 7.",
        hint: "name another --data folder, or an empty database in `database.url`",
    };
    pub const WRONG: Code = Code {
        id: "PC1111",
        title: "this is not the database of this installation",
        explanation: "The server found another installation's database behind its address, or SQLite's file was replaced or \
is gone while the server has it open. What it wrote now would be lost, or would be in somebody else's data, so nothing \
new is signed and nothing is changed. Of another PostgreSQL nothing is read either: the first connection that leads there \
closes the store. What the server knows still verifies.",
        hint: "see portcullis status for what was expected and found, and put the right database back: changes then go on by \
themselves; docs/runbooks/wrong-database.md",
    };
    pub const READ_ONLY: Code = Code {
        id: "PC1112",
        title: "the database takes no writes",
        explanation: "PostgreSQL answers, and refuses to write: the address leads to a standby, or somebody set \
default_transaction_read_only, as providers do when a disk is full. Nothing new is signed and nothing is changed; what \
reads goes on, verification of every image too.",
        hint: "promote the standby or point `database.url` at the primary, or reset default_transaction_read_only; writes then \
go on by themselves",
    };
    pub const CROWDED: Code = Code {
        id: "PC1113",
        title: "the database has no room for another connection",
        explanation: "PostgreSQL refused a connection with SQLSTATE 53300: its max_connections are in use. The connections \
that this server has work on; what needed one more was refused after three seconds.",
        hint: "keep servers x `database.connections_max`, three more for each server, and what else connects below PostgreSQL's \
max_connections, or raise that",
    };
    pub const ALL: &[&Code] = &[
        &DATABASE, &ADDRESS, &DAMAGED, &NEWER, &LOCKED, &BLOBS, &FULL, &FOLDER, &RESTORING, &NOT_EMPTY,
        &WRONG, &READ_ONLY, &CROWDED,
    ];
}
