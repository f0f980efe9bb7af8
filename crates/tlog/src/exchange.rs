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

use store::{StoreError, Tx, Value, args};

use crate::checkpoint::Checkpoint;
use crate::entry::Accepted;
use crate::error::TlogError;
use crate::merkle::Hash;
use crate::tables::{ROWS_MAX, Tables, filled, signed, unsigned};

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
        let mut handed = Handed::default();
        for row in self
            .db
            .read(self.sql().handed_over, args![signed(limit as u64)])
            .await
            .map_err(&read)?
        {
            let Ok(leaf) = Hash::try_from(row.blob("leaf").map_err(&read)?) else {
                continue;
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
        Ok(handed)
    }

    /// Takes entries from those that wait.
    pub(crate) async fn take(&self, tx: &mut Tx, leaves: &[Hash]) -> Result<(), StoreError> {
        for chunk in leaves.chunks(ROWS_MAX) {
            let (place, leaves) = filled(chunk);
            let args = leaves.map(Value::from).collect();
            tx.execute(self.sql().drop_waiting[place], args).await?;
        }
        Ok(())
    }

    /// Takes entries from those that wait, which need not wait any more.
    pub(crate) async fn forget(&self, leaves: &[Hash]) -> Result<(), TlogError> {
        let write = TlogError::store("taking back entries that were handed over");
        let mut tx = self.db.begin().await.map_err(&write)?;
        self.take(&mut tx, leaves).await.map_err(&write)?;
        tx.commit().await.map_err(&write)
    }

    /// Tells every server of a checkpoint that the database does not have.
    pub(crate) async fn tell(&self, server: &str, seen: &Checkpoint) -> Result<(), TlogError> {
        let write = TlogError::store("telling of a checkpoint that the database does not have");
        let mut tx = self.db.begin().await.map_err(&write)?;
        tx.execute(self.sql().put_seen, args![server, signed(seen.size), &seen.note])
            .await
            .map_err(&write)?;
        tx.commit().await.map_err(&write)
    }

    /// The highest checkpoint that anybody told of.
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
