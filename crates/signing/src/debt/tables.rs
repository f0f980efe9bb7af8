//! What is owed, in the database.

use std::collections::{BTreeMap, BTreeSet};

use kernel::{Digest, Id};
use store::{Db, Migration, Row, Tx, args};

use crate::SigningError;
use crate::format::dsse;
use crate::key::PublicKey;
use crate::ports::{LoggedEntry, NewEntry};

pub(crate) const MIGRATION: Migration = Migration {
    domain: "signing",
    version: 4,
    // `images` counts the images that the signature was finished for: who has published to all of them writes so only
    // if none came meanwhile.
    sql: "CREATE TABLE external_debt (
            signature_id TEXT PRIMARY KEY REFERENCES signature (id),
            state TEXT NOT NULL, images BIGINT NOT NULL, since BIGINT NOT NULL,
            attempts BIGINT NOT NULL, next_at BIGINT NOT NULL, last_error TEXT NOT NULL,
            log_index BIGINT, evidence TEXT, logged_at BIGINT, published_at BIGINT
          );
          CREATE INDEX external_debt_state ON external_debt (state, since, signature_id);
          CREATE INDEX external_debt_logged ON external_debt (logged_at) WHERE logged_at IS NOT NULL;",
};

pub(crate) const PLACES_MIGRATION: Migration = Migration {
    domain: "signing",
    version: 5,
    sql: "CREATE INDEX external_debt_place ON external_debt (log_index) WHERE log_index IS NOT NULL;",
};

pub(crate) const DUE_MIGRATION: Migration = Migration {
    domain: "signing",
    version: 6,
    // Not of one state alone: SQLite would take the index of all states before such a one.
    sql: "CREATE INDEX external_debt_due ON external_debt (state, next_at, signature_id);",
};

pub(crate) const AGAIN_MIGRATION: Migration = Migration {
    domain: "signing",
    version: 7,
    // `last_index` is where the log had the entry before it was owed again. What was finished at `registry` up to `until`
    // gets no evidence any more. The table is locked for readers only at the end.
    sql: "CREATE INDEX external_debt_paid ON external_debt (state, logged_at) WHERE logged_at IS NOT NULL;
          CREATE TABLE given_up_registry (registry TEXT PRIMARY KEY, until BIGINT NOT NULL);
          DROP INDEX external_debt_logged;
          ALTER TABLE external_debt ADD COLUMN last_index BIGINT;",
};

/// An entry that the log has yet to get.
pub(super) struct Owed {
    pub id: String,
    /// When it is due, in microseconds since 1970.
    pub next_at: i64,
    pub attempts: u32,
    /// Where the log had it, if it is owed again.
    pub last_index: Option<u64>,
    /// What is wrong, where the entry cannot be made of what is stored.
    pub entry: Result<NewEntry, String>,
}

/// A signature of an image that is owed, or in the log and not published yet.
#[derive(Debug, Clone)]
pub(crate) struct Owing {
    /// Of the statement's envelope.
    pub signature: Vec<u8>,
    /// Microseconds since 1970.
    pub since_us: i64,
    pub state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Owed,
    Logged,
    Refused,
}

/// What came of one entry.
pub(super) enum Outcome {
    Logged(LoggedEntry),
    Not(Unlogged),
}

/// Why an entry is not in the log.
pub(super) enum Unlogged {
    Refused(String),
    /// The log is away, or what it answered is not believed: the entry's own turn does not change.
    Away(String),
    /// Something is wrong with this entry alone, which is tried again at this time.
    PutOff(String, i64),
}

/// Owes what was finished in this transaction: each signature, and how many images of it.
pub(crate) async fn owe(tx: &mut Tx, finished: &BTreeMap<&Id, i64>, now_us: i64) -> Result<(), SigningError> {
    for (id, images) in finished {
        tx.execute(
            "INSERT INTO external_debt (signature_id, state, images, since, attempts, next_at, last_error) \
             VALUES ($1, 'owed', $2, $3, 0, $3, '') \
             ON CONFLICT (signature_id) DO UPDATE SET images = external_debt.images + excluded.images, \
               state = CASE WHEN external_debt.state = 'published' THEN 'logged' ELSE external_debt.state END",
            args![*id, *images, now_us],
        )
        .await?;
    }
    Ok(())
}

/// What is owed again.
#[derive(Debug, Clone, Copy)]
pub(super) enum Again {
    Refused,
    /// What the log has had from one time until another, in microseconds since 1970.
    Paid {
        since_us: i64,
        until_us: i64,
    },
}

/// When the log got the newest entry that it has: whoever owes paid entries again looks no further, by no clock but that of
/// who paid.
pub(super) async fn last_paid(db: &Db) -> Result<i64, SigningError> {
    let mut last = i64::MIN;
    for state in ["logged", "published"] {
        let sql = "SELECT logged_at FROM external_debt WHERE state = $1 AND logged_at IS NOT NULL \
                   ORDER BY logged_at DESC LIMIT 1";
        if let Some(row) = db.read_one(sql, args![state]).await? {
            last = last.max(row.int("logged_at")?);
        }
    }
    Ok(last)
}

