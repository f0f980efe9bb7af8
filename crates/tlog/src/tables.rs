//! A log's tables: the checkpoint, the entries that are not yet in full tiles, and which hash has which
//! index. All writes of the log's state are here.

use std::collections::HashMap;
use std::sync::LazyLock;

use kernel::Fault as _;
use store::{Db, Row, Tx, Value, args, lease};

use crate::checkpoint::Checkpoint;
use crate::entry::Accepted;
use crate::error::TlogError;
use crate::faults::{COMMITTED, Faults, PRUNE_STAGED, PRUNED, READ_BACK, STAGED};
use crate::merkle::Hash;
use crate::name::Name;

/// Rows of one statement at most: 512 arguments, far below the limit of either database.
pub(crate) const ROWS_MAX: usize = 256;
/// The sizes that statements have, in rows. Any number of rows goes into the next larger one, filled up with its last
/// row, which adds less than half: fewer texts, each prepared once, and a round trip instead of several.
const SIZES: [usize; 16] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, ROWS_MAX];

/// The statements of one log, made once for the life of the process.
pub(crate) struct Sql {
    checkpoint: &'static str,
    lock: &'static str,
    settled: &'static str,
    any_leaf: &'static str,
    create_checkpoint: &'static str,
    create_tiles: &'static str,
    tiled: &'static str,
    tail: &'static str,
    advance: &'static str,
    prune: &'static str,
    r#move: &'static str,
    find: Vec<&'static str>,
    insert_tail: Vec<&'static str>,
    insert_leaf: Vec<&'static str>,
    pub hand_over: Vec<&'static str>,
    pub handed_over: &'static str,
    pub drop_waiting: Vec<&'static str>,
    pub put_seen: &'static str,
    pub most_seen: &'static str,
    pub told: &'static str,
    pub dismiss: &'static str,
    pub is_dismissed: &'static str,
}

static SIGNATURES: LazyLock<Sql> = LazyLock::new(|| Sql::of(Name::Signatures));
static AUDIT: LazyLock<Sql> = LazyLock::new(|| Sql::of(Name::Audit));

impl Sql {
    pub(crate) fn of_log(name: Name) -> &'static Self {
        match name {
            Name::Signatures => &SIGNATURES,
            Name::Audit => &AUDIT,
        }
    }

    fn of(name: Name) -> Self {
        let log = name.prefix();
        // Leaked once for the life of the process: statements are static text.
        let text = |sql: &str| -> &'static str { sql.replace("LOG_", &format!("{log}_")).leak() };
        Self {
            checkpoint: text("SELECT size, note FROM LOG_checkpoint WHERE id = 1"),
            lock: text("UPDATE LOG_checkpoint SET size = size WHERE id = 1"),
            settled: text(
                "SELECT size, note, (SELECT entries FROM LOG_tiles WHERE id = 1) AS tiled, \
                 (SELECT MIN(entry_index) FROM LOG_tail) AS first_index, \
                 (SELECT MAX(entry_index) FROM LOG_tail) AS last_index \
                 FROM LOG_checkpoint WHERE id = 1",
            ),
            any_leaf: text("SELECT entry_index FROM LOG_leaf LIMIT 1"),
            create_checkpoint: text(
                "INSERT INTO LOG_checkpoint (id, size, note) VALUES (1, 0, $1) ON CONFLICT (id) DO NOTHING",
            ),
            create_tiles: text(
                "INSERT INTO LOG_tiles (id, entries) VALUES (1, 0) ON CONFLICT (id) DO NOTHING",
            ),
            tiled: text("SELECT entries FROM LOG_tiles WHERE id = 1"),
            tail: text(
                "SELECT entry_index, body FROM LOG_tail WHERE entry_index >= $1 AND entry_index < $2 \
                 ORDER BY entry_index",
            ),
            advance: text("UPDATE LOG_tiles SET entries = $1 WHERE id = 1 AND entries = $2"),
            prune: text("DELETE FROM LOG_tail WHERE entry_index < $1"),
            r#move: text(
                "UPDATE LOG_checkpoint SET size = $1, note = $2 WHERE id = 1 AND size = $3 \
                 AND NOT EXISTS (SELECT 1 FROM LOG_seen s WHERE s.size > $3 \
                   AND NOT EXISTS (SELECT 1 FROM LOG_dismissed d WHERE d.note = s.note))",
            ),
            find: each_size(|rows| {
                let list = list(rows);
                text(&format!(
                    "SELECT leaf, entry_index FROM LOG_leaf WHERE leaf IN ({list})"
                ))
            }),
            insert_tail: each_size(|rows| text(&insert("LOG_tail (entry_index, body)", rows))),
            insert_leaf: each_size(|rows| text(&insert("LOG_leaf (leaf, entry_index)", rows))),
            hand_over: each_size(|rows| text(&insert("LOG_waiting (leaf, body)", rows))),
            handed_over: text("SELECT leaf, body FROM LOG_waiting LIMIT $1"),
            drop_waiting: each_size(|rows| {
                let list = list(rows);
                text(&format!("DELETE FROM LOG_waiting WHERE leaf IN ({list})"))
            }),
            put_seen: text(
                "INSERT INTO LOG_seen (server, size, note) VALUES ($1, $2, $3) ON CONFLICT (server) DO UPDATE \
                 SET size = excluded.size, note = excluded.note WHERE LOG_seen.size < excluded.size \
                 OR EXISTS (SELECT 1 FROM LOG_dismissed d WHERE d.note = LOG_seen.note)",
            ),
            most_seen: text(
                "SELECT s.server, s.size FROM LOG_seen s \
                 WHERE NOT EXISTS (SELECT 1 FROM LOG_dismissed d WHERE d.note = s.note) \
                 ORDER BY s.size DESC LIMIT 1",
            ),
            told: text(
                "SELECT s.server, s.size, s.note, d.reason, d.dismissed_at, \
                 (SELECT c.size FROM LOG_checkpoint c WHERE c.id = 1) AS log_size \
                 FROM LOG_seen s LEFT JOIN LOG_dismissed d ON d.note = s.note ORDER BY s.size DESC, s.server",
            ),
            dismiss: text(
                "INSERT INTO LOG_dismissed (note, size, reason, dismissed_at) VALUES ($1, $2, $3, $4) \
                 ON CONFLICT (note) DO NOTHING",
            ),
            is_dismissed: text("SELECT size FROM LOG_dismissed WHERE note = $1"),
        }
    }
}

