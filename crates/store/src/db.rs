//! One handle over two databases.

use std::path::Path;
use std::sync::Arc;

use crate::changes::Told;
use crate::gate::{Gate, Identity};
use crate::{Row, StoreError, Value, postgres, sqlite};

/// How addresses begin.
const SQLITE: &str = "sqlite:";
const POSTGRES: [&str; 2] = ["postgres://", "postgresql://"];

/// A database. Cheap to clone.
#[derive(Clone)]
pub struct Db {
    inner: Inner,
    gate: Arc<Gate>,
    /// Whether the gate counts for this handle.
    gated: bool,
    told: Arc<Told>,
}

#[derive(Clone)]
enum Inner {
    Sqlite(sqlite::Sqlite),
    Postgres(postgres::Postgres),
}

/// A write transaction. Dropped without [`Tx::commit`], it never happened.
pub struct Tx {
    inner: TxInner,
    told: Arc<Told>,
    /// The number of the last change that this transaction told of.
    change: Option<i64>,
}

enum TxInner {
    Sqlite(sqlite::SqliteTx),
    Postgres(postgres::PostgresTx),
}

/// The file of an address of SQLite.
pub(crate) fn sqlite_path(url: &str) -> Option<&Path> {
    let path = url.strip_prefix(SQLITE)?;
    Some(Path::new(path.strip_prefix("//").unwrap_or(path)))
}

impl Db {
    /// Opens `sqlite:PATH` (made if it is not there) or `postgres://…`.
    ///
    /// # Errors
    /// If the address is not one, the database does not answer, or its file is damaged.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        Self::open_with(url, postgres::CONNECTIONS_MAX_DEFAULT).await
    }

    /// The same with so many connections to PostgreSQL at most, of [`crate::CONNECTIONS_MAX`]; those of SQLite are not
    /// counted.
    ///
    /// # Errors
    /// As for [`Db::open`]; [`StoreError::Crowded`] if PostgreSQL has no room.
    pub async fn open_with(url: &str, connections_max: u32) -> Result<Self, StoreError> {
        Self::check_address(url)?;
        let gate = Arc::<Gate>::default();
        let inner = match sqlite_path(url) {
            Some(path) => Inner::Sqlite(sqlite::Sqlite::open(path).await?),
            None => Inner::Postgres(postgres::Postgres::open(url, connections_max, gate.clone()).await?),
        };
        Ok(Self {
            inner,
            gate,
            gated: true,
            told: Arc::default(),
        })
    }

    /// From now on every handle of this database refuses each transaction with [`StoreError::Wrong`], because it is not
    /// the database that it has to be, until it is told `None`. Reading SQLite goes on, because the file that was opened
    /// is still the right one; what another PostgreSQL says of tokens and keys is somebody else's, and is not read.
    pub fn refuse_changes(&self, found: Option<String>) {
        self.gate.set(found);
    }

    /// From now on every new connection to PostgreSQL is asked this before it is used; one that answers otherwise is
    /// refused, and closes the store as [`Db::refuse_changes`] does. SQLite's file is looked at in other ways.
    pub fn require(&self, own: Identity) {
        self.gate.require(own);
    }

    /// A handle that is never refused so: for whoever looks which database it is. With PostgreSQL each of its statements
    /// and transactions has a connection of its own, so that it looks where the name leads now.
    #[must_use]
    pub fn ungated(&self) -> Self {
        let inner = match &self.inner {
            Inner::Sqlite(db) => Inner::Sqlite(db.clone()),
            Inner::Postgres(db) => Inner::Postgres(db.looking()),
        };
        Self {
            inner,
            gated: false,
            ..self.clone()
        }
    }

    /// What this server knows of the numbers of changes.
    pub(crate) fn told(&self) -> &Told {
        &self.told
    }

    /// Changes that the database had acknowledged and does not have any more, as a [`crate::Learner`] found: the last
    /// number that was known, and the one found after it. It is told until [`Db::changes_lost_noted`].
    #[must_use]
    pub fn changes_lost(&self) -> Option<(i64, i64)> {
        self.told.lost()
    }

    /// What was told is written down somewhere.
    pub fn changes_lost_noted(&self, lost: (i64, i64)) {
        self.told.noted(lost);
    }

    async fn guard<T>(&self, ask: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        match self.gated {
            true => self.gate.guard(ask).await,
            false => ask.await,
        }
    }

    fn tx(&self, inner: TxInner) -> Tx {
        Tx {
            inner,
            told: self.told.clone(),
            change: None,
        }
    }

    fn pass(&self) -> Result<(), StoreError> {
        if self.gated { self.gate.pass() } else { Ok(()) }
    }

    /// Whether [`Db::open`] knows what the address is about; nothing is opened.
    ///
    /// # Errors
    /// [`StoreError::Address`] if it does not.
    pub fn check_address(url: &str) -> Result<(), StoreError> {
        if url.starts_with(SQLITE) || POSTGRES.iter().any(|scheme| url.starts_with(scheme)) {
            return Ok(());
        }
        // The address may hold a password, so only its scheme is shown.
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        Err(StoreError::Address {
            url: scheme.chars().take(20).collect(),
            why: "it starts with neither sqlite: nor postgres:// nor postgresql://",
        })
    }

    /// All rows of a query.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn read(&self, sql: &'static str, args: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        match &self.inner {
            Inner::Sqlite(db) => db.read(sql, args).await,
            Inner::Postgres(db) => self.guard(Box::pin(db.read(sql, args))).await,
        }
    }

    /// The first row of a query.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn read_one(&self, sql: &'static str, args: Vec<Value>) -> Result<Option<Row>, StoreError> {
        Ok(self.read(sql, args).await?.into_iter().next())
    }

    /// Begins a write transaction. On SQLite it waits for the one writer.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        self.pass()?;
        match &self.inner {
            Inner::Sqlite(db) => Ok(self.tx(TxInner::Sqlite(db.begin().await?))),
            Inner::Postgres(db) => Ok(self.tx(TxInner::Postgres(self.guard(Box::pin(db.begin())).await?))),
        }
    }

    /// Begins a write transaction that a power cut may undo after its commit, for what is done again without harm. A
    /// killed process loses nothing of it, and it costs those who wait for the disk nothing.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn begin_unsynced(&self) -> Result<Tx, StoreError> {
        self.pass()?;
        match &self.inner {
            Inner::Sqlite(db) => Ok(self.tx(TxInner::Sqlite(db.begin_unsynced().await?))),
            Inner::Postgres(db) => Ok(self.tx(TxInner::Postgres(
                self.guard(Box::pin(db.begin_unsynced())).await?,
            ))),
        }
    }

    /// Whether this is PostgreSQL, which several servers may share.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self.inner, Inner::Postgres(_))
    }

    /// Ends all connections, after what runs has finished.
    pub async fn close(&self) {
        match &self.inner {
            Inner::Sqlite(db) => db.close().await,
            Inner::Postgres(db) => db.close().await,
        }
    }
}

