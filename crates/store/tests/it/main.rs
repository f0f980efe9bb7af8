//! The conformance suite: every case runs on SQLite and on PostgreSQL.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod blobs;
mod changes;
mod leases;
mod on;
mod postgresql;
mod rows;
mod schema;
