//! The running log: opening, and what callers ask of it.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::value::RawValue;
use store::Db;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::answer::transparency_log_entry;
use crate::audit::{Audit, audit};
use crate::checkpoint::{Checkpoint, LogVerifier};
use crate::core::{Core, Settings};
use crate::entry::{Accepted, HashedRekord};
use crate::error::TlogError;
use crate::export;
use crate::faults::Faults;
use crate::mark;
use crate::merkle::leaf_hash;
use crate::name::Name;
use crate::proof::{Consistency, Inclusion, body, connect, inclusion, prove};
use crate::sequencer::{Placed, QUEUE_ENTRIES_MAX, Sequencer, Waiting};
use crate::source::Source;
use crate::tables::Tables;
use crate::tile::{TilePath, encode_bundle};
use crate::tiler::{self, TAIL_ENTRIES_MAX};

/// An entry that is durable and included.
#[derive(Debug, Clone)]
pub struct Entry {
    pub index: u64,
    /// `TransparencyLogEntry` as JSON, with an inclusion proof, ready for a bundle.
    pub json: Box<RawValue>,
}

/// What the log is and how far it is.
#[derive(Debug, Clone)]
pub struct Info {
    pub verifier: LogVerifier,
    pub checkpoint: Checkpoint,
    /// Entries that lie in durable tiles; the rest is in the database.
    pub tiled: u64,
    /// Whether this server appends.
    pub leading: bool,
}

/// Where an entry's place is told.
type Answered = oneshot::Receiver<Result<Placed, TlogError>>;

/// The log. Cheap to clone.
#[derive(Clone)]
pub struct Tlog {
    pub(crate) core: Arc<Core>,
    waiting: mpsc::Sender<Waiting>,
    pub(crate) tasks: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

/// Whether the database has this log; the tables of [`crate::MIGRATIONS`] must be there.
///
/// # Errors
/// If the database does not answer.
pub async fn exists(db: &Db, name: Name) -> Result<bool, TlogError> {
    let tables = Tables {
        name,
        db: db.clone(),
        faults: Faults::default(),
    };
    Ok(tables.checkpoint().await?.is_some() || tables.has_rows().await?)
}

impl Tlog {
    /// Opens the log, creating it in an empty database, and starts to sequence if no other server does.
    /// The tables of [`crate::MIGRATIONS`] must be there.
    ///
    /// # Errors
    /// If the checkpoint is not this log's, the database is older than the tiles, or anything that the right
    /// edge rests on is missing, cut short or changed; the error names the file or row.
    pub async fn open(settings: Settings) -> Result<Self, TlogError> {
        Self::open_with(settings, Faults::default()).await
    }

    pub(crate) async fn open_with(settings: Settings, faults: Faults) -> Result<Self, TlogError> {
        let core = Arc::new(Core::new(settings, faults));
        core.check_start().await?;
        let (waiting, receiver) = mpsc::channel(QUEUE_ENTRIES_MAX);
        let sequencer = tokio::spawn(Sequencer::new(core.clone(), receiver).run());
        let tiler = tokio::spawn(tiler::run(core.clone()));
        let mark = core.mark.clone().map(|path| {
            let (newest, ended) = (core.newest.subscribe(), core.sequencer_ended.subscribe());
            tokio::spawn(mark::run(newest, ended, path))
        });
        Ok(Self {
            core,
            waiting,
            tasks: Arc::new(Mutex::new([sequencer, tiler].into_iter().chain(mark).collect())),
        })
    }