/// Owes some entries again, in every project; how many. What was paid is owed as if from now on, and what is at the images
/// of an earlier answer stays there. The log has each entry once, whatever it said.
pub(super) async fn owe_again(
    tx: &mut Tx,
    again: Again,
    now_us: i64,
    limit: u32,
) -> Result<u64, SigningError> {
    let (sql, args) = match again {
        Again::Refused => (
            "UPDATE external_debt SET state = 'owed', attempts = 0, next_at = $1, last_error = '' \
             WHERE signature_id IN (SELECT signature_id FROM external_debt WHERE state = 'refused' LIMIT $2)",
            args![now_us, limit],
        ),
        Again::Paid { since_us, until_us } => (
            "UPDATE external_debt SET state = 'owed', since = $1, attempts = 0, next_at = $1, last_error = '', \
               last_index = log_index, log_index = NULL, evidence = NULL, logged_at = NULL, published_at = NULL \
             WHERE signature_id IN (SELECT signature_id FROM external_debt \
               WHERE state IN ('logged', 'published') AND logged_at >= $2 AND logged_at <= $3 LIMIT $4)",
            args![now_us, since_us, until_us, limit],
        ),
    };
    Ok(tx.execute(sql, args).await?)
}

/// How many entries would be owed again.
pub(super) async fn count(db: &Db, again: Again) -> Result<u64, SigningError> {
    let (sql, args) = match again {
        Again::Refused => (
            "SELECT COUNT(*) AS n FROM external_debt WHERE state = 'refused'",
            Vec::new(),
        ),
        Again::Paid { since_us, until_us } => (
            "SELECT COUNT(*) AS n FROM external_debt \
             WHERE state IN ('logged', 'published') AND logged_at >= $1 AND logged_at <= $2",
            args![since_us, until_us],
        ),
    };
    let row = db.read_one(sql, args).await?;
    let count = row.map_or(Ok(0), |row| row.int("n"))?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// Entries that may be sent, what is due the longest first, of those after `after` (when it is due, and the signature's
/// id).
pub(super) async fn owed(
    db: &Db,
    now_us: i64,
    after: &(i64, String),
    limit: usize,
) -> Result<Vec<Owed>, SigningError> {
    let rows = db
        .read(
            "SELECT d.signature_id, d.next_at, d.attempts, d.last_index, s.statement, s.signature, s.key_id, \
                    (SELECT MIN(k.public_pem) FROM signing_key k \
                     WHERE k.project = s.project AND k.key_id = s.key_id) AS public_pem \
             FROM external_debt d JOIN signature s ON s.id = d.signature_id \
             WHERE d.state = 'owed' AND d.next_at <= $1 AND (d.next_at, d.signature_id) > ($2, $3) \
             ORDER BY d.next_at, d.signature_id LIMIT $4",
            args![
                now_us,
                after.0,
                &after.1,
                i64::try_from(limit).unwrap_or(i64::MAX)
            ],
        )
        .await?;
    let owed = |row: &Row| {
        let entry = |key: PublicKey| -> Result<NewEntry, SigningError> {
            Ok(NewEntry {
                digest: Digest::of(&dsse::pae(dsse::IN_TOTO, &row.blob("statement")?)),
                signature: row.blob("signature")?,
                public_key: key.spki().to_vec(),
            })
        };
        Ok(Owed {
            id: row.text("signature_id")?,
            next_at: row.int("next_at")?,
            attempts: attempts(row)?,
            last_index: row
                .opt_int("last_index")?
                .and_then(|index| u64::try_from(index).ok()),
            entry: match key_of(row)? {
                Ok(key) => Ok(entry(key)?),
                Err(why) => Err(why),
            },
        })
    };
    rows.iter().map(owed).collect()
}

/// The signatures of one image that are not published in the external log's evidence.
pub(crate) async fn at_image(
    db: &Db,
    project: &str,
    repository: &str,
    digest: Digest,
) -> Result<Vec<Owing>, SigningError> {
    let rows = db
        .read(
            "SELECT s.signature, d.since, d.state FROM signed_image i \
             JOIN signature s ON s.id = i.signature_id JOIN external_debt d ON d.signature_id = s.id \
             WHERE i.project = $1 AND i.repository = $2 AND i.digest = $3 AND i.done_at IS NOT NULL \
               AND d.state <> 'published'",
            args![project, repository, digest.to_string()],
        )
        .await?;
    let owing = |row: &Row| {
        Ok(Owing {
            signature: row.blob("signature")?,
            since_us: row.int("since")?,
            state: match row.text("state")?.as_str() {
                "owed" => State::Owed,
                "logged" => State::Logged,
                _ => State::Refused,
            },
        })
    };
    rows.iter().map(owing).collect()
}

/// Writes entries of the log down with one statement. The answer is whether all were: those that have the place of
/// another are not, and the caller asks [`logged`] of each. The caller's transaction has checked the fence.
pub(super) async fn all_logged(
    tx: &mut Tx,
    entries: &[(&str, &LoggedEntry)],
    now_us: i64,
) -> Result<bool, SigningError> {
    let places: BTreeSet<u64> = entries.iter().map(|(_, entry)| entry.index).collect();
    // The statement does not see what it writes itself.
    if places.len() < entries.len() || places.iter().any(|index| i64::try_from(*index).is_err()) {
        return Ok(false);
    }
    if entries.is_empty() {
        return Ok(true);
    }
    let rows: Vec<_> = entries
        .iter()
        .map(|(id, entry)| (id, entry.index, entry.json.get()))
        .collect();
    // That the state is asked for as a text keeps SQLite from going through all that are in it.
    let sql = "UPDATE external_debt SET state = 'logged', attempts = 0, next_at = $2, last_error = '', \
                 log_index = v.place, evidence = v.evidence, logged_at = $2 \
               FROM (SELECT value ->> 0 AS id, CAST(value ->> 1 AS BIGINT) AS place, value ->> 2 AS evidence \
                 FROM {rows}) v \
               WHERE signature_id = v.id AND state || '' = 'owed' \
               AND NOT EXISTS (SELECT 1 FROM external_debt d JOIN signature s ON s.id = d.signature_id \
                 WHERE d.log_index = v.place \
                   AND s.signature <> (SELECT own.signature FROM signature own WHERE own.id = v.id))";
    let changed = tx.execute_for_rows(sql, json(&rows)?, args![now_us]).await?;
    Ok(usize::try_from(changed) == Ok(entries.len()))
}

/// Rows as an array of JSON.
pub(super) fn json(rows: &impl serde::Serialize) -> Result<String, SigningError> {
    serde_json::to_string(rows).map_err(|error| SigningError::Row(error.to_string()))
}

/// Writes an entry of the log down, unless its place is that of another. The caller's transaction has checked the fence.
pub(super) async fn logged(
    tx: &mut Tx,
    id: &str,
    entry: &LoggedEntry,
    now_us: i64,
) -> Result<bool, SigningError> {
    let index = i64::try_from(entry.index).map_err(|error| SigningError::Row(error.to_string()))?;
    if is_taken(tx, id, index, entry).await? {
        return Ok(false);
    }
    let sql = "UPDATE external_debt SET state = 'logged', attempts = 0, next_at = $1, last_error = '', \
                 log_index = $2, evidence = $3, logged_at = $1 WHERE signature_id = $4 AND state = 'owed'";
    tx.execute(sql, args![now_us, index, entry.json.get(), id])
        .await?;
    Ok(true)
}

/// Writes down why one entry is not in the log. The caller's transaction has checked the fence.
pub(super) async fn unlogged(tx: &mut Tx, id: &str, why: &Unlogged) -> Result<(), SigningError> {
    let (sql, args) = match why {
        Unlogged::Refused(why) => (
            "UPDATE external_debt SET state = 'refused', attempts = attempts + 1, last_error = $1 \
             WHERE signature_id = $2 AND state = 'owed'",
            args![why, id],
        ),
        Unlogged::Away(why) => (
            "UPDATE external_debt SET last_error = $1 WHERE signature_id = $2 AND state = 'owed'",
            args![why, id],
        ),
        Unlogged::PutOff(why, next_at) => (
            "UPDATE external_debt SET attempts = attempts + 1, last_error = $1, next_at = $2 \
             WHERE signature_id = $3 AND state = 'owed'",
            args![why, *next_at, id],
        ),
    };
    tx.execute(sql, args).await?;
    Ok(())
}

/// Whether the same log has given the place of `entry` to another signature before. What is the same in every byte is one
/// entry of the log.
async fn is_taken(tx: &mut Tx, id: &str, index: i64, entry: &LoggedEntry) -> Result<bool, SigningError> {
    let sql = "SELECT d.evidence FROM external_debt d JOIN signature s ON s.id = d.signature_id \
               WHERE d.log_index = $1 AND s.signature <> (SELECT own.signature FROM signature own WHERE own.id = $2) \
               ORDER BY d.logged_at DESC LIMIT 20";
    for other in tx.read(sql, args![index, id]).await? {
        // Another log, which was configured once, has entries at the same places.
        if log_id(&other.text("evidence")?) == log_id(entry.json.get()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whose evidence it is.
fn log_id(evidence: &str) -> Option<String> {
    let evidence: serde_json::Value = serde_json::from_str(evidence).ok()?;
    evidence["logId"]["keyId"].as_str().map(str::to_owned)
}

pub(super) fn attempts(row: &Row) -> Result<u32, SigningError> {
    Ok(u32::try_from(row.int("attempts")?).unwrap_or(u32::MAX))
}

/// The key that made the signature, by its id.
pub(super) fn key_of(row: &Row) -> Result<Result<PublicKey, String>, SigningError> {
    let id = row.text("key_id")?;
    let Some(pem) = row.opt_text("public_pem")? else {
        return Ok(Err(format!("the key {id} is not there")));
    };
    let key = PublicKey::from_pem(&pem).map_err(|error| error.to_string());
    Ok(key.and_then(|key| match key.id().to_string() == id {
        true => Ok(key),
        false => Err(format!("the row of the key {id} is damaged")),
    }))
}
