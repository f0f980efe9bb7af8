//! Making a backup.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{BufWriter, ErrorKind};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use kernel::{Clock, crash_point};
use store::archive::{ArchiveError, LogState, Manifest, PartWriter, Writer};
use store::{Blobs, Snapshot, args};
use tlog::tile::{TILE_WIDTH, TilePath};
use tlog::{LogKey, LogVerifier, Name};

use super::{LOGS, PASSWORD, codes, log_secret, password, secret_file, steps, whole};
use crate::codes as own_codes;
use crate::config::Config;
use crate::failure::Failure;
use crate::place;

/// A backup that was made.
pub struct Made {
    pub manifest: Manifest,
    /// Of the whole file.
    pub bytes: u64,
}

type Archive = Writer<BufWriter<File>>;

/// Writes a backup to `path`: beside it first, so that under that name it is there whole or not at all.
pub async fn make(
    config: &Config,
    path: &Path,
    force: bool,
    secrets: bool,
    clock: &dyn Clock,
) -> Result<Made, Failure> {
    let failed = |error: std::io::Error| {
        Failure::from(ArchiveError::Io {
            operation: "writing",
            source: error,
        })
    };
    if !force && path.symlink_metadata().is_ok() {
        return Err(stands(path));
    }
    let staged = staged(path)?;
    let file = open(&staged)?;
    let made = async {
        let archive = Writer::new(BufWriter::new(file))?;
        let (output, manifest) = fill(config, archive, secrets, clock).await?;
        let file = output.into_inner().map_err(|error| failed(error.into_error()))?;
        are_whole(&file, &manifest).await?;
        file.sync_all().map_err(failed)?;
        crash_point("backup.synced");
        let bytes = file.metadata().map_err(failed)?.len();
        put_in_place(&staged, path, force)?;
        Ok(Made { manifest, bytes })
    };
    let made = made.await;
    if made.is_err() {
        // It may be in its place already; what matters was said.
        let _ = std::fs::remove_file(&staged);
    }
    made
}

fn stands(path: &Path) -> Failure {
    let what = format!("{} is there already; it was left as it is", path.display());
    Failure::coded(7, &own_codes::STANDS, what).with_hint("name another file, or give --force to replace it")
}

/// The file's name while it is written.
fn staged(path: &Path) -> Result<PathBuf, Failure> {
    let Some(name) = path.file_name() else {
        let what = format!("{} names no file", path.display());
        return Err(Failure::usage(what, "name a file: portcullis backup FILE"));
    };
    let mut staged = std::ffi::OsString::from(".");
    staged.push(name);
    staged.push(".partial");
    Ok(path.with_file_name(staged))
}

/// For this user alone, and held, so that two backups to one name do not mix. What one left that was killed is gone.
fn open(staged: &Path) -> Result<File, Failure> {
    let failed = |error: std::io::Error| Failure::file("writing", staged, &error);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(staged)
        .map_err(failed)?;
    // Whoever may write to the folder could have put one there that others read, or a link to somewhere else.
    let is_own = std::fs::symlink_metadata(staged).is_ok_and(|found| found.is_file());
    if !is_own {
        let what = format!("{} is there and is no file of a backup", staged.display());
        return Err(Failure::coded(7, &own_codes::STANDS, what).with_hint("take it away, and back up again"));
    }
    file.set_permissions(Permissions::from_mode(0o600))
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let what = format!("another backup writes {}", staged.display());
            return Err(Failure::coded(7, &own_codes::STANDS, what));
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    file.set_len(0).map_err(failed)?;
    Ok(file)
}

fn put_in_place(staged: &Path, path: &Path, force: bool) -> Result<(), Failure> {
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::AlreadyExists => stands(path),
        _ => Failure::file("writing", path, &error),
    };
    if force {
        std::fs::rename(staged, path).map_err(failed)?;
    } else {
        // Unlike a rename, a link does not replace what somebody put there meanwhile.
        std::fs::hard_link(staged, path).map_err(failed)?;
        std::fs::remove_file(staged).map_err(failed)?;
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))
        .and_then(|folder| folder.sync_all())
        .map_err(failed)
}

async fn fill(
    config: &Config,
    mut archive: Archive,
    secrets: bool,
    clock: &dyn Clock,
) -> Result<(BufWriter<File>, Manifest), Failure> {
    let url = place::database_url(config);
    place::database_is_there(config)?;
    let mut snapshot = Snapshot::open(&url).await?;
    let schema = snapshot.schema().await?;
    let mut logs = Vec::with_capacity(LOGS.len());
    if !schema.is_empty() {
        for (name, secret) in LOGS {
            logs.extend(log_state(config, &mut snapshot, name, secret).await?);
        }
    }
    if logs.is_empty() {
        let what = "no server has started on this database yet".to_owned();
        return Err(Failure::coded(4, &own_codes::NO_DATA, what));
    }
    if secrets {
        let keys = snapshot.read(password::NEWEST_KEYS.to_owned(), args![]).await?;
        password::check(config, &keys)?;
    }
    let mut manifest = Manifest {
        program: env!("CARGO_PKG_VERSION").to_owned(),
        made_at: clock.now().to_string(),
        secrets,
        rows: std::collections::BTreeMap::new(),
        logs,
        members: Vec::new(),
        schema,
    };
    for table in store::tables(&steps(&manifest.schema)?) {
        let rows = rows(&mut snapshot, table, &mut archive).await?;
        manifest.rows.insert(table.to_owned(), rows);
        crash_point("backup.table");
    }
    snapshot.close().await;
    let blobs = place::blobs(config)?;
    for log in &manifest.logs {
        tiles(&blobs, log, &mut archive).await?;
    }
    if let Some(bytes) = blobs.get(probing::INSTALLATION_BLOB).await? {
        archive.add(&format!("blobs/{}", probing::INSTALLATION_BLOB), &bytes)?;
    }
    crash_point("backup.blobs");
    if secrets {
        for name in LOGS.iter().map(|(_, name)| *name).chain([PASSWORD]) {
            let path = secret_file(config, name);
            let bytes = std::fs::read(&path).map_err(|error| Failure::file("reading", &path, &error))?;
            let bytes = zeroize::Zeroizing::new(bytes);
            archive.add(&format!("secrets/{name}"), &bytes)?;
        }
    }
    Ok(archive.finish(manifest)?)
}

