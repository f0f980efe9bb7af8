//! What can go wrong with the log.

use std::sync::Arc;

use kernel::{Code, Fault, Kind};
use store::StoreError;

use crate::checkpoint::CheckpointError;
use crate::entry::EntryError;
use crate::merkle::ProofError;
use crate::request::RequestError;
use crate::tile::TileError;

/// A failure of the log.
#[derive(Debug, thiserror::Error)]
pub enum TlogError {
    #[error("{operation}")]
    Store {
        operation: &'static str,
        source: Box<StoreError>,
    },
    #[error("reading {what}")]
    Tile { what: String, source: TileError },
    #[error("{what} of the log is missing")]
    Missing { what: String },
    #[error(
        "the blobs are not those of this log: {blob} has {found}, and has to be {expected}; nothing is tiled"
    )]
    OtherStore {
        blob: &'static str,
        expected: String,
        found: String,
    },
    #[error("{what} of the log is damaged: {found}")]
    Damaged { what: String, found: String },
    #[error("reading the log's checkpoint")]
    Checkpoint(#[source] CheckpointError),
    #[error("the entries of the log do not lead to the root of its checkpoint; {suspects}")]
    Root { suspects: String, source: ProofError },
    #[error("the log's checkpoint has {size} entries, but {found}")]
    RolledBack { size: u64, found: String },
    #[error("the first {size} entries of the log are others than those of its checkpoint {}", path.display())]
    Forked { size: u64, path: std::path::PathBuf },
    #[error("the log's key or origin cannot be used")]
    Key(#[source] CheckpointError),
    #[error("another server sequences the log")]
    NotLeader,
    #[error("another writer moved the log's checkpoint on from {size} entries; this server stepped down")]
    Lost { size: u64 },
    #[error("the database did not say whether the entry was stored")]
    Unknown(#[source] Arc<TlogError>),
    #[error("appending to the log")]
    Batch(#[source] Arc<TlogError>),
    #[error("{waiting} entries wait for the log, the cap {cap}")]
    Overloaded { waiting: u64, cap: &'static str },
    #[error("the log is shutting down")]
    Closed,
    #[error("the entry is not accepted")]
    Entry(#[from] EntryError),
    #[error("the request is not accepted")]
    Request(#[from] RequestError),
    #[error("the log has {size} entries; there is no {what}")]
    NotFound { size: u64, what: String },
    #[error("nothing that a server told of {what} stops the log")]
    NotTold { what: String },
    #[error("the sizes {old} and {new} are not in order, or beyond the log's {size} entries")]
    Sizes { old: u64, new: u64, size: u64 },
    #[error("looking for an exported log in {}: {found}", folder.display())]
    NotExported {
        folder: std::path::PathBuf,
        found: String,
    },
    #[error("the copy of the log in {} is left as it is: it has {old}, the log has {new}; {why}", folder.display())]
    Diverged {
        folder: std::path::PathBuf,
        old: String,
        new: String,
        why: String,
    },
    #[error("fetching {what} of the log")]
    Fetch {
        what: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("writing an answer")]
    Answer(#[source] serde_json::Error),
}

impl TlogError {
    pub(crate) fn store(operation: &'static str) -> impl Fn(StoreError) -> Self {
        move |source| Self::Store {
            operation,
            source: Box::new(source),
        }
    }

    /// Whether a durable part of the log is wrong: asking again will not help, whoever reads the files themselves.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Tile { .. }
                | Self::Missing { .. }
                | Self::Damaged { .. }
                | Self::Checkpoint(_)
                | Self::Root { .. }
                | Self::RolledBack { .. }
                | Self::Forked { .. }
        )
    }
}

impl Fault for TlogError {
    fn kind(&self) -> Kind {
        match self {
            Self::Store { source, .. } => source.kind(),
            Self::Batch(cause) => cause.kind(),
            Self::Tile { .. }
            | Self::Missing { .. }
            | Self::OtherStore { .. }
            | Self::Damaged { .. }
            | Self::Checkpoint(_)
            | Self::Root { .. }
            | Self::RolledBack { .. }
            | Self::Forked { .. }
            | Self::NotLeader
            | Self::Lost { .. }
            | Self::Unknown(_)
            | Self::Fetch { .. }
            | Self::Closed => Kind::Unavailable,
            Self::Diverged { .. } => Kind::Conflict,
            Self::Overloaded { .. } => Kind::Overloaded,
            Self::Key(_) | Self::Entry(_) | Self::Request(_) | Self::Sizes { .. } => Kind::Invalid,
            Self::NotFound { .. } | Self::NotExported { .. } | Self::NotTold { .. } => Kind::NotFound,
            Self::Answer(_) => Kind::Bug,
        }
    }

    fn code(&self) -> &'static Code {
        match self {
            Self::Store { source, .. } => source.code(),
            Self::Batch(cause) => cause.code(),
            Self::Tile { .. } | Self::Missing { .. } | Self::Damaged { .. } => &codes::DAMAGED,
            Self::OtherStore { .. } => &codes::OTHER_STORE,
            Self::Checkpoint(CheckpointError::Malformed | CheckpointError::Signature) => &codes::CHECKPOINT,
            Self::Checkpoint(_) => &codes::OTHER_LOG,
            Self::Root { .. } => &codes::ROOT,
            Self::RolledBack { .. } => &codes::ROLLED_BACK,
            Self::Forked { .. } => &codes::FORKED,
            Self::Key(_) => &codes::KEY,
            Self::NotLeader => &codes::NOT_LEADER,
            Self::Lost { .. } => &codes::LOST,
            Self::Unknown(_) => &codes::UNKNOWN,
            Self::Overloaded { .. } => &codes::OVERLOADED,
            Self::Closed => &codes::CLOSED,
            Self::Entry(EntryError::Signature)
            | Self::Request(RequestError::Entry(EntryError::Signature)) => &codes::SIGNATURE,
            Self::Entry(_) | Self::Request(RequestError::Entry(_)) => &codes::ENTRY,
            Self::Request(_) => &codes::REQUEST,
            Self::NotFound { .. } | Self::Sizes { .. } => &codes::NOT_FOUND,
            Self::NotTold { .. } => &codes::NOT_TOLD,
            Self::NotExported { .. } => &codes::NOT_EXPORTED,
            Self::Diverged { .. } => &codes::DIVERGED,
            Self::Fetch { .. } => &codes::FETCH,
            Self::Answer(_) => &codes::ANSWER,
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Batch(cause) => cause.hint(),
            Self::NotExported { folder, .. } => format!(
                "name the folder that was given to `portcullis log export`, or write it with: portcullis log \
export {}",
                folder.display()
            ),
            _ => self.code().hint.to_owned(),
        }
    }
}

/// The codes of the log's failures.
pub mod codes {
    use kernel::Code;

    /// Said wherever a durable part of the log is wrong.
    const RECOVER: &str = "keep a copy of the data folder, then put the named file back from the last backup or \
from `portcullis log export`; `portcullis log fsck` tells whether all is well again";

    pub const DAMAGED: Code = Code {
        id: "PC1401",
        title: "a part of the log is damaged",
        explanation: "A tile, an entry bundle or a row of the log is missing, cut short or changed. The log does not \
start on it and gives out no proof from it, so that nobody is shown a false one. Signatures that are in registries \
already carry their own proof and stay verifiable.",
        hint: RECOVER,
    };
    pub const CHECKPOINT: Code = Code {
        id: "PC1402",
        title: "the log's checkpoint is damaged",
        explanation: "The row of table tlog_checkpoint, or the file `checkpoint` of an exported log, is not a note that \
the log's key signed.",
        hint: "keep a copy of what is there, then put the database back from the last backup together with the tiles, \
or export the log again",
    };
    pub const OTHER_LOG: Code = Code {
        id: "PC1403",
        title: "the checkpoint belongs to another log",
        explanation: "The checkpoint in the database, in a copy or from a server has another origin, or is signed by \
another key, than the ones expected. A server that went on would split the log.",
        hint: "put back the log key that belongs to this database, or the database that belongs to this key; of a copy \
or a server, ask whether it is the one that you mean",
    };
    pub const ROOT: Code = Code {
        id: "PC1404",
        title: "the log's entries do not lead to its checkpoint",
        explanation: "The root hash over the stored entries is not the one that the log signed.",
        hint: RECOVER,
    };
    pub const ROLLED_BACK: Code = Code {
        id: "PC1405",
        title: "the database is older than the log",
        explanation: "There are entries, tiles or a checkpoint (log.checkpoint in the data folder) beyond what the \
database holds: it was put back from an older backup, emptied or lost. Appending would give indexes out twice, which \
is a fork.",
        hint: "put back the newest database: of SQLite with its -wal file, of PostgreSQL the copy that has the last writes. \
If what is missing is lost for good: docs/runbooks/rolled-back.md. With PostgreSQL move log.checkpoint out of the data \
folder, keep it, start, and give `portcullis log seen --dismiss SIZE --reason TEXT`; with SQLite keep blobs/, \
log.checkpoint and secrets/log.json elsewhere to read, and start a new log without them, in a new data folder",
    };
    pub const FORKED: Code = Code {
        id: "PC1419",
        title: "the log in the database is not the one that this server wrote",
        explanation: "The data folder keeps the newest checkpoint (log.checkpoint), signed by this log's key, and the \
database holds other entries under the same indexes: two logs were signed with one key.",
        hint: "keep both as evidence; find out which database belongs to this folder, and put that one back",
    };
    pub const NOT_LEADER: Code = Code {
        id: "PC1406",
        title: "another server sequences the log",
        explanation: "One server at a time appends to the log; this one does not hold the lease.",
        hint: "try again in a few seconds, or send the request to the server that holds the lease",
    };
    pub const LOST: Code = Code {
        id: "PC1407",
        title: "another writer moved the checkpoint",
        explanation: "The checkpoint moves by compare-and-swap under a fencing number. Somebody else wrote in \
between, so nothing of this batch was stored and this server stepped down.",
        hint: "send the request again; it is answered with the old entry if it was stored after all",
    };
    pub const UNKNOWN: Code = Code {
        id: "PC1408",
        title: "it is not known whether the entry was stored",
        explanation: "The connection to the database broke while it committed, and reading back did not succeed \
either.",
        hint: "send the request again; it is answered with the old entry if it was stored after all",
    };
    pub const OVERLOADED: Code = Code {
        id: "PC1409",
        title: "the log has more to do than it can",
        explanation: "A queue of the log has reached its cap. Nothing that was accepted is dropped.",
        hint: "try again later",
    };
    pub const CLOSED: Code = Code {
        id: "PC1410",
        title: "the log is shutting down",
        explanation: "The server stops; entries that were accepted are finished first.",
        hint: "try again when the server has started",
    };
    pub const SIGNATURE: Code = Code {
        id: "PC1411",
        title: "the signature of the entry does not verify",
        explanation: "The log takes only entries whose signature verifies over the digest with the key given.",
        hint: "check that digest, signature and key belong together",
    };
    pub const ENTRY: Code = Code {
        id: "PC1412",
        title: "the log does not take such an entry",
        explanation: "The log takes hashedrekord 0.0.2 with ECDSA P-256, P-384 or P-521 and RSA of 2048, 3072 or \
4096 bits, each with its own hash. Ed25519 would need Ed25519ph.",
        hint: "sign with an ECDSA P-256 key",
    };
    pub const REQUEST: Code = Code {
        id: "PC1413",
        title: "the request to the log cannot be read",
        explanation: "The log takes the JSON of Rekor v2: hashedRekordRequestV002, or dsseRequestV002 with one \
signature and one verifier.",
        hint: "use cosign 3.1 or newer, or another client of Rekor v2",
    };
    pub const NOT_FOUND: Code = Code {
        id: "PC1414",
        title: "the log has no such entry, tile or size",
        explanation: "Entries, tiles and proofs exist up to the size of the current checkpoint.",
        hint: "look at the size with `portcullis log info`",
    };
    pub const NOT_TOLD: Code = Code {
        id: "PC1422",
        title: "no such checkpoint stops the log",
        explanation: "Only a checkpoint that a server told of, that the database does not reach, and that was not dismissed \
already can be dismissed.",
        hint: "`portcullis log seen` lists what was told, with the sizes; those of the audit trail's log need --audit",
    };
    pub const KEY: Code = Code {
        id: "PC1415",
        title: "the log's key or origin cannot be used",
        explanation: "The log is signed with an Ed25519 key in PKCS#8, under a name without spaces and plus signs.",
        hint: "check `log.key` and `log.origin` in the configuration",
    };
    pub const ANSWER: Code = Code {
        id: "PC1416",
        title: "an answer could not be written",
        explanation: "The entry is in the log, but its answer could not be written as JSON. This is a mistake in the program.",
        hint: "report it with the request",
    };
    pub const NOT_EXPORTED: Code = Code {
        id: "PC1417",
        title: "there is no exported log in this folder",
        explanation: "An exported log is a folder with the files `checkpoint` and `log.pub` and the folder `tile`, as \
`portcullis log export` writes it. The folder that was named is not there, or holds \
something else. Nothing was checked.",
        hint: "name the folder that was given to `portcullis log export`",
    };
    pub const DIVERGED: Code = Code {
        id: "PC1418",
        title: "the log contradicts its copy",
        explanation: "A log only grows, so a copy of it that was exported earlier is its beginning. This log is another \
one, or smaller than the copy, or has other entries where the copy has its own. Two checkpoints that one key signed and \
that contradict each other prove that the log was forked or put back from an older backup. The copy was left as it is.",
        hint: "keep the copy: it is evidence. Export into another folder, compare the two, and find out which of \
them others have seen",
    };
    pub const FETCH: Code = Code {
        id: "PC1420",
        title: "a part of the log could not be fetched",
        explanation: "A tile, an entry bundle or the checkpoint was asked for and no answer came. Nothing is known \
about it.",
        hint: "try again; check that the server runs",
    };
    pub const OTHER_STORE: Code = Code {
        id: "PC1421",
        title: "the blobs are not those of this log",
        explanation: "The blob `installation` says whose a store is. In the store that this server is configured with it \
is missing, or names another installation than the database: what this server moved there would be missing for all \
others. The entries stay in the database meanwhile, and nothing is lost.",
        hint: "give every server on one database the same `blobs.url`; of a new store the server writes the blob itself, \
within seconds",
    };

    pub const ALL: &[&Code] = &[
        &DAMAGED,
        &CHECKPOINT,
        &OTHER_LOG,
        &ROOT,
        &ROLLED_BACK,
        &FORKED,
        &NOT_LEADER,
        &LOST,
        &UNKNOWN,
        &OVERLOADED,
        &CLOSED,
        &SIGNATURE,
        &ENTRY,
        &REQUEST,
        &NOT_FOUND,
        &KEY,
        &ANSWER,
        &NOT_EXPORTED,
        &DIVERGED,
        &FETCH,
        &OTHER_STORE,
        &NOT_TOLD,
    ];
}
