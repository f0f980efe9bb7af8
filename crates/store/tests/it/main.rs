//! The conformance suite: every case runs on SQLite and on PostgreSQL.

mod blobs;
mod leases;
mod on;
mod rows;
mod schema;
