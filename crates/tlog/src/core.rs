//! What the handle of the log and its two tasks share, and what is checked before any of them starts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use store::{Blobs, Db};
use tokio::sync::{Notify, watch};

use crate::audit::audit;
use crate::checkpoint::{Checkpoint, LogKey};
use crate::error::TlogError;
use crate::faults::Faults;
use crate::mark;
use crate::merkle::{ProofError, empty_root};
use crate::name::Name;
use crate::shelf::Shelf;
use crate::source::{self, Source};
use crate::tables::Tables;
use crate::tile::{TILE_WIDTH, TilePath};

/// Bundles that are hashed again at the start, whatever the size of the log: those under the last one or
/// two tiles of level 1, at most 131,071 entries and a fraction of a second. `fsck` checks all.
const START_BUNDLES_MIN: u64 = 256;

/// What a log is opened with.
pub struct Settings {
    /// Which log of the database.
    pub name: Name,
    pub db: Db,
    pub blobs: Blobs,
    pub key: LogKey,
    /// This server's name on the lease, different on every server.
    pub holder: String,
    /// Its name for people, under which it tells what it has seen: the same after a restart.
    pub server: String,
    /// How long the lease lasts when its holder stops renewing it.
    pub lease_ttl: Duration,
    /// Whether other servers may share the database: then any of them takes entries, and hands them to the one that
    /// appends.
    pub shared: bool,
    /// A file outside the database for the newest checkpoint; `None` keeps none.
    pub mark: Option<PathBuf>,
    /// By what the blobs are known to be this log's. `None`, where nobody else's can be meant, asks for nothing.
    pub owner: Option<Owner>,
}

/// A blob that says whose a store is. Somebody else writes it; nothing is tiled into a store without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The blob's name.
    pub blob: &'static str,
    /// Its content.
    pub id: String,
}

/// Shared by the handle and the two tasks.
pub(crate) struct Core {
    pub key: LogKey,
    pub holder: String,
    pub server: String,
    pub lease_ttl: Duration,
    pub shared: bool,
    pub tables: Tables,
    pub shelf: Shelf,
    /// The fencing number while this server leads, else 0.
    pub fence: AtomicI64,
    /// Size of the last checkpoint that this server committed or took over.
    pub size: AtomicU64,
    pub mark: Option<PathBuf>,
    pub owner: Option<Owner>,
    /// The newest checkpoint that this server knows to be committed.
    pub newest: watch::Sender<Option<Arc<Checkpoint>>>,
    pub wake_tiler: Notify,
    pub stop: watch::Sender<bool>,
    pub sequencer_ended: watch::Sender<bool>,
}

impl Core {
    pub(crate) fn new(settings: Settings, faults: Faults) -> Self {
        let tables = Tables {
            name: settings.name,
            db: settings.db,
            faults,
        };
        Self {
            key: settings.key,
            holder: settings.holder,
            server: settings.server,
            lease_ttl: settings.lease_ttl.max(Duration::from_millis(6)),
            shared: settings.shared,
            shelf: Shelf::new(tables.clone(), settings.blobs),
            tables,
            fence: AtomicI64::new(0),
            size: AtomicU64::new(0),
            mark: settings.mark,
            owner: settings.owner,
            newest: watch::Sender::new(None),
            wake_tiler: Notify::new(),
            stop: watch::Sender::new(false),
            sequencer_ended: watch::Sender::new(false),
        }
    }

    /// The committed checkpoint, with its signature checked. One that does not reach what this server knew before it
    /// asked is refused: the database is an older copy, or another log under the same key.
    pub(crate) async fn checkpoint(&self) -> Result<Arc<Checkpoint>, TlogError> {
        let seen = self.newest.borrow().clone();
        let row = self.tables.checkpoint().await?;
        let (size, note) = row.ok_or_else(|| TlogError::Missing {
            what: self.row("checkpoint"),
        })?;
        let checkpoint = self.verified(size, &note).map(Arc::new)?;
        let Some(seen) = seen else { return Ok(checkpoint) };
        let contradicted = if seen.size > size {
            Some(TlogError::RolledBack {
                size,
                found: format!("this server has seen its checkpoint of {} entries", seen.size),
            })
        } else {
            (seen.size == size && seen.root != checkpoint.root).then(|| self.forked(size))
        };
        match contradicted {
            Some(error) if !self.was_dismissed(&seen, &checkpoint).await? => Err(error),
            _ => Ok(checkpoint),
        }
    }

