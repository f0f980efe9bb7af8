//! The secrets of an installation, beside the archive that they belong to.

use std::collections::BTreeMap;
use std::path::Path;

use store::archive::{ArchiveError, Member};
use zeroize::Zeroizing;

use super::{LOGS, PASSWORD, secret_file};
use crate::codes;
use crate::config::Config;
use crate::failure::Failure;
use crate::secrets;

/// The secrets that lie where the configuration says, for a backup without any.
pub(super) fn configured(config: &Config) -> Result<BTreeMap<String, Zeroizing<Vec<u8>>>, Failure> {
    let mut found = BTreeMap::new();
    for name in LOGS.iter().map(|(_, name)| *name).chain([PASSWORD]) {
        let path = secret_file(config, name);
        let bytes = std::fs::read(&path).map_err(|error| {
            let what = format!(
                "the backup was made without secrets, and reading {}: {error}",
                path.display()
            );
            Failure::coded(1, &codes::SECRETS, what)
                .with_hint("put the three files of secrets/ that were kept elsewhere in their place first")
        })?;
        found.insert(name.to_owned(), Zeroizing::new(bytes));
    }
    Ok(found)
}

/// Makes a secret's file; one that is there has to be the same.
pub(super) fn create(config: &Config, name: &str, member: Member) -> Result<(), Failure> {
    if !LOGS.iter().any(|(_, known)| *known == name) && name != PASSWORD {
        return Err(ArchiveError::damaged(member.name, "no backup has such a member").into());
    }
    let path = secret_file(config, name);
    let bytes = Zeroizing::new(member.bytes);
    if !is_free(&path, &bytes)? {
        return Ok(());
    }
    let text =
        std::str::from_utf8(&bytes).map_err(|_| ArchiveError::damaged(&*member.name, "it is no text"))?;
    secrets::create(&path, text)
}

/// Whether a secret's file is still to be made; one that is there and is another one is never written over.
pub(super) fn is_free(path: &Path, bytes: &[u8]) -> Result<bool, Failure> {
    match std::fs::read(path).map(Zeroizing::new) {
        Ok(found) if **found == *bytes => Ok(false),
        Ok(_) => {
            let what = format!(
                "{} is there and is another one than in the backup",
                path.display()
            );
            Err(Failure::coded(7, &store::codes::NOT_EMPTY, what).with_hint(
                "move that file away, or have the configuration name another place for it; restore makes the backup's own",
            ))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(Failure::file("reading", path, &error)),
    }
}
