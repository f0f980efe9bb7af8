//! The running log: opening with its checks, and what callers ask of it.

use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::value::RawValue;
use store::{Blobs, Db};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::answer::transparency_log_entry;
use crate::audit::{Audit, audit};
use crate::checkpoint::{Checkpoint, LogKey, LogVerifier};
use crate::entry::{Accepted, HashedRekord};
use crate::error::TlogError;
use crate::export;
use crate::faults::Faults;
use crate::merkle::{Hash, ProofError, leaf_hash};
use crate::sequencer::{Placed, QUEUE_ENTRIES_MAX, Sequencer, Waiting};
use crate::shelf::{Shelf, blob_name};
use crate::source::{self, Source};
use crate::tables::Tables;
use crate::tile::{TILE_WIDTH, TilePath, encode_bundle};
use crate::tiler::{self, TAIL_ENTRIES_MAX};

/// Bundles that are hashed again at the start, whatever the size of the log: those under the last one or
/// two tiles of level 1, at most 131,071 entries and a fraction of a second. `fsck` checks all.
const START_BUNDLES_MIN: u64 = 256;

/// What a log is opened with.
pub struct Settings {
    pub db: Db,
    pub blobs: Blobs,
    pub key: LogKey,
    /// This server's name on the lease: the same after a restart, different on every server.
    pub holder: String,
    /// How long the lease lasts when its holder stops renewing it.
    pub lease_ttl: Duration,
}

/// An entry that is durable and included.
#[derive(Debug, Clone)]
pub struct Entry {
    pub index: u64,
    /// `TransparencyLogEntry` as JSON, with an inclusion proof, ready for a bundle.
    pub json: Box<RawValue>,
}

/// An inclusion proof that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inclusion {
    pub index: u64,
    pub leaf: Hash,
    pub size: u64,
    pub root: Hash,
    pub hashes: Vec<Hash>,
}

/// A consistency proof that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consistency {
    pub old: u64,
    pub old_root: Hash,
    pub new: u64,
    pub new_root: Hash,
    pub hashes: Vec<Hash>,
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

/// The log. Cheap to clone.
#[derive(Clone)]
pub struct Tlog {
    pub(crate) core: Arc<Core>,
    waiting: mpsc::Sender<Waiting>,
    pub(crate) tasks: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

/// What the handle and the two tasks share.
pub(crate) struct Core {
    pub key: LogKey,
    pub holder: String,
    pub lease_ttl: Duration,
    pub tables: Tables,
    pub shelf: Shelf,
    /// The fencing number while this server leads, else 0.
    pub fence: AtomicI64,
    /// Size of the last checkpoint that this server committed or took over.
    pub size: AtomicU64,
    pub wake_tiler: Notify,
    pub stop: watch::Sender<bool>,
    pub sequencer_ended: watch::Sender<bool>,
}

impl Core {
    /// The committed checkpoint, with its signature checked.
    pub(crate) async fn checkpoint(&self) -> Result<Arc<Checkpoint>, TlogError> {
        let row = self.tables.checkpoint().await?;
        let (size, note) = row.ok_or_else(|| TlogError::Missing {
            what: "the row of table tlog_checkpoint".to_owned(),
        })?;
        self.verified(size, &note).map(Arc::new)
    }

    fn verified(&self, size: u64, note: &str) -> Result<Checkpoint, TlogError> {
        let checkpoint = self.key.verifier().verify(note).map_err(TlogError::Checkpoint)?;
        if checkpoint.size != size {
            let found = format!("its column size is {size}, its note says {}", checkpoint.size);
            return Err(TlogError::Damaged {
                what: "the row of table tlog_checkpoint".to_owned(),
                found,
            });
        }
        Ok(checkpoint)
    }

