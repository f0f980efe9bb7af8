//! What of the rows that are kept in memory ([`crate::Recent`]) was changed, told to every server on one database.
//!
//! A server that uses rows as it last read them has to hear of a change whether or not it reads the row again: when the
//! database is away a moment later, it goes on with what it has. So a change writes its name here in its own
//! transaction, and each server asks every [`LEARN_MS`] what came after the last number it heard of.
//!
//! Numbers come from one row that a transaction holds until its end. So they are given out in the order in which the
//! changes become visible, and whoever has seen one has seen every lower one; a time or a sequence would let a
//! transaction that ends late slip behind. Such changes are few, and each holds the row for a few statements.
//!
//! Programs from before this table tell nothing. While they run beside newer ones (a rolling upgrade), their changes count
//! elsewhere when the row is read again, within [`crate::STALE_MS_MAX`], and not at all for a server whose database goes
//! away before that.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

/// The pause between two questions, in milliseconds: half of [`crate::STALE_MS_MAX`], so that a change is known everywhere
/// within that time as long as the answer takes no longer than the other half. A row that is that old is read again
/// anyway; only while the database answers neither may an older one be used.
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
    tx.tells(number);
    let sql = "INSERT INTO changed (kind, name, number) VALUES ($1, $2, $3) \
               ON CONFLICT (kind, name) DO UPDATE SET number = excluded.number";
    tx.execute(sql, args![kind, name, number]).await?;
    Ok(())
}

/// What is known of the numbers of changes: the highest that the database acknowledged, to a change of this server or in
/// an answer, and what of that it did not have any more.
#[derive(Default)]
pub(crate) struct Told(Mutex<Numbers>);

#[derive(Default)]
struct Numbers {
    highest: i64,
    lost: Option<(i64, i64)>,
}

impl Told {
    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn acknowledged(&self, number: Option<i64>) {
        let mut numbers = self.numbers();
        numbers.highest = numbers.highest.max(number.unwrap_or(0));
    }

    /// The database said `found` when it was asked after it had acknowledged `known`; the answer is whether that is less.
    fn is_lost(&self, known: i64, found: i64) -> bool {
        if found >= known {
            self.acknowledged(Some(found));
            return false;
        }
        let mut numbers = self.numbers();
        // The database counts on from there.
        if numbers.highest == known {
            numbers.highest = found;
        }
        let (highest, lowest) = numbers.lost.unwrap_or((known, found));
        numbers.lost = Some((highest.max(known), lowest.min(found)));
        true
    }

    pub(crate) fn lost(&self) -> Option<(i64, i64)> {
        self.numbers().lost
    }

    /// What was lost further since stays to be told.
    pub(crate) fn noted(&self, lost: (i64, i64)) {
        let mut numbers = self.numbers();
        if numbers.lost == Some(lost) {
            numbers.lost = None;
        }
    }
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
    /// the database lost numbers that it had given out (it was put back), may be anything, and is forgotten; that it lost
    /// them is told too ([`Db::changes_lost`]).
    ///
    /// # Errors
    /// If the database does not answer; what it would have told is asked for again.
    pub async fn learn(&mut self) -> Result<(), StoreError> {
        loop {
            // One statement, so that count and rows are of one moment.
            let sql = "SELECT n.number AS newest, c.number, c.kind, c.name FROM change_count n \
                       LEFT JOIN changed c ON c.number > $1 ORDER BY c.number LIMIT $2";
            // Before the question: what is acknowledged while it is under way need not be in the answer.
            let known = self.db.told().numbers().highest;
            let after = self.last.unwrap_or(i64::MAX);
            let rows = self.db.read(sql, args![after, PAGE]).await?;
            let newest = rows.first().map_or(Ok(0), |row| row.int("newest"))?;
            if self.db.told().is_lost(known, newest) || self.last.is_none() {
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
            match self.learn().await {
                Ok(()) => {}
                // Said once, by whoever found it.
                Err(error @ (StoreError::Away { .. } | StoreError::Wrong { .. })) => {
                    tracing::debug!(error = kernel::chain(&error), "changes were not asked for");
                }
                Err(error) => tracing::warn!(error = kernel::chain(&error), "changes were not asked for"),
            }
            tokio::time::sleep(Duration::from_millis(LEARN_MS)).await;
        }
    }
}
