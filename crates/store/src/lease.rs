//! One of many holds a duty, for a while.
//!
//! A lease is a row with a holder, a fencing number and an end on the database's clock. Who takes it over
//! gets a higher number. The holder passes its number to every write of the duty, and [`check`] in the
//! same transaction refuses a number that is no longer the newest: a holder that slept through its end and
//! wakes up cannot write.

use std::time::Duration;

use crate::{Db, Migration, StoreError, Tx, args};

/// The table of this module.
pub(crate) const MIGRATION: Migration = Migration {
    domain: "store",
    version: 1,
    sql: "CREATE TABLE lease (
            name TEXT PRIMARY KEY, holder TEXT NOT NULL, fence BIGINT NOT NULL, ends_at BIGINT NOT NULL
          );",
};

/// The database's time in microseconds since 1970.
const POSTGRES_NOW: &str = "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT) AS now";
const SQLITE_NOW: &str = "SELECT CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER) AS now";

impl Db {
    /// What the database's own clock shows, in microseconds since 1970; SQLite's is this machine's.
    ///
    /// # Errors
    /// If the database does not answer, or shows no time.
    pub async fn now_us(&self) -> Result<i64, StoreError> {
        let sql = if self.is_shared() {
            POSTGRES_NOW
        } else {
            SQLITE_NOW
        };
        let wrong = || StoreError::column("now", "the database told no time");
        self.read_one(sql, Vec::new())
            .await?
            .ok_or_else(wrong)?
            .int("now")
    }
}

/// A duty that is held.
#[derive(Clone)]
pub struct Lease {
    db: Db,
    name: String,
    holder: String,
    ttl_us: i64,
    fence: i64,
}

impl Lease {
    /// Takes the duty `name` if it is free, has ended, or was held by the same `holder` before (a restarted
    /// process). `None`: somebody else holds it.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn acquire(
        db: &Db,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<Option<Self>, StoreError> {
        let ttl_us = i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX);
        let mut tx = db.begin().await?;
        let now = now_us(&mut tx).await?;
        let row = tx
            .read_one(
                "INSERT INTO lease (name, holder, fence, ends_at) VALUES ($1, $2, 1, $3) \
                 ON CONFLICT (name) DO UPDATE \
                   SET holder = excluded.holder, fence = lease.fence + 1, ends_at = excluded.ends_at \
                   WHERE lease.ends_at <= $4 OR lease.holder = excluded.holder \
                 RETURNING fence",
                args![name, holder, now.saturating_add(ttl_us), now],
            )
            .await?;
        tx.commit().await?;
        let Some(row) = row else { return Ok(None) };
        let fence = row.int("fence")?;
        Ok(Some(Self {
            db: db.clone(),
            name: name.to_owned(),
            holder: holder.to_owned(),
            ttl_us,
            fence,
        }))
    }

    /// Moves the end on. `false`: it was lost; stop the duty. What a power cut undoes of it ends the lease sooner.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn renew(&self) -> Result<bool, StoreError> {
        let mut tx = self.db.begin_unsynced().await?;
        let now = now_us(&mut tx).await?;
        let rows = tx
            .execute(
                "UPDATE lease SET ends_at = $1 WHERE name = $2 AND fence = $3",
                args![now.saturating_add(self.ttl_us), &self.name, self.fence],
            )
            .await?;
        tx.commit().await?;
        Ok(rows == 1)
    }

    /// Gives the duty back before its end.
    ///
    /// # Errors
    /// If the database does not answer; the lease then ends by itself.
    pub async fn release(self) -> Result<(), StoreError> {
        let mut tx = self.db.begin().await?;
        tx.execute(
            "UPDATE lease SET ends_at = 0 WHERE name = $1 AND fence = $2 AND holder = $3",
            args![&self.name, self.fence, &self.holder],
        )
        .await?;
        tx.commit().await
    }

    /// The fencing number, higher than that of every earlier holder.
    #[must_use]
    pub fn fence(&self) -> i64 {
        self.fence
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Whether `fence` is still the newest number of the duty `name`. Runs in the transaction of the write that
/// it guards, and keeps the row from changing until that commits.
///
/// # Errors
/// If the database does not answer.
pub async fn check(tx: &mut Tx, name: &str, fence: i64) -> Result<bool, StoreError> {
    // An update that changes nothing locks the row on PostgreSQL; SQLite has one writer anyway.
    let rows = tx
        .execute(
            "UPDATE lease SET fence = fence WHERE name = $1 AND fence = $2",
            args![name, fence],
        )
        .await?;
    Ok(rows == 1)
}

/// Has whoever holds the duty `name` wait with its writes until the end of this transaction, which changes what they change.
///
/// # Errors
/// If the database does not answer.
pub async fn hold(tx: &mut Tx, name: &str) -> Result<(), StoreError> {
    tx.execute("UPDATE lease SET fence = fence WHERE name = $1", args![name])
        .await?;
    Ok(())
}

/// Ends every duty, as in a database that was restored elsewhere: who held it is not there. The fencing numbers stay.
///
/// # Errors
/// If the database does not answer.
pub async fn end_all(tx: &mut Tx) -> Result<(), StoreError> {
    tx.execute("UPDATE lease SET ends_at = 0", Vec::new()).await?;
    Ok(())
}

/// The database's clock, in microseconds since 1970: the one clock that all servers share.
async fn now_us(tx: &mut Tx) -> Result<i64, StoreError> {
    let sql = if tx.is_postgres() {
        POSTGRES_NOW
    } else {
        SQLITE_NOW
    };
    let row = tx.read_one(sql, Vec::new()).await?;
    row.ok_or_else(|| StoreError::column("now", "the database told no time"))?
        .int("now")
}
