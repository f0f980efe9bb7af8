//! Whole tables out of one database and into another.
//!
//! Out: everything in one read transaction, so that what is read belongs together while others write. Into: an empty
//! database that is marked, and that no program opens until the mark is taken away ([`crate::StoreError::Restoring`]).

use std::collections::BTreeMap;
use std::path::Path;

use futures::TryStreamExt as _;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, SqliteConnection};

use crate::archive::{Column, ColumnKind};
use crate::db::sqlite_path;
use crate::migrate::{self, RESTORING};
use crate::value::rows_of;
use crate::{Db, Migration, Row, StoreError, Tx, Value, args, postgres, sqlite};

/// Arguments of one statement at most, far below the limit of either database.
const ARGUMENTS_MAX: usize = 1_000;

const SQLITE_COLUMNS: &str = "SELECT name, type AS kind FROM pragma_table_info($1) ORDER BY cid";
const POSTGRES_COLUMNS: &str = "SELECT CAST(column_name AS TEXT) AS name, CAST(data_type AS TEXT) AS kind \
     FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = $1 \
     ORDER BY ordinal_position";

/// The tables that migrations make, in the order in which rows may be put in.
#[must_use]
pub fn tables(migrations: &[Migration]) -> Vec<&'static str> {
    let made = migrations.iter().flat_map(|migration| {
        let rest = migration.sql.split("CREATE TABLE ").skip(1);
        rest.filter_map(|rest| rest.split_whitespace().next())
    });
    made.collect()
}

fn columns_of(table: &str, rows: &[Row]) -> Result<Vec<Column>, StoreError> {
    let column = |row: &Row| {
        let name = row.text("name")?;
        let kind = match row.text("kind")?.to_lowercase().as_str() {
            "bigint" => ColumnKind::Int,
            "text" => ColumnKind::Text,
            "blob" | "bytea" => ColumnKind::Blob,
            _ => {
                return Err(StoreError::column(
                    &format!("{table}.{name}"),
                    "it is of a kind that no backup has",
                ));
            }
        };
        Ok(Column { name, kind })
    };
    rows.iter().map(column).collect()
}

/// One state of a database, whatever is written meanwhile.
pub struct Snapshot(Inner);

enum Inner {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Snapshot {
    /// Opens a database to read it, beside a server that uses it. It is neither made nor changed.
    ///
    /// # Errors
    /// If there is none, or it does not answer.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        Db::check_address(url)?;
        let failed = |source| StoreError::query("beginning to read everything", source);
        if let Some(path) = sqlite_path(url) {
            return Ok(Self(Inner::Sqlite(open_sqlite(path).await?)));
        }
        let mut connection = PgConnection::connect(url)
            .await
            .map_err(|source| postgres::not_opened(url, source))?;
        connection
            .execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .await
            .map_err(failed)?;
        Ok(Self(Inner::Postgres(connection)))
    }

    /// All rows of a query.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn read(&mut self, sql: String, args: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        let failed = |source| StoreError::query("reading", source);
        let sql = AssertSqlSafe(sql);
        match &mut self.0 {
            Inner::Sqlite(connection) => {
                let rows = sqlite::bind(sql, args).fetch_all(connection).await;
                rows_of(&rows.map_err(failed)?, sqlite::value_of)
            }
            Inner::Postgres(connection) => {
                let rows = postgres::bind(sql, args).fetch_all(connection).await;
                rows_of(&rows.map_err(failed)?, postgres::value_of)
            }
        }
    }

    /// A table's columns; none if there is no such table.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn columns(&mut self, table: &str) -> Result<Vec<Column>, StoreError> {
        let sql = match &self.0 {
            Inner::Sqlite(_) => SQLITE_COLUMNS,
            Inner::Postgres(_) => POSTGRES_COLUMNS,
        };
        columns_of(table, &self.read(sql.to_owned(), args![table]).await?)
    }

    /// Which version each domain's tables have; none if this is no database of ours.
    ///
    /// # Errors
    /// [`StoreError::Restoring`] if it is not whole yet.
    pub async fn schema(&mut self) -> Result<BTreeMap<String, i64>, StoreError> {
        if self.columns("migration").await?.is_empty() {
            return Ok(BTreeMap::new());
        }
        let rows = self
            .read("SELECT domain, version FROM migration".to_owned(), Vec::new())
            .await?;
        let rows = rows
            .iter()
            .map(|row| Ok((row.text("domain")?, row.int("version")?)));
        let found: BTreeMap<String, i64> = rows.collect::<Result<_, StoreError>>()?;
        if found.contains_key(RESTORING) {
            return Err(StoreError::Restoring);
        }
        Ok(found)
    }

    /// Every row of a table, one after the other.
    ///
    /// # Errors
    /// If the database does not answer, or what `each` says.
    pub async fn rows<E: From<StoreError>>(
        &mut self,
        table: &str,
        columns: &[Column],
        mut each: impl FnMut(Vec<Value>) -> Result<(), E>,
    ) -> Result<(), E> {
        let failed = |source| E::from(StoreError::query("reading a whole table", source));
        let names: Vec<&str> = columns.iter().map(|column| &*column.name).collect();
        let sql = AssertSqlSafe(format!("SELECT {} FROM {table}", names.join(", ")));
        match &mut self.0 {
            Inner::Sqlite(connection) => {
                let mut rows = sqlx::query(sql).fetch(connection);
                while let Some(row) = rows.try_next().await.map_err(failed)? {
                    let values = (0..names.len()).map(|at| sqlite::value_of(&row, at));
                    each(values.collect::<Result<_, _>>().map_err(failed)?)?;
                }
            }
            Inner::Postgres(connection) => {
                let mut rows = sqlx::query(sql).fetch(connection);
                while let Some(row) = rows.try_next().await.map_err(failed)? {
                    let values = (0..names.len()).map(|at| postgres::value_of(&row, at));
                    each(values.collect::<Result<_, _>>().map_err(failed)?)?;
                }
            }
        }
        Ok(())
    }

    /// Ends the reading.
    pub async fn close(self) {
        // It was read only: there is nothing that an error could lose.
        let _ = match self.0 {
            Inner::Sqlite(connection) => connection.close().await,
            Inner::Postgres(connection) => connection.close().await,
        };
    }
}

