//! Restoring a backup.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Seek as _};
use std::path::{Path, PathBuf};

use kernel::{SystemClock, SystemRandom, crash_point};
use store::archive::{self, ArchiveError, LogState, Manifest, Member, Part, Reader};
use store::{Blobs, Db, FolderLock, Tx};
use tlog::tile::TilePath;
use tlog::{Audit, Checkpoint, Damage, LogKey, LogVerifier, Name, Told};
use zeroize::Zeroizing;

use super::seen::{self, Seen};
use super::{LOGS, PASSWORD, kept_secrets, make, password, secret_file, steps, whole};
use crate::config::Config;
use crate::failure::Failure;
use crate::secrets::{self, LogSecret};
use crate::{place, wiring};

/// What a data folder may hold before: what is left of a server whose database is lost, or of a restore that was killed.
const FOLDER_NAMES: [&str; 12] = [
    "lock",
    "log.checkpoint",
    "audit.checkpoint",
    "database.mark",
    "secrets",
    "blobs",
    "oidc",
    "portcullis.db",
    "portcullis.db-wal",
    "portcullis.db-shm",
    "portcullis.db-journal",
    "lost+found",
];

/// What is restored.
pub struct Options {
    pub file: PathBuf,
    /// Checkpoints that were kept elsewhere.
    pub checkpoints: Vec<PathBuf>,
}

/// What came of it.
pub struct Restored {
    pub manifest: Manifest,
    /// The transparency log as it is now, every entry hashed again.
    pub audit: Audit,
    /// For each log where the checkpoints were found that it was held against, or that there were none; empty if there
    /// were none for any log.
    pub held_against: Vec<String>,
    /// Checkpoints in the backup that a server had told of and that stop a log: of which log, by whom, how many entries.
    pub stopped: Vec<(Name, Told)>,
}

/// A log of the backup with everything that is known of it.
struct Log {
    name: Name,
    secret: LogSecret,
    verifier: LogVerifier,
    held: Checkpoint,
    /// Checkpoints of it that somebody kept.
    seen: Vec<Seen>,
}

pub async fn restore(config: &Config, options: &Options) -> Result<Restored, Failure> {
    restored(config, options).await.map_err(no_room)
}

async fn restored(config: &Config, options: &Options) -> Result<Restored, Failure> {
    let mut file = open(&options.file)?;
    // A folder in use is said to be that, before anything else about it.
    let folder = &config.data.folder;
    let held = folder.join("lock").exists().then(|| FolderLock::take(folder));
    let held = held.transpose()?;
    let manifest = archive::verify(&mut Reader::new(BufReader::new(&file))?)?;
    steps(&manifest.schema)?;
    let secrets = match manifest.secrets {
        true => secrets_of(&mut file)?,
        false => kept_secrets::configured(config)?,
    };
    let mut logs = Vec::new();
    for (name, secret) in LOGS {
        logs.extend(log(&manifest, name, &secrets[secret])?);
    }
    look(config, options, &mut logs)?;
    let held_against = held_against(&logs);
    for (name, bytes) in &secrets {
        kept_secrets::is_free(&secret_file(config, name), bytes)?;
    }
    empty(folder)?;
    for log in &mut logs {
        whole_and_no_fork(&file, &manifest, log).await?;
    }
    let _lock = match held {
        Some(held) => held,
        None => FolderLock::take(folder)?,
    };
    let blobs = place::blobs(config)?;
    no_later_tiles(&blobs, &manifest).await?;
    let db = Db::open_with(&place::database_url(config), config.database.connections_max).await?;
    let done = write(config, &mut file, &manifest, &blobs, &db, logs).await;
    let stopped = match &done {
        Ok(_) => stopped(&db).await,
        Err(_) => Ok(Vec::new()),
    };
    db.close().await;
    Ok(Restored {
        audit: done?,
        stopped: stopped?,
        manifest,
        held_against,
    })
}

fn open(path: &Path) -> Result<File, Failure> {
    let failed = |error: std::io::Error| Failure::file("reading", path, &error);
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        let what = format!("{} is a folder", path.display());
        return Err(Failure::coded(1, &archive::codes::FOREIGN, what)
            .with_hint("name the file that portcullis backup wrote; of a data folder make a backup first"));
    }
    Ok(file)
}

