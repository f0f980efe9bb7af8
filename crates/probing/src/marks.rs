//! What has to be remembered over a restart: who this installation is, and the last good state of things outside.

use jiff::Timestamp;
use kernel::{Clock, Id, Random};
use store::{Db, Migration, StoreError, args};

use crate::loss::{self, Loss};

/// The tables of this domain. `installation` has one row: the id that database and blobs are known by, and a count
/// that only grows. `probe_mark` has the last good state of a dependency, as its probe writes it.
pub const MIGRATIONS: &[Migration] = &[FIRST, loss::MIGRATION];

const FIRST: Migration = Migration {
    domain: "probing",
    version: 1,
    sql: "CREATE TABLE installation (id BIGINT PRIMARY KEY, name TEXT NOT NULL, beat BIGINT NOT NULL);
          CREATE TABLE probe_mark (name TEXT PRIMARY KEY, mark TEXT NOT NULL, written_at BIGINT NOT NULL);",
};

/// The installation's row, read and moved on.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Beat {
    /// The installation's id.
    pub installation: String,
    /// Grows by one with every look of any server.
    pub beat: i64,
}

/// The tables. Cheap to clone.
#[derive(Clone)]
pub struct Marks {
    db: Db,
}

impl Marks {
    #[must_use]
    pub fn new(db: Db) -> Self {
        Self { db }
    }

    /// The installation's id, made by whoever asks first.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn installation(&self, clock: &dyn Clock, random: &dyn Random) -> Result<String, StoreError> {
        const READ: &str = "SELECT name FROM installation WHERE id = 1";
        if let Some(row) = self.db.read_one(READ, Vec::new()).await? {
            return row.text("name");
        }
        let id = Id::new("ins", clock, random).to_string();
        let mut tx = self.db.begin().await?;
        tx.execute(
            "INSERT INTO installation (id, name, beat) VALUES (1, $1, 0) ON CONFLICT (id) DO NOTHING",
            args![id.as_str()],
        )
        .await?;
        let row = tx.read_one(READ, Vec::new()).await?;
        tx.commit().await?;
        row.map_or(Ok(id), |row| row.text("name"))
    }

    /// Moves the count on, which shows that the database takes writes, and gives the row as it was written, with a loss
    /// that nobody has acknowledged; `None` if there is no row. That of another installation than `own` is left alone.
    pub(crate) async fn beat(&self, own: Option<&str>) -> Result<Option<(Beat, Option<Loss>)>, StoreError> {
        let mut tx = self.db.begin().await?;
        let sql = "UPDATE installation SET beat = beat + 1 WHERE id = 1 AND name = COALESCE($1, name) \
                   RETURNING name, beat";
        let mut row = tx.read_one(sql, args![own]).await?;
        if row.is_none() {
            let sql = "SELECT name, beat FROM installation WHERE id = 1";
            row = tx.read_one(sql, Vec::new()).await?;
        }
        let Some(row) = row else { return Ok(None) };
        let beat = Beat {
            installation: row.text("name")?,
            beat: row.int("beat")?,
        };
        let foreign = own.is_some_and(|own| own != beat.installation);
        let loss = match foreign {
            true => None,
            false => loss::read(&mut tx).await?,
        };
        tx.commit().await?;
        Ok(Some((beat, loss)))
    }

    pub(crate) fn db(&self) -> &Db {
        &self.db
    }

    /// The last good state of the dependency `name`.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn read(&self, name: &str) -> Result<Option<String>, StoreError> {
        let sql = "SELECT mark FROM probe_mark WHERE name = $1";
        let row = self.db.read_one(sql, args![name]).await?;
        row.map(|row| row.text("mark")).transpose()
    }

    /// Writes down, in one transaction with `work`, a mark that nobody has written yet; whether it was nobody's. Whoever
    /// comes at the same time waits for the outcome.
    ///
    /// # Errors
    /// If the database does not answer, or `work` fails.
    pub(crate) async fn claim(
        &self,
        name: &str,
        mark: &str,
        now: Timestamp,
        work: impl Future<Output = Result<(), StoreError>> + Send,
    ) -> Result<bool, StoreError> {
        let mut tx = self.db.begin().await?;
        let sql = "INSERT INTO probe_mark (name, mark, written_at) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING";
        if tx.execute(sql, args![name, mark, now.as_microsecond()]).await? == 0 {
            return Ok(false);
        }
        work.await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Keeps it.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn keep(&self, name: &str, mark: &str, now: Timestamp) -> Result<(), StoreError> {
        let mut tx = self.db.begin().await?;
        tx.execute(
            "INSERT INTO probe_mark (name, mark, written_at) VALUES ($1, $2, $3) \
             ON CONFLICT (name) DO UPDATE SET mark = excluded.mark, written_at = excluded.written_at",
            args![name, mark, now.as_microsecond()],
        )
        .await?;
        tx.commit().await
    }
}
