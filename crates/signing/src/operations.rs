//! Work that somebody asked for and does not wait for.
//!
//! An operation is a request and, later, its answer, both durable. Whoever answers 202 has stored it: the server that
//! took it works on it, and if that server dies another one, or the same after its start, takes it over when its claim
//! has ended. To do it twice does no harm, because to sign is idempotent: what was signed is answered from the store.
//!
//! There is an end to what is accepted, for each project and for all, since nothing of it is dropped; and to what a server
//! works on at once, which is what takes memory. Projects take turns, and none has more than its share under way, so that
//! one whose quota makes its operations last for days holds up no other.

use std::sync::Arc;
use std::time::Duration;

use access::Context;
use flow::FlowError;
use kernel::{Clock, Id, Random};
use store::{Db, Migration, Row, args};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::SigningError;

/// How long a claim lasts that is not renewed; clocks of servers that share a database may differ by less.
const CLAIM_SECONDS: i64 = 15;
/// How often a claim is renewed, and looked for work that nobody works on.
pub const ROUND: Duration = Duration::from_secs(5);
/// How long the answer of a finished operation is kept.
const KEPT_HOURS: i64 = 24;
/// Images of operations that are not finished, of one project and of all: 32 and 256 of the largest, of 150 kB each.
const PROJECT_IMAGES_MAX: i64 = 32_000;
const IMAGES_MAX: i64 = 256_000;
/// Images of the operations that a server works on at once, at about half a kilobyte each.
const RUNNING_IMAGES_MAX: usize = 128_000;
/// An operation of a project is begun while those of it that are under way, on all servers, have no more images than this.
const SHARE_IMAGES_MAX: i64 = 4_000;
/// Operations that are begun at once.
const BEGUN_MAX: usize = 64;

pub(crate) const MIGRATION: Migration = Migration {
    domain: "signing",
    version: 3,
    sql: "CREATE TABLE operation (
            id TEXT PRIMARY KEY, project TEXT NOT NULL, asker TEXT NOT NULL, request TEXT NOT NULL,
            created_at BIGINT NOT NULL, claimed_until BIGINT NOT NULL, finished_at BIGINT, answer TEXT
          );
          CREATE INDEX operation_open ON operation (claimed_until) WHERE finished_at IS NULL;",
};

pub(crate) const SHARES_MIGRATION: Migration = Migration {
    domain: "signing",
    version: 8,
    sql: "ALTER TABLE operation ADD COLUMN images BIGINT NOT NULL DEFAULT 1;",
};

/// Operations in the database. Cheap to clone.
#[derive(Clone)]
pub struct Operations {
    db: Db,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    /// One for each image of an operation that this server could work on besides.
    room: Arc<Semaphore>,
}

/// What is accepted and not finished, of all servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Open {
    pub operations: u64,
    /// How long the oldest has been.
    pub oldest: Duration,
}

/// One operation.
#[derive(Debug, Clone)]
pub struct Operation {
    pub id: Id,
    /// Who asked, as [`Context::to_json`] writes it.
    pub asker: String,
    /// What was asked, as its domain writes it.
    pub request: String,
    /// How many it is about.
    pub images: i64,
    /// Microseconds since 1970.
    pub created_at: i64,
    pub finished_at: Option<i64>,
    /// What came of it, as its domain writes it; when it is finished.
    pub answer: Option<String>,
}

impl Operations {
    #[must_use]
    pub fn new(db: Db, clock: Arc<dyn Clock>, random: Arc<dyn Random>) -> Self {
        let room = Arc::new(Semaphore::new(RUNNING_IMAGES_MAX));
        Self {
            db,
            clock,
            random,
            room,
        }
    }

