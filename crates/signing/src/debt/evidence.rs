//! The evidence of the external log, in the database, on its way to the images.

use kernel::{Digest, Id, Repository};
use serde_json::value::RawValue;
use store::{Db, Row, Tx, args};

use super::tables::{attempts, json, key_of};
use crate::SigningError;
use crate::key::PublicKey;

/// An entry that is in the log, and its evidence not yet at the images.
pub(super) struct Unpublished {
    pub id: String,
    pub attempts: u32,
    pub project: String,
    pub images: i64,
    /// When its evidence came, in microseconds since 1970: later evidence is not what was published.
    pub logged_at: i64,
    /// When it is due, in microseconds since 1970.
    pub next_at: i64,
    pub statement: Vec<u8>,
    pub signature: Vec<u8>,
    /// What is wrong, where the bundle cannot be made of what is stored.
    pub material: Result<(PublicKey, Box<RawValue>), String>,
}

/// Evidence that may be published, what is due the longest first, of that after `after` (when it is due, and the
/// signature's id).
pub(super) async fn unpublished(
    db: &Db,
    now_us: i64,
    after: &(i64, String),
    limit: i64,
) -> Result<Vec<Unpublished>, SigningError> {
    let rows = db
        .read(
            "SELECT d.signature_id, d.attempts, d.images, d.evidence, d.logged_at, d.next_at, s.project, s.statement, \
                    s.signature, s.key_id, \
                    (SELECT MIN(k.public_pem) FROM signing_key k \
                     WHERE k.project = s.project AND k.key_id = s.key_id) AS public_pem \
             FROM external_debt d JOIN signature s ON s.id = d.signature_id \
             WHERE d.state = 'logged' AND d.next_at <= $1 AND (d.next_at, d.signature_id) > ($2, $3) \
             ORDER BY d.next_at, d.signature_id LIMIT $4",
            args![now_us, after.0, &after.1, limit],
        )
        .await?;
    let unpublished = |row: &Row| {
        let evidence = RawValue::from_string(row.text("evidence")?);
        let evidence = evidence.map_err(|_| "its evidence does not read".to_owned());
        Ok(Unpublished {
            id: row.text("signature_id")?,
            attempts: attempts(row)?,
            project: row.text("project")?,
            images: row.int("images")?,
            logged_at: row.int("logged_at")?,
            next_at: row.int("next_at")?,
            statement: row.blob("statement")?,
            signature: row.blob("signature")?,
            material: key_of(row)?.and_then(|key| Ok((key, evidence?))),
        })
    };
    rows.iter().map(unpublished).collect()
}

/// The images that a signature was published to as a bundle.
pub(super) struct Images {
    pub there: Vec<(Repository, Digest)>,
    /// A registry that was given up and has others.
    pub given_up: Option<String>,
}

/// The images that a signature was published to as a bundle; why not, where one cannot be read, perhaps because a newer
/// server wrote it.
pub(super) async fn images(db: &Db, id: &str) -> Result<Result<Images, String>, SigningError> {
    let sql = "SELECT repository, digest, formats, \
                 CAST(CASE WHEN EXISTS (SELECT 1 FROM given_up_registry g WHERE done_at <= g.until \
                   AND lower(substr(repository, 1, length(g.registry) + 1)) = g.registry || '/') THEN 1 ELSE 0 END AS BIGINT) \
                 AS given_up \
               FROM signed_image WHERE signature_id = $1 AND done_at IS NOT NULL ORDER BY repository, digest";
    let rows = db.read(sql, args![id]).await?;
    let mut images = Images {
        there: Vec::with_capacity(rows.len()),
        given_up: None,
    };
    for row in &rows {
        let (repository, digest, formats) =
            (row.text("repository")?, row.text("digest")?, row.text("formats")?);
        let Ok(formats) = formats.parse::<crate::Formats>() else {
            return Ok(Err(format!(
                "the formats {formats:?} of {repository} do not read"
            )));
        };
        // Who reads only the legacy tag has no use for a bundle.
        if !formats.bundle {
            continue;
        }
        match (repository.parse::<Repository>(), digest.parse()) {
            (Ok(repository), Ok(_)) if row.int("given_up")? > 0 => {
                images.given_up = Some(repository.registry().to_owned());
            }
            (Ok(repository), Ok(digest)) => images.there.push((repository, digest)),
            _ => return Ok(Err(format!("the image {repository}@{digest} does not read"))),
        }
    }
    Ok(Ok(images))
}

/// Marks evidence as published to all of its images that are there, and why not to others (empty: to all); not what
/// another image or other evidence came to meanwhile. The answer is how many were marked.
pub(super) async fn published(
    tx: &mut Tx,
    items: &[(&Unpublished, String)],
    now_us: i64,
) -> Result<u64, SigningError> {
    if items.is_empty() {
        return Ok(0);
    }
    let rows: Vec<_> = items
        .iter()
        .map(|(item, why)| (&item.id, item.images, item.logged_at, why))
        .collect();
    let sql = "UPDATE external_debt SET state = 'published', published_at = $2, last_error = v.why \
               FROM (SELECT value ->> 0 AS id, CAST(value ->> 1 AS BIGINT) AS images, \
                 CAST(value ->> 2 AS BIGINT) AS logged_at, value ->> 3 AS why FROM {rows}) v \
               WHERE signature_id = v.id AND state || '' = 'logged' AND external_debt.images = v.images \
                 AND external_debt.logged_at = v.logged_at";
    Ok(tx.execute_for_rows(sql, json(&rows)?, args![now_us]).await?)
}