    /// Whether what this server remembers no longer counts; the `checkpoint` of the database takes its place then, in memory
    /// and in the file.
    async fn was_dismissed(
        &self,
        seen: &Checkpoint,
        checkpoint: &Arc<Checkpoint>,
    ) -> Result<bool, TlogError> {
        if !self.tables.is_dismissed(&seen.note).await? {
            return Ok(false);
        }
        tracing::warn!(
            log = %self.tables.name, seen = seen.size, size = checkpoint.size,
            "what this server has seen was dismissed and no longer counts"
        );
        self.newest.send_if_modified(|newest| {
            let same = newest.as_ref().is_some_and(|newest| newest.note == seen.note);
            if same {
                *newest = Some(checkpoint.clone());
            }
            same
        });
        Ok(true)
    }

    /// What is newer than all that this server knew is remembered, and written beside the database.
    pub(crate) fn remember(&self, checkpoint: &Arc<Checkpoint>) {
        self.newest.send_if_modified(|newest| {
            let newer = newest.as_ref().is_none_or(|newest| newest.size < checkpoint.size);
            if newer {
                *newest = Some(checkpoint.clone());
            }
            newer
        });
    }

    /// Holds a checkpoint of the database against the newest that this server knew, and the newest that anybody knew.
    pub(crate) async fn check_seen(&self, checkpoint: &Arc<Checkpoint>) -> Result<(), TlogError> {
        let seen = self.newest.borrow().clone();
        if let Some(seen) = seen.filter(|seen| seen.size > 0) {
            let edge = source::edge(&self.shelf, seen.size, checkpoint.size).await?;
            if edge.root() != seen.root && !self.was_dismissed(&seen, checkpoint).await? {
                return Err(self.forked(seen.size));
            }
        }
        match self.tables.most_seen().await? {
            Some(seen) if seen.size > checkpoint.size => Err(TlogError::RolledBack {
                size: checkpoint.size,
                found: format!(
                    "the server {} has seen its checkpoint of {} entries",
                    seen.server, seen.size
                ),
            }),
            _ => Ok(()),
        }
    }

    fn forked(&self, size: u64) -> TlogError {
        let memory = || PathBuf::from("in this server's memory");
        TlogError::Forked {
            size,
            path: self.mark.clone().unwrap_or_else(memory),
        }
    }

    /// The one row of a table, as errors name it.
    fn row(&self, table: &str) -> String {
        format!("the row of {}", self.tables.name.table(table))
    }

    fn verified(&self, size: u64, note: &str) -> Result<Checkpoint, TlogError> {
        let checkpoint = self.key.verifier().verify(note).map_err(TlogError::Checkpoint)?;
        if checkpoint.size != size {
            let found = format!("its column size is {size}, its note says {}", checkpoint.size);
            return Err(TlogError::Damaged {
                what: self.row("checkpoint"),
                found,
            });
        }
        Ok(checkpoint)
    }

    /// The file outside the database, if one is kept and there, and counts.
    async fn mark(&self) -> Result<Option<(&Path, Checkpoint)>, TlogError> {
        let Some(path) = self.mark.as_deref() else {
            return Ok(None);
        };
        let Some(mark) = mark::read(path, self.key.verifier())? else {
            return Ok(None);
        };
        if self.tables.is_dismissed(&mark.note).await? {
            tracing::warn!(path = %path.display(), size = mark.size, "this checkpoint was dismissed and no longer counts");
            return Ok(None);
        }
        Ok(Some((path, mark)))
    }

