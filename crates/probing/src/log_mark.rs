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
//! A log that changed on purpose contradicts the mark for ever. A person who has looked has the servers take what one of
//! them found for the log from now on. How often that was done is part of the mark, and a server that knows of fewer
//! times drops what it remembers.

use std::sync::{Arc, Mutex, PoisonError};

use access::audit::{self, Record};
use access::{AccessError, Action, Context};
use jiff::Timestamp;
use kernel::{Clock, Random};
use store::{Db, StoreError, args};

use crate::log::Seen;
use crate::marks::{self, Marks};

/// What all servers know of the log.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Known {
    /// The last good checkpoint; none where nobody has looked yet.
    #[serde(flatten)]
    pub seen: Option<Seen>,
    /// How often a person has had another one taken for the log.
    #[serde(default)]
    pub taken: u64,
}

/// What the mark said when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    pub known: Known,
    /// In its own bytes; none where there is no mark.
    text: Option<String>,
}

/// Why a mark is not known.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the database does not answer in time")]
    Late,
    /// Whoever trusted what comes next would trust anything.
    #[error("the row {0:?} of table probe_mark does not read")]
    Damaged(String),
}

/// The mark of one log. Cheap to clone.
#[derive(Clone)]
pub struct LogMark {
    db: Db,
    name: String,
    /// What this server found last that contradicts the mark.
    contradicts: Arc<Mutex<Option<Seen>>>,
}

impl LogMark {
    /// The log is known by `id`, the hash of its key: of another log nothing is remembered.
    #[must_use]
    pub fn new(marks: &Marks, id: &str) -> Self {
        Self {
            db: marks.db.clone(),
            name: format!("external-log {id}"),
            contradicts: Arc::default(),
        }
    }

    /// Notes what a look found: a checkpoint by the log's key that contradicts the mark, or nothing of that sort.
    pub fn found(&self, contradicts: Option<Seen>) {
        *self.contradicts.lock().unwrap_or_else(PoisonError::into_inner) = contradicts;
    }

    fn read_of(&self, text: Option<String>) -> Result<Read, MarkError> {
        let damaged = || MarkError::Damaged(self.name.clone());
        let known = match text.as_deref() {
            None => Known::default(),
            Some(text) => serde_json::from_str(text).map_err(|_| damaged())?,
        };
        // A field that does not read makes all of it none.
        if text.is_some() && known.seen.as_ref().is_none_or(|seen| seen.note.is_empty()) {
            return Err(damaged());
        }
        Ok(Read { known, text })
    }

    /// # Errors
    /// If the database does not answer, or the mark is damaged.
    pub async fn read(&self) -> Result<Read, MarkError> {
        self.read_of(marks::read(&self.db, &self.name).await?)
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

    /// Has all servers take the checkpoint that this server found last for the log from now on, with the audit record. The
    /// answer is what was seen before, in words, and what is taken.
    ///
    /// # Errors
    /// [`AccessError::NotFound`] if nothing that was found contradicts the mark, [`AccessError::Invalid`] for no reason or
    /// one that is too long, and whoever is not the whole server's administrator may not.
    pub async fn take(
        &self,
        context: &Context,
        reason: &str,
        clock: &dyn Clock,
        random: &dyn Random,
    ) -> Result<(String, Seen), AccessError> {
        context.require(Action::ManageDependencies)?;
        let reason = audit::reason(reason)?;
        let found = self
            .contradicts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let Some(found) = found else {
            return Err(AccessError::NotFound {
                what: access::LOSS,
                name: "external-log".to_owned(),
            });
        };
        let mut tx = self.db.begin().await?;
        let sql = "SELECT mark FROM probe_mark WHERE name = $1";
        let row = tx.read_one(sql, args![&self.name]).await?;
        let before = self.read_of(row.map(|row| row.text("mark")).transpose()?);
        // One that is damaged is put right by this, with a number that is above all that servers know of.
        let (seen, taken) = match before {
            Ok(read) => (read.known.seen, read.known.taken),
            Err(MarkError::Store(error)) => return Err(error.into()),
            Err(_) => (None, clock.now().as_second().unsigned_abs()),
        };
        let known = Known {
            seen: Some(found.clone()),
            taken: taken + 1,
        };
        let mark = serde_json::to_string(&known).unwrap_or_default();
        marks::write(&mut tx, &self.name, &mark, clock.now()).await?;
        let seen = seen.map_or_else(|| "nothing that reads".to_owned(), |seen| seen.described());
        let detail = format!("seen: {seen}; taken: {}: {reason}", found.described());
        let record = Record {
            action: "dependency.acknowledge",
            resource: "external-log",
            detail: &detail,
        };
        audit::record(&mut tx, context, clock, random, record).await?;
        tx.commit().await?;
        self.found(None);
        Ok((seen, found))
    }
}
