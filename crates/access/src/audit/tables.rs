//! The trail in the database.

use store::{Db, Migration, Row, StoreError, Tx, Value, args};

use super::{AuditRecord, Filter, Outcome};
use crate::AccessError;

/// What records got after the first version: what came of it, and their place in the seal. The place is not unique by a
/// rule of the database: a row that somebody forged must not stop the sealing of all others.
pub const MIGRATION: Migration = Migration {
    domain: "audit",
    version: 1,
    sql: "ALTER TABLE audit ADD COLUMN outcome TEXT NOT NULL DEFAULT 'success';
          ALTER TABLE audit ADD COLUMN code TEXT NOT NULL DEFAULT '';
          ALTER TABLE audit ADD COLUMN times BIGINT NOT NULL DEFAULT 1;
          ALTER TABLE audit ADD COLUMN sequence BIGINT;
          CREATE INDEX audit_sequence ON audit (sequence);
          CREATE INDEX audit_unsealed ON audit (id) WHERE sequence IS NULL;",
};

/// Rows that one statement numbers.
const NUMBERED_ROWS: usize = 64;

/// A row: a record and its place in the seal, if it has one.
#[derive(Debug, Clone)]
pub struct Stored {
    pub record: AuditRecord,
    pub sequence: Option<i64>,
}

/// Writes a record.
pub async fn insert(tx: &mut Tx, record: &AuditRecord) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO audit (id, at, actor, project, action, resource, detail, request_id, outcome, code, times) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        args![
            &record.id,
            record.at_us,
            &record.actor,
            &record.project,
            &record.action,
            &record.resource,
            &record.detail,
            &record.request_id,
            record.outcome.as_str(),
            &record.code,
            record.times
        ],
    )
    .await
    .map(|_| ())
}

/// The columns and the conditions of a list.
macro_rules! list {
    ($which:literal) => {
        concat!(
            "SELECT id, at, actor, project, action, resource, detail, request_id, outcome, code, times, sequence \
             FROM audit WHERE ($1 = '' OR project = $1) AND ($2 = '' OR actor LIKE $2 ESCAPE '\\') \
             AND ($3 = '' OR action LIKE $3 ESCAPE '\\') AND ($4 = '' OR resource LIKE $4 ESCAPE '\\') \
             AND ($5 = '' OR outcome = $5) AND at >= $6 AND at <= $7 ",
            $which
        )
    };
}

/// The newest records first, before the id `before`; of all if that is empty.
pub async fn newest(db: &Db, filter: &Filter, before: &str, limit: u32) -> Result<Vec<Stored>, AccessError> {
    let mut args = filter.args();
    args.extend(args![before, limit]);
    let sql = list!("AND ($8 = '' OR id < $8) ORDER BY id DESC LIMIT $9");
    rows(db.read(sql, args).await?)
}

/// Numbered records in the order of their numbers, after the one with this number and id. Two may have the same number
/// if somebody forged one; both are shown.
pub async fn sealed(
    db: &Db,
    filter: &Filter,
    (after, id): (i64, &str),
    limit: u32,
) -> Result<Vec<Stored>, AccessError> {
    let mut args = filter.args();
    args.extend(args![after, id, limit]);
    let sql = list!("AND (sequence > $8 OR (sequence = $8 AND id > $9)) ORDER BY sequence, id LIMIT $10");
    rows(db.read(sql, args).await?)
}

/// Records that are not sealed yet, oldest first, after the id `after`.
pub async fn unsealed(db: &Db, filter: &Filter, after: &str, limit: u32) -> Result<Vec<Stored>, AccessError> {
    let mut args = filter.args();
    args.extend(args![after, limit]);
    let sql = list!("AND sequence IS NULL AND id > $8 ORDER BY id LIMIT $9");
    rows(db.read(sql, args).await?)
}

/// How many records wait for the seal, and since when the oldest does (microseconds since 1970).
pub async fn waiting(db: &Db) -> Result<(i64, Option<i64>), StoreError> {
    let sql = "SELECT COUNT(*) AS n, MIN(at) AS at FROM audit WHERE sequence IS NULL";
    match db.read_one(sql, Vec::new()).await? {
        Some(row) => Ok((row.int("n")?, row.opt_int("at")?)),
        None => Ok((0, None)),
    }
}

/// Gives records their places.
pub async fn number(tx: &mut Tx, places: &[(String, i64)]) -> Result<(), StoreError> {
    // One text for any number of rows: the last one is repeated, which changes nothing.
    static SQL: std::sync::LazyLock<&'static str> = std::sync::LazyLock::new(|| {
        let row = |at| format!("(CAST(${} AS TEXT), CAST(${} AS BIGINT))", 2 * at + 1, 2 * at + 2);
        let rows: Vec<String> = (0..NUMBERED_ROWS).map(row).collect();
        let rows = rows.join(", ");
        format!(
            "UPDATE audit SET sequence = place.column2 FROM (VALUES {rows}) AS place \
             WHERE audit.id = place.column1 AND audit.sequence IS NULL"
        )
        .leak()
    });
    for chunk in places.chunks(NUMBERED_ROWS) {
        let last = chunk.last().into_iter().cycle();
        let filled = chunk.iter().chain(last).take(NUMBERED_ROWS);
        let args = filled.flat_map(|(id, at)| [Value::from(id), Value::from(*at)]);
        tx.execute(*SQL, args.collect()).await?;
    }
    Ok(())
}

fn rows(rows: Vec<Row>) -> Result<Vec<Stored>, AccessError> {
    rows.iter().map(stored).collect()
}

fn stored(row: &Row) -> Result<Stored, AccessError> {
    let outcome = row.text("outcome")?;
    let record = AuditRecord {
        action: row.text("action")?,
        actor: row.text("actor")?,
        at_us: row.int("at")?,
        code: row.text("code")?,
        detail: row.text("detail")?,
        id: row.text("id")?,
        outcome: Outcome::parse(&outcome).unwrap_or(Outcome::Unknown),
        project: row.text("project")?,
        request_id: row.text("request_id")?,
        resource: row.text("resource")?,
        times: row.int("times")?,
    };
    Ok(Stored {
        record,
        sequence: row.opt_int("sequence")?,
    })
}
