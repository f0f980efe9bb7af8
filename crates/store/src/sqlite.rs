//! SQLite: write-ahead log, one writer, many readers, every commit synced but those that need not be.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous};
use sqlx::{
    ConnectOptions as _, Connection as _, Row as _, SqlSafeStr, Sqlite as Driver, SqliteConnection, TypeInfo,
    ValueRef,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::value::rows_of;
use crate::wal::{Emptying, WRITER_PAGES};
use crate::{Row, StoreError, Value};

/// Readers that run at once; WAL readers do not block each other or the writer.
const READERS_MAX: u32 = 8;
/// Pages that each reader keeps for itself, in KiB: the upper pages of the trees that it walks. The rest comes from the
/// system's cache, which is one for all; SQLite's own default of 2 MiB for each reader would grow with the log until
/// it is full.
const READER_CACHE_KIB: u32 = 256;
/// How long a statement waits for another process's lock before it fails, in milliseconds.
const BUSY_MS: u64 = 5_000;
/// How long a caller waits for its turn at a connection before the database counts as away, in milliseconds:
/// hundreds of transactions on a slow disk.
const TURN_MS_MAX: u64 = 30_000;

#[derive(Clone)]
pub(crate) struct Sqlite {
    writer: Arc<Connections>,
    /// A connection that does not sync, in turns with the other.
    unsynced: Arc<Connections>,
    readers: Arc<Connections>,
    emptying: Arc<Emptying>,
}

/// Connections that are alike, as many as there are turns.
///
/// sqlx's own pool is not used: it pings each connection before and after each use, which for a file in this
/// process says nothing and costs twice what the usual statement does.
struct Connections {
    options: SqliteConnectOptions,
    turns_max: u32,
    turns: Arc<Semaphore>,
    idle: Mutex<Vec<SqliteConnection>>,
}

/// A connection in use. Dropped without [`Taken::give_back`], as when a caller goes away in the middle of a
/// statement, it is closed, which undoes whatever was open.
struct Taken {
    connection: SqliteConnection,
    home: Arc<Connections>,
    _turn: OwnedSemaphorePermit,
}

/// A write transaction on the one writing connection.
///
/// sqlx's own transactions are not used: when SQLite rolls one back by itself, as it does on a full disk, sqlx
/// still counts it as open and refuses every later one on that connection. Here only a transaction that ended with
/// COMMIT gives its connection back.
pub(crate) struct SqliteTx {
    taken: Taken,
    emptying: Arc<Emptying>,
}

impl Connections {
    fn new(options: SqliteConnectOptions, turns_max: u32) -> Self {
        Self {
            options,
            turns_max,
            turns: Arc::new(Semaphore::new(turns_max as usize)),
            idle: Mutex::default(),
        }
    }

    /// Others with these options that share the turns.
    fn in_turn_with(&self, options: SqliteConnectOptions) -> Self {
        Self {
            options,
            turns_max: self.turns_max,
            turns: self.turns.clone(),
            idle: Mutex::default(),
        }
    }

    async fn take(self: &Arc<Self>) -> Result<Taken, sqlx::Error> {
        let turn = match self.turns.clone().try_acquire_owned() {
            Ok(turn) => turn,
            Err(_) => {
                let turn = self.turns.clone().acquire_owned();
                tokio::time::timeout(Duration::from_millis(TURN_MS_MAX), turn)
                    .await
                    .map_err(|_| sqlx::Error::PoolTimedOut)?
                    .map_err(|_| sqlx::Error::PoolClosed)?
            }
        };
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.options.connect().await?,
        };
        Ok(Taken {
            connection,
            home: self.clone(),
            _turn: turn,
        })
    }

    /// Waits for the connections in use and closes all.
    async fn close(&self) {
        let all = self.turns.acquire_many(self.turns_max).await;
        self.turns.close();
        drop(all);
        let idle = std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner));
        for connection in idle {
            if let Err(error) = connection.close().await {
                tracing::warn!(%error, "a connection to SQLite was not closed in order");
            }
        }
    }
}

impl Taken {
    fn give_back(self) {
        let mut idle = self.home.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(self.connection);
    }
}

