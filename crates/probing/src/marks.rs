//! What has to be remembered over a restart: who this installation is, and the last good state of things outside.

use jiff::Timestamp;
use kernel::{Clock, Id, Random};
use store::{Db, Identity, Migration, StoreError, Tx, args};

use crate::loss;

/// The tables of this domain. `installation` has one row: the id that database and blobs are known by, and a count
/// that only grows; `server_beat` what of it each server was given last. `probe_mark` has the last good state of a dependency, as its probe writes it.
pub const MIGRATIONS: &[Migration] = &[FIRST, loss::MIGRATION, SERVERS];

const FIRST: Migration = Migration {
    domain: "probing",
    version: 1,
    sql: "CREATE TABLE installation (id BIGINT PRIMARY KEY, name TEXT NOT NULL, beat BIGINT NOT NULL);
          CREATE TABLE probe_mark (name TEXT PRIMARY KEY, mark TEXT NOT NULL, written_at BIGINT NOT NULL);",
};

/// What each server was given last: a fail-over that lost it is found by that server, however far others moved the count
/// on since. A row stays when its server is gone; it is some fifty bytes.
const SERVERS: Migration = Migration {
    domain: "probing",
    version: 3,
    sql: "CREATE TABLE server_beat (server TEXT PRIMARY KEY, number BIGINT NOT NULL);",
};

const READ: &str = "SELECT name FROM installation WHERE id = 1";

/// What a server was given by its last look, as its mark keeps it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Beat {
    /// The installation's id.
    pub installation: String,
    /// The count, which grows by one with every look of any server.
    pub beat: i64,
    /// By what its own row is known; none in a mark of a program from before there were any.
    #[serde(default)]
    pub server: Option<String>,
}

/// What a look finds before it changes anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub installation: String,
    /// The count of all servers.
    pub beat: i64,
    /// What this server was given last.
    pub own: Option<i64>,
}

/// Reads the installation's row, if there is one, and that of `server`.
pub(crate) async fn seen(tx: &mut Tx, server: &str) -> Result<Option<Seen>, StoreError> {
    let sql = "SELECT name, beat FROM installation WHERE id = 1";
    let Some(row) = tx.read_one(sql, Vec::new()).await? else {
        return Ok(None);
    };
    let sql = "SELECT number FROM server_beat WHERE server = $1";
    let own = tx.read_one(sql, args![server]).await?;
    Ok(Some(Seen {
        installation: row.text("name")?,
        beat: row.int("beat")?,
        own: own.map(|own| own.int("number")).transpose()?,
    }))
}

/// Moves the count on, which shows that the database takes writes, and gives `server` its new value.
pub(crate) async fn beat(tx: &mut Tx, installation: &str, server: &str) -> Result<Beat, StoreError> {
    let sql = "UPDATE installation SET beat = beat + 1 WHERE id = 1 AND name = $1 RETURNING beat";
    let row = tx.read_one(sql, args![installation]).await?;
    let beat = row.map(|row| row.int("beat")).transpose()?.unwrap_or(0);
    let sql = "INSERT INTO server_beat (server, number) VALUES ($1, $2) \
               ON CONFLICT (server) DO UPDATE SET number = excluded.number";
    tx.execute(sql, args![server, beat]).await?;
    Ok(Beat {
        installation: installation.to_owned(),
        beat,
        server: Some(server.to_owned()),
    })
}

/// The tables. Cheap to clone.
#[derive(Clone)]
pub struct Marks {
    pub(crate) db: Db,
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

    /// From now on a new connection to PostgreSQL that leads to another installation is refused, and closes the store.
    pub fn require(&self, installation: &str) {
        self.db.require(Identity {
            sql: READ,
            value: installation.to_owned(),
        });
    }

    /// The last good state of the dependency `name`.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn read(&self, name: &str) -> Result<Option<String>, StoreError> {
        read(&self.db, name).await
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
        write(&mut tx, name, mark, now).await?;
        tx.commit().await
    }
}

/// Writes a mark, whatever it was.
pub(crate) async fn write(tx: &mut Tx, name: &str, mark: &str, now: Timestamp) -> Result<(), StoreError> {
    let sql = "INSERT INTO probe_mark (name, mark, written_at) VALUES ($1, $2, $3) \
               ON CONFLICT (name) DO UPDATE SET mark = excluded.mark, written_at = excluded.written_at";
    tx.execute(sql, args![name, mark, now.as_microsecond()])
        .await
        .map(|_| ())
}

pub(crate) async fn read(db: &Db, name: &str) -> Result<Option<String>, StoreError> {
    let sql = "SELECT mark FROM probe_mark WHERE name = $1";
    let row = db.read_one(sql, args![name]).await?;
    row.map(|row| row.text("mark")).transpose()
}
