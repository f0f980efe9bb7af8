//! The database: is it ours, and has it everything that it had?
//!
//! Two things outside of it tell: the installation's id, and a count that every look moves on, both kept in a file of
//! the data folder. Another database behind the same name has another id; one that was put back, or a replica that
//! lost the last writes, has a smaller count. A file of SQLite that was replaced under the running server is another
//! file by its number, though the server still writes into the old one.
//!
//! What is written into a wrong database is lost or somebody else's, so this probe closes the store for changes while it
//! sees one ([`Db::refuse_changes`]), and opens it when it sees the right one. A loss stops nothing, and stays named
//! ([`crate::loss`]).

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use kernel::{Clock, Fault as _};
use store::{Db, StoreError};

use crate::loss::{self, Loss};
use crate::marks::{Beat, Marks};
use crate::state::{Finding, Kind, State};
use crate::watch::Probe;

/// The mark is a line of text.
const MARK_BYTES_MAX: u64 = 1 << 10;

/// Looks at the database.
pub struct DatabaseProbe {
    marks: Marks,
    /// The file outside of the database.
    path: PathBuf,
    /// SQLite's file, and which one it was when the server opened it.
    file: Option<(PathBuf, Option<(u64, u64)>)>,
    last: Mutex<Option<Beat>>,
    clock: Arc<dyn Clock>,
}

impl DatabaseProbe {
    /// Reads the mark that the last run left in `path`; for SQLite, `file` is the database's.
    #[must_use]
    pub fn new(db: &Db, path: PathBuf, file: Option<PathBuf>, clock: Arc<dyn Clock>) -> Self {
        let last = read(&path);
        Self {
            marks: Marks::new(db.ungated()),
            clock,
            last: Mutex::new(last),
            path,
            file: file.map(|file| {
                let number = number(&file);
                (file, number)
            }),
        }
    }

    fn last(&self) -> Option<Beat> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replaced(&self) -> Option<Finding> {
        let (file, before) = self.file.as_ref()?;
        let now = number(file);
        if now == *before {
            return None;
        }
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

/// What the row means beside the last good one.
fn judge(last: Option<&Beat>, found: Option<&Beat>) -> Finding {
    let described = |beat: &Beat| format!("installation {}, count {}", beat.installation, beat.beat);
    let expected = last.map_or_else(
        || "a database of Portcullis".to_owned(),
        |last| format!("installation {}, count above {}", last.installation, last.beat),
    );
    let (state, found) = match (last, found) {
        (_, None) => (
            State::WrongDatabase,
            "a database without an installation".to_owned(),
        ),
        (Some(last), Some(found)) if last.installation != found.installation => {
            (State::WrongDatabase, described(found))
        }
        (Some(last), Some(found)) if found.beat <= last.beat => (State::RolledBack, described(found)),
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
        let finding = self.find().await;
        let db = self.marks.db();
        match finding.state {
            State::WrongDatabase => db.refuse_changes(Some(finding.found.clone())),
            State::Ok | State::RolledBack => db.refuse_changes(None),
            // Whoever does not answer may be either.
            _ => {}
        }
        finding
    }
}

impl DatabaseProbe {
    async fn find(&self) -> Finding {
        if let Some(finding) = self.replaced() {
            return finding;
        }
        let last = self.last();
        let own = last.as_ref().map(|last| last.installation.as_str());
        let unreachable =
            |error: StoreError| Finding::new(State::Unreachable, self.expected(), unanswered(&error));
        let found = match self.marks.beat(own).await {
            Ok(found) => found,
            Err(error) if error.is_missing_table() => None,
            Err(error) => return unreachable(error),
        };
        let finding = judge(last.as_ref(), found.as_ref().map(|(beat, _)| beat));
        let (Some((beat, mut loss)), State::Ok | State::RolledBack) = (found, finding.state) else {
            return finding;
        };
        if let (State::RolledBack, Some(last)) = (finding.state, &last) {
            // The mark moves on only when the loss is written down: until then it is found again.
            match loss::note(self.marks.db(), last.beat, beat.beat, self.clock.now()).await {
                Ok(noted) => loss = Some(noted),
                Err(error) => return unreachable(error),
            }
        }
        keep(&self.path, &beat);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(beat);
        match loss {
            None => finding,
            Some(loss) => Finding::new(State::RolledBack, finding.expected, lost(&loss)),
        }
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
    if let Err(error) = std::fs::write(&staged, text).and_then(|()| std::fs::rename(&staged, path)) {
        tracing::warn!(path = %path.display(), %error, "the mark of the database was not written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(installation: &str, beat: i64) -> Beat {
        Beat {
            installation: installation.to_owned(),
            beat,
        }
    }

    #[test]
    fn another_database_an_older_copy_and_an_empty_one_are_told_apart() {
        let last = beat("ins_a", 7);
        for (last, found, state) in [
            (None, Some(beat("ins_a", 1)), State::Ok),
            (Some(&last), Some(beat("ins_a", 8)), State::Ok),
            (Some(&last), Some(beat("ins_a", 7)), State::RolledBack),
            (Some(&last), Some(beat("ins_a", 2)), State::RolledBack),
            (Some(&last), Some(beat("ins_b", 9)), State::WrongDatabase),
            (Some(&last), None, State::WrongDatabase),
        ] {
            assert_eq!(judge(last, found.as_ref()).state, state, "{last:?} {found:?}");
        }
    }
}
