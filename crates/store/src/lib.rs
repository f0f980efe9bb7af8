//! Where everything durable lives: one database, leases on it, and blobs beside it.
//!
//! The database is SQLite (one process, a file) or PostgreSQL (any number of processes). Each query is
//! written once, in the dialect that both share (`$1` placeholders, `ON CONFLICT`, `RETURNING`), and the
//! conformance suite in `tests/it` proves every statement of this crate on both. What differs lies in
//! [`Db::open`] (how to connect), in migrations (`{blob}` is `BLOB` or `BYTEA`) and in the lease's clock.
//!
//! ```text
//!   domain ── read ──▶ Db ──▶ read pool          SQLite: WAL, one writer, BEGIN IMMEDIATE, FULL sync
//!      │                                         PostgreSQL: one pool, READ COMMITTED
//!      ├──── begin ──▶ Tx ──▶ commit = durable
//!      ├──── Lease: one holder, a fencing number that its every write checks
//!      ├──── Blobs: immutable objects in a folder (fsync) or S3
//!      └──── Recent: rows of a moment ago, for what every request needs, and older ones while the database is away
//!               └── Learner: what of them other servers changed
//! ```
//!
//! The store knows no domain: tables belong to the crates that use them, which bring their migrations.

pub mod archive;
mod blobs;
mod changes;
mod db;
mod dump;
mod error;
mod gate;
pub mod lease;
mod lock;
mod migrate;
mod postgres;
mod presence;
mod recent;
mod sqlite;
mod value;
mod wal;

pub use blobs::Blobs;
pub use changes::{Kept, LEARN_MS, Learner};
pub use db::{Db, Tx};
pub use dump::{Snapshot, tables};
pub use error::{StoreError, codes};
pub use gate::Identity;
pub use lease::Lease;
pub use lock::FolderLock;
pub use migrate::Migration;
pub use postgres::{CONNECTIONS_MAX, CONNECTIONS_MAX_DEFAULT};
pub use recent::{AWAY_S_MAX, Change, RECENT_ROWS_MAX, Recent, STALE_MS_MAX};
pub use value::{Row, Value};

/// The tables of this crate; first in the list that a program migrates.
pub const MIGRATIONS: &[Migration] = &[lease::MIGRATION, changes::MIGRATION];
