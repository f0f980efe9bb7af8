//! Tokens that end: at once where they were ended, soon everywhere else. On SQLite and on PostgreSQL.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod ends;
