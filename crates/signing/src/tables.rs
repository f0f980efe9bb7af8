//! Keys and signatures in the database.

use jiff::Timestamp;
use kernel::{Digest, Id};
use store::{Db, Migration, Row, Tx, args};

use crate::SigningError;
use crate::format::Annotations;
use crate::publish::Formats;

pub(crate) const MIGRATION: Migration = Migration {
    domain: "signing",
    version: 1,
    sql: "CREATE TABLE signing_key (
            project TEXT NOT NULL, name TEXT NOT NULL, version BIGINT NOT NULL,
            key_id TEXT NOT NULL, public_pem TEXT NOT NULL, private_pem TEXT NOT NULL,
            created_at BIGINT NOT NULL, verify_until BIGINT,
            PRIMARY KEY (project, name, version)
          );
          CREATE TABLE signature (
            id TEXT PRIMARY KEY, project TEXT NOT NULL, key_name TEXT NOT NULL, key_id TEXT NOT NULL,
            annotations TEXT NOT NULL, statement {blob} NOT NULL, signature {blob} NOT NULL,
            log_index BIGINT, created_at BIGINT NOT NULL, actor TEXT NOT NULL
          );
          CREATE TABLE signed_image (
            project TEXT NOT NULL, repository TEXT NOT NULL, digest TEXT NOT NULL,
            key_id TEXT NOT NULL, payload TEXT NOT NULL,
            signature_id TEXT NOT NULL REFERENCES signature (id),
            formats TEXT NOT NULL, legacy {blob}, done_at BIGINT,
            PRIMARY KEY (project, repository, digest, key_id, payload)
          );
          CREATE INDEX signed_image_signature ON signed_image (signature_id);
          CREATE INDEX signed_image_digest ON signed_image (digest);",
};

/// What makes two wishes the same: the project's image, the key, and what is said about the image.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Wish {
    pub project: String,
    pub repository: String,
    pub digest: Digest,
    pub key_id: String,
    /// Hex SHA-256 over annotations and formats.
    pub payload: String,
}

/// One signature of one image.
#[derive(Debug, Clone)]
pub struct SignatureRow {
    pub id: Id,
    pub repository: String,
    pub digest: Digest,
    pub key_name: String,
    pub key_id: String,
    pub annotations: Annotations,
    pub formats: Formats,
    pub log_index: Option<u64>,
    pub created_at: Timestamp,
    pub actor: String,
    pub(crate) statement: Vec<u8>,
    pub(crate) signature: Vec<u8>,
    pub(crate) legacy: Option<Vec<u8>>,
    pub(crate) done: bool,
}

impl Wish {
    pub(crate) fn payload(annotations: &Annotations, formats: Formats) -> String {
        let annotations = serde_json::to_vec(annotations).unwrap_or_default();
        Digest::of(&[annotations.as_slice(), formats.to_string().as_bytes()].join(&0)).hex()
    }
}

/// What is there for this wish, staged or done.
pub(crate) async fn find(db: &Db, wish: &Wish) -> Result<Option<SignatureRow>, SigningError> {
    let row = db
        .read_one(
            "SELECT s.id, i.repository, i.digest, s.key_name, s.key_id, s.annotations, i.formats, s.log_index, \
                    s.created_at, s.actor, s.statement, s.signature, i.legacy, i.done_at \
             FROM signed_image i JOIN signature s ON s.id = i.signature_id \
             WHERE i.project = $1 AND i.repository = $2 AND i.digest = $3 AND i.key_id = $4 AND i.payload = $5",
            args![&wish.project, &wish.repository, wish.digest.to_string(), &wish.key_id, &wish.payload],
        )
        .await?;
    row.as_ref().map(signature_of).transpose()
}

/// One signature by its id; a release has one row for each image.
pub(crate) async fn get(db: &Db, project: &str, id: &str) -> Result<Vec<SignatureRow>, SigningError> {
    let rows = db
        .read(
            "SELECT s.id, i.repository, i.digest, s.key_name, s.key_id, s.annotations, i.formats, s.log_index, \
                    s.created_at, s.actor, s.statement, s.signature, i.legacy, i.done_at \
             FROM signed_image i JOIN signature s ON s.id = i.signature_id \
             WHERE s.id = $1 AND s.project = $2 AND i.done_at IS NOT NULL ORDER BY i.repository, i.digest",
            args![id, project],
        )
        .await?;
    rows.iter().map(signature_of).collect()
}

/// What a list shows; an empty text filters nothing.
#[derive(Debug, Default)]
pub(crate) struct Filter<'a> {
    pub repository: &'a str,
    pub digest: &'a str,
    pub key: &'a str,
}

