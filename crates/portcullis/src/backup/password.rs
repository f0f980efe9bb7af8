//! That the password opens the signing keys: a backup with another one could be restored, and would never sign again.

use kernel::{Secret, SystemRandom};
use signing::key::LocalSigner;
use store::{Row, StoreError};

use super::{PASSWORD, secret_file};
use crate::codes;
use crate::config::Config;
use crate::failure::Failure;
use crate::secrets;

/// The newest keys: where one row is damaged, the next tells whether the password is right.
pub const NEWEST_KEYS: &str = "SELECT project, name, version, private_pem FROM signing_key \
     ORDER BY created_at DESC, version DESC LIMIT 3";

/// Holds the rows of [`NEWEST_KEYS`] against the password's file: one of them opens, or there are none.
pub fn check(config: &Config, rows: &[Row]) -> Result<(), Failure> {
    if rows.is_empty() {
        return Ok(());
    }
    let path = secret_file(config, PASSWORD);
    let password = secrets::password(&path, false, &SystemRandom)?;
    let mut closed = None;
    for row in rows {
        match opens(row, &password)? {
            None => return Ok(()),
            Some(why) => drop(closed.get_or_insert(why)),
        }
    }
    closed.map_or(Ok(()), |why| {
        let what = format!("{}: {why}", path.display());
        Err(Failure::coded(1, &codes::SECRETS, what))
    })
}

/// Why a key does not open, if it does not.
fn opens(row: &Row, password: &Secret) -> Result<Option<String>, StoreError> {
    let (name, project) = (row.text("name")?, row.text("project")?);
    let opened = LocalSigner::from_file(&row.text("private_pem")?, password);
    Ok(opened.err().map(|error| {
        format!(
            "it does not open the key {name} of the project {project}: {}",
            kernel::chain(&error)
        )
    }))
}
