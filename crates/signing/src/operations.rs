//! Work that somebody asked for and does not wait for.
//!
//! An operation is a request and, later, its answer, both durable. Whoever answers 202 has stored it: the server that
//! took it works on it, and if that server dies another one, or the same after its start, takes it over when its claim
//! has ended. To do it twice does no harm, because to sign is idempotent: what was signed is answered from the store.

use std::sync::Arc;
use std::time::Duration;

use access::Context;
use kernel::{Clock, Id, Random};
use store::{Db, Migration, Row, args};

use crate::SigningError;

/// How long a claim lasts that is not renewed; clocks of servers that share a database may differ by less.
const CLAIM_SECONDS: i64 = 15;
/// How often a claim is renewed, and looked for work that nobody works on.
pub const ROUND: Duration = Duration::from_secs(5);
/// How long the answer of a finished operation is kept.
const KEPT_HOURS: i64 = 24;
/// Operations that are taken over in one round.
const TAKEN_MAX: i64 = 16;

pub(crate) const MIGRATION: Migration = Migration {
    domain: "signing",
    version: 3,
    sql: "CREATE TABLE operation (
            id TEXT PRIMARY KEY, project TEXT NOT NULL, asker TEXT NOT NULL, request TEXT NOT NULL,
            created_at BIGINT NOT NULL, claimed_until BIGINT NOT NULL, finished_at BIGINT, answer TEXT
          );
          CREATE INDEX operation_open ON operation (claimed_until) WHERE finished_at IS NULL;",
};

/// Operations in the database. Cheap to clone.
#[derive(Clone)]
pub struct Operations {
    db: Db,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
}

/// One operation.
#[derive(Debug, Clone)]
pub struct Operation {
    pub id: Id,
    /// Who asked, as [`Context::to_json`] writes it.
    pub asker: String,
    /// What was asked, as its domain writes it.
    pub request: String,
    /// Microseconds since 1970.
    pub created_at: i64,
    pub finished_at: Option<i64>,
    /// What came of it, as its domain writes it; when it is finished.
    pub answer: Option<String>,
}

impl Operations {
    #[must_use]
    pub fn new(db: Db, clock: Arc<dyn Clock>, random: Arc<dyn Random>) -> Self {
        Self { db, clock, random }
    }

    /// Stores what is to be done; from here on it will be done.
    ///
    /// # Errors
    /// If the database refuses; then nothing was accepted.
    pub async fn accept(&self, context: &Context, request: String) -> Result<Operation, SigningError> {
        let now = self.clock.now_us();
        let operation = Operation {
            id: Id::new("op", &*self.clock, &*self.random),
            asker: context.to_json(),
            request,
            created_at: now,
            finished_at: None,
            answer: None,
        };
        let mut tx = self.db.begin().await?;
        let sql = "INSERT INTO operation (id, project, asker, request, created_at, claimed_until) \
                   VALUES ($1, $2, $3, $4, $5, $6)";
        let args = args![
            &operation.id,
            context.project.as_str(),
            &operation.asker,
            &operation.request,
            now,
            claim(now)
        ];
        tx.execute(sql, args).await?;
        tx.commit().await?;
        Ok(operation)
    }

    /// Keeps others from taking it over.
    ///
    /// # Errors
    /// If the database refuses.
    pub async fn renew(&self, id: &Id) -> Result<(), SigningError> {
        let mut tx = self.db.begin().await?;
        let sql = "UPDATE operation SET claimed_until = $1 WHERE id = $2 AND finished_at IS NULL";
        tx.execute(sql, args![claim(self.clock.now_us()), id]).await?;
        Ok(tx.commit().await?)
    }

    /// Stores what came of it. The first answer stays.
    ///
    /// # Errors
    /// If the database refuses; it is then done again when its claim has ended.
    pub async fn finish(&self, id: &Id, answer: &str) -> Result<(), SigningError> {
        let mut tx = self.db.begin().await?;
        let sql = "UPDATE operation SET finished_at = $1, answer = $2 WHERE id = $3 AND finished_at IS NULL";
        tx.execute(sql, args![self.clock.now_us(), answer, id]).await?;
        Ok(tx.commit().await?)
    }

    /// One operation of the project.
    ///
    /// # Errors
    /// [`SigningError::NoOperation`] if the project has none of that id.
    pub async fn get(&self, context: &Context, id: &str) -> Result<Operation, SigningError> {
        let sql = "SELECT id, asker, request, created_at, finished_at, answer FROM operation \
                   WHERE id = $1 AND project = $2";
        let row = self.db.read_one(sql, args![id, context.project.as_str()]).await?;
        let row = row.ok_or_else(|| SigningError::NoOperation(id.chars().take(60).collect()))?;
        operation_of(&row)
    }

    /// Takes over what nobody works on, and forgets what has been finished for a day.
    ///
    /// # Errors
    /// If the database refuses.
    pub async fn take_over(&self) -> Result<Vec<Operation>, SigningError> {
        let now = self.clock.now_us();
        let mut tx = self.db.begin().await?;
        tx.execute(
            "DELETE FROM operation WHERE finished_at < $1",
            args![now.saturating_sub(KEPT_HOURS * 3_600_000_000)],
        )
        .await?;
        let sql = "UPDATE operation SET claimed_until = $1 WHERE id IN \
                   (SELECT id FROM operation WHERE finished_at IS NULL AND claimed_until < $2 ORDER BY id LIMIT $3) \
                   AND claimed_until < $2 \
                   RETURNING id, asker, request, created_at, finished_at, answer";
        let rows = tx.read(sql, args![claim(now), now, TAKEN_MAX]).await?;
        tx.commit().await?;
        rows.iter().map(operation_of).collect()
    }
}

fn claim(now_us: i64) -> i64 {
    now_us.saturating_add(CLAIM_SECONDS * 1_000_000)
}

fn operation_of(row: &Row) -> Result<Operation, SigningError> {
    Ok(Operation {
        id: row
            .text("id")?
            .parse()
            .map_err(|_| SigningError::Row("operation id".to_owned()))?,
        asker: row.text("asker")?,
        request: row.text("request")?,
        created_at: row.int("created_at")?,
        finished_at: row.opt_int("finished_at")?,
        answer: row.opt_text("answer")?,
    })
}
