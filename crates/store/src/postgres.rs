//! PostgreSQL: one pool, for as many servers as are wanted.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgRow};
use sqlx::{
    ConnectOptions as _, Connection as _, Postgres as Driver, Row as _, SqlSafeStr, Transaction, TypeInfo,
    ValueRef,
};

use crate::gate::Gate;
use crate::presence::{self, Presence};
use crate::value::rows_of;
use crate::{Row, StoreError, Value};

/// Connections of one server if nothing else is said: PostgreSQL allows 100 by default, for a handful of servers and a
/// person.
pub const CONNECTIONS_MAX_DEFAULT: u32 = 16;
/// What may be said instead. With fewer than these, the log with the renewal of its lease and the probes would wait for
/// callers; more than these is what a PostgreSQL has in all, and each costs it a process.
pub const CONNECTIONS_MAX: std::ops::RangeInclusive<u32> = 4..=500;
/// How long a caller waits for a connection before the database counts as away, in milliseconds.
const ACQUIRE_MS: u64 = 3_000;
/// What a connection begins with.
///
/// Tables begin empty. A statement that is prepared then would be planned as a walk over the whole table, and stay so
/// until PostgreSQL counts the rows by itself, a minute and some hundred thousand rows later. A walk over a table that
/// stays tiny then looks dear, and would be compiled first, at fifty milliseconds each time (`jit`).
///
/// A server that is frozen in the middle of a transaction holds its locks, and with them the duty of every other
/// server; after two seconds PostgreSQL ends it.
const SESSION: &str =
    "SET enable_seqscan = off; SET jit = off; SET idle_in_transaction_session_timeout = 2000";
/// A connection that was idle for longer is asked whether it is still there before it is used, in milliseconds. To
/// ask a busy one each time would double its round trips; one that broke since fails one call and is gone.
const IDLE_MS_MAX: u128 = 1_000;

#[derive(Clone)]
pub(crate) struct Postgres {
    pool: PgPool,
    /// Its connections are new each time, lead wherever the name leads, and are used by whoever looks at that.
    looking: PgPool,
    presence: Presence,
}

