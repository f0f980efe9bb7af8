//! What the servers of one log tell each other through their database.
//!
//! One server appends, and every server is asked to. The others write what they are asked for into the table of those
//! that wait, and the one that appends takes it from there with its next batch. An entry that waits is not in the log
//! and nobody was answered for it; it lies there twice, or for ever, without harm, because the log knows each entry by
//! its hash.
//!
//! And they tell what they have seen. A database that fails over to a copy may have lost its last second, in which the
//! log gave out checkpoints. Whoever has seen one that the database does not reach any more writes it down, and as long
//! as it stands there nobody appends: the indexes after it would be given out twice.
//!
//! A server that was on another database by mistake, a copy that went on by itself, tells what it saw there as well. Only
//! people can know that. What an administrator dismisses stays there as evidence and stops nobody; no server holds it
//! against the database any more, whether it was told, is remembered, or lies in a file.

use store::{Db, StoreError, Tx, Value, args};

use crate::checkpoint::Checkpoint;
use crate::entry::Accepted;
use crate::error::TlogError;
use crate::merkle::Hash;
use crate::name::Name;
use crate::tables::{ROWS_MAX, Sql, Tables, filled, signed, unsigned};

/// Entries that other servers wait for.
#[derive(Default)]
pub(crate) struct Handed {
    pub entries: Vec<Accepted>,
    /// Under which hashes they lie there.
    pub leaves: Vec<Hash>,
}

/// The highest checkpoint that somebody has seen and the database did not have.
pub(crate) struct Seen {
    pub server: String,
    pub size: u64,
}

/// A checkpoint that a server told of, and what follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub server: String,
    pub size: u64,
    /// The root hash in hexadecimal; empty if what was told does not read.
    pub root: String,
    /// Whether nobody appends because of it.
    pub stops: bool,
    /// Why it no longer counts, and since when in microseconds since 1970.
    pub dismissed: Option<(String, i64)>,
}

/// What the servers of a log told of, the highest first; the tables of [`crate::MIGRATIONS`] must be there. The log need
/// not be open: it may be what keeps it from that.
///
/// # Errors
/// If the database does not answer.
pub async fn told(db: &Db, name: Name) -> Result<Vec<Told>, TlogError> {
    let read = TlogError::store("reading what servers have seen");
    let rows = db.read(Sql::of_log(name).told, args![]).await.map_err(&read)?;
    let told = |row: &store::Row| {
        let (size, log_size) = (row.int("size")?, row.opt_int("log_size")?.unwrap_or(0));
        let dismissed = row.opt_text("reason")?.zip(row.opt_int("dismissed_at")?);
        let checkpoint = Checkpoint::parse(&row.text("note")?);
        Ok(Told {
            server: row.text("server")?,
            size: u64::try_from(size).unwrap_or(0),
            root: checkpoint.map_or_else(|_| String::new(), |checkpoint| hex::encode(checkpoint.root)),
            stops: dismissed.is_none() && size > log_size,
            dismissed,
        })
    };
    rows.iter()
        .map(told)
        .collect::<Result<_, StoreError>>()
        .map_err(&read)
}

/// Has what was told of so many entries count no more, in the caller's transaction; the answer is the roots (in
/// hexadecimal) of what was dismissed. Every server goes on within a few looks at its lease.
///
/// # Errors
/// [`TlogError::NotTold`] if nothing of that size stops the log, or if the database does not answer.
pub async fn dismiss(
    tx: &mut Tx,
    name: Name,
    size: u64,
    reason: &str,
    now_us: i64,
) -> Result<Vec<String>, TlogError> {
    let write = TlogError::store("dismissing what a server has seen");
    let sql = Sql::of_log(name);
    let mut roots = Vec::new();
    for row in tx.read(sql.told, args![]).await.map_err(&write)? {
        let log_size = unsigned(row.opt_int("log_size").map_err(&write)?.unwrap_or(0))?;
        let (told, note) = (
            row.int("size").map_err(&write)?,
            row.text("note").map_err(&write)?,
        );
        let open = row.opt_text("reason").map_err(&write)?.is_none();
        if told != signed(size) || size <= log_size || !open {
            continue;
        }
        let args = args![&note, told, reason, now_us];
        tx.execute(sql.dismiss, args).await.map_err(&write)?;
        let checkpoint = Checkpoint::parse(&note);
        roots.push(checkpoint.map_or_else(|_| String::new(), |checkpoint| hex::encode(checkpoint.root)));
    }
    roots.sort();
    roots.dedup();
    if roots.is_empty() {
        let what = format!("a checkpoint of {size} entries");
        return Err(TlogError::NotTold { what });
    }
    Ok(roots)
}