    /// Stops: no new entries, those that wait are finished, the lease is given back.
    pub async fn close(&self) {
        self.core.stop.send_replace(true);
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a task of the log ended badly");
            }
        }
    }

    /// Logs a signature, or finds the same entry again. When this returns the entry is durable, included,
    /// and its proof was verified.
    ///
    /// # Errors
    /// If the signature does not verify, a queue is full, another server leads, or the store fails.
    pub async fn append(&self, entry: &HashedRekord) -> Result<Entry, TlogError> {
        let accepted = entry.accept()?;
        let body = accepted.body.clone();
        let placed = self.place(accepted).await?;
        self.proven(placed.index, &body, &placed.checkpoint).await
    }

    /// Has an entry included without asking for its proof, and gives its index. Whoever calls this vouches for it
    /// that [`HashedRekord::accept`] made the entry; `bench` fills logs of millions of entries so.
    ///
    /// # Errors
    /// If a queue is full, another server leads, or the store fails.
    pub async fn include(&self, entry: Accepted) -> Result<u64, TlogError> {
        Ok(self.place(entry).await?.index)
    }

    /// Has entries included in their order, and gives the index of each; one that the log has keeps its own. More than
    /// [`QUEUE_ENTRIES_MAX`] at once are refused.
    ///
    /// # Errors
    /// If a queue is full, another server leads, or the store fails. Some may be included all the same; asking again
    /// finds those.
    pub async fn include_all(&self, entries: Vec<Accepted>) -> Result<Vec<u64>, TlogError> {
        let waiting: Vec<_> = entries
            .into_iter()
            .map(|entry| self.enqueue(entry))
            .collect::<Result<_, _>>()?;
        let mut indexes = Vec::with_capacity(waiting.len());
        for answered in waiting {
            indexes.push(answered.await.map_err(|_| TlogError::Closed)??.index);
        }
        Ok(indexes)
    }

    /// Whether this server appends.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.core.fence.load(Ordering::Acquire) != 0
    }

    /// Has the sequencer include an entry.
    pub(crate) async fn place(&self, entry: Accepted) -> Result<Placed, TlogError> {
        self.enqueue(entry)?.await.map_err(|_| TlogError::Closed)?
    }

    fn enqueue(&self, entry: Accepted) -> Result<Answered, TlogError> {
        let tiled = self.core.shelf.tiled.load(Ordering::Acquire);
        let behind = self.core.size.load(Ordering::Acquire).saturating_sub(tiled);
        if behind >= TAIL_ENTRIES_MAX {
            return Err(TlogError::Overloaded {
                waiting: behind,
                cap: "TAIL_ENTRIES_MAX",
            });
        }
        let (answer, answered) = oneshot::channel();
        self.waiting
            .try_send(Waiting {
                entry,
                span: tracing::Span::current(),
                answer,
            })
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => TlogError::Overloaded {
                    waiting: QUEUE_ENTRIES_MAX as u64,
                    cap: "QUEUE_ENTRIES_MAX",
                },
                mpsc::error::TrySendError::Closed(_) => TlogError::Closed,
            })?;
        Ok(answered)
    }

    /// The JSON of an entry with its proof.
    async fn proven(&self, index: u64, body: &[u8], checkpoint: &Checkpoint) -> Result<Entry, TlogError> {
        let proof = inclusion(&self.core.shelf, index, &leaf_hash(body), checkpoint).await?;
        let log_id = self.core.key.verifier().log_id();
        let json =
            transparency_log_entry(&log_id, index, body, &proof, checkpoint).map_err(TlogError::Answer)?;
        Ok(Entry { index, json })
    }

    /// The current checkpoint, signature checked.
    ///
    /// # Errors
    /// If the database does not answer, or the checkpoint is damaged.
    pub async fn checkpoint(&self) -> Result<Checkpoint, TlogError> {
        self.core.checkpoint().await.map(Arc::unwrap_or_clone)
    }

    /// The newest checkpoint that this server knows of; nothing is asked.
    #[must_use]
    pub fn seen(&self) -> Option<Checkpoint> {
        self.core.newest.borrow().as_deref().cloned()
    }

    /// The highest checkpoint that a server has seen and told of because the database did not have it: who, and of how
    /// many entries.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn told(&self) -> Result<Option<(String, u64)>, TlogError> {
        let seen = self.core.tables.most_seen().await?;
        Ok(seen.map(|seen| (seen.server, seen.size)))
    }

    /// Whether a checkpoint, by its signed note, was dismissed and is not held against the log any more.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn is_dismissed(&self, note: &str) -> Result<bool, TlogError> {
        self.core.tables.is_dismissed(note).await
    }

    /// How many entries wait for this server's sequencer.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.waiting.max_capacity() - self.waiting.capacity()
    }

    /// The public half of the log's key, its origin and its id.
    #[must_use]
    pub fn verifier(&self) -> &LogVerifier {
        self.core.key.verifier()
    }

    /// # Errors
    /// If the database does not answer, or the checkpoint is damaged.
    pub async fn info(&self) -> Result<Info, TlogError> {
        Ok(Info {
            verifier: self.verifier().clone(),
            checkpoint: self.checkpoint().await?,
            tiled: self.core.tables.tiled().await?,
            leading: self.leads(),
        })
    }

    /// The entry at `index`, proven against the current checkpoint.
    ///
    /// # Errors
    /// If there is none, or its proof does not verify.
    pub async fn entry(&self, index: u64) -> Result<Entry, TlogError> {
        let checkpoint = self.core.checkpoint().await?;
        let body = body(&self.core.shelf, index, checkpoint.size).await?;
        self.proven(index, &body, &checkpoint).await
    }

    /// The inclusion proof of entry `index` in the tree of the first `size` entries; without a size, in the
    /// current one.
    ///
    /// # Errors
    /// If there is no such entry or size, or the proof does not verify.
    pub async fn proof(&self, index: u64, size: Option<u64>) -> Result<Inclusion, TlogError> {
        prove(&self.core.shelf, index, size, &*self.core.checkpoint().await?).await
    }

    /// The proof that the first `old` entries are a prefix of the first `new` ones.
    ///
    /// # Errors
    /// If the sizes are not in order or beyond the log, or the proof does not verify.
    pub async fn consistency(&self, old: u64, new: u64) -> Result<Consistency, TlogError> {
        connect(&self.core.shelf, old, new, &*self.core.checkpoint().await?).await
    }

    /// The bytes of a tile or entry bundle, full or partial, as they are served.
    ///
    /// # Errors
    /// [`TlogError::NotFound`] if the log has not reached it yet.
    pub async fn tile(&self, path: TilePath) -> Result<Vec<u8>, TlogError> {
        let size = self.core.checkpoint().await?.size;
        if path.width == 0 || TilePath::width_at(path.level, path.index, size) < path.width {
            return Err(TlogError::NotFound {
                size,
                what: path.to_string(),
            });
        }
        let width = usize::from(path.width);
        match path.level {
            Some(level) => {
                let tile = self.core.shelf.tile(level, path.index, size).await?;
                Ok(tile.hashes().get(..width).unwrap_or_default().concat())
            }
            None => {
                let mut entries = self.core.shelf.bundle(path.index, size).await?;
                entries.truncate(width);
                encode_bundle(&entries).map_err(|source| TlogError::Tile {
                    what: path.to_string(),
                    source,
                })
            }
        }
    }

    /// Hashes the whole log again and compares everything that is stored. `progress` is told how many
    /// entries are done. Damage is in the report, not in the error.
    ///
    /// # Errors
    /// If the checkpoint is not this log's, or the store does not answer.
    pub async fn fsck(&self, progress: &mut (dyn FnMut(u64) + Send)) -> Result<Audit, TlogError> {
        let checkpoint = self.core.checkpoint().await?;
        self.core
            .shelf
            .tiled
            .store(self.core.tables.tiled().await?, Ordering::Release);
        Ok(audit(&self.core.shelf, &checkpoint, 0, true, progress).await?.1)
    }

    /// Writes the log to a folder as a static C2SP tlog-tiles tree: every tile and bundle, also the partial
    /// ones of the right edge, `checkpoint`, and `log.pub`. Writing to the same folder again checks the copy that
    /// is there and brings it up to date. `progress` is told how many entries are done.
    ///
    /// # Errors
    /// [`TlogError::Diverged`] if the copy is of another log, larger, or not the beginning of this one; else if the
    /// log or the copy does not verify, or the folder cannot be written.
    pub async fn export(
        &self,
        folder: &Path,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<Checkpoint, TlogError> {
        let checkpoint = self.checkpoint().await?;
        export::write(&self.core.shelf, &checkpoint, self.verifier(), folder, progress).await?;
        Ok(checkpoint)
    }
}
