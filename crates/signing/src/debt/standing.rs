//! How the debt stands.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use store::{Db, args};

use crate::SigningError;
use crate::ports::ExternalLogError;

/// Over how many seconds the speed of paying is told.
const SPEED_SECONDS: u32 = 5;
/// Entries with a trouble of their own that are named, of each sort.
const NAMED_MAX: u32 = 20;
/// They are found among so many, the oldest of all projects: of each, its row is read.
const SEARCHED_MAX: u32 = 10_000;

/// The debt of all servers together, as the database has it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Standing {
    /// Entries that the log has yet to get.
    pub owed: u64,
    /// How long the oldest of them has been owed.
    pub oldest: Duration,
    /// Entries that are in the log, and whose evidence is not at the images yet.
    pub unpublished: u64,
    /// How long ago the oldest of these came into the log.
    pub oldest_unpublished: Duration,
    /// Entries that the log refused.
    pub refused: u64,
    /// Entries that were paid in a second, over the last five seconds.
    pub paid_per_second: f64,
    /// What last went wrong with the entry that is owed the longest; empty if nothing did.
    pub last_error: String,
}

/// An entry with a trouble of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Troubled {
    /// The signature's id.
    pub signature: String,
    pub why: String,
}

/// What this server has paid since its start. Counts that only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    pub paid: u64,
    /// By [`ExternalLogError::REASONS`].
    pub failures: [u64; ExternalLogError::REASONS.len()],
}

/// What is counted while it is paid.
#[derive(Default)]
pub(crate) struct Debts {
    paid: AtomicU64,
    failures: [AtomicU64; ExternalLogError::REASONS.len()],
}

impl Debts {
    pub(super) fn count_paid(&self) {
        self.paid.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_failure(&self, error: &ExternalLogError) {
        let at = ExternalLogError::REASONS
            .iter()
            .position(|word| *word == error.reason());
        if let Some(count) = at.and_then(|at| self.failures.get(at)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn tally(&self) -> Tally {
        let mut failures = [0; ExternalLogError::REASONS.len()];
        for (to, from) in failures.iter_mut().zip(&self.failures) {
            *to = from.load(Ordering::Relaxed);
        }
        Tally {
            paid: self.paid.load(Ordering::Relaxed),
            failures,
        }
    }
}

/// Reads how the debt stands.
pub(super) async fn standing(db: &Db, now_us: i64) -> Result<Standing, SigningError> {
    let sql = "SELECT state, COUNT(*) AS n, MIN(since) AS oldest FROM external_debt \
               WHERE state IN ('owed', 'logged', 'refused') GROUP BY state";
    let mut standing = Standing::default();
    let age = |since: i64| {
        let age = now_us.saturating_sub(since);
        Duration::from_micros(u64::try_from(age).unwrap_or(0))
    };
    for row in db.read(sql, Vec::new()).await? {
        let count = u64::try_from(row.int("n")?).unwrap_or(0);
        match row.text("state")?.as_str() {
            "owed" => {
                standing.owed = count;
                standing.oldest = age(row.int("oldest")?);
            }
            "logged" => standing.unpublished = count,
            _ => standing.refused = count,
        }
    }
    let sql = "SELECT logged_at FROM external_debt WHERE state = 'logged' AND logged_at IS NOT NULL \
               ORDER BY logged_at LIMIT 1";
    if let Some(row) = db.read_one(sql, Vec::new()).await? {
        standing.oldest_unpublished = age(row.int("logged_at")?);
    }
    let since = now_us.saturating_sub(i64::from(SPEED_SECONDS) * 1_000_000);
    let sql =
        "SELECT COUNT(*) AS n FROM external_debt WHERE state IN ('logged', 'published') AND logged_at > $1";
    if let Some(row) = db.read_one(sql, args![since]).await? {
        let paid = u32::try_from(row.int("n")?).unwrap_or(u32::MAX);
        standing.paid_per_second = f64::from(paid) / f64::from(SPEED_SECONDS);
    }
    let sql =
        "SELECT last_error FROM external_debt WHERE state = 'owed' ORDER BY since, signature_id LIMIT 1";
    if let Some(row) = db.read_one(sql, Vec::new()).await? {
        standing.last_error = row.text("last_error")?;
    }
    Ok(standing)
}

/// The oldest entries of a project that the log refused.
pub(super) async fn refused(db: &Db, project: &str) -> Result<Vec<Troubled>, SigningError> {
    troubled(db, "refused", project).await
}

/// The oldest entries of a project whose evidence was tried to be published, and was not.
pub(super) async fn unpublished(db: &Db, project: &str) -> Result<Vec<Troubled>, SigningError> {
    troubled(db, "logged", project).await
}

async fn troubled(db: &Db, state: &str, project: &str) -> Result<Vec<Troubled>, SigningError> {
    let sql = "SELECT d.signature_id, d.last_error \
               FROM (SELECT signature_id, since, last_error FROM external_debt WHERE state = $1 \
                 ORDER BY since, signature_id LIMIT $2) d JOIN signature s ON s.id = d.signature_id \
               WHERE d.last_error <> '' AND s.project = $3 ORDER BY d.since, d.signature_id LIMIT $4";
    let rows = db
        .read(sql, args![state, SEARCHED_MAX, project, NAMED_MAX])
        .await?;
    let troubled = |row: &store::Row| {
        Ok(Troubled {
            signature: row.text("signature_id")?,
            why: row.text("last_error")?,
        })
    };
    rows.iter().map(troubled).collect()
}