/// Finished signatures of a project after the key `after` (`<signature id> <digest> <repository>`).
pub(crate) async fn list(
    db: &Db,
    project: &str,
    filter: &Filter<'_>,
    after: &str,
    limit: u32,
) -> Result<Vec<SignatureRow>, SigningError> {
    let rows = db
        .read(
            "SELECT s.id, i.repository, i.digest, s.key_name, s.key_id, s.annotations, i.formats, s.log_index, \
                    s.created_at, s.actor, s.statement, s.signature, i.legacy, i.done_at \
             FROM signed_image i JOIN signature s ON s.id = i.signature_id \
             WHERE i.project = $1 AND i.done_at IS NOT NULL \
               AND ($2 = '' OR i.repository = $2) AND ($3 = '' OR i.digest = $3) AND ($4 = '' OR s.key_name = $4) \
               AND s.id || ' ' || i.digest || ' ' || i.repository > $5 \
             ORDER BY s.id || ' ' || i.digest || ' ' || i.repository LIMIT $6",
            args![project, filter.repository, filter.digest, filter.key, after, limit],
        )
        .await?;
    rows.iter().map(signature_of).collect()
}

/// Makes a signature durable before anybody outside sees it, with the images that it speaks for and their legacy
/// signatures. The answer is the number of images that it was staged for.
///
/// Where another stage of the same wish stands, made by a run that died or by another server just now, that one
/// stays and everybody goes on with it: two signatures of one wish would leave one of them without a row, though it
/// may have been acknowledged. `images` are sorted, so that two releases wait for each other and do not lock.
pub(crate) async fn stage(
    tx: &mut Tx,
    project: &str,
    row: &SignatureRow,
    images: &[(Wish, Option<Vec<u8>>)],
) -> Result<u64, SigningError> {
    let annotations =
        serde_json::to_string(&row.annotations).map_err(|error| SigningError::Row(error.to_string()))?;
    tx.execute(
        "INSERT INTO signature (id, project, key_name, key_id, annotations, statement, signature, created_at, actor) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        args![
            &row.id,
            project,
            &row.key_name,
            &row.key_id,
            annotations,
            row.statement.as_slice(),
            row.signature.as_slice(),
            row.created_at.as_microsecond(),
            &row.actor
        ],
    )
    .await?;
    let mut staged = 0;
    for (wish, legacy) in images {
        staged += tx
            .execute(
                "INSERT INTO signed_image \
                   (project, repository, digest, key_id, payload, signature_id, formats, legacy) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
                 ON CONFLICT (project, repository, digest, key_id, payload) DO NOTHING",
                args![
                    &wish.project,
                    &wish.repository,
                    wish.digest.to_string(),
                    &wish.key_id,
                    &wish.payload,
                    &row.id,
                    row.formats.to_string(),
                    legacy.clone()
                ],
            )
            .await?;
    }
    Ok(staged)
}

/// Marks one image's signature as published, with its place in the log. The answer is whether it was not marked
/// before.
pub(crate) async fn finish(
    tx: &mut Tx,
    wish: &Wish,
    id: &Id,
    index: u64,
    now_us: i64,
) -> Result<bool, SigningError> {
    let index = i64::try_from(index).map_err(|error| SigningError::Row(error.to_string()))?;
    tx.execute(
        "UPDATE signature SET log_index = $1 WHERE id = $2",
        args![index, id],
    )
    .await?;
    let rows = tx
        .execute(
            "UPDATE signed_image SET done_at = $1 \
             WHERE project = $2 AND repository = $3 AND digest = $4 AND key_id = $5 AND payload = $6 \
               AND signature_id = $7 AND done_at IS NULL",
            args![
                now_us,
                &wish.project,
                &wish.repository,
                wish.digest.to_string(),
                &wish.key_id,
                &wish.payload,
                id
            ],
        )
        .await?;
    Ok(rows > 0)
}

fn signature_of(row: &Row) -> Result<SignatureRow, SigningError> {
    let bad = |what: &str| SigningError::Row(format!("{what} of {}", row.text("id").unwrap_or_default()));
    Ok(SignatureRow {
        id: row.text("id")?.parse().map_err(|_| bad("the id"))?,
        repository: row.text("repository")?,
        digest: row.text("digest")?.parse().map_err(|_| bad("the digest"))?,
        key_name: row.text("key_name")?,
        key_id: row.text("key_id")?,
        annotations: serde_json::from_str(&row.text("annotations")?).map_err(|_| bad("the annotations"))?,
        formats: row.text("formats")?.parse().map_err(|_| bad("the formats"))?,
        log_index: row
            .opt_int("log_index")?
            .and_then(|index| u64::try_from(index).ok()),
        created_at: Timestamp::from_microsecond(row.int("created_at")?).map_err(|_| bad("the time"))?,
        actor: row.text("actor")?,
        statement: row.blob("statement")?,
        signature: row.blob("signature")?,
        legacy: row.opt_blob("legacy")?,
        done: row.opt_int("done_at")?.is_some(),
    })
}
