//! One file with everything that a server cannot do without, and back.
//!
//! ```text
//!   backup ──▶ one read transaction: every table ──▶ the tiles that belong to it ──▶ the secrets ──▶ manifest
//!                 ─▶ are its logs whole? ─▶ the file gets its name
//!   restore ─▶ the whole file is read and checked ─▶ are its logs whole? would one fork? ─▶ database marked
//!                 ─▶ one transaction: every table │ tiles, secrets ─▶ log fsck ─▶ mark taken away
//! ```
//!
//! Tiles never change, so those that the database of a moment ago speaks of are there whenever they are read. The rows are
//! in no database's own form: what comes from SQLite goes into PostgreSQL and back. A server does not start on a
//! database that is marked, wherever it runs, so that nothing that was half restored ever serves.
//!
//! A log that is put back to where it was gives indexes out a second time, unless nobody has seen what came after. So a
//! restore looks at the newest checkpoints that it is given or finds (`seen`), and refuses. What is in an archive leads to
//! its checkpoints before it counts as a backup, and again before anything is restored from it (`whole`): a last good
//! backup is not replaced with one that can never be restored.

mod kept_secrets;
mod make;
mod password;
mod restore;
mod seen;
mod whole;

use std::collections::BTreeMap;

use store::Migration;
use store::archive::ArchiveError;
use tlog::Name;

pub use make::make;
pub use restore::{Options, restore};

use crate::config::Config;
use crate::failure::Failure;
use crate::place;
use crate::secrets::{self, LogSecret};
use kernel::{SystemClock, SystemRandom};

/// The logs, each with its secret's name in an archive.
const LOGS: [(Name, &str); 2] = [(Name::Signatures, "log.json"), (Name::Audit, "audit.json")];
/// The password of the signing keys, as its file is called in an archive.
const PASSWORD: &str = "keys.password";

/// Where a secret of an archive lies on this machine.
fn secret_file(config: &Config, name: &str) -> std::path::PathBuf {
    let configured = match name {
        "log.json" => config.log.key_file.as_ref(),
        "audit.json" => config.audit.key_file.as_ref(),
        _ => config.keys.password_file.as_ref(),
    };
    config.secret_file(configured, name)
}

/// The key of a log, which has to be there.
fn log_secret(config: &Config, name: &str) -> Result<LogSecret, Failure> {
    let path = secret_file(config, name);
    secrets::log_key(&path, "", false, &SystemClock::new(), &SystemRandom)
}

/// The steps that lead to `schema`.
///
/// # Errors
/// If this program does not know them all.
fn steps(schema: &BTreeMap<String, i64>) -> Result<Vec<Migration>, ArchiveError> {
    let all = place::migrations();
    for (domain, found) in schema {
        let own = all.iter().filter(|step| step.domain == domain);
        let known = own.map(|step| step.version).max().unwrap_or(0);
        if *found > known {
            return Err(ArchiveError::Schema {
                domain: domain.clone(),
                found: *found,
                known,
            });
        }
    }
    let reached = |step: &Migration| {
        schema
            .get(step.domain)
            .is_some_and(|found| step.version <= *found)
    };
    Ok(all.into_iter().filter(reached).collect())
}

/// The codes of backups that need to know what a log is.
pub mod codes {
    use kernel::Code;

    pub const FORK: Code = Code {
        id: "PC1905",
        title: "the restored log would fork",
        explanation: "The backup holds fewer entries than the log was seen to have, or other ones: somebody keeps a \
checkpoint, signed by the log's key, of what is not in it. Going on from the backup would give the same indexes out a \
second time, to other entries, and prove to everybody who kept a checkpoint that the log was forked. Nothing was restored.",
        hint: "restore a newer backup, or PostgreSQL itself to its last transaction (its write-ahead log); what was signed \
stays verifiable meanwhile, from the registries",
    };
    pub const INCOMPLETE: Code = Code {
        id: "PC1906",
        title: "a part that belongs into the backup is missing or damaged",
        explanation: "The database speaks of a tile or entry bundle of a log that is not among the blobs, or a tile, an entry \
bundle or a row does not lead to the log's checkpoint, or the checkpoint is not signed by the configured key. A backup of \
that could not be restored, so none was made; one that stands under the name was left as it was.",
        hint: "keep the last good backup; check `blobs.url` and the keys' files; portcullis log fsck names everything that is \
damaged in the log, portcullis audit verify in the audit log",
    };
    pub const ALL: &[&Code] = &[&FORK, &INCOMPLETE];
}

#[cfg(test)]
mod tests {
    use store::Snapshot;

    use super::*;

    /// A table that a later migration makes is in every backup from then on, or this fails.
    #[tokio::test]
    async fn every_table_of_the_database_is_backed_up() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("portcullis.db").display());
        let db = store::Db::open(&url).await.unwrap();
        db.migrate(&place::migrations()).await.unwrap();
        let sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND name <> 'migration' ORDER BY name";
        let rows = db.read(sql, Vec::new()).await.unwrap();
        let found: Vec<String> = rows.iter().map(|row| row.text("name").unwrap()).collect();
        let mut known = store::tables(&place::migrations());
        known.sort_unstable();
        assert_eq!(found, known);
        let mut snapshot = Snapshot::open(&url).await.unwrap();
        for table in known {
            assert!(!snapshot.columns(table).await.unwrap().is_empty(), "{table}");
        }
    }

    #[test]
    fn a_schema_that_is_newer_is_refused() {
        let schema = |domain: &str, version| [(domain.to_owned(), version)].into();
        assert!(steps(&schema("tlog", 99)).is_err());
        assert!(steps(&schema("what", 1)).is_err());
        assert_eq!(steps(&schema("tlog", 1)).unwrap().len(), 1);
    }
}
