//! The last good checkpoint of a log outside, which all servers on one database share.
//!
//! Each server looks for itself, perhaps through another name server. Were each to remember only what it saw, two could
//! believe two copies of one log for good. So a look is held against what any server saw well before it began, and counts
//! only once it has moved that on by compare-and-swap:
//!
//! ```text
//!   read the mark ─▶ ask the log ─▶ hold it against the mark ─▶ replace the mark, if it still says the same ─▶ found well
//! ```
//!
//! A log that changed on purpose contradicts the mark for ever. A person who has looked has it forgotten, by all servers:
//! the number of times is part of the mark, and a server that remembers fewer forgets too.

use access::audit::{self, Record};
use access::{AccessError, Action, Context};
use jiff::Timestamp;
use kernel::{Clock, Random};
use store::{Db, StoreError, args};

use crate::log::Seen;
use crate::loss;
use crate::marks::{self, Marks};

/// What all servers know of the log.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Known {
    /// The last good checkpoint; none where nobody has looked yet, or not since it was forgotten.
    #[serde(flatten)]
    pub seen: Option<Seen>,
    /// How often a person has had it forgotten.
    #[serde(default)]
    pub forgotten: u64,
}

/// What the mark said when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    pub known: Known,
    /// In its own bytes; none where there is no mark.
    text: Option<String>,
}

impl Read {
    fn of(text: Option<String>) -> Self {
        // A mark that does not read is none; it is replaced by the next good look.
        let known = text.as_deref().and_then(|text| serde_json::from_str(text).ok());
        Self {
            known: known.unwrap_or_default(),
            text,
        }
    }
}

/// The mark of one log. Cheap to clone.
#[derive(Clone)]
pub struct LogMark {
    db: Db,
    name: String,
}

impl LogMark {
    /// The log is known by `id`, the hash of its key: of another log nothing is remembered.
    #[must_use]
    pub fn new(marks: &Marks, id: &str) -> Self {
        Self {
            db: marks.db.clone(),
            name: format!("external-log {id}"),
        }
    }

    /// # Errors
    /// If the database does not answer.
    pub async fn read(&self) -> Result<Read, StoreError> {
        marks::read(&self.db, &self.name).await.map(Read::of)
    }

    /// Writes `known` where the mark still says what was `read`; whether it did.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn replace(&self, read: &Read, known: &Known, now: Timestamp) -> Result<bool, StoreError> {
        let mark = serde_json::to_string(known).unwrap_or_default();
        if read.text.as_ref() == Some(&mark) {
            return Ok(true);
        }
        let (sql, mut values) = match &read.text {
            None => (
                "INSERT INTO probe_mark (name, mark, written_at) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING",
                args![&self.name, &mark, now.as_microsecond()],
            ),
            Some(_) => (
                "UPDATE probe_mark SET mark = $2, written_at = $3 WHERE name = $1 AND mark = $4",
                args![&self.name, &mark, now.as_microsecond()],
            ),
        };
        if let Some(text) = &read.text {
            values.extend(args![text]);
        }
        let mut tx = self.db.begin().await?;
        let changed = tx.execute(sql, values).await?;
        tx.commit().await?;
        Ok(changed > 0)
    }

    /// Has all servers forget the last good checkpoint, with the audit record: what the next look of any of them finds is
    /// the log. `found` is what answers there now. The answer is what is forgotten.
    ///
    /// # Errors
    /// [`AccessError::NotFound`] if nothing is remembered, [`AccessError::Invalid`] for no reason or one that is too long,
    /// and whoever is not the whole server's administrator may not.
    pub async fn forget(
        &self,
        context: &Context,
        found: &str,
        reason: &str,
        clock: &dyn Clock,
        random: &dyn Random,
    ) -> Result<Seen, AccessError> {
        context.require(Action::ManageDependencies)?;
        let reason = loss::reason(reason)?;
        let mut tx = self.db.begin().await?;
        let sql = "SELECT mark FROM probe_mark WHERE name = $1";
        let row = tx.read_one(sql, args![&self.name]).await?;
        let known = Read::of(row.map(|row| row.text("mark")).transpose()?).known;
        let Some(seen) = known.seen else {
            return Err(AccessError::NotFound {
                what: access::LOSS,
                name: "external-log".to_owned(),
            });
        };
        let known = Known {
            seen: None,
            forgotten: known.forgotten + 1,
        };
        let mark = serde_json::to_string(&known).unwrap_or_default();
        let now = clock.now();
        tx.execute(
            "UPDATE probe_mark SET mark = $1, written_at = $2 WHERE name = $3",
            args![mark, now.as_microsecond(), &self.name],
        )
        .await?;
        let detail = format!("forgotten: {}; found: {found}: {reason}", seen.described());
        let record = Record {
            action: "dependency.acknowledge",
            resource: "external-log",
            detail: &detail,
        };
        audit::record(&mut tx, context, clock, random, record).await?;
        tx.commit().await?;
        Ok(seen)
    }
}
