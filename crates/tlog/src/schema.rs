//! The tables of the logs, step by step.

use store::Migration;

/// The tables of a log, under its prefix.
macro_rules! tables {
    ($prefix:literal) => {
        concat!(
            "CREATE TABLE ",
            $prefix,
            "_checkpoint (id BIGINT PRIMARY KEY, size BIGINT NOT NULL, note TEXT NOT NULL);
             CREATE TABLE ",
            $prefix,
            "_tiles (id BIGINT PRIMARY KEY, entries BIGINT NOT NULL);
             CREATE TABLE ",
            $prefix,
            "_tail (entry_index BIGINT PRIMARY KEY, body {blob} NOT NULL);
             CREATE TABLE ",
            $prefix,
            "_leaf (leaf {blob} PRIMARY KEY, entry_index BIGINT NOT NULL);"
        )
    };
}

/// What the servers of a log tell each other, under its prefix.
macro_rules! exchange {
    ($prefix:literal) => {
        concat!(
            "CREATE TABLE ",
            $prefix,
            "_waiting (leaf {blob} PRIMARY KEY, body {blob} NOT NULL);
             CREATE TABLE ",
            $prefix,
            "_seen (server TEXT PRIMARY KEY, size BIGINT NOT NULL, note TEXT NOT NULL);"
        )
    };
}

/// What of it no longer counts, under its prefix.
macro_rules! dismissed {
    ($prefix:literal) => {
        concat!(
            "CREATE TABLE ",
            $prefix,
            "_dismissed (note TEXT PRIMARY KEY, size BIGINT NOT NULL, reason TEXT NOT NULL, dismissed_at BIGINT NOT NULL);"
        )
    };
}

/// The tables of the logs.
///
/// `*_checkpoint` has one row and decides what the log is. `*_tiles` has one row: how many entries
/// lie in durable tiles. `*_tail` holds the entries after those. `*_leaf` finds duplicates. `*_waiting` holds
/// entries that other servers hand to the one that appends, `*_seen` checkpoints that the database does not reach, `*_dismissed` those of them that
/// an administrator had not count.
pub const MIGRATIONS: &[Migration] = &[
    Migration {
        domain: "tlog",
        version: 1,
        sql: tables!("tlog"),
    },
    Migration {
        domain: "tlog",
        version: 2,
        sql: tables!("audit"),
    },
    Migration {
        domain: "tlog",
        version: 3,
        sql: concat!(exchange!("tlog"), exchange!("audit")),
    },
    Migration {
        domain: "tlog",
        version: 4,
        sql: concat!(dismissed!("tlog"), dismissed!("audit")),
    },
];
