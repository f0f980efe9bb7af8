//! The last checkpoint, kept once more outside the database.
//!
//! A database can be put back from an older copy, emptied or lost, and nothing in it tells. The log would then give
//! indexes out a second time under the same key, which is a fork. So the newest checkpoint is also a file in the data
//! folder, and a log that has not reached it, or reached it with another root, does not start.
//!
//! The file is written after the commit and off its path, and is not synced: it may lag behind the database, which
//! does no harm, and is never ahead of it. A start without it, as of a new server on a shared database, warns and
//! writes it. It does not see the whole folder put back, file and all; who keeps copies of checkpoints elsewhere sees
//! that.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::checkpoint::{Checkpoint, LogVerifier};
use crate::error::TlogError;
use crate::shelf::Shelf;
use crate::source;

/// How long commits are gathered before the file is written again, in milliseconds.
const PAUSE_MS: u64 = 100;

/// The file's content, if it is there.
pub(crate) fn read(path: &Path, verifier: &LogVerifier) -> Result<Option<Checkpoint>, TlogError> {
    let damaged = |found: String| TlogError::Damaged {
        what: path.display().to_string(),
        found,
    };
    let note = match std::fs::read_to_string(path) {
        Ok(note) => note,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(damaged(error.to_string())),
    };
    let checkpoint = verifier.verify(&note);
    checkpoint
        .map(Some)
        .map_err(|error| damaged(kernel::chain(&error)))
}

/// Holds what is stored against the file: the log has reached it, with the same root.
pub(crate) async fn check(path: &Path, mark: &Checkpoint, shelf: &Shelf, size: u64) -> Result<(), TlogError> {
    if mark.size > size {
        let found = format!("{} is its checkpoint of {} entries", path.display(), mark.size);
        return Err(TlogError::RolledBack { size, found });
    }
    if source::edge(shelf, mark.size, size).await?.root() == mark.root {
        return Ok(());
    }
    Err(TlogError::Forked {
        size: mark.size,
        path: path.to_owned(),
    })
}

/// Writes each checkpoint that this server commits, or sees another one commit, the newest of those that come close
/// together, until the sequencer has ended.
pub(crate) async fn run(
    mut newest: watch::Receiver<Option<Arc<Checkpoint>>>,
    mut ended: watch::Receiver<bool>,
    path: PathBuf,
) {
    loop {
        let last = tokio::select! {
            changed = newest.changed() => changed.is_err(),
            _ = ended.wait_for(|ended| *ended) => true,
        };
        let checkpoint = newest.borrow_and_update().clone();
        if let Some(checkpoint) = checkpoint {
            let path = path.clone();
            // An error is a panic of the write, which has none.
            let _ = tokio::task::spawn_blocking(move || keep(&path, &checkpoint.note)).await;
        }
        if last {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(PAUSE_MS)) => {}
            _ = ended.wait_for(|ended| *ended) => {}
        }
    }
}

/// Writes the file. Where that fails the log goes on: this is a second net, and the next commit tries again.
pub(crate) fn keep(path: &Path, note: &str) {
    if let Err(error) = write(path, note) {
        tracing::warn!(path = %path.display(), %error, "the checkpoint was not written beside the database");
    }
}

/// Beside its place first: the file is there whole or as it was.
fn write(path: &Path, note: &str) -> std::io::Result<()> {
    let staged = path.with_extension("new");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&staged)?;
    file.write_all(note.as_bytes())?;
    std::fs::rename(&staged, path)
}