impl Tables {
    /// Hands entries to the server that appends.
    pub(crate) async fn hand_over(&self, entries: &[Accepted]) -> Result<(), TlogError> {
        let write = TlogError::store("handing entries to the server that appends");
        let mut tx = self.db.begin().await.map_err(&write)?;
        for chunk in entries.chunks(ROWS_MAX) {
            let (place, rows) = filled(chunk);
            let args = rows.flat_map(|entry| [Value::from(&entry.leaf), Value::from(entry.body.as_slice())]);
            tx.execute(self.sql().hand_over[place], args.collect())
                .await
                .map_err(&write)?;
        }
        tx.commit().await.map_err(&write)
    }

    /// What was handed over, at most `limit` entries of it. A row whose hash is not its body's is left out, and leaves with
    /// the others.
    pub(crate) async fn handed_over(&self, limit: usize) -> Result<Handed, TlogError> {
        let read = TlogError::store("reading what other servers handed over");
        let (mut handed, mut misshapen) = (Handed::default(), Vec::new());
        for row in self
            .db
            .read(self.sql().handed_over, args![signed(limit as u64)])
            .await
            .map_err(&read)?
        {
            let leaf = match Hash::try_from(row.blob("leaf").map_err(&read)?) {
                Ok(leaf) => leaf,
                Err(other) => {
                    tracing::error!(leaf = hex::encode(&other), "a hash that was handed over is none");
                    misshapen.push(other);
                    continue;
                }
            };
            handed.leaves.push(leaf);
            match Accepted::of(row.blob("body").map_err(&read)?) {
                Ok(entry) if entry.leaf == leaf => handed.entries.push(entry),
                _ => tracing::error!(
                    leaf = hex::encode(leaf),
                    "an entry that was handed over is damaged"
                ),
            }
        }
        // At once, so that they do not take the places of others.
        if !misshapen.is_empty() {
            self.forget(&misshapen).await?;
        }
        Ok(handed)
    }

    /// Takes entries from those that wait.
    pub(crate) async fn take(&self, tx: &mut Tx, leaves: &[impl AsRef<[u8]>]) -> Result<(), StoreError> {
        for chunk in leaves.chunks(ROWS_MAX) {
            let (place, leaves) = filled(chunk);
            let args = leaves.map(|leaf| Value::from(leaf.as_ref())).collect();
            tx.execute(self.sql().drop_waiting[place], args).await?;
        }
        Ok(())
    }

    /// Takes entries from those that wait, which need not wait any more.
    pub(crate) async fn forget(&self, leaves: &[impl AsRef<[u8]>]) -> Result<(), TlogError> {
        let write = TlogError::store("taking back entries that were handed over");
        let mut tx = self.db.begin().await.map_err(&write)?;
        self.take(&mut tx, leaves).await.map_err(&write)?;
        tx.commit().await.map_err(&write)
    }

    /// Whether a checkpoint no longer counts.
    pub(crate) async fn is_dismissed(&self, note: &str) -> Result<bool, TlogError> {
        let row = self.db.read_one(self.sql().is_dismissed, args![note]).await;
        let read = TlogError::store("reading which checkpoints were dismissed");
        Ok(row.map_err(read)?.is_some())
    }

    /// Tells every server of a checkpoint that the database does not have, unless it was dismissed.
    pub(crate) async fn tell(&self, server: &str, seen: &Checkpoint) -> Result<(), TlogError> {
        let write = TlogError::store("telling of a checkpoint that the database does not have");
        if self.is_dismissed(&seen.note).await? {
            return Ok(());
        }
        let mut tx = self.db.begin().await.map_err(&write)?;
        tx.execute(self.sql().put_seen, args![server, signed(seen.size), &seen.note])
            .await
            .map_err(&write)?;
        tx.commit().await.map_err(&write)
    }

    /// The highest checkpoint that anybody told of and that counts.
    pub(crate) async fn most_seen(&self) -> Result<Option<Seen>, TlogError> {
        let read = TlogError::store("reading what other servers have seen");
        let row = self
            .db
            .read_one(self.sql().most_seen, args![])
            .await
            .map_err(&read)?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(Seen {
            server: row.text("server").map_err(&read)?,
            size: unsigned(row.int("size").map_err(&read)?)?,
        }))
    }
}
