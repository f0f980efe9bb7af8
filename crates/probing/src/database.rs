//! The database: is it ours, and has it everything that it had?
//!
//! Two things outside of it tell: the installation's id, and a count that every look moves on, both kept in a file of
//! the data folder. Another database behind the same name has another id. One that was put back, or a replica that lost
//! the last writes, has a smaller count; and where other servers moved it past that already, it lacks the number that
//! this server was given last, which has a row of its own. A file of SQLite that was replaced under the running server is
//! another file by its number, though the server still writes into the old one.
//!
//! What is written into a wrong database is lost or somebody else's, so this probe closes the store while it sees one
//! ([`Db::refuse_changes`]), and opens it when it sees the right one. With PostgreSQL the first new connection that leads
//! to another one closes it already ([`Db::require`]). A look only reads until it has judged: a database that takes no
//! writes is told apart all the same. A loss stops nothing, and stays named ([`crate::loss`]).

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use kernel::{Clock, Fault as _, Id, Random};
use store::{Db, StoreError, Tx};

use crate::loss::{self, Counted, Loss};
use crate::marks::{self, Beat, Seen};
use crate::state::{Finding, Kind, State};
use crate::watch::Probe;

/// The mark is a line of text.
const MARK_BYTES_MAX: u64 = 1 << 10;

/// Looks at the database.
pub struct DatabaseProbe {
    /// Looks where the name leads now, and is never refused.
    db: Db,
    /// By what this server's row is known.
    server: String,
    /// The file outside of the database.
    path: PathBuf,
    /// SQLite's files, and which ones they were when the server had opened them.
    files: Vec<(PathBuf, Option<(u64, u64)>)>,
    last: Mutex<Option<Beat>>,
    clock: Arc<dyn Clock>,
}

impl DatabaseProbe {
    /// Reads the mark that the last run left in `path`; for SQLite, `file` is the database's. A server without a mark is
    /// from now on known by a name of chance.
    #[must_use]
    pub fn new(
        db: &Db,
        path: PathBuf,
        file: Option<PathBuf>,
        clock: Arc<dyn Clock>,
        random: &dyn Random,
    ) -> Self {
        let last = read(&path);
        let server = last.as_ref().and_then(|last| last.server.clone());
        Self {
            db: db.ungated(),
            server: server.unwrap_or_else(|| Id::new("srv", &*clock, random).to_string()),
            clock,
            last: Mutex::new(last),
            path,
            files: file.map(|file| files(&file)).unwrap_or_default(),
        }
    }

    fn last(&self) -> Option<Beat> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replaced(&self) -> Option<Finding> {
        let (file, now) = self.files.iter().find_map(|(file, before)| {
            let now = number(file);
            (now != *before).then_some((file, now))
        })?;
        let shown = file.display();
        let found = match now {
            Some(_) => {
                format!("{shown} is another file now, and what the server writes goes into the old one")
            }
            None => format!("{shown} is gone, and what the server writes is lost when it stops"),
        };
        Some(Finding::new(
            State::WrongDatabase,
            "the file that was opened",
            found,
        ))
    }
}

/// The count to which it fell, if that is less than this server was given. With a row of its own the server misses its own
/// number, however far others moved the count since.
fn fell_to(last: &Beat, found: &Seen) -> Option<i64> {
    let own = match last.server {
        Some(_) => found.own.unwrap_or(0),
        None => found.beat,
    };
    let lowest = own.min(found.beat);
    (lowest < last.beat).then_some(lowest)
}

/// What the rows mean beside the last good look.
fn judge(last: Option<&Beat>, found: Option<&Seen>) -> Finding {
    let described = |found: &Seen| format!("installation {}, count {}", found.installation, found.beat);
    let expected = last.map_or_else(
        || "a database of Portcullis".to_owned(),
        |last| format!("installation {}, count {} or more", last.installation, last.beat),
    );
    let (state, found) = match (last, found) {
        (_, None) => (
            State::WrongDatabase,
            "a database without an installation".to_owned(),
        ),
        (Some(last), Some(found)) if last.installation != found.installation => {
            (State::WrongDatabase, described(found))
        }
        (Some(last), Some(found)) if fell_to(last, found).is_some() => (State::RolledBack, described(found)),
        (_, Some(found)) => (State::Ok, described(found)),
    };
    Finding::new(state, expected, found)
}

#[async_trait]
impl Probe for DatabaseProbe {
    fn name(&self) -> &str {
        "database"
    }

    fn kind(&self) -> Kind {
        Kind::Database
    }

    fn expected(&self) -> String {
        judge(self.last().as_ref(), None).expected
    }

    async fn look(&self) -> Finding {
        if let Some(finding) = self.replaced() {
            self.db.refuse_changes(Some(finding.found.clone()));
            return finding;
        }
        let last = self.last();
        let unreachable =
            |error: StoreError| Finding::new(State::Unreachable, self.expected(), unanswered(&error));
        let mut tx = match self.db.begin().await {
            Ok(tx) => tx,
            Err(error) => return unreachable(error),
        };
        let found = match marks::seen(&mut tx, &self.server).await {
            Ok(found) => found,
            Err(error) if error.is_missing_table() => None,
            // Whoever does not answer may be either: the store stays as it is.
            Err(error) => return unreachable(error),
        };
        let finding = judge(last.as_ref(), found.as_ref());
        let (Some(found), State::Ok | State::RolledBack) = (found, finding.state) else {
            self.db.refuse_changes(Some(finding.found.clone()));
            return finding;
        };
        // It is the right one, whether or not it takes what comes now.
        self.db.refuse_changes(None);
        match (self.settle(tx, last.as_ref(), &found).await, finding.state) {
            (Ok(None), _) => finding,
            (Ok(Some(loss)), _) => Finding::new(State::RolledBack, finding.expected, lost(&loss)),
            (Err(error), State::RolledBack) => {
                let found = format!(
                    "{}, and that was not written down: {}",
                    finding.found,
                    unanswered(&error)
                );
                Finding::new(State::RolledBack, finding.expected, found)
            }
            (Err(error), _) => unreachable(error),
        }
    }
}

