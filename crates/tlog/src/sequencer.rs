//! The one task that appends: takes all that waits, makes it durable in one transaction, answers.
//!
//! There is no artificial wait: while one batch is being committed the next one gathers.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use store::Lease;
use tokio::sync::{mpsc, oneshot};

use crate::checkpoint::Checkpoint;
use crate::core::{Core, become_true};
use crate::entry::Accepted;
use crate::error::TlogError;
use crate::merkle::{Hash, ProofError};
use crate::source;
use crate::tables::{Batch, Outcome};
use crate::tile::{Edge, Tile};

/// Entries of one commit: larger batches no longer get cheaper for each entry, only slower for the first.
pub const BATCH_ENTRIES_MAX: usize = 1_024;
/// Entries that wait for the sequencer: four batches, under half a second of work.
pub const QUEUE_ENTRIES_MAX: usize = 4_096;
/// Attempts to read back a commit whose outcome is unknown, over about three seconds.
const SETTLE_ATTEMPTS_MAX: u32 = 5;
/// The first pause between those attempts, in milliseconds; each next one is twice as long.
const SETTLE_PAUSE_MS: u64 = 100;

/// An entry and who waits for it.
pub(crate) struct Waiting {
    pub entry: Accepted,
    pub answer: oneshot::Sender<Result<Placed, TlogError>>,
}

/// Where an entry is, and a checkpoint that includes it.
#[derive(Clone)]
pub(crate) struct Placed {
    pub index: u64,
    pub checkpoint: Arc<Checkpoint>,
}

/// What the holder of the lease knows of the log. The checkpoint is the committed one.
struct Leader {
    lease: Lease,
    edge: Edge,
    checkpoint: Arc<Checkpoint>,
}

pub(crate) struct Sequencer {
    core: Arc<Core>,
    waiting: mpsc::Receiver<Waiting>,
    leader: Option<Leader>,
}

/// A batch with its duplicates taken out. Pure.
struct Plan {
    fresh: Vec<Accepted>,
    /// For each that waits: the index it gets, or has.
    indexes: Vec<u64>,
}

fn plan(size: u64, batch: &[Waiting], mut known: HashMap<Hash, u64>) -> Plan {
    let mut fresh = Vec::new();
    let indexes = batch.iter().map(|waiting| match known.entry(waiting.entry.leaf) {
        Slot::Occupied(index) => *index.get(),
        Slot::Vacant(slot) => {
            fresh.push(waiting.entry.clone());
            *slot.insert(size + fresh.len() as u64 - 1)
        }
    });
    let indexes = indexes.collect();
    Plan { fresh, indexes }
}

impl Sequencer {
    pub(crate) fn new(core: Arc<Core>, waiting: mpsc::Receiver<Waiting>) -> Self {
        Self {
            core,
            waiting,
            leader: None,
        }
    }