/// A server whose disk was full goes on by itself, a restore does not.
fn no_room(failure: Failure) -> Failure {
    if failure.code() != store::codes::FULL.id {
        return failure;
    }
    failure.with_hint(
        "make room and run the restore again, into an empty database where it says that this one is not (PC1110); nothing \
         starts on what was written so far",
    )
}

/// What was seen of a log and is not in the backup was true before the restore and is after it: it is carried, and told.
async fn stopped(db: &Db) -> Result<Vec<(Name, Told)>, Failure> {
    let mut stopped = Vec::new();
    for (name, _) in LOGS {
        let told = tlog::told(db, name).await.map_err(Failure::log)?;
        stopped.extend(
            told.into_iter()
                .filter(|told| told.stops)
                .map(|told| (name, told)),
        );
    }
    Ok(stopped)
}

/// Everything that is written; what the transparency log is then, gone through.
async fn write(
    config: &Config,
    file: &mut File,
    manifest: &Manifest,
    blobs: &Blobs,
    db: &Db,
    logs: Vec<Log>,
) -> Result<Audit, Failure> {
    db.begin_restore(&place::migrations()).await?;
    crash_point("restore.marked");
    let mut tx = db.load(&steps(&manifest.schema)?, &manifest.schema).await?;
    put(config, file, manifest, blobs, &mut tx).await?;
    password::check(config, &tx.read(password::NEWEST_KEYS, Vec::new()).await?)?;
    store::lease::end_all(&mut tx).await?;
    tx.migrate(&place::migrations()).await?;
    crash_point("restore.loaded");
    tx.commit().await?;
    crash_point("restore.committed");
    let mut signatures = None;
    for log in logs {
        let (name, audit) = (log.name, check(config, db, log).await?);
        if name == Name::Signatures {
            signatures = Some(audit);
        }
    }
    let no_log = || ArchiveError::damaged(archive::MANIFEST, "it names no log");
    let audit = signatures.ok_or_else(no_log)?;
    // The count in it is that of a database that is gone.
    let _ = std::fs::remove_file(config.data.folder.join("database.mark"));
    crash_point("restore.checked");
    db.end_restore().await?;
    Ok(audit)
}

/// The secrets in an archive whose hashes are checked, by name.
fn secrets_of(file: &mut File) -> Result<BTreeMap<String, Zeroizing<Vec<u8>>>, Failure> {
    let mut found = BTreeMap::new();
    each_member(file, |_, member| {
        if let Some(name) = member.name.strip_prefix("secrets/") {
            found.insert(name.to_owned(), Zeroizing::new(member.bytes));
        }
        Ok(())
    })?;
    for name in LOGS.iter().map(|(_, name)| *name).chain([PASSWORD]) {
        if !found.contains_key(name) {
            return Err(ArchiveError::damaged(format!("secrets/{name}"), "it is missing").into());
        }
    }
    Ok(found)
}

fn each_member(
    file: &mut File,
    mut each: impl FnMut(usize, Member) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut reader = rewound(file)?;
    let mut at = 0;
    while let Some(member) = reader.member()? {
        each(at, member)?;
        at += 1;
    }
    Ok(())
}

fn rewound(file: &mut File) -> Result<Reader<BufReader<&File>>, Failure> {
    let failed = |source| ArchiveError::Io {
        operation: "reading",
        source,
    };
    file.rewind().map_err(failed)?;
    Ok(Reader::new(BufReader::new(&*file))?)
}

/// A log of the backup, if it has it, signed by its key.
fn log(manifest: &Manifest, name: Name, secret: &[u8]) -> Result<Option<Log>, Failure> {
    let Some(state) = state(manifest, name) else {
        return match name {
            Name::Audit => Ok(None),
            Name::Signatures => Err(ArchiveError::damaged(archive::MANIFEST, "it names no log").into()),
        };
    };
    let secret = secrets::parse_log_key(&format!("the key of {name}"), secret)?;
    let verifier = verifier(&secret)?;
    Ok(Some(Log {
        held: seen::held(state, &verifier)?,
        seen: Vec::new(),
        name,
        secret,
        verifier,
    }))
}