    /// Stores what is to be done; from here on it will be done, by whoever [begins](Self::begin) it.
    ///
    /// # Errors
    /// If too much of the project's, or of all projects', is not finished, or the database refuses; then nothing was accepted.
    pub async fn accept(
        &self,
        context: &Context,
        request: String,
        images: usize,
    ) -> Result<Operation, SigningError> {
        let now = self.clock.now_us();
        let images = i64::try_from(images).unwrap_or(i64::MAX);
        let operation = Operation {
            id: Id::new("op", &*self.clock, &*self.random),
            asker: context.to_json(),
            request,
            images,
            created_at: now,
            finished_at: None,
            answer: None,
        };
        let mut tx = self.db.begin().await?;
        let sql = "SELECT COUNT(*) AS n, CAST(COALESCE(SUM(images), 0) AS BIGINT) AS images, \
                     CAST(COALESCE(SUM(CASE WHEN project = $1 THEN 1 ELSE 0 END), 0) AS BIGINT) AS own_n, \
                     CAST(COALESCE(SUM(CASE WHEN project = $1 THEN images ELSE 0 END), 0) AS BIGINT) AS own \
                   FROM operation WHERE finished_at IS NULL";
        if let Some(row) = tx.read_one(sql, args![context.project.as_str()]).await? {
            let waiting = |name: &str| row.int(name).map(|n| usize::try_from(n).unwrap_or_default());
            let what = "the end of an operation".to_owned();
            if row.int("own")?.saturating_add(images) > PROJECT_IMAGES_MAX {
                let (project, waiting) = (context.project.to_string(), waiting("own_n")?);
                return Err(FlowError::Project {
                    project,
                    what,
                    waiting,
                }
                .into());
            }
            if row.int("images")?.saturating_add(images) > IMAGES_MAX {
                return Err(FlowError::Full {
                    what,
                    waiting: waiting("n")?,
                }
                .into());
            }
        }
        let sql = "INSERT INTO operation (id, project, asker, request, images, created_at, claimed_until) \
                   VALUES ($1, $2, $3, $4, $5, $6, 0)";
        let args = args![
            &operation.id,
            context.project.as_str(),
            &operation.asker,
            &operation.request,
            images,
            now
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
        let sql = "SELECT id, asker, request, images, created_at, finished_at, answer FROM operation \
                   WHERE id = $1 AND project = $2";
        let row = self.db.read_one(sql, args![id, context.project.as_str()]).await?;
        let row = row.ok_or_else(|| SigningError::NoOperation(id.chars().take(60).collect()))?;
        operation_of(&row)
    }

    /// Claims some of what nobody works on, as far as this server has room: projects in turns, and of none more than its
    /// share. The room is given back when what comes with an operation is dropped.
    ///
    /// # Errors
    /// If the database refuses.
    pub async fn begin(&self) -> Result<Vec<(Operation, OwnedSemaphorePermit)>, SigningError> {
        let largest = kernel::limits::BATCH_ITEMS_MAX;
        let room = (self.room.available_permits() / largest).min(BEGUN_MAX);
        if room == 0 {
            return Ok(Vec::new());
        }
        let now = self.clock.now_us();
        let mut tx = self.db.begin().await?;
        // `before` is what of the same project is under way, or comes before it.
        let sql = "UPDATE operation SET claimed_until = $1 WHERE finished_at IS NULL AND claimed_until < $2 AND id IN \
                   (SELECT id FROM (SELECT id, claimed_until, SUM(images) OVER (PARTITION BY project \
                      ORDER BY CASE WHEN claimed_until < $2 THEN 1 ELSE 0 END, id) - images AS before \
                    FROM operation WHERE finished_at IS NULL) o \
                    WHERE claimed_until < $2 AND before <= CAST($3 AS BIGINT) ORDER BY before, id LIMIT $4) \
                   RETURNING id, asker, request, images, created_at, finished_at, answer";
        let args = args![
            claim(now),
            now,
            SHARE_IMAGES_MAX,
            i64::try_from(room).unwrap_or(i64::MAX)
        ];
        let rows = tx.read(sql, args).await?;
        tx.commit().await?;
        let mut begun = Vec::with_capacity(rows.len());
        for row in &rows {
            let operation = operation_of(row)?;
            let images = u32::try_from(operation.images).unwrap_or(u32::MAX);
            // Who comes at the same time may have taken it: then its claim ends, and somebody begins it.
            if let Ok(room) = self.room.clone().try_acquire_many_owned(images) {
                begun.push((operation, room));
            }
        }
        Ok(begun)
    }

    /// Forgets what has been finished for a day.
    ///
    /// # Errors
    /// If the database refuses.
    pub async fn forget(&self) -> Result<(), SigningError> {
        let before = self.clock.now_us().saturating_sub(KEPT_HOURS * 3_600_000_000);
        let mut tx = self.db.begin().await?;
        tx.execute("DELETE FROM operation WHERE finished_at < $1", args![before])
            .await?;
        Ok(tx.commit().await?)
    }

    /// What is not finished.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn open(&self) -> Result<Open, SigningError> {
        let sql = "SELECT COUNT(*) AS n, MIN(created_at) AS oldest FROM operation WHERE finished_at IS NULL";
        let Some(row) = self.db.read_one(sql, Vec::new()).await? else {
            return Ok(Open::default());
        };
        let age = row
            .opt_int("oldest")?
            .map(|oldest| self.clock.now_us().saturating_sub(oldest));
        Ok(Open {
            operations: u64::try_from(row.int("n")?).unwrap_or_default(),
            oldest: Duration::from_micros(age.and_then(|age| u64::try_from(age).ok()).unwrap_or_default()),
        })
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
        images: row.int("images")?,
        created_at: row.int("created_at")?,
        finished_at: row.opt_int("finished_at")?,
        answer: row.opt_text("answer")?,
    })
}