    /// Runs until no handle of the log is left, or it was told to stop; then everything that waits is
    /// finished and the lease given back.
    pub(crate) async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH_ENTRIES_MAX);
        let mut renewal = tokio::time::interval(self.core.lease_ttl / 3);
        renewal.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut stop = self.core.stop.subscribe();
        loop {
            tokio::select! {
                count = self.waiting.recv_many(&mut batch, BATCH_ENTRIES_MAX) => match count {
                    0 => break,
                    _ => self.append(std::mem::take(&mut batch)).await,
                },
                _ = renewal.tick() => self.keep_lease().await,
                () = become_true(&mut stop), if !self.waiting.is_closed() => self.waiting.close(),
            }
        }
        if let Some(leader) = self.leader.take()
            && let Err(error) = leader.lease.release().await
        {
            tracing::warn!(
                error = kernel::chain(&error),
                "the log's lease was not given back; it ends by itself"
            );
        }
        self.core.fence.store(0, Ordering::Release);
        self.core.sequencer_ended.send_replace(true);
    }

    /// Renews the lease, or tries to get it.
    async fn keep_lease(&mut self) {
        let result = match &self.leader {
            Some(leader) => leader
                .lease
                .renew()
                .await
                .map_err(TlogError::store("renewing the log's lease")),
            None => self.lead().await.map(|()| true),
        };
        match result {
            Ok(true) | Err(TlogError::NotLeader) => {}
            Ok(false) => self.step_down("the lease went to another server"),
            // Every write checks the fence, so going on without a renewed lease is safe.
            Err(error) => tracing::warn!(error = kernel::chain(&error), "the log's lease was not renewed"),
        }
    }

    fn step_down(&mut self, why: &str) {
        tracing::warn!(why, "this server no longer sequences the log");
        self.leader = None;
        self.core.fence.store(0, Ordering::Release);
    }

    /// Takes the lease and reads where the log stands.
    async fn lead(&mut self) -> Result<(), TlogError> {
        if self.leader.is_some() {
            return Ok(());
        }
        let core = &self.core;
        let lease = Lease::acquire(
            &core.tables.db,
            core.tables.name.prefix(),
            &core.holder,
            core.lease_ttl,
        )
        .await;
        let lease = lease
            .map_err(TlogError::store("taking the log's lease"))?
            .ok_or(TlogError::NotLeader)?;
        // Whoever led before can no longer commit, so what is read now stays true until we write.
        let checkpoint = core.checkpoint().await?;
        let edge = source::edge(&core.shelf, checkpoint.size, checkpoint.size).await?;
        if edge.root() != checkpoint.root {
            let suspects = "run `portcullis log fsck`".to_owned();
            return Err(TlogError::Root {
                suspects,
                source: ProofError::Root,
            });
        }
        core.fence.store(lease.fence(), Ordering::Release);
        core.size.store(checkpoint.size, Ordering::Release);
        self.leader = Some(Leader {
            lease,
            edge,
            checkpoint,
        });
        core.wake_tiler.notify_one();
        Ok(())
    }

    async fn append(&mut self, batch: Vec<Waiting>) {
        match self.commit(&batch).await {
            Ok((indexes, checkpoint)) => {
                for (waiting, index) in batch.into_iter().zip(indexes) {
                    // Whoever hung up finds the entry again when asking again.
                    let _ = waiting.answer.send(Ok(Placed {
                        index,
                        checkpoint: checkpoint.clone(),
                    }));
                }
            }
            Err(error) => {
                tracing::error!(
                    error = kernel::chain(&error),
                    entries = batch.len(),
                    "appending to the log failed"
                );
                let error = Arc::new(error);
                for waiting in batch {
                    let _ = waiting.answer.send(Err(TlogError::Batch(error.clone())));
                }
            }
        }
    }

    /// Makes a batch durable. The answer is each entry's index and the checkpoint that includes them all.
    async fn commit(&mut self, batch: &[Waiting]) -> Result<(Vec<u64>, Arc<Checkpoint>), TlogError> {
        self.lead().await?;
        let core = self.core.clone();
        let leader = self.leader.as_mut().ok_or(TlogError::NotLeader)?;
        let leaves: Vec<Hash> = batch.iter().map(|waiting| waiting.entry.leaf).collect();
        let known = core.tables.find(&leaves).await?;
        let size = leader.checkpoint.size;
        if known.values().any(|index| *index >= size) {
            self.step_down("another writer has appended");
            return Err(TlogError::Lost { size });
        }
        let plan = plan(size, batch, known);
        if plan.fresh.is_empty() {
            return Ok((plan.indexes, leader.checkpoint.clone()));
        }
        let (mut edge, mut full) = (leader.edge.clone(), Vec::new());
        plan.fresh
            .iter()
            .for_each(|entry| edge.push(entry.leaf, &mut full));
        let checkpoint = Arc::new(core.key.sign(edge.size(), edge.root()));
        let fence = leader.lease.fence();
        let next = Batch {
            fence,
            old: &leader.checkpoint,
            new: &checkpoint,
            entries: &plan.fresh,
        };
        let outcome = match core.tables.commit(&next).await {
            Outcome::Unknown(error) => settle(&core, &leader.checkpoint, &checkpoint, error).await,
            outcome => outcome,
        };
        match outcome {
            Outcome::Moved => {
                leader.checkpoint = checkpoint.clone();
                leader.edge = edge;
                publish(&core, leader, full);
                Ok((plan.indexes, checkpoint))
            }
            Outcome::Failed(error) => Err(error),
            Outcome::StaleFence => {
                self.step_down("a newer server holds the lease");
                Err(TlogError::NotLeader)
            }
            Outcome::Lost => {
                self.step_down("another writer moved the checkpoint");
                Err(TlogError::Lost { size })
            }
            Outcome::Unknown(error) => {
                self.step_down("the outcome of a commit could not be read back");
                Err(TlogError::Unknown(Arc::new(error)))
            }
        }
    }
}

/// Shows readers in this process what was committed.
fn publish(core: &Core, leader: &Leader, full: Vec<(u8, u64, Arc<Tile>)>) {
    for (level, index, tile) in full {
        core.shelf.remember(level, index, tile);
    }
    for (level, index, tile) in leader.edge.tiles() {
        core.shelf.remember(level, index, tile.clone());
    }
    core.size.store(leader.checkpoint.size, Ordering::Release);
    core.committed.send_replace(Some(leader.checkpoint.clone()));
    core.wake_tiler.notify_one();
}

/// Finds out what a commit did that was neither confirmed nor refused, by reading the checkpoint behind
/// everything that is still in flight.
async fn settle(core: &Core, old: &Checkpoint, new: &Checkpoint, mut cause: TlogError) -> Outcome {
    tracing::warn!(
        error = kernel::chain(&cause),
        "a commit to the log was not confirmed; reading back"
    );
    for attempt in 0..SETTLE_ATTEMPTS_MAX {
        match core.tables.settled().await {
            Ok(Some(state)) if state.note == new.note => return Outcome::Moved,
            Ok(Some(state)) if state.note == old.note => return Outcome::Failed(cause),
            Ok(_) => return Outcome::Lost,
            Err(error) => cause = error,
        }
        tokio::time::sleep(Duration::from_millis(SETTLE_PAUSE_MS << attempt)).await;
    }
    Outcome::Unknown(cause)
}