    /// Holds what is stored against the file; what the database does not reach is told to all servers.
    async fn check_mark(&self, path: &Path, mark: &Checkpoint, size: u64) -> Result<(), TlogError> {
        let checked = mark::check(path, mark, &self.shelf, size).await;
        if self.shared && mark.size > size {
            self.tables.tell(&self.server, mark).await?;
        }
        checked
    }

    /// Creates the log if there is nothing, else checks that what is there is this log and whole.
    pub(crate) async fn check_start(&self) -> Result<(), TlogError> {
        let Some(state) = self.tables.standing().await? else {
            if let Some((path, mark)) = &self.mark().await? {
                self.check_mark(path, mark, 0).await?;
            }
            let path = self.shelf.blob_name(TilePath::bundle(0));
            let tile = self.shelf.stored(TilePath::bundle(0)).await?;
            if tile.is_some() || self.tables.has_rows().await? {
                let found = if tile.is_some() {
                    format!("there is {path}")
                } else {
                    "there are rows of it".to_owned()
                };
                return Err(TlogError::RolledBack { size: 0, found });
            }
            let note = self.key.sign(0, empty_root());
            self.tables.create(&note).await?;
            if let Some(path) = &self.mark {
                mark::keep(path, &note.note);
            }
            return Ok(());
        };
        let size = state.size;
        // First of all: with the wrong key everything that was signed looks damaged.
        let checkpoint = self.verified(size, &state.note)?;
        let mark = self.mark().await?;
        if let Some(last) = state.last.filter(|last| *last >= size) {
            let found = format!("there is row {last} of {}", self.tables.name.table("tail"));
            return Err(TlogError::RolledBack { size, found });
        }
        let tiled = state.tiled.ok_or_else(|| TlogError::Missing {
            what: self.row("tiles"),
        })?;
        let first = state.first.unwrap_or(size);
        if tiled != first {
            return Err(TlogError::Damaged {
                what: format!(
                    "{}, or the first row of {},",
                    self.row("tiles"),
                    self.tables.name.table("tail")
                ),
                found: format!("{tiled} entries lie in tiles and the tail begins at {first}"),
            });
        }
        self.shelf.tiled.store(tiled, Ordering::Release);
        // A bundle is written only after the checkpoint that makes it full.
        let next = TilePath::bundle(size / TILE_WIDTH);
        if self.shelf.stored(next).await?.is_some()
            && self.checkpoint().await?.size / TILE_WIDTH <= next.index
        {
            return Err(TlogError::RolledBack {
                size,
                found: format!("there is {}", self.shelf.blob_name(next)),
            });
        }
        if let (Some(path), None) = (&self.mark, &mark) {
            tracing::warn!(
                path = %path.display(), size,
                "there is no checkpoint beside the database: that this is an older copy of it would not be noticed; \
                 it is written anew (the first start of a server on a shared database needs none)"
            );
        }
        let from = (size / (TILE_WIDTH * TILE_WIDTH)).saturating_sub(1) * START_BUNDLES_MIN;
        let (edge, report) = audit(&self.shelf, &checkpoint, from, false, &mut |_| {}).await?;
        if edge.root() == checkpoint.root && report.damage.is_empty() {
            match (&self.mark, &mark) {
                (_, Some((path, mark))) => self.check_mark(path, mark, size).await?,
                (Some(path), None) => mark::keep(path, &checkpoint.note),
                (None, None) => {}
            }
            return Ok(());
        }
        let Some(first) = report
            .damage
            .into_iter()
            .find(|damage| damage.what != "the checkpoint")
        else {
            let suspects = "the damage is in tiles of level 1 or above; run `portcullis log fsck`".to_owned();
            return Err(TlogError::Root {
                suspects,
                source: ProofError::Root,
            });
        };
        Err(TlogError::Damaged {
            what: first.what,
            found: first.found,
        })
    }
}

/// Waits for a flag to be set.
pub(crate) async fn become_true(flag: &mut watch::Receiver<bool>) {
    // An error means that nobody is left to set it, which ends the wait just as well.
    let _ = flag.wait_for(|flag| *flag).await;
}