impl Sqlite {
    pub(crate) async fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Open {
            what: path.display().to_string(),
            source,
        };
        // Made here, for this user alone, if it is not there; SQLite gives its other files the same mode. What keeps it from
        // being made, SQLite says below. A file that is there is not opened: whoever closes any descriptor of it gives up
        // all locks that the process has on it (fcntl(2)), and another program that reads the database would take itself
        // for the last user and remove the log of what is written.
        drop(
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path),
        );
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_millis(BUSY_MS))
            .pragma("wal_autocheckpoint", WRITER_PAGES.to_string())
            .pragma("cell_size_check", "ON");
        let damaged = |source: sqlx::Error| {
            let code = source
                .as_database_error()
                .and_then(|error| error.code())
                .unwrap_or_default()
                .into_owned();
            // SQLITE_CORRUPT is 11 (with extensions in the high bytes), SQLITE_NOTADB 26.
            match code.parse::<i32>().map(|code| code & 0xff) {
                Ok(11 | 26) => StoreError::Damaged {
                    path: path.to_owned(),
                    found: source.to_string(),
                },
                _ => failed(source),
            }
        };
        let writer = Arc::new(Connections::new(options.clone(), 1));
        let mut first = writer.take().await.map_err(damaged)?;
        let found: String = sqlx::query_scalar("PRAGMA quick_check(1)")
            .fetch_one(&mut first.connection)
            .await
            .map_err(damaged)?;
        if found != "ok" {
            return Err(StoreError::Damaged {
                path: path.to_owned(),
                found,
            });
        }
        first.give_back();
        // Whatever is synced later is synced with all that was written before it: the log is one file.
        let emptying = Arc::new(Emptying::start(options.clone()));
        let unsynced = writer.in_turn_with(options.clone().synchronous(SqliteSynchronous::Normal));
        let options = options
            .read_only(true)
            .pragma("cache_size", format!("-{READER_CACHE_KIB}"));
        let readers = Arc::new(Connections::new(options, READERS_MAX));
        readers.take().await.map_err(failed)?.give_back();
        Ok(Self {
            writer,
            unsynced: Arc::new(unsynced),
            readers,
            emptying,
        })
    }

    pub(crate) async fn read(&self, sql: &'static str, args: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        let failed = |source| StoreError::query("reading", source);
        let mut reader = self.readers.take().await.map_err(failed)?;
        let rows = bind(sql, args)
            .fetch_all(&mut reader.connection)
            .await
            .map_err(failed)?;
        reader.give_back();
        rows_of(&rows, value_of)
    }

    pub(crate) async fn begin(&self) -> Result<SqliteTx, StoreError> {
        self.begin_on(&self.writer).await
    }

    pub(crate) async fn begin_unsynced(&self) -> Result<SqliteTx, StoreError> {
        self.begin_on(&self.unsynced).await
    }

    async fn begin_on(&self, connections: &Arc<Connections>) -> Result<SqliteTx, StoreError> {
        // A transaction that begins as a reader and then writes fails at once when another wrote in
        // between, whatever the busy timeout; IMMEDIATE takes the write lock first.
        let failed = |source| StoreError::query("beginning a transaction", source);
        let mut taken = connections.take().await.map_err(failed)?;
        sqlx::query("BEGIN IMMEDIATE")
            .execute(&mut taken.connection)
            .await
            .map_err(failed)?;
        Ok(SqliteTx {
            taken,
            emptying: self.emptying.clone(),
        })
    }

    pub(crate) async fn close(&self) {
        self.emptying.close().await;
        self.readers.close().await;
        self.writer.close().await;
        self.unsynced.close().await;
    }
}

impl SqliteTx {
    pub(crate) async fn execute(
        &mut self,
        sql: impl SqlSafeStr,
        args: Vec<Value>,
    ) -> Result<u64, StoreError> {
        let done = bind(sql, args)
            .execute(&mut self.taken.connection)
            .await
            .map_err(|source| StoreError::query("writing", source))?;
        Ok(done.rows_affected())
    }

    pub(crate) async fn script(&mut self, sql: String) -> Result<(), StoreError> {
        let script = sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
        script
            .execute(&mut self.taken.connection)
            .await
            .map(|_| ())
            .map_err(|source| StoreError::query("migrating", source))
    }

    pub(crate) async fn read(&mut self, sql: &'static str, args: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        let rows = bind(sql, args)
            .fetch_all(&mut self.taken.connection)
            .await
            .map_err(|source| StoreError::query("reading", source))?;
        rows_of(&rows, value_of)
    }

    pub(crate) async fn commit(mut self) -> Result<(), StoreError> {
        sqlx::query("COMMIT")
            .execute(&mut self.taken.connection)
            .await
            .map_err(|source| StoreError::query("committing", source))?;
        self.taken.give_back();
        self.emptying.wrote();
        Ok(())
    }
}

pub(crate) fn bind(
    sql: impl SqlSafeStr,
    args: Vec<Value>,
) -> sqlx::query::Query<'static, Driver, SqliteArguments> {
    let mut query = sqlx::query(sql);
    for value in args {
        query = match value {
            Value::Int(value) => query.bind(value),
            Value::Text(value) => query.bind(value),
            Value::Blob(value) => query.bind(value),
        };
    }
    query
}

pub(crate) fn value_of(row: &SqliteRow, at: usize) -> Result<Value, sqlx::Error> {
    let raw = row.try_get_raw(at)?;
    if raw.is_null() {
        return Ok(Value::Text(None));
    }
    let kind = raw.type_info().name().to_owned();
    match kind.as_str() {
        "TEXT" => row.try_get(at).map(Value::Text),
        "BLOB" => row.try_get(at).map(Value::Blob),
        _ => row.try_get_unchecked(at).map(Value::Int),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;
    use std::path::Path;

    use crate::Db;

    /// Whether this process holds a lock on the file, as other processes see it.
    fn is_locked(file: &Path) -> bool {
        let inode = format!(":{} ", std::fs::metadata(file).unwrap().ino());
        let own = format!(" {} ", std::process::id());
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        locks
            .lines()
            .any(|lock| lock.contains(&inode) && lock.contains(&own))
    }

    /// Shown to fail: with the file opened whether or not it is there, and closed at the end of `open`, there is no lock.
    #[tokio::test]
    async fn other_processes_see_that_the_database_is_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("test.db");
        let url = format!("sqlite:{}", file.display());
        for _ in 0..2 {
            let db = Db::open(&url).await.unwrap();
            assert!(is_locked(&file));
            let another = Db::open(&url).await.unwrap();
            assert!(is_locked(&file));
            another.close().await;
            assert!(is_locked(&file));
            db.close().await;
            assert!(!is_locked(&file));
        }
    }
}
