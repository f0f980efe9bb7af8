//! Keys as the database holds them.
//!
//! One row that does not read must not take the others with it: the row of a version that was rotated away years ago
//! would otherwise stop every verification of the project. What does not read is kept beside what does, and told by
//! whoever needs that very row.

use std::fmt;

use jiff::Timestamp;
use store::Row;

use super::KeyInfo;
use crate::SigningError;
use crate::key::PublicKey;

/// The keys that a read found.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    pub(super) usable: std::sync::Arc<[KeyInfo]>,
    pub(super) damaged: Vec<DamagedKey>,
}

/// A row of the table `signing_key` that cannot be used.
#[derive(Debug, Clone)]
pub struct DamagedKey {
    pub project: String,
    pub name: String,
    pub version: i64,
    /// The id that the row gives the key; nothing vouches for it.
    pub id: String,
    pub why: String,
    /// Until when what it signed verifies, in microseconds; `None` for a current one, and where it does not read.
    pub(super) until_us: Option<i64>,
}

impl fmt::Display for DamagedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            project,
            name,
            version,
            id,
            why,
            until_us: _,
        } = self;
        write!(
            f,
            "the row of key {name} of project {project}, version {version} ({id}), in the table signing_key is \
             damaged: {why}"
        )
    }
}

impl Keys {
    /// Sorts rows into those that can be used and the others, of which the log is told.
    pub(super) fn of(rows: &[Row]) -> Self {
        let (mut usable, mut damaged) = (Vec::new(), Vec::new());
        for row in rows {
            match info_of(row) {
                Ok(info) => usable.push(info),
                Err(why) => damaged.push(damaged_of(row, kernel::words(&why))),
            }
        }
        for key in &damaged {
            tracing::warn!(%key, "a key cannot be used; restore its row from a backup");
        }
        Self {
            usable: usable.into(),
            damaged,
        }
    }

    /// The last of one key's versions.
    pub(super) fn newest(&self, project: &str, name: &str) -> Result<KeyInfo, SigningError> {
        let newest = self.usable.last();
        let version = newest.map_or(i64::MIN, |key| key.version);
        if let Some(key) = self.damaged.iter().find(|key| key.version > version) {
            return Err(SigningError::KeyDamaged(Box::new(key.clone())));
        }
        newest.cloned().ok_or_else(|| SigningError::NoKey {
            name: name.chars().take(100).collect(),
            project: project.to_owned(),
        })
    }
}

fn info_of(row: &Row) -> Result<KeyInfo, String> {
    let column = |error: store::StoreError| kernel::chain(&error);
    let time = |us: i64| Timestamp::from_microsecond(us).map_err(|error| error.to_string());
    let public = row.text("public_pem").map_err(column)?;
    let public =
        PublicKey::from_pem(&public).map_err(|error| format!("its public key does not read: {error}"))?;
    let (id, named) = (public.id().to_string(), row.text("key_id").map_err(column)?);
    if id != named {
        return Err(format!("its public key has the id {id}"));
    }
    Ok(KeyInfo {
        name: row.text("name").map_err(column)?,
        version: row.int("version").map_err(column)?,
        public,
        created_at: time(row.int("created_at").map_err(column)?)?,
        verify_until: row
            .opt_int("verify_until")
            .map_err(column)?
            .map(time)
            .transpose()?,
    })
}

fn damaged_of(row: &Row, why: String) -> DamagedKey {
    let text = |column| kernel::words(&row.text(column).unwrap_or_default());
    DamagedKey {
        project: text("project"),
        name: text("name"),
        // Where not even the version reads it may be the newest, and no older one signs in its place.
        version: row.int("version").unwrap_or(i64::MAX),
        id: text("key_id"),
        why,
        until_us: row.opt_int("verify_until").unwrap_or_default(),
    }
}
