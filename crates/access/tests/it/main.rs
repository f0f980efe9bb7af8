//! Tokens that end: at once where they were ended, soon everywhere else. The audit trail: what it lists, and how it is
//! sealed. On SQLite and on PostgreSQL.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod audit;
mod ends;
mod oidc;
