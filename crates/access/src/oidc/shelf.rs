//! The keys of an issuer on disk, so that a server that starts while the issuer is down knows them.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use kernel::Digest;
use serde::{Deserialize, Serialize};

use super::keys::{KEY_SET_BYTES_MAX, KeySet};

/// Bytes of a file: the key set as a JSON text, in which each byte may take six, and what is said of it.
const FILE_BYTES_MAX: u64 = 6 * KEY_SET_BYTES_MAX as u64 + 4_096;

/// The place of one issuer's file.
#[derive(Debug, Clone)]
pub(super) struct Shelf {
    issuer: String,
    path: PathBuf,
}

/// What lay there.
#[derive(Debug)]
pub(super) struct Kept {
    pub keys: KeySet,
    pub heard_at: Timestamp,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeysFile {
    issuer: String,
    /// Microseconds since 1970.
    heard_at_us: i64,
    /// Of `jwks`: a file that was damaged is not believed.
    sha256: String,
    /// As the issuer sent it.
    jwks: String,
}

impl Shelf {
    pub fn of(folder: &Path, issuer: &str) -> Self {
        let name = format!("{}.json", Digest::of(issuer.as_bytes()).hex());
        Self {
            issuer: issuer.to_owned(),
            path: folder.join(name),
        }
    }

    /// What was kept, checked as if it had just been heard.
    pub fn read(&self) -> Result<Option<Kept>, String> {
        let failed = |why: &str| format!("{}: {why}", self.path.display());
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&error.to_string())),
        };
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(|error| failed(&error.to_string()))?;
        let file: KeysFile =
            serde_json::from_slice(&bytes).map_err(|_| failed("it is not a file of keys"))?;
        if file.issuer != self.issuer {
            return Err(failed("it is of another issuer"));
        }
        if file.sha256 != Digest::of(file.jwks.as_bytes()).hex() {
            return Err(failed("it is damaged"));
        }
        let keys = KeySet::parse(file.jwks.as_bytes()).map_err(failed)?;
        let heard_at =
            Timestamp::from_microsecond(file.heard_at_us).map_err(|_| failed("its time is none"))?;
        Ok(Some(Kept { keys, heard_at }))
    }

    /// Writes the file beside its place, synced, then moves it there: it is the old one or the new one, and whole.
    pub fn write(&self, jwks: &[u8], heard_at: Timestamp) -> io::Result<()> {
        let jwks = String::from_utf8(jwks.to_vec()).map_err(io::Error::other)?;
        let file = KeysFile {
            issuer: self.issuer.clone(),
            heard_at_us: heard_at.as_microsecond(),
            sha256: Digest::of(jwks.as_bytes()).hex(),
            jwks,
        };
        let folder = self.path.parent().unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let staged = self.path.with_extension("new");
        let mut out = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&staged)?;
        out.write_all(&serde_json::to_vec(&file)?)?;
        out.sync_all()?;
        kernel::crash_point("oidc.staged_keys");
        std::fs::rename(&staged, &self.path)?;
        File::open(folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JWKS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"a",
        "x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;

    #[test]
    fn kept_keys_read_back_and_damaged_ones_are_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::of(&folder.path().join("oidc"), "https://a.example");
        assert!(shelf.read().unwrap().is_none());
        let at = Timestamp::from_second(1_700_000_000).unwrap();
        shelf.write(JWKS.as_bytes(), at).unwrap();
        let kept = shelf.read().unwrap().unwrap();
        assert_eq!(
            (kept.heard_at, kept.keys),
            (at, KeySet::parse(JWKS.as_bytes()).unwrap())
        );

        let whole = std::fs::read(&shelf.path).unwrap();
        let other = Shelf {
            issuer: "https://b.example".to_owned(),
            path: shelf.path.clone(),
        };
        assert!(other.read().unwrap_err().ends_with("of another issuer"));
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&shelf.path, &damaged).unwrap();
            // A time that changed is a time; a key that changed would be another key.
            if let Ok(kept) = shelf.read() {
                assert_eq!(
                    kept.unwrap().keys,
                    KeySet::parse(JWKS.as_bytes()).unwrap(),
                    "byte {at}"
                );
            }
            std::fs::write(&shelf.path, &whole[..at]).unwrap();
            assert!(shelf.read().is_err(), "cut at {at}");
        }
    }
}
