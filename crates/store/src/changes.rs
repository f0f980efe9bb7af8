//! What of the rows that are kept in memory ([`crate::Recent`]) was changed, told to every server on one database.
//!
//! A server that uses rows as it last read them has to hear of a change whether or not it reads the row again: when the
//! database is away a moment later, it goes on with what it has. So a change writes its name here in its own
//! transaction, and each server asks every [`LEARN_MS`] what came after the last number it heard of.
//!
//! Numbers come from one row that a transaction holds until its end. So they are given out in the order in which the
//! changes become visible, and whoever has seen one has seen every lower one; a time or a sequence would let a
//! transaction that ends late slip behind. Such changes are few, and each holds the row for a few statements.

use std::sync::Arc;
use std::time::Duration;

use crate::{Db, Migration, StoreError, Tx, args};

/// The tables of this module. `changed` has one row for each name that was ever changed, with its latest number, so that
/// it needs no clearing away.
pub(crate) const MIGRATION: Migration = Migration {
    domain: "store",
    version: 2,
    sql: "CREATE TABLE change_count (id BIGINT PRIMARY KEY, number BIGINT NOT NULL);
          CREATE TABLE changed (
            kind TEXT NOT NULL, name TEXT NOT NULL, number BIGINT NOT NULL, PRIMARY KEY (kind, name)
          );
          CREATE UNIQUE INDEX changed_number ON changed (number);",
};

/// The pause between two questions, in milliseconds: half of [`crate::STALE_MS_MAX`], so that with a slow answer a
/// change is known everywhere within that time.
pub const LEARN_MS: u64 = crate::STALE_MS_MAX / 2;
/// Changes in one answer.
const PAGE: u32 = 1_000;
/// Bytes of a name. No row has a longer one, though somebody may ask for its change, and PostgreSQL's index takes no
/// more than some 2,700.
const NAME_BYTES_MAX: usize = 200;

/// Rows that are kept in memory.
pub trait Kept: Send + Sync + 'static {
    /// What sort of rows they are.
    fn kind(&self) -> &'static str;
    /// Forgets the rows that a change of `name` is about.
    fn forget(&self, name: &str);
    fn forget_all(&self);
}

/// Has every server forget the rows that `name` is about once this transaction ends.
pub(crate) async fn tell(tx: &mut Tx, kind: &str, name: &str) -> Result<(), StoreError> {
    if name.len() > NAME_BYTES_MAX {
        return Ok(());
    }
    let sql = "INSERT INTO change_count (id, number) VALUES (1, 1) \
               ON CONFLICT (id) DO UPDATE SET number = change_count.number + 1 RETURNING number";
    let number = tx.read_one(sql, Vec::new()).await?;
    let number = number
        .ok_or_else(|| StoreError::column("number", "it was not counted"))?
        .int("number")?;
    let sql = "INSERT INTO changed (kind, name, number) VALUES ($1, $2, $3) \
               ON CONFLICT (kind, name) DO UPDATE SET number = excluded.number";
    tx.execute(sql, args![kind, name, number]).await?;
    Ok(())
}

/// What one server has heard of.
pub struct Learner {
    db: Db,
    kept: Vec<Arc<dyn Kept>>,
    last: Option<i64>,
}

impl Learner {
    #[must_use]
    pub fn new(db: Db, kept: Vec<Arc<dyn Kept>>) -> Self {
        Self { db, kept, last: None }
    }

    /// Asks once, and forgets what was changed since. What was read before the first question, and everything when
    /// the database lost numbers that it had given out (it was put back), may be anything, and is forgotten.
    ///
    /// # Errors
    /// If the database does not answer; what it would have told is asked for again.
    pub async fn learn(&mut self) -> Result<(), StoreError> {
        loop {
            // One statement, so that count and rows are of one moment.
            let sql = "SELECT n.number AS newest, c.number, c.kind, c.name FROM change_count n \
                       LEFT JOIN changed c ON c.number > $1 ORDER BY c.number LIMIT $2";
            let after = self.last.unwrap_or(i64::MAX);
            let rows = self.db.read(sql, args![after, PAGE]).await?;
            let newest = rows.first().map_or(Ok(0), |row| row.int("newest"))?;
            if self.last.is_none_or(|last| newest < last) {
                self.kept.iter().for_each(|kept| kept.forget_all());
                self.last = Some(newest);
                return Ok(());
            }
            for row in &rows {
                let Some(number) = row.opt_int("number")? else {
                    return Ok(());
                };
                let (kind, name) = (row.text("kind")?, row.text("name")?);
                let of_kind = self.kept.iter().filter(|kept| kept.kind() == kind);
                of_kind.for_each(|kept| kept.forget(&name));
                self.last = Some(number);
            }
            if rows.len() < PAGE as usize {
                return Ok(());
            }
        }
    }

    /// Asks again and again. While the database is away there is nobody who could tell.
    pub async fn run(mut self) {
        loop {
            if let Err(error) = self.learn().await {
                tracing::debug!(error = kernel::chain(&error), "changes were not asked for");
            }
            tokio::time::sleep(Duration::from_millis(LEARN_MS)).await;
        }
    }
}