/// So many placeholders.
fn list(rows: usize) -> String {
    let list: Vec<String> = (1..=rows).map(|i| format!("${i}")).collect();
    list.join(", ")
}

/// A statement in each of [`SIZES`].
fn each_size(text: impl Fn(usize) -> &'static str) -> Vec<&'static str> {
    SIZES.iter().map(|rows| text(*rows)).collect()
}

/// The rows that fill a statement up conflict with the row that they repeat; the caller counts what was inserted.
fn insert(target: &str, rows: usize) -> String {
    let rows: Vec<String> = (0..rows)
        .map(|row| format!("(${}, ${})", 2 * row + 1, 2 * row + 2))
        .collect();
    format!(
        "INSERT INTO {target} VALUES {} ON CONFLICT DO NOTHING",
        rows.join(", ")
    )
}

/// The statement for so many rows, by its place in [`SIZES`], and `rows` filled up to its size.
pub(crate) fn filled<T>(rows: &[T]) -> (usize, impl Iterator<Item = &T>) {
    let place = SIZES
        .partition_point(|size| *size < rows.len())
        .min(SIZES.len() - 1);
    let last = rows.last().into_iter().cycle();
    (place, rows.iter().chain(last).take(SIZES[place]))
}

/// What became of a batch that was to be committed.
#[derive(Debug)]
pub(crate) enum Outcome {
    Moved,
    /// Somebody newer holds the lease; nothing was written.
    StaleFence,
    /// The checkpoint is not the one that the batch builds on, or somebody has seen a later one; nothing was written.
    Lost,
    /// It failed before the commit; nothing was written.
    Failed(TlogError),
    /// The commit itself failed; only the database knows.
    Unknown(TlogError),
}

/// A batch that is ready to be committed.
pub(crate) struct Batch<'a> {
    pub fence: i64,
    pub old: &'a Checkpoint,
    pub new: &'a Checkpoint,
    /// From index `old.size` on.
    pub entries: &'a [Accepted],
    /// What leaves the table of those that wait.
    pub handed: &'a [Hash],
}

#[derive(Clone)]
pub(crate) struct Tables {
    pub name: Name,
    pub db: Db,
    pub faults: Faults,
}

pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(crate) fn unsigned(number: i64) -> Result<u64, TlogError> {
    let found = || TlogError::Damaged {
        what: "a row of the tables tlog_*".to_owned(),
        found: format!("it has {number}"),
    };
    u64::try_from(number).map_err(|_| found())
}

/// The log's state in the database.
pub(crate) struct Settled {
    pub size: u64,
    pub note: String,
    /// Entries that lie in durable tiles, if the row is there.
    pub tiled: Option<u64>,
    /// The first and last index in the tail.
    pub first: Option<u64>,
    pub last: Option<u64>,
}