/// That every log in the archive leads to its checkpoint, so that it can be restored.
async fn are_whole(file: &File, manifest: &Manifest) -> Result<(), Failure> {
    for (name, _) in LOGS {
        let Some(log) = manifest.logs.iter().find(|log| log.name == name.prefix()) else {
            continue;
        };
        let verifier = LogVerifier::from_pem(&log.origin, &log.public_key)
            .map_err(|error| Failure::content(format!("the key of {name}"), &error))?;
        let view = whole::view(file, manifest, log, verifier)?;
        if let Some(damage) = whole::damage(&view).await? {
            let what = format!("{name}: {damage}");
            return Err(Failure::coded(1, &codes::INCOMPLETE, what));
        }
    }
    Ok(())
}

/// How far a log is, if there is one; that its checkpoint is signed by the configured key.
async fn log_state(
    config: &Config,
    snapshot: &mut Snapshot,
    name: Name,
    secret: &str,
) -> Result<Option<LogState>, Failure> {
    let prefix = name.prefix();
    if snapshot.columns(&format!("{prefix}_tiles")).await?.is_empty() {
        return Ok(None);
    }
    let sql = format!(
        "SELECT size, note, (SELECT entries FROM {prefix}_tiles WHERE id = 1) AS tiled \
         FROM {prefix}_checkpoint WHERE id = 1"
    );
    let rows = snapshot.read(sql, args![]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let secret = log_secret(config, secret)?;
    let key = LogKey::new(&secret.origin, &secret.pkcs8)
        .map_err(|error| Failure::local(format!("the key of {name}"), &error))?;
    let note = row.text("note")?;
    let checkpoint = key.verifier().verify(&note).map_err(|error| {
        let what = format!("the checkpoint of {name}: {}", kernel::chain(&error));
        Failure::coded(1, &codes::INCOMPLETE, what)
    })?;
    Ok(Some(LogState {
        name: prefix.to_owned(),
        origin: secret.origin,
        public_key: key.verifier().pem(),
        size: checkpoint.size,
        tiled: u64::try_from(row.opt_int("tiled")?.unwrap_or(0)).unwrap_or(0),
        checkpoint: note,
    }))
}

/// Every row of a table, in parts; how many there were.
async fn rows(snapshot: &mut Snapshot, table: &str, archive: &mut Archive) -> Result<u64, Failure> {
    let columns = snapshot.columns(table).await?;
    let (mut part, mut parts, mut count) = (PartWriter::new(table, &columns), 0, 0);
    let mut write = |part: &mut PartWriter| {
        parts += 1;
        archive.add(&format!("tables/{table}/{parts:08}"), &part.take())
    };
    snapshot
        .rows(table, &columns, |row| {
            part.row(&row);
            count += 1;
            if part.is_full() {
                write(&mut part)?;
            }
            Ok::<_, Failure>(())
        })
        .await?;
    if !part.is_empty() {
        write(&mut part)?;
    }
    Ok(count)
}

/// The blobs of a log that has so many entries in them: bundles, their tiles, and the full tiles above.
pub(super) fn tile_paths(tiled: u64) -> impl Iterator<Item = TilePath> {
    let bundles = tiled / TILE_WIDTH;
    let entries = (0..bundles).map(TilePath::bundle);
    let levels = (0_u8..8).map(move |level| (level, bundles / TILE_WIDTH.pow(level.into())));
    let tiles = levels.take_while(|(_, count)| *count > 0);
    entries.chain(tiles.flat_map(|(level, count)| (0..count).map(move |index| TilePath::full(level, index))))
}

/// Whether a tile or bundle is one of [`tile_paths`].
pub(super) fn is_tiled(path: TilePath, tiled: u64) -> bool {
    let span = TILE_WIDTH.checked_pow(u32::from(path.level.unwrap_or(0)) + 1);
    let end = span.and_then(|span| span.checked_mul(path.index + 1));
    u64::from(path.width) == TILE_WIDTH && end.is_some_and(|end| end <= tiled)
}

async fn tiles(blobs: &Blobs, log: &LogState, archive: &mut Archive) -> Result<(), Failure> {
    for path in tile_paths(log.tiled) {
        let name = format!("{}/{path}", log.name);
        let Some(bytes) = blobs.get(&name).await? else {
            let what = format!("{name} is not among the blobs");
            return Err(Failure::coded(1, &codes::INCOMPLETE, what));
        };
        archive.add(&format!("blobs/{name}"), &bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_full_tile_of_a_log_is_named() {
        let names = |tiled| tile_paths(tiled).map(|path| path.to_string()).collect::<Vec<_>>();
        assert!(names(0).is_empty());
        assert_eq!(names(256), ["tile/entries/000", "tile/0/000"]);
        let many = names(65_536 + 256);
        assert_eq!(many.len(), 257 + 257 + 1);
        assert_eq!(many.last().map(String::as_str), Some("tile/1/000"));
        assert!(tile_paths(65_792).all(|path| is_tiled(path, 65_792)));
        assert!(!is_tiled(TilePath::bundle(1), 511) && !is_tiled(TilePath::full(1, 0), 65_535));
    }
}
