//! Image policies in the database.

use kernel::Digest;
use store::{Db, Migration, Row, Tx, args};

use super::StoredPolicy;
use crate::SigningError;

pub(crate) const MIGRATION: Migration = Migration {
    domain: "signing",
    version: 2,
    sql: "CREATE TABLE image_policy (
            project TEXT NOT NULL, name TEXT NOT NULL, document TEXT NOT NULL, digest TEXT NOT NULL,
            written_at BIGINT NOT NULL,
            PRIMARY KEY (project, name)
          );",
};

pub(super) async fn get(db: &Db, project: &str, name: &str) -> Result<Option<StoredPolicy>, SigningError> {
    let sql = "SELECT name, document, digest FROM image_policy WHERE project = $1 AND name = $2";
    let row = db.read_one(sql, args![project, name]).await?;
    row.as_ref().map(policy_of).transpose()
}

pub(super) async fn list(
    db: &Db,
    project: &str,
    after: &str,
    limit: u32,
) -> Result<Vec<StoredPolicy>, SigningError> {
    let sql = "SELECT name, document, digest FROM image_policy WHERE project = $1 AND name > $2 \
               ORDER BY name LIMIT $3";
    let rows = db.read(sql, args![project, after, limit]).await?;
    rows.iter().map(policy_of).collect()
}

/// Writes a policy over the one that stands, whose digest is the answer.
pub(super) async fn put(
    tx: &mut Tx,
    project: &str,
    policy: &StoredPolicy,
    now_us: i64,
) -> Result<Option<Digest>, SigningError> {
    // The write comes first, and what it finds is decided: two writers wait for each other.
    let document = policy.document.to_string();
    let inserted = tx
        .execute(
            "INSERT INTO image_policy (project, name, document, digest, written_at) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (project, name) DO NOTHING",
            args![project, &policy.name, &document, policy.digest.to_string(), now_us],
        )
        .await?;
    if inserted == 1 {
        return Ok(None);
    }
    tx.execute(
        "UPDATE image_policy SET written_at = $1 WHERE project = $2 AND name = $3",
        args![now_us, project, &policy.name],
    )
    .await?;
    let sql = "SELECT name, document, digest FROM image_policy WHERE project = $1 AND name = $2";
    let row = tx.read_one(sql, args![project, &policy.name]).await?;
    let before = row.as_ref().map(policy_of).transpose()?;
    tx.execute(
        "UPDATE image_policy SET document = $1, digest = $2 WHERE project = $3 AND name = $4",
        args![&document, policy.digest.to_string(), project, &policy.name],
    )
    .await?;
    Ok(before.map(|before| before.digest))
}

/// Whether there was one.
pub(super) async fn delete(tx: &mut Tx, project: &str, name: &str) -> Result<bool, SigningError> {
    let sql = "DELETE FROM image_policy WHERE project = $1 AND name = $2";
    Ok(tx.execute(sql, args![project, name]).await? == 1)
}

fn policy_of(row: &Row) -> Result<StoredPolicy, SigningError> {
    let bad = |error: &dyn std::error::Error| SigningError::Row(kernel::chain(error));
    Ok(StoredPolicy {
        name: row.text("name")?,
        document: serde_json::from_str(&row.text("document")?).map_err(|error| bad(&error))?,
        digest: row.text("digest")?.parse().map_err(|error| bad(&error))?,
    })
}