fn state(manifest: &Manifest, name: Name) -> Option<&LogState> {
    manifest.logs.iter().find(|log| log.name == name.prefix())
}

/// Reads the checkpoints that lie in the data folder and those that were given, each for the log whose it is.
fn look(config: &Config, options: &Options, logs: &mut [Log]) -> Result<(), Failure> {
    for log in logs.iter_mut() {
        let kept = config.data.folder.join(mark(log.name));
        if kept.exists() {
            log.seen.push(seen::read(&kept, &[&log.verifier])?.1);
        }
    }
    for path in &options.checkpoints {
        let verifiers: Vec<&LogVerifier> = logs.iter().map(|log| &log.verifier).collect();
        let (at, seen) = seen::read(path, &verifiers)?;
        logs[at].seen.push(seen);
    }
    Ok(())
}

fn held_against(logs: &[Log]) -> Vec<String> {
    if logs.iter().all(|log| log.seen.is_empty()) {
        return Vec::new();
    }
    let of_log = |log: &Log| {
        let places: Vec<&str> = log.seen.iter().map(|seen| &*seen.place).collect();
        match &*places {
            [] => format!("{}: no checkpoint", log.name),
            places => format!("{}: {}", log.name, places.join(" and ")),
        }
    };
    logs.iter().map(of_log).collect()
}

/// Refuses a log that is not whole, or that holds less or other entries than were seen.
async fn whole_and_no_fork(file: &File, manifest: &Manifest, log: &mut Log) -> Result<(), Failure> {
    let to_prove = seen::check(log.name, &log.held, std::mem::take(&mut log.seen))?;
    let Some(state) = state(manifest, log.name) else {
        return Ok(());
    };
    let view = whole::view(file, manifest, state, log.verifier.clone())?;
    if let Some(damage) = whole::damage(&view).await? {
        return Err(damaged(log.name, &damage).with_hint("nothing was restored; restore another backup"));
    }
    for seen in to_prove.iter().filter(|seen| seen.checkpoint.size > 0) {
        let proof = view.consistency(seen.checkpoint.size, log.held.size).await;
        if proof.map_err(Failure::log)?.old_root != seen.checkpoint.root {
            return Err(seen::differs(log.name, seen));
        }
    }
    Ok(())
}

fn damaged(name: Name, damage: &Damage) -> Failure {
    Failure::coded(1, &tlog::codes::DAMAGED, format!("{name}: {damage}"))
}

/// The file of the data folder with a log's newest checkpoint.
fn mark(name: Name) -> &'static str {
    match name {
        Name::Signatures => "log.checkpoint",
        Name::Audit => "audit.checkpoint",
    }
}

fn verifier(secret: &LogSecret) -> Result<LogVerifier, Failure> {
    let key = LogKey::new(&secret.origin, &secret.pkcs8);
    key.map(|key| key.verifier().clone())
        .map_err(|error| Failure::content("the log's key", &error))
}

/// That the data folder has nothing that is not a server's.
fn empty(folder: &Path) -> Result<(), Failure> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Failure::file("reading", folder, &error)),
    };
    for entry in entries {
        let name = entry
            .map_err(|error| Failure::file("reading", folder, &error))?
            .file_name();
        if !FOLDER_NAMES.iter().any(|known| name == *known) {
            let what = format!("{} has {}", folder.display(), name.display());
            return Err(Failure::coded(7, &store::codes::NOT_EMPTY, what));
        }
    }
    Ok(())
}

/// Blobs that outlived their database may show that the log went on after the backup.
async fn no_later_tiles(blobs: &Blobs, manifest: &Manifest) -> Result<(), Failure> {
    for log in &manifest.logs {
        let next = format!(
            "{}/{}",
            log.name,
            TilePath::bundle(log.size / tlog::tile::TILE_WIDTH)
        );
        if blobs.get(&next).await?.is_some() {
            let what = format!(
                "the backup holds {} entries, and {next} among the blobs has later ones",
                log.size
            );
            return Err(Failure::coded(7, &super::codes::FORK, what));
        }
    }
    Ok(())
}