impl Tables {
    pub(crate) fn sql(&self) -> &'static Sql {
        Sql::of_log(self.name)
    }

    /// Passes a step at which a test may end the process.
    pub(crate) fn pass(&self, step: &'static str) -> Result<(), TlogError> {
        self.faults.pass(self.name, step)
    }

    /// The size and the note of the checkpoint row; unverified.
    pub(crate) async fn checkpoint(&self) -> Result<Option<(u64, String)>, TlogError> {
        let read = TlogError::store("reading the log's checkpoint");
        let Some(row) = self
            .db
            .read_one(self.sql().checkpoint, args![])
            .await
            .map_err(&read)?
        else {
            return Ok(None);
        };
        Ok(Some((
            unsigned(row.int("size").map_err(&read)?)?,
            row.text("note").map_err(&read)?,
        )))
    }

    /// The whole state as of one moment, after everything that is being committed: taking the write lock
    /// waits for it. Unverified.
    pub(crate) async fn settled(&self) -> Result<Option<Settled>, TlogError> {
        let read = TlogError::store("reading the log's checkpoint back");
        self.pass(READ_BACK)?;
        let mut tx = self.db.begin().await.map_err(&read)?;
        tx.execute(self.sql().lock, args![]).await.map_err(&read)?;
        let row = tx.read_one(self.sql().settled, args![]).await.map_err(&read)?;
        tx.commit().await.map_err(&read)?;
        row.as_ref().map(settled_of).transpose()
    }

    /// The same for a log that is opened: a database that takes no writes commits nothing that would have to be waited
    /// for, and is read as it is.
    pub(crate) async fn standing(&self) -> Result<Option<Settled>, TlogError> {
        match self.settled().await {
            Err(error) if error.code().id == store::codes::READ_ONLY.id => {
                let row = self.db.read_one(self.sql().settled, args![]).await;
                let row = row.map_err(TlogError::store("reading the log's checkpoint"))?;
                row.as_ref().map(settled_of).transpose()
            }
            settled => settled,
        }
    }

    /// Whether there are entries without a checkpoint, which no order of writes leaves behind.
    pub(crate) async fn has_rows(&self) -> Result<bool, TlogError> {
        Ok(self
            .db
            .read_one(self.sql().any_leaf, args![])
            .await
            .map_err(TlogError::store("looking for entries of the log"))?
            .is_some())
    }

    /// Writes the checkpoint of the empty log, unless there is one already.
    pub(crate) async fn create(&self, checkpoint: &Checkpoint) -> Result<(), TlogError> {
        let write = TlogError::store("creating the log");
        let mut tx = self.db.begin().await.map_err(&write)?;
        let sql = self.sql();
        tx.execute(sql.create_checkpoint, args![&checkpoint.note])
            .await
            .map_err(&write)?;
        tx.execute(sql.create_tiles, args![]).await.map_err(&write)?;
        tx.commit().await.map_err(&write)
    }

    /// How many entries lie in durable tiles.
    pub(crate) async fn tiled(&self) -> Result<u64, TlogError> {
        let read = TlogError::store("reading how far the log's tiles reach");
        let row = self.db.read_one(self.sql().tiled, args![]).await.map_err(&read)?;
        let row = row.ok_or_else(|| TlogError::Missing {
            what: format!("the row of {}", self.name.table("tiles")),
        })?;
        unsigned(row.int("entries").map_err(&read)?)
    }

    /// The indexes of those leaf hashes that the log has.
    pub(crate) async fn find(&self, leaves: &[Hash]) -> Result<HashMap<Hash, u64>, TlogError> {
        let read = TlogError::store("looking for the same entry in the log");
        let mut found = HashMap::new();
        for chunk in leaves.chunks(ROWS_MAX) {
            let (place, leaves) = filled(chunk);
            let args = leaves.map(Value::from).collect();
            for row in self.db.read(self.sql().find[place], args).await.map_err(&read)? {
                if let Ok(leaf) = Hash::try_from(row.blob("leaf").map_err(&read)?) {
                    found.insert(leaf, unsigned(row.int("entry_index").map_err(&read)?)?);
                }
            }
        }
        Ok(found)
    }

    /// The bodies of the entries `from..to`, if all of them are in the tail.
    pub(crate) async fn tail(&self, from: u64, to: u64) -> Result<Option<Vec<Vec<u8>>>, TlogError> {
        let read = TlogError::store("reading the tail of the log");
        let rows = self
            .db
            .read(self.sql().tail, args![signed(from), signed(to)])
            .await
            .map_err(&read)?;
        if rows.len() as u64 != to - from {
            return Ok(None);
        }
        rows.iter()
            .map(|row| row.blob("body").map_err(&read))
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// Makes a batch durable: fence, rows and checkpoint in one transaction.
    pub(crate) async fn commit(&self, batch: &Batch<'_>) -> Outcome {
        let mut tx = match self.db.begin().await {
            Ok(tx) => tx,
            Err(source) => {
                return Outcome::Failed(TlogError::store("beginning to append to the log")(source));
            }
        };
        match self.stage(&mut tx, batch).await {
            Ok(Outcome::Moved) => {}
            Ok(other) | Err(other) => return other,
        }
        if let Err(error) = self.pass(STAGED) {
            return Outcome::Unknown(error);
        }
        if let Err(source) = tx.commit().await {
            return Outcome::Unknown(TlogError::store("committing to the log")(source));
        }
        self.pass(COMMITTED)
            .map_or_else(Outcome::Unknown, |()| Outcome::Moved)
    }

    /// Records that the first `new` entries lie in durable tiles and drops their rows. `false`: somebody
    /// newer holds the lease, or did it already.
    pub(crate) async fn prune(&self, fence: i64, old: u64, new: u64) -> Result<bool, TlogError> {
        let write = TlogError::store("pruning the tail of the log");
        let mut tx = self.db.begin().await.map_err(&write)?;
        if !lease::check(&mut tx, self.name.prefix(), fence)
            .await
            .map_err(&write)?
        {
            return Ok(false);
        }
        if tx
            .execute(self.sql().advance, args![signed(new), signed(old)])
            .await
            .map_err(&write)?
            != 1
        {
            return Ok(false);
        }
        tx.execute(self.sql().prune, args![signed(new)])
            .await
            .map_err(&write)?;
        self.pass(PRUNE_STAGED)?;
        tx.commit().await.map_err(&write)?;
        self.pass(PRUNED)?;
        Ok(true)
    }

    /// The statements of a batch. Both sides of the result are outcomes; `Err` only shortens the way out.
    async fn stage(&self, tx: &mut Tx, batch: &Batch<'_>) -> Result<Outcome, Outcome> {
        let (name, sql) = (self.name, self.sql());
        let failed = |source| Outcome::Failed(TlogError::store("appending to the log")(source));
        if !lease::check(tx, name.prefix(), batch.fence)
            .await
            .map_err(failed)?
        {
            return Ok(Outcome::StaleFence);
        }
        // The compare-and-swap comes first: whoever loses it has not touched the rows of the winner.
        let moved = args![signed(batch.new.size), &batch.new.note, signed(batch.old.size)];
        if tx.execute(sql.r#move, moved).await.map_err(failed)? != 1 {
            return Ok(Outcome::Lost);
        }
        let rows: Vec<(i64, &Accepted)> = (signed(batch.old.size)..).zip(batch.entries).collect();
        for chunk in rows.chunks(ROWS_MAX) {
            let (place, rows) = filled(chunk);
            let (mut tail, mut leaf) = (Vec::new(), Vec::new());
            for (index, entry) in rows {
                tail.extend([Value::from(*index), Value::from(entry.body.as_slice())]);
                leaf.extend([Value::from(&entry.leaf), Value::from(*index)]);
            }
            for (text, args, table) in [
                (sql.insert_tail[place], tail, "tail"),
                (sql.insert_leaf[place], leaf, "leaf"),
            ] {
                let inserted = tx.execute(text, args).await.map_err(failed)?;
                if inserted != chunk.len() as u64 {
                    return Err(Outcome::Failed(TlogError::Damaged {
                        what: name.table(table),
                        found: format!("it has rows of entries after the checkpoint's {}", batch.old.size),
                    }));
                }
            }
        }
        self.take(tx, batch.handed).await.map_err(failed)?;
        Ok(Outcome::Moved)
    }
}

fn settled_of(row: &Row) -> Result<Settled, TlogError> {
    let read = TlogError::store("reading the log's checkpoint back");
    let number = |column| row.opt_int(column).map_err(&read)?.map(unsigned).transpose();
    Ok(Settled {
        size: unsigned(row.int("size").map_err(&read)?)?,
        note: row.text("note").map_err(&read)?,
        tiled: number("tiled")?,
        first: number("first_index")?,
        last: number("last_index")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_rows_fits_a_statement_that_is_less_than_half_larger() {
        for count in 1..=ROWS_MAX {
            let rows: Vec<usize> = (0..count).collect();
            let (place, all) = filled(&rows);
            let all: Vec<usize> = all.copied().collect();
            assert_eq!(all.len(), SIZES[place]);
            assert_eq!(all[..count], rows);
            assert!(all[count..].iter().all(|row| *row == count - 1));
            assert!(2 * all.len() < 3 * count, "{count} rows as {}", all.len());
        }
    }
}