impl DatabaseProbe {
    /// Writes down what was lost and moves the count on, in one transaction; the answer is the loss that nobody has
    /// acknowledged. The mark moves on only with that: until then a loss is found again.
    async fn settle(
        &self,
        mut tx: Tx,
        last: Option<&Beat>,
        found: &Seen,
    ) -> Result<Option<Loss>, StoreError> {
        let now = self.clock.now();
        if let Some((last, fell_to)) = last.and_then(|last| Some((last, fell_to(last, found)?))) {
            loss::note(&mut tx, Counted::Looks, last.beat, fell_to, now).await?;
        }
        let changes = self.db.changes_lost();
        if let Some((known, found)) = changes {
            loss::note(&mut tx, Counted::Changes, known, found, now).await?;
        }
        let beat = marks::beat(&mut tx, &found.installation, &self.server).await?;
        let loss = loss::read(&mut tx).await?;
        tx.commit().await?;
        if let Some(noted) = changes {
            self.db.changes_lost_noted(noted);
        }
        keep(&self.path, &beat);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(beat);
        Ok(loss)
    }
}

fn lost(loss: &Loss) -> String {
    format!("{loss}; what was written in between is lost, and nobody has acknowledged that")
}

/// What a store that does not answer said.
pub(crate) fn unanswered(error: &StoreError) -> String {
    kernel::words(&format!("{}: {}", error.code().id, kernel::chain(error)))
}

/// Which file it is: device and inode.
fn number(file: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(file).ok().map(|file| (file.dev(), file.ino()))
}

/// The database itself, and the log that every commit goes to first, with its index.
fn files(database: &Path) -> Vec<(PathBuf, Option<(u64, u64)>)> {
    let beside = ["-wal", "-shm"].map(|end| {
        let mut file = database.as_os_str().to_owned();
        file.push(end);
        PathBuf::from(file)
    });
    let beside = beside.into_iter().map(|file| (number(&file), file));
    // What is not there yet is made by the first write.
    let beside = beside
        .filter(|(number, _)| number.is_some())
        .map(|(number, file)| (file, number));
    std::iter::once((database.to_owned(), number(database)))
        .chain(beside)
        .collect()
}

fn read(path: &Path) -> Option<Beat> {
    let length = std::fs::metadata(path).ok()?.len();
    let text = (length <= MARK_BYTES_MAX).then(|| std::fs::read(path).ok())??;
    let mark = serde_json::from_slice(&text).ok();
    if mark.is_none() {
        tracing::warn!(path = %path.display(), "it does not read; that this is an older copy of the database would not be noticed");
    }
    mark
}

/// Beside its place first: the file is there whole or as it was. It is not synced: it may lag behind, which does no harm.
fn keep(path: &Path, beat: &Beat) {
    let staged = path.with_extension("new");
    let text = serde_json::to_vec(beat).unwrap_or_default();
    let mut options = OpenOptions::new();
    let options = options.create(true).truncate(true).write(true).mode(0o600);
    let written = options
        .open(&staged)
        .and_then(|mut file| file.write_all(&text))
        .and_then(|()| std::fs::rename(&staged, path));
    if let Err(error) = written {
        tracing::warn!(path = %path.display(), %error, "the mark of the database was not written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(installation: &str, beat: i64, own: Option<i64>) -> Seen {
        Seen {
            installation: installation.to_owned(),
            beat,
            own,
        }
    }

    #[test]
    fn another_database_an_older_copy_and_an_empty_one_are_told_apart() {
        let before = Beat {
            installation: "ins_a".to_owned(),
            beat: 7,
            server: None,
        };
        let last = Beat {
            server: Some("srv_a".to_owned()),
            ..before.clone()
        };
        for (last, found, state) in [
            (None, Some(seen("ins_a", 1, None)), State::Ok),
            (Some(&last), Some(seen("ins_a", 8, Some(7))), State::Ok),
            (Some(&last), Some(seen("ins_a", 7, Some(7))), State::Ok),
            (Some(&last), Some(seen("ins_a", 6, Some(7))), State::RolledBack),
            // Others moved the count past what this server was given.
            (Some(&last), Some(seen("ins_a", 9, Some(6))), State::RolledBack),
            (Some(&last), Some(seen("ins_a", 9, None)), State::RolledBack),
            (Some(&before), Some(seen("ins_a", 9, None)), State::Ok),
            (Some(&before), Some(seen("ins_a", 6, None)), State::RolledBack),
            (Some(&last), Some(seen("ins_b", 9, Some(9))), State::WrongDatabase),
            (Some(&last), None, State::WrongDatabase),
        ] {
            assert_eq!(judge(last, found.as_ref()).state, state, "{last:?} {found:?}");
        }
    }
}
