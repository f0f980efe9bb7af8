//! The conformance suite: every case runs on SQLite and on PostgreSQL.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::unwrap_used, reason = "a helper of a test may end the test")]

mod blobs;
mod leases;
mod on;
mod rows;
mod schema;