/// Puts every member in its place; rows into the open transaction.
async fn put(
    config: &Config,
    file: &mut File,
    manifest: &Manifest,
    blobs: &Blobs,
    tx: &mut Tx,
) -> Result<(), Failure> {
    let tables = store::tables(&steps(&manifest.schema)?);
    let mut rows: BTreeMap<&str, u64> = tables.iter().map(|table| (*table, 0)).collect();
    let mut reader = rewound(file)?;
    let mut at = 0;
    while let Some(member) = reader.member()? {
        if member.name == archive::MANIFEST {
            break;
        }
        // Once more: the file may be another one than a moment ago.
        manifest.check(at, &member)?;
        at += 1;
        let place = member
            .name
            .split_once('/')
            .map(|(kind, rest)| (kind, rest.to_owned()));
        match place {
            Some(("tables", rest)) => {
                let table = rest.split('/').next().unwrap_or_default();
                let Some(table) = tables.iter().find(|known| **known == table) else {
                    return Err(ArchiveError::damaged(&*member.name, "there is no such table").into());
                };
                let count = insert(tx, table, member).await?;
                rows.entry(table).and_modify(|rows| *rows += count);
            }
            Some(("blobs", name)) if is_blob(&name, manifest) => {
                blobs.put(&name, member.bytes.into()).await?;
            }
            Some(("secrets", name)) => kept_secrets::create(config, &name, member)?,
            _ => return Err(ArchiveError::damaged(member.name, "no backup has such a member").into()),
        }
    }
    for (table, count) in rows {
        if manifest.rows.get(table) != Some(&count) {
            let found = format!(
                "{count} rows, where the manifest says {:?}",
                manifest.rows.get(table)
            );
            return Err(ArchiveError::damaged(table, found).into());
        }
    }
    Ok(())
}

/// Puts the rows of a part into its table, if they are of its columns; how many there were.
async fn insert(tx: &mut Tx, table: &str, member: Member) -> Result<u64, Failure> {
    let Member { name, bytes } = member;
    let part = Part::parse(&bytes)?;
    let columns = tx.columns(table).await?;
    let known = |column| columns.contains(column);
    if part.table != table || part.columns.len() != columns.len() || !part.columns.iter().all(known) {
        return Err(ArchiveError::damaged(name, "its columns are not those of the table").into());
    }
    let count = part.rows.len() as u64;
    tx.insert(table, &part.columns, part.rows).await?;
    Ok(count)
}

/// Whether a blob is one that the logs of the manifest have.
fn is_blob(name: &str, manifest: &Manifest) -> bool {
    let of_log = |log: &archive::LogState| {
        let path = name
            .strip_prefix(&*log.name)
            .and_then(|path| path.strip_prefix("/tile/"));
        let path = path.and_then(|path| TilePath::parse(path).ok());
        path.is_some_and(|path| make::is_tiled(path, log.tiled))
    };
    name == probing::INSTALLATION_BLOB || manifest.logs.iter().any(of_log)
}

/// Opens a log as a server would, and goes through all of it; nothing starts on the database yet.
async fn check(config: &Config, db: &Db, log: Log) -> Result<Audit, Failure> {
    let holder = place::holder(&config.data.folder, db, &SystemRandom)?;
    let owner = place::owner(db, &SystemClock::new(), &SystemRandom).await?;
    let mark = mark(log.name);
    let tlog = wiring::open_named_log(config, db.clone(), holder, log.name, &log.secret, mark, owner).await?;
    let audit = tlog.fsck(&mut |_| {}).await.map_err(Failure::log);
    tlog.close().await;
    let whole = audit.and_then(|audit| match audit.damage.first() {
        Some(found) => Err(damaged(log.name, found)),
        None => Ok(audit),
    });
    whole.map_err(|failure| {
        failure.with_hint(
            "nothing starts on what was restored; remove the database and the data folder, and restore another backup",
        )
    })
}
