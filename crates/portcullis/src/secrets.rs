//! The server's own secrets: files that only its user reads.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use kernel::{Clock, Random, Secret};
use zeroize::Zeroizing;

use crate::codes;
use crate::failure::Failure;

/// The log's key with the name that goes with it for ever.
pub struct LogSecret {
    pub origin: String,
    pub pkcs8: Zeroizing<Vec<u8>>,
    pub since: Timestamp,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct LogFile {
    origin: String,
    since: Timestamp,
    /// PKCS #8 DER, base64.
    private_key: Zeroizing<String>,
}

/// Reads a log's key, or makes one, under a name that ends with `origin`, if `fresh` says that there is no log yet. A
/// log whose key is lost is never replaced silently: that would be another log under the same roof.
pub fn log_key(
    path: &Path,
    origin: &str,
    fresh: bool,
    clock: &dyn Clock,
    random: &dyn Random,
) -> Result<LogSecret, Failure> {
    let text = match read(path)? {
        Some(text) => text,
        None if fresh => {
            let pkcs8 = tlog::LogKey::generate(random)
                .map_err(|error| Failure::local("making the log's key", &error))?;
            let mut name = [0; 16];
            random.fill(&mut name);
            let origin = format!("{}.{origin}", uuid::Builder::from_random_bytes(name).into_uuid());
            let private_key = Zeroizing::new(BASE64.encode(&pkcs8));
            let text = serde_json::to_string_pretty(&LogFile {
                origin,
                since: clock.now(),
                private_key,
            });
            let text = text.map_err(|error| Failure::local("writing the log's key", &error))?;
            create(path, &text)?;
            text
        }
        None => {
            let cause = format!(
                "{} is missing, but the database has a log that it signed",
                path.display()
            );
            return Err(Failure::coded(1, &codes::SECRETS, cause));
        }
    };
    parse_log_key(&path.display().to_string(), text.as_bytes())
}

/// The key in a file's bytes; `place` says whose they are.
pub fn parse_log_key(place: &str, bytes: &[u8]) -> Result<LogSecret, Failure> {
    let damaged = |why: &str| Failure::coded(1, &codes::SECRETS, format!("{place} is damaged: {why}"));
    let file: LogFile = serde_json::from_slice(bytes).map_err(|error| damaged(&error.to_string()))?;
    let pkcs8 = BASE64
        .decode(&*file.private_key)
        .map_err(|error| damaged(&error.to_string()))?;
    Ok(LogSecret {
        origin: file.origin,
        pkcs8: Zeroizing::new(pkcs8),
        since: file.since,
    })
}

/// Reads the password that closes the signing keys, or makes one.
pub fn password(path: &Path, fresh: bool, random: &dyn Random) -> Result<Secret, Failure> {
    if let Some(text) = read(path)? {
        let text = Secret::new(text.trim_end().to_owned());
        if text.expose().is_empty() {
            let cause = format!(
                "{} is empty: keys that it closed would be open to everybody",
                path.display()
            );
            return Err(Failure::coded(1, &codes::SECRETS, cause));
        }
        return Ok(text);
    }
    if !fresh {
        let cause = format!(
            "{} is missing, but the database has keys that it closes",
            path.display()
        );
        return Err(Failure::coded(1, &codes::SECRETS, cause));
    }
    let mut bytes = Zeroizing::new([0; 32]);
    random.fill(&mut *bytes);
    let text = URL_SAFE_NO_PAD.encode(*bytes);
    create(path, &text)?;
    Ok(Secret::new(text))
}

fn read(path: &Path) -> Result<Option<String>, Failure> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::coded(
            1,
            &codes::SECRETS,
            format!("reading {}: {error}", path.display()),
        )),
    }
}

/// Writes the file beside its place, synced, then moves it there: it exists whole or not at all.
pub fn create(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::local(format!("writing {}", path.display()), &error);
    let folder: PathBuf = path.parent().map_or_else(PathBuf::new, Path::to_owned);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(failed)?;
    let staged = path.with_extension("new");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&staged)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    std::fs::rename(&staged, path).map_err(failed)?;
    std::fs::File::open(&folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed)
}