/// A publication that is tried again later.
#[derive(serde::Serialize)]
pub(super) struct PutOff<'a> {
    pub id: &'a str,
    pub logged_at: i64,
    /// How many more it has had.
    pub attempts: i64,
    pub why: String,
    /// Microseconds since 1970.
    pub next_at: i64,
}

/// Tries publications again later.
pub(super) async fn all_put_off(tx: &mut Tx, items: &[PutOff<'_>]) -> Result<(), SigningError> {
    if items.is_empty() {
        return Ok(());
    }
    let sql = "UPDATE external_debt SET attempts = external_debt.attempts + v.attempts, last_error = v.why, \
                 next_at = v.next_at \
               FROM (SELECT value ->> 'id' AS id, CAST(value ->> 'attempts' AS BIGINT) AS attempts, \
                 value ->> 'why' AS why, CAST(value ->> 'next_at' AS BIGINT) AS next_at, \
                 CAST(value ->> 'logged_at' AS BIGINT) AS logged_at FROM {rows}) v \
               WHERE signature_id = v.id AND state || '' = 'logged' AND external_debt.logged_at = v.logged_at";
    tx.execute_for_rows(sql, json(&items)?, Vec::new()).await?;
    Ok(())
}

/// Has the evidence published to an image again. It is there in any case, so that its registry counts as given up no more
/// for this image. Unless the registry `lost` what was published, only where the evidence never came there; whether that
/// changes anything.
pub(crate) async fn publish_again(
    tx: &mut Tx,
    id: &Id,
    (repository, digest): (&Repository, Digest),
    lost: bool,
    now_us: i64,
) -> Result<bool, SigningError> {
    let sql = "UPDATE external_debt SET state = 'logged', attempts = 0, next_at = $1, last_error = '' \
               WHERE signature_id = $2 AND state = 'published' AND (last_error <> '' OR $3 = 1)";
    let changed = tx.execute(sql, args![now_us, id, i64::from(lost)]).await?;
    let sql = "UPDATE signed_image SET done_at = $1 \
               WHERE signature_id = $2 AND repository = $3 AND digest = $4 AND done_at IS NOT NULL";
    let image = args![now_us, id, repository.to_string(), digest.to_string()];
    tx.execute(sql, image).await?;
    Ok(changed > 0)
}

/// What is owed or not published gets no evidence any more at images that were finished at a registry until now.
pub(super) async fn give_up(tx: &mut Tx, registry: &str, now_us: i64) -> Result<(), SigningError> {
    let sql = "INSERT INTO given_up_registry (registry, until) VALUES ($1, $2) \
               ON CONFLICT (registry) DO UPDATE SET until = excluded.until";
    tx.execute(sql, args![registry, now_us]).await?;
    Ok(())
}

/// Some of the entries in a state: those that have an image at a registry, and where to go on.
pub(super) struct Part {
    pub own: Vec<String>,
    pub next: Option<(i64, String)>,
}

/// Reads some of the entries in a state after `after` (when they are due, and the signature's id), and which of them have
/// an image at a registry. Others read and write meanwhile, however many there are.
pub(super) async fn some_at(
    db: &Db,
    registry: &str,
    state: &str,
    after: &(i64, String),
    limit: u32,
) -> Result<Part, SigningError> {
    let sql = "SELECT d.next_at, d.signature_id, \
                 CAST(CASE WHEN EXISTS (SELECT 1 FROM signed_image i WHERE i.signature_id = d.signature_id \
                   AND lower(substr(i.repository, 1, length($1) + 1)) = $1 || '/') THEN 1 ELSE 0 END AS BIGINT) AS own \
               FROM external_debt d WHERE d.state = $2 AND (d.next_at, d.signature_id) > ($3, $4) \
               ORDER BY d.next_at, d.signature_id LIMIT $5";
    let rows = db
        .read(sql, args![registry, state, after.0, &after.1, limit])
        .await?;
    let mut some = Part {
        own: Vec::new(),
        next: None,
    };
    for row in &rows {
        let id = row.text("signature_id")?;
        if row.int("own")? > 0 {
            some.own.push(id.clone());
        }
        some.next = Some((row.int("next_at")?, id));
    }
    if rows.len() < limit as usize {
        some.next = None;
    }
    Ok(some)
}

/// Has what was put off looked at now.
pub(super) async fn hasten(tx: &mut Tx, ids: &[String], now_us: i64) -> Result<(), SigningError> {
    let sql = "UPDATE external_debt SET next_at = $2 FROM (SELECT value ->> 0 AS id FROM {rows}) v \
               WHERE signature_id = v.id AND state || '' = 'logged' AND next_at > $2";
    let rows: Vec<_> = ids.iter().map(|id| [id]).collect();
    tx.execute_for_rows(sql, json(&rows)?, args![now_us]).await?;
    Ok(())
}
