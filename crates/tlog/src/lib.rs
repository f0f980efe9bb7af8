//! The embedded transparency log: a record of signatures that can only grow, compatible with Rekor v2.
//!
//! Unmodified cosign, sigstore-go and sigstore-python write to it and verify against it. An entry is a
//! `hashedrekord` 0.0.2; the tree is that of RFC 6962; it is stored and served as C2SP tlog-tiles; the
//! checkpoint is a C2SP signed note under an Ed25519 key, with an origin that is a name of its own and does
//! not depend on the log's address.
//!
//! ```text
//!   append ──▶ queue ──▶ sequencer ──▶ one transaction: fence, checkpoint moved by compare-and-swap,
//!                            │          tail rows (index, body), leaf rows (hash ──▶ index)
//!                            ▼
//!                        answer with a proof that was verified
//!
//!   tail rows ──▶ tiler ──▶ full bundles and tiles as blobs, durable ──▶ rows pruned
//!
//!   merkle  tile  checkpoint  entry  request  answer      pure rules
//!   source  proof  audit  export                          proofs, fsck and export, whatever holds the log
//!   view                                                  a log read from its files: a folder, a server
//!   tables  shelf  core                                   what lies in the store
//!   api ──▶ log ──▶ sequencer, tiler ──▶ core             the running log
//! ```
//!
//! Rules that everything rests on:
//!
//! - Nothing is answered before it is durable and included in a signed checkpoint.
//! - The checkpoint row decides what the log is. It moves only by compare-and-swap, in the transaction that
//!   checks the fencing number and adds the entries; two writers cannot fork the log.
//! - A tile becomes a blob only when it is full and committed, so its content is decided and it is written
//!   once. The incomplete right edge is in the database; partial tiles are made when asked for.
//! - When a commit is not confirmed, the checkpoint is read back behind whatever is in flight; the answer is
//!   what really happened.
//! - Memory does not grow with the log: a fixed number of tiles is kept, everything else is streamed.
//! - The log does not start on anything that does not lead to its checkpoint, and names the file or row;
//!   nor on a database that is older than its last checkpoint, of which a copy lies outside.
//!
//! What it does not do: it knows no images, no users and no certificates' trust; it calls no other log; it
//! does not store its own key.

mod answer;
mod api;
mod audit;
mod checkpoint;
mod core;
mod der;
mod entry;
mod error;
mod exchange;
mod export;
mod faults;
mod log;
mod mark;
pub mod merkle;
mod name;
mod proof;
mod request;
mod schema;
mod sequencer;
mod shelf;
mod source;
mod tables;
pub mod tile;
mod tiler;
mod view;

#[cfg(test)]
mod tests;

pub use self::core::{Owner, Settings};
pub use answer::transparency_log_entry;
pub use api::router;
pub use audit::{Audit, DAMAGE_MAX, Damage};
pub use checkpoint::{Checkpoint, CheckpointError, LogKey, LogVerifier};
pub use der::{KeyKind, certificate_spki, key_kind};
pub use entry::{Accepted, EntryError, HashedRekord, Verifier};
pub use error::{TlogError, codes};
pub use exchange::{Told, dismiss, told};
pub use faults::CRASH_STEPS;
pub use log::{Entry, Info, Tlog, exists};
pub use name::Name;
pub use proof::{Consistency, Inclusion};
pub use request::{RequestError, parse_request};
pub use schema::MIGRATIONS;
pub use sequencer::{BATCH_ENTRIES_MAX, QUEUE_ENTRIES_MAX};
pub use shelf::CACHED_TILES_MAX;
pub use tiler::TAIL_ENTRIES_MAX;
pub use view::{Files, Folder, View};