async fn open_sqlite(path: &Path) -> Result<SqliteConnection, StoreError> {
    let failed = |source| StoreError::Open {
        what: path.display().to_string(),
        source,
    };
    let options = SqliteConnectOptions::new().filename(path).read_only(true);
    let mut connection = options.connect().await.map_err(failed)?;
    // The state that is read is that of the first read.
    for sql in ["BEGIN", "SELECT COUNT(*) FROM sqlite_master"] {
        connection.execute(sql).await.map_err(failed)?;
    }
    Ok(connection)
}

impl Db {
    /// Marks an empty database, so that nothing starts on it until [`Db::end_restore`]. One that was marked and got no
    /// further counts as empty.
    ///
    /// # Errors
    /// [`StoreError::NotEmpty`] if it has tables of ours.
    pub async fn begin_restore(&self, migrations: &[Migration]) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        migrate::lock(&mut tx).await?;
        for table in tables(migrations) {
            if !tx.columns(table).await?.is_empty() {
                return Err(StoreError::NotEmpty {
                    table: table.to_owned(),
                });
            }
        }
        migrate::create_table(&mut tx).await?;
        tx.execute(
            "INSERT INTO migration (domain, version) VALUES ($1, 1) ON CONFLICT (domain) DO NOTHING",
            args![RESTORING],
        )
        .await?;
        tx.commit().await
    }

    /// Begins the one transaction in which everything is put in: a marked database gets its tables, each domain's in
    /// the version of `schema`.
    ///
    /// # Errors
    /// If the database does not answer, or was restored by somebody else meanwhile.
    pub async fn load(
        &self,
        migrations: &[Migration],
        schema: &BTreeMap<String, i64>,
    ) -> Result<Tx, StoreError> {
        let mut tx = self.begin().await?;
        migrate::lock(&mut tx).await?;
        if tx.is_postgres() {
            // Tiles are put in their place while the transaction waits: it is not one that somebody left open.
            tx.script("SET LOCAL idle_in_transaction_session_timeout = 0".to_owned())
                .await?;
        }
        let steps = migrations.iter().copied();
        let steps = steps.filter(|step| {
            schema
                .get(step.domain)
                .is_some_and(|version| step.version <= *version)
        });
        migrate::steps(&mut tx, &steps.collect::<Vec<_>>()).await?;
        Ok(tx)
    }

    /// Takes the mark away: the database is whole.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn end_restore(&self) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        tx.execute("DELETE FROM migration WHERE domain = $1", args![RESTORING])
            .await?;
        tx.commit().await
    }
}

impl Tx {
    /// A table's columns; none if there is no such table.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn columns(&mut self, table: &str) -> Result<Vec<Column>, StoreError> {
        let sql = if self.is_postgres() {
            POSTGRES_COLUMNS
        } else {
            SQLITE_COLUMNS
        };
        columns_of(table, &self.read(sql, args![table]).await?)
    }

    /// Puts rows into a table. Its name and columns are those of [`Tx::columns`], never those of a file.
    ///
    /// # Errors
    /// If a row contradicts the schema, or the database does not answer.
    pub async fn insert(
        &mut self,
        table: &str,
        columns: &[Column],
        mut rows: Vec<Vec<Value>>,
    ) -> Result<(), StoreError> {
        let names: Vec<&str> = columns.iter().map(|column| &*column.name).collect();
        let rows_max = (ARGUMENTS_MAX / names.len().max(1)).max(1);
        while !rows.is_empty() {
            let rest = rows.split_off(rows.len().min(rows_max));
            let places: Vec<String> = (0..rows.len())
                .map(|row| {
                    let places: Vec<String> = (1..=names.len())
                        .map(|at| format!("${}", row * names.len() + at))
                        .collect();
                    format!("({})", places.join(", "))
                })
                .collect();
            let sql = format!(
                "INSERT INTO {table} ({}) VALUES {}",
                names.join(", "),
                places.join(", ")
            );
            self.execute_text(sql, rows.into_iter().flatten().collect())
                .await?;
            rows = rest;
        }
        Ok(())
    }

    /// Brings the tables that were put in to the newest version.
    ///
    /// # Errors
    /// If a step fails.
    pub async fn migrate(&mut self, migrations: &[Migration]) -> Result<(), StoreError> {
        migrate::steps(self, migrations).await
    }
}
