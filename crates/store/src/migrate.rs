//! Tables come with the domains that own them.

use std::collections::HashMap;
use std::time::Duration;

use crate::{Db, StoreError, Tx, args};

/// One step of a domain's schema. Steps run in order, each once, all in one transaction.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// Whose tables: `signing`, `tlog`, …
    pub domain: &'static str,
    /// Counted from 1 within the domain.
    pub version: i64,
    /// Statements in the shared dialect; `{blob}` stands for `BLOB` or `BYTEA`.
    pub sql: &'static str,
}

/// The number of PostgreSQL's advisory lock that keeps two starting servers from migrating at once.
const MIGRATION_LOCK: i64 = 0x706f_7274;

/// How long a table is waited for on PostgreSQL, and how often: whoever waits for a table to change has all others wait who
/// come after, also those that only read. A backup reads for minutes, and so does a server that migrates.
const LOCK_WAIT: &str = "SET LOCAL lock_timeout = '1s'";
const LOCK_TURNS_MAX: u32 = 60;
const LOCK_PAUSE: Duration = Duration::from_secs(2);

/// The line of the table `migration` that says that a restore has begun and not ended.
pub(crate) const RESTORING: &str = "restore";

impl Db {
    /// Brings every domain's tables to the newest version that this program knows.
    ///
    /// # Errors
    /// [`StoreError::Newer`] if the database was written by a newer program, [`StoreError::Restoring`] if it is not
    /// whole.
    pub async fn migrate(&self, migrations: &[Migration]) -> Result<(), StoreError> {
        if self.is_current(migrations).await? {
            return Ok(());
        }
        let mut turn = 1;
        loop {
            match self.migrate_now(migrations).await {
                Err(error) if error.is_lock_timeout() && turn < LOCK_TURNS_MAX => {
                    tracing::info!(turn, "the schema is changed as soon as nobody else uses it");
                    tokio::time::sleep(LOCK_PAUSE).await;
                    turn += 1;
                }
                done => return done,
            }
        }
    }

    async fn migrate_now(&self, migrations: &[Migration]) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        if tx.is_postgres() {
            tx.script(LOCK_WAIT.to_owned()).await?;
        }
        lock(&mut tx).await?;
        create_table(&mut tx).await?;
        let sql = "SELECT version FROM migration WHERE domain = $1";
        if tx.read_one(sql, args![RESTORING]).await?.is_some() {
            return Err(StoreError::Restoring);
        }
        steps(&mut tx, migrations).await?;
        tx.commit().await
    }

    /// Whether every step was done: a database that takes no writes is then used as it is.
    async fn is_current(&self, migrations: &[Migration]) -> Result<bool, StoreError> {
        let rows = match self.read("SELECT domain, version FROM migration", args![]).await {
            Err(error) if error.is_missing_table() => return Ok(false),
            rows => rows?,
        };
        let mut found = HashMap::new();
        for row in &rows {
            found.insert(row.text("domain")?, row.int("version")?);
        }
        let is_done = |step: &Migration| found.get(step.domain).is_some_and(|&done| done >= step.version);
        // A newer one is named by the steps.
        let is_newest = |(domain, version): (&String, &i64)| {
            let mut own = migrations.iter().filter(|step| step.domain == domain).peekable();
            own.peek().is_none() || own.any(|step| step.version >= *version)
        };
        Ok(!found.contains_key(RESTORING) && migrations.iter().all(is_done) && found.iter().all(is_newest))
    }
}

/// Has whoever else changes the schema wait for the end of this transaction.
pub(crate) async fn lock(tx: &mut Tx) -> Result<(), StoreError> {
    if tx.is_postgres() {
        // Its answer is of type VOID, which no row of ours can hold: it is not read.
        tx.execute("SELECT pg_advisory_xact_lock($1)", args![MIGRATION_LOCK])
            .await?;
    }
    Ok(())
}

/// The table that says which steps were done.
pub(crate) async fn create_table(tx: &mut Tx) -> Result<(), StoreError> {
    tx.script(
        "CREATE TABLE IF NOT EXISTS migration (domain TEXT PRIMARY KEY, version BIGINT NOT NULL)".to_owned(),
    )
    .await
}

/// Does the steps that were not done.
pub(crate) async fn steps(tx: &mut Tx, migrations: &[Migration]) -> Result<(), StoreError> {
    let mut domains: Vec<&'static str> = migrations.iter().map(|migration| migration.domain).collect();
    domains.dedup();
    for domain in domains {
        let row = tx
            .read_one("SELECT version FROM migration WHERE domain = $1", args![domain])
            .await?;
        let found = row.map_or(Ok(0), |row| row.int("version"))?;
        let own = || migrations.iter().filter(|migration| migration.domain == domain);
        let known = own().map(|migration| migration.version).max().unwrap_or(0);
        if found > known {
            return Err(StoreError::Newer { domain, found, known });
        }
        for migration in own().filter(|migration| migration.version > found) {
            let blob = if tx.is_postgres() { "BYTEA" } else { "BLOB" };
            tx.script(migration.sql.replace("{blob}", blob)).await?;
        }
        tx.execute(
            "INSERT INTO migration (domain, version) VALUES ($1, $2) \
             ON CONFLICT (domain) DO UPDATE SET version = excluded.version",
            args![domain, known],
        )
        .await?;
    }
    Ok(())
}