    /// Creates the log if there is nothing, else checks that what is there is this log and whole.
    async fn check_start(&self) -> Result<(), TlogError> {
        let Some(state) = self.tables.settled().await? else {
            let path = blob_name(TilePath::bundle(0));
            let tile = self.shelf.stored(TilePath::bundle(0)).await?;
            if tile.is_some() || self.tables.has_rows().await? {
                let found = if tile.is_some() {
                    format!("there is {path}")
                } else {
                    "there are rows of it".to_owned()
                };
                return Err(TlogError::RolledBack { size: 0, found });
            }
            return self
                .tables
                .create(&self.key.sign(0, crate::merkle::empty_root()))
                .await;
        };
        let size = state.size;
        let checkpoint = self.verified(size, &state.note)?;
        if let Some(last) = state.last.filter(|last| *last >= size) {
            let found = format!("there is row {last} of table tlog_tail");
            return Err(TlogError::RolledBack { size, found });
        }
        let tiled = state.tiled.ok_or_else(|| TlogError::Missing {
            what: "the row of table tlog_tiles".to_owned(),
        })?;
        let first = state.first.unwrap_or(size);
        if tiled != first {
            return Err(TlogError::Damaged {
                what: "the row of table tlog_tiles, or the first row of table tlog_tail,".to_owned(),
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
                found: format!("there is {}", blob_name(next)),
            });
        }
        let from = (size / (TILE_WIDTH * TILE_WIDTH)).saturating_sub(1) * START_BUNDLES_MIN;
        let (edge, report) = audit(&self.shelf, &checkpoint, from, false, &mut |_| {}).await?;
        if edge.root() == checkpoint.root && report.damage.is_empty() {
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
        let tables = Tables {
            db: settings.db,
            faults,
        };
        let core = Arc::new(Core {
            key: settings.key,
            holder: settings.holder,
            lease_ttl: settings.lease_ttl.max(Duration::from_millis(3)),
            shelf: Shelf::new(tables.clone(), settings.blobs),
            tables,
            fence: AtomicI64::new(0),
            size: AtomicU64::new(0),
            wake_tiler: Notify::new(),
            stop: watch::Sender::new(false),
            sequencer_ended: watch::Sender::new(false),
        });
        core.check_start().await?;
        let (waiting, receiver) = mpsc::channel(QUEUE_ENTRIES_MAX);
        let sequencer = tokio::spawn(Sequencer::new(core.clone(), receiver).run());
        let tiler = tokio::spawn(tiler::run(core.clone()));
        Ok(Self {
            core,
            waiting,
            tasks: Arc::new(Mutex::new(vec![sequencer, tiler])),
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

    /// Has the sequencer include an entry.
    pub(crate) async fn place(&self, entry: Accepted) -> Result<Placed, TlogError> {
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
            .try_send(Waiting { entry, answer })
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => TlogError::Overloaded {
                    waiting: QUEUE_ENTRIES_MAX as u64,
                    cap: "QUEUE_ENTRIES_MAX",
                },
                mpsc::error::TrySendError::Closed(_) => TlogError::Closed,
            })?;
        answered.await.map_err(|_| TlogError::Closed)?
    }

    /// The JSON of an entry with its proof.
    async fn proven(&self, index: u64, body: &[u8], checkpoint: &Checkpoint) -> Result<Entry, TlogError> {
        let proof = source::inclusion(&self.core.shelf, index, &leaf_hash(body), checkpoint).await?;
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
            leading: self.core.fence.load(Ordering::Acquire) != 0,
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
    /// ones of the right edge, `checkpoint`, and `log.pub`. Writing to the same folder again brings it up
    /// to date. `progress` is told how many entries are done.
    ///
    /// # Errors
    /// If the log does not verify, or the folder cannot be written.
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

/// The body of entry `index`.
pub(crate) async fn body<S: Source>(source: &S, index: u64, size: u64) -> Result<Vec<u8>, TlogError> {
    let missing = || TlogError::NotFound {
        size,
        what: format!("entry {index}"),
    };
    if index >= size {
        return Err(missing());
    }
    let mut entries = source.bundle(index / TILE_WIDTH, size).await?;
    let at = (index % TILE_WIDTH) as usize;
    if at < entries.len() {
        Ok(entries.swap_remove(at))
    } else {
        Err(missing())
    }
}

/// The inclusion proof of an entry at some size of the log.
pub(crate) async fn prove<S: Source>(
    source: &S,
    index: u64,
    size: Option<u64>,
    checkpoint: &Checkpoint,
) -> Result<Inclusion, TlogError> {
    let size = size.unwrap_or(checkpoint.size);
    if size > checkpoint.size || index >= size {
        return Err(TlogError::NotFound {
            size: checkpoint.size,
            what: format!("entry {index} in a tree of {size}"),
        });
    }
    let leaf = leaf_hash(&body(source, index, checkpoint.size).await?);
    let root = source::root(source, size, checkpoint).await?;
    let at = Checkpoint {
        origin: String::new(),
        size,
        root,
        note: String::new(),
    };
    let hashes = source::inclusion(source, index, &leaf, &at).await?;
    Ok(Inclusion {
        index,
        leaf,
        size,
        root,
        hashes,
    })
}

/// The consistency proof between two sizes of the log.
pub(crate) async fn connect<S: Source>(
    source: &S,
    old: u64,
    new: u64,
    checkpoint: &Checkpoint,
) -> Result<Consistency, TlogError> {
    let (old_root, new_root, hashes) = source::consistency(source, old, new, checkpoint).await?;
    Ok(Consistency {
        old,
        old_root,
        new,
        new_root,
        hashes,
    })
}
