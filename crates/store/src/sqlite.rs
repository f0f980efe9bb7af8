//! SQLite: write-ahead log, one writer, many readers, every commit synced.

use std::path::Path;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{Row as _, Sqlite as Driver, SqliteConnection, TypeInfo, ValueRef};

use crate::value::rows_of;
use crate::{Row, StoreError, Value};

/// Readers that run at once; WAL readers do not block each other or the writer.
const READERS_MAX: u32 = 8;
/// How long a statement waits for another process's lock before it fails, in milliseconds.
const BUSY_MS: u64 = 5_000;

#[derive(Clone)]
pub(crate) struct Sqlite {
    writer: SqlitePool,
    readers: SqlitePool,
}

/// A write transaction on the one writing connection.
///
/// sqlx's own transactions are not used: when SQLite rolls one back by itself, as it does on a full disk, sqlx
/// still counts it as open and refuses every later one on that connection. Here a transaction that did not end
/// with COMMIT closes its connection, which undoes whatever was open; the pool makes a new one.
pub(crate) struct SqliteTx {
    /// Taken away by COMMIT.
    connection: Option<PoolConnection<Driver>>,
}

impl Sqlite {
    pub(crate) async fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Open {
            what: path.display().to_string(),
            source,
        };
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_millis(BUSY_MS))
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
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options.clone())
            .await
            .map_err(damaged)?;
        let found: String = sqlx::query_scalar("PRAGMA quick_check(1)")
            .fetch_one(&writer)
            .await
            .map_err(damaged)?;
        if found != "ok" {
            return Err(StoreError::Damaged {
                path: path.to_owned(),
                found,
            });
        }
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .connect_with(options.read_only(true))
            .await
            .map_err(failed)?;
        Ok(Self { writer, readers })
    }

    pub(crate) async fn read(&self, sql: &'static str, args: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        let rows = bind(sql, args)
            .fetch_all(&self.readers)
            .await
            .map_err(|source| StoreError::query("reading", source))?;
        rows_of(&rows, value_of)
    }

    pub(crate) async fn begin(&self) -> Result<SqliteTx, StoreError> {
        // A transaction that begins as a reader and then writes fails at once when another wrote in
        // between, whatever the busy timeout; IMMEDIATE takes the write lock first.
        let failed = |source| StoreError::query("beginning a transaction", source);
        let mut tx = SqliteTx {
            connection: Some(self.writer.acquire().await.map_err(failed)?),
        };
        sqlx::query("BEGIN IMMEDIATE")
            .execute(tx.connection()?)
            .await
            .map_err(failed)?;
        Ok(tx)
    }

    pub(crate) async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

impl SqliteTx {
    pub(crate) async fn execute(&mut self, sql: &'static str, args: Vec<Value>) -> Result<u64, StoreError> {
        let done = bind(sql, args)
            .execute(self.connection()?)
            .await
            .map_err(|source| StoreError::query("writing", source))?;
        Ok(done.rows_affected())
    }

    pub(crate) async fn script(&mut self, sql: String) -> Result<(), StoreError> {
        let script = sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
        script
            .execute(self.connection()?)
            .await
            .map(|_| ())
            .map_err(|source| StoreError::query("migrating", source))
    }

    pub(crate) async fn read(&mut self, sql: &'static str, args: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        let rows = bind(sql, args)
            .fetch_all(self.connection()?)
            .await
            .map_err(|source| StoreError::query("reading", source))?;
        rows_of(&rows, value_of)
    }

    pub(crate) async fn commit(mut self) -> Result<(), StoreError> {
        sqlx::query("COMMIT")
            .execute(self.connection()?)
            .await
            .map_err(|source| StoreError::query("committing", source))?;
        self.connection = None;
        Ok(())
    }

    fn connection(&mut self) -> Result<&mut SqliteConnection, StoreError> {
        let ended = || StoreError::query("using a transaction that ended", sqlx::Error::PoolClosed);
        self.connection.as_deref_mut().ok_or_else(ended)
    }
}

impl Drop for SqliteTx {
    fn drop(&mut self) {
        if let Some(connection) = &mut self.connection {
            connection.close_on_drop();
        }
    }
}

fn bind(sql: &'static str, args: Vec<Value>) -> sqlx::query::Query<'static, Driver, SqliteArguments> {
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

fn value_of(row: &SqliteRow, at: usize) -> Result<Value, sqlx::Error> {
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