pub(crate) struct PostgresTx(Transaction<'static, Driver>, Presence);

impl Postgres {
    pub(crate) async fn open(url: &str, connections_max: u32, gate: Arc<Gate>) -> Result<Self, StoreError> {
        let what = without_password(url);
        let options: PgConnectOptions = url.parse().map_err(|source| not_opened(url, source))?;
        let presence = Presence::new(options.clone(), what);
        let (doubts, writes) = (presence.clone(), presence.clone());
        let alone = options.clone();
        let pool = PgPoolOptions::new()
            .max_connections(connections_max)
            .acquire_timeout(Duration::from_millis(ACQUIRE_MS))
            .after_connect(move |connection, _| {
                let gate = gate.clone();
                Box::pin(async move {
                    gate.admit(connection).await?;
                    sqlx::raw_sql(SESSION).execute(connection).await.map(|_| ())
                })
            })
            .test_before_acquire(false)
            .before_acquire(move |connection, held| {
                let doubts = doubts.clone();
                Box::pin(async move {
                    // An error has the pool make another one.
                    if held.idle_for.as_millis() > IDLE_MS_MAX {
                        connection.ping().await.inspect_err(|_| doubts.doubt())?;
                    }
                    Ok(true)
                })
            })
            .after_release(move |connection, _| {
                let writes = writes.clone();
                Box::pin(async move {
                    if !writes.is_read_only() {
                        return Ok(true);
                    }
                    let takes_writes = takes_writes(connection).await?;
                    if takes_writes {
                        writes.takes_writes();
                    }
                    Ok(takes_writes)
                })
            })
            .connect_with(options)
            .await;
        let looking = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(Duration::from_millis(ACQUIRE_MS))
            .after_connect(|connection, _| {
                Box::pin(async move { sqlx::raw_sql(SESSION).execute(connection).await.map(|_| ()) })
            })
            .after_release(|_, _| Box::pin(async { Ok(false) }))
            .connect_lazy_with(alone.clone());
        match pool {
            Ok(pool) => Ok(Self {
                pool,
                looking,
                presence,
            }),
            Err(source) => Err(why_not_opened(url, &alone, source).await),
        }
    }

    /// The same database with a new connection each time, which nobody asked whose it is.
    pub(crate) fn looking(&self) -> Self {
        Self {
            pool: self.looking.clone(),
            ..self.clone()
        }
    }

    pub(crate) async fn read(&self, sql: &'static str, args: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        let rows = self
            .presence
            .ask("reading", bind(sql, args).fetch_all(&self.pool))
            .await?;
        rows_of(&rows, value_of)
    }

    pub(crate) async fn begin(&self) -> Result<PostgresTx, StoreError> {
        let begun = self
            .presence
            .ask("beginning a transaction", self.pool.begin())
            .await?;
        Ok(PostgresTx(begun, self.presence.clone()))
    }

    pub(crate) async fn begin_unsynced(&self) -> Result<PostgresTx, StoreError> {
        let mut tx = self.begin().await?;
        tx.execute("SET LOCAL synchronous_commit = off", Vec::new())
            .await?;
        Ok(tx)
    }

    pub(crate) async fn close(&self) {
        self.looking.close().await;
        self.pool.close().await;
    }
}

/// Whether this session takes writes. It keeps from its beginning that it does not, unless it is a standby's that became
/// the primary.
async fn takes_writes(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let row = sqlx::query("SELECT current_setting('transaction_read_only')")
        .fetch_one(connection)
        .await?;
    Ok(row.try_get::<String, _>(0)? == "off")
}

/// A pool that was refused for lack of room says only that it waited; one connection says why.
async fn why_not_opened(url: &str, options: &PgConnectOptions, source: sqlx::Error) -> StoreError {
    let waited = matches!(source, sqlx::Error::PoolTimedOut);
    if waited && matches!(options.connect().await, Err(error) if presence::is(&error, presence::CROWDED)) {
        return StoreError::Crowded {
            what: without_password(url),
        };
    }
    not_opened(url, source)
}

pub(crate) fn not_opened(url: &str, source: sqlx::Error) -> StoreError {
    StoreError::Open {
        what: without_password(url),
        source,
    }
}

/// The address as it may be shown: host, port and name. Whatever else stands in it may be a password.
fn without_password(url: &str) -> String {
    let Ok(options) = url.parse::<PgConnectOptions>() else {
        return "at an address that does not read".to_owned();
    };
    let host = match options.get_socket() {
        Some(folder) => folder.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    };
    format!(
        "at {host}, {}",
        options.get_database().unwrap_or("its default database")
    )
}

impl PostgresTx {
    pub(crate) async fn execute(
        &mut self,
        sql: impl SqlSafeStr,
        args: Vec<Value>,
    ) -> Result<u64, StoreError> {
        let done = self
            .1
            .ask("writing", bind(sql, args).execute(&mut *self.0))
            .await?;
        Ok(done.rows_affected())
    }

    pub(crate) async fn script(&mut self, sql: String) -> Result<(), StoreError> {
        let script = sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
        script
            .execute(&mut *self.0)
            .await
            .map(|_| ())
            .map_err(|source| self.1.named("migrating", source))
    }

    pub(crate) async fn read(&mut self, sql: &'static str, args: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        let rows = self
            .1
            .ask("reading", bind(sql, args).fetch_all(&mut *self.0))
            .await?;
        rows_of(&rows, value_of)
    }

    pub(crate) async fn commit(self) -> Result<(), StoreError> {
        self.1.ask("committing", self.0.commit()).await
    }
}

pub(crate) fn bind(
    sql: impl SqlSafeStr,
    args: Vec<Value>,
) -> sqlx::query::Query<'static, Driver, PgArguments> {
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

pub(crate) fn value_of(row: &PgRow, at: usize) -> Result<Value, sqlx::Error> {
    let raw = row.try_get_raw(at)?;
    if raw.is_null() {
        return Ok(Value::Text(None));
    }
    let kind = raw.type_info().name().to_owned();
    match kind.as_str() {
        "BYTEA" => row.try_get(at).map(Value::Blob),
        "INT8" => row.try_get(at).map(Value::Int),
        "INT4" => row
            .try_get::<i32, _>(at)
            .map(|value| Value::Int(Some(i64::from(value)))),
        "BOOL" => row
            .try_get::<bool, _>(at)
            .map(|value| Value::Int(Some(i64::from(value)))),
        _ => row.try_get(at).map(Value::Text),
    }
}

#[cfg(test)]
mod tests {
    use super::without_password;

    #[test]
    fn no_form_of_an_address_shows_its_password() {
        for url in [
            "postgres://app:s3cret@db.example:5433/app",
            "postgresql://db.example:5433/app?user=app&password=s3cret",
            "postgres://app:s3cret@db.example:5433/app?sslpassword=s3cret",
            "postgres://app:s3cret@[::1",
        ] {
            let shown = without_password(url);
            assert!(!shown.contains("s3cret") && !shown.contains('?'), "{shown}");
        }
        let shown = without_password("postgres://app:s3cret@db.example:5433/app");
        assert_eq!(shown, "at db.example:5433, app");
    }
}