impl Tx {
    /// Runs a statement; the answer is the number of rows that it changed.
    ///
    /// # Errors
    /// If the statement fails; the transaction is then of no further use.
    pub async fn execute(&mut self, sql: &'static str, args: Vec<Value>) -> Result<u64, StoreError> {
        match &mut self.inner {
            TxInner::Sqlite(tx) => tx.execute(sql, args).await,
            TxInner::Postgres(tx) => tx.execute(sql, args).await,
        }
    }

    /// The same for many rows at once: `{rows}` in the statement is a table whose column `value` has the elements of
    /// `rows`, an array of JSON, which is `$1`; `args` follow it.
    ///
    /// # Errors
    /// If the statement fails; the transaction is then of no further use.
    pub async fn execute_for_rows(
        &mut self,
        sql: &'static str,
        rows: String,
        mut args: Vec<Value>,
    ) -> Result<u64, StoreError> {
        let table = match self.is_postgres() {
            true => "json_array_elements($1::json)",
            false => "json_each($1)",
        };
        args.insert(0, Value::from(rows));
        self.execute_text(sql.replace("{rows}", table), args).await
    }

    /// The same with a statement that was put together.
    pub(crate) async fn execute_text(&mut self, sql: String, args: Vec<Value>) -> Result<u64, StoreError> {
        let sql = sqlx::AssertSqlSafe(sql);
        match &mut self.inner {
            TxInner::Sqlite(tx) => tx.execute(sql, args).await,
            TxInner::Postgres(tx) => tx.execute(sql, args).await,
        }
    }

    /// Runs a text of several statements without arguments (DDL).
    pub(crate) async fn script(&mut self, sql: String) -> Result<(), StoreError> {
        match &mut self.inner {
            TxInner::Sqlite(tx) => tx.script(sql).await,
            TxInner::Postgres(tx) => tx.script(sql).await,
        }
    }

    /// All rows of a query, as this transaction sees them.
    ///
    /// # Errors
    /// If the statement fails.
    pub async fn read(&mut self, sql: &'static str, args: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        match &mut self.inner {
            TxInner::Sqlite(tx) => tx.read(sql, args).await,
            TxInner::Postgres(tx) => tx.read(sql, args).await,
        }
    }

    /// The first row of a query, as this transaction sees it.
    ///
    /// # Errors
    /// If the statement fails.
    pub async fn read_one(&mut self, sql: &'static str, args: Vec<Value>) -> Result<Option<Row>, StoreError> {
        Ok(self.read(sql, args).await?.into_iter().next())
    }

    /// Makes everything durable. An error leaves the outcome unknown: read back.
    ///
    /// # Errors
    /// If the database does not confirm.
    pub async fn commit(self) -> Result<(), StoreError> {
        match self.inner {
            TxInner::Sqlite(tx) => tx.commit().await?,
            TxInner::Postgres(tx) => tx.commit().await?,
        }
        self.told.acknowledged(self.change);
        Ok(())
    }

    /// This transaction tells of a change with this number, which counts once the commit is confirmed.
    pub(crate) fn tells(&mut self, number: i64) {
        self.change = Some(number);
    }

    /// Whether this runs on PostgreSQL.
    pub(crate) fn is_postgres(&self) -> bool {
        matches!(self.inner, TxInner::Postgres(_))
    }
}
