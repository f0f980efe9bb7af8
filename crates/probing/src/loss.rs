//! Writes that the database had acknowledged and does not have any more.
//!
//! A fail-over to a copy that lacked its last second looks healthy a moment later: the count that every look moves on
//! passes its old value, and whatever was lost is missed by nobody. A token may be valid again that somebody revoked. So a
//! loss is written down in that database when it is found (by a server that misses the number that it was given, or by one
//! that learns of fewer changes than it knew of), is named by every server from then on, also after a restart,
//! and ends when a person says that they have looked. It stops nothing: what must not go on from an older copy is
//! the log, and it has its own check.

use std::fmt;
use std::sync::Arc;

use access::audit::{self, Record};
use access::{AccessError, Action, Context};
use jiff::Timestamp;
use kernel::{Clock, Random};
use store::{Db, Migration, Row, StoreError, Tx, args};

/// A row for each [`Counted`] of which something was lost that nobody has acknowledged.
pub(crate) const MIGRATION: Migration = Migration {
    domain: "probing",
    version: 2,
    sql: "CREATE TABLE database_loss (
            id BIGINT PRIMARY KEY, known BIGINT NOT NULL, found BIGINT NOT NULL, found_at BIGINT NOT NULL
          );",
};

/// Which numbers are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    /// Those of the looks of the servers at the database.
    Looks = 1,
    /// Those of changes of tokens, projects, keys and policies.
    Changes = 2,
}

/// What was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// What is counted, as a word.
    pub counted: &'static str,
    /// The highest count that any server had seen acknowledged.
    pub known: i64,
    /// The lowest that was found after it.
    pub found: i64,
    /// When the first server found it.
    pub since: Timestamp,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            counted,
            known,
            found,
            since,
        } = self;
        write!(
            f,
            "{counted} {found} was found at {since} after {counted} {known} had been acknowledged"
        )
    }
}

/// A loss that nobody has acknowledged; of lost changes and lost looks, the changes.
pub(crate) async fn read(tx: &mut Tx) -> Result<Option<Loss>, StoreError> {
    let sql = "SELECT id, known, found, found_at FROM database_loss ORDER BY id DESC LIMIT 1";
    tx.read_one(sql, Vec::new())
        .await?
        .as_ref()
        .map(loss_of)
        .transpose()
}

/// Writes a loss down; of several servers that find the same one, the first says when, and the widest gap counts.
pub(crate) async fn note(
    tx: &mut Tx,
    counted: Counted,
    known: i64,
    found: i64,
    now: Timestamp,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO database_loss (id, known, found, found_at) VALUES ($1, $2, $3, $4) \
               ON CONFLICT (id) DO UPDATE SET \
                 known = CASE WHEN excluded.known > database_loss.known THEN excluded.known ELSE database_loss.known END, \
                 found = CASE WHEN excluded.found < database_loss.found THEN excluded.found ELSE database_loss.found END";
    let row = args![counted as i64, known, found, now.as_microsecond()];
    tx.execute(sql, row).await.map(|_| ())
}

fn loss_of(row: &Row) -> Result<Loss, StoreError> {
    let of_looks = row.int("id")? == Counted::Looks as i64;
    Ok(Loss {
        counted: if of_looks { "count" } else { "change" },
        known: row.int("known")?,
        found: row.int("found")?,
        since: Timestamp::from_microsecond(row.int("found_at")?).unwrap_or_default(),
    })
}

/// Where a person says that they have seen a loss. Cheap to clone.
#[derive(Clone)]
pub struct Losses {
    db: Db,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
}

impl Losses {
    #[must_use]
    pub fn new(db: Db, clock: Arc<dyn Clock>, random: Arc<dyn Random>) -> Self {
        Self { db, clock, random }
    }

    /// Ends the loss for all servers, with its audit record; the answer is what is no longer named.
    ///
    /// # Errors
    /// [`AccessError::NotFound`] if there is none, [`AccessError::Invalid`] for no reason or one that is too long, and
    /// whoever is not the whole server's administrator may not.
    pub async fn acknowledge(&self, context: &Context, reason: &str) -> Result<Loss, AccessError> {
        context.require(Action::ManageDependencies)?;
        let reason = audit::reason(reason)?;
        let mut tx = self.db.begin().await?;
        let sql = "DELETE FROM database_loss RETURNING id, known, found, found_at";
        let mut losses = Vec::new();
        for row in &tx.read(sql, Vec::new()).await? {
            losses.push(loss_of(row)?);
        }
        let told: Vec<String> = losses.iter().map(Loss::to_string).collect();
        let Some(loss) = losses.into_iter().next() else {
            return Err(AccessError::NotFound {
                what: access::LOSS,
                name: "database".to_owned(),
            });
        };
        let detail = format!("{}: {reason}", told.join("; "));
        let record = Record {
            action: "dependency.acknowledge",
            resource: "database",
            detail: &detail,
        };
        audit::record(&mut tx, context, &*self.clock, &*self.random, record).await?;
        tx.commit().await?;
        Ok(loss)
    }
}
