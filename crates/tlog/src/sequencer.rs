//! The one task that appends: takes all that waits, makes it durable in one transaction, answers.
//!
//! There is no artificial wait: while one batch is being committed the next one gathers. On a server that does not
//! lead, the task hands what waits to the one that does, and tries to take the lead over.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kernel::Fault as _;
use store::Lease;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tracing::{Instrument as _, Span};

use crate::checkpoint::Checkpoint;
use crate::core::{Core, become_true};
use crate::entry::Accepted;
use crate::error::TlogError;
use crate::exchange::Handed;
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
/// Looks at the lease within its life: the holder renews it at every other one, the others try to take it at each, so
/// that a dead holder is followed a sixth of its life after it ended.
const LOOKS_PER_LEASE: u32 = 6;
/// Looks that a server waits after trouble with the database before it takes the lead over: so many that every other
/// server has told what it has seen.
const QUIET_LOOKS: u32 = 3;
/// How often the server that appends looks for what others handed over, and they for what became of it, in
/// milliseconds: two of these are what an entry costs more on a server that does not lead.
const EXCHANGE_MS: u64 = 15;
/// How long an entry that was handed over is waited for, in milliseconds: longer than the lead takes to be taken over.
const HANDED_MS_MAX: u64 = 8_000;

/// An entry and who waits for it.
pub(crate) struct Waiting {
    pub entry: Accepted,
    /// Of whoever waits.
    pub span: Span,
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
    /// Counts looks at the lease.
    looks: u32,
    /// Looks until it may take the lead.
    quiet: u32,
    /// The trouble that was told last, so that it is told once.
    told: Option<&'static str>,
}

/// A batch with its duplicates taken out. Pure.
struct Plan {
    fresh: Vec<Accepted>,
    /// For each that waits: the index it gets, or has.
    indexes: Vec<u64>,
}

fn plan<'a>(size: u64, batch: impl Iterator<Item = &'a Accepted>, mut known: HashMap<Hash, u64>) -> Plan {
    let mut fresh = Vec::new();
    let indexes = batch.map(|entry| match known.entry(entry.leaf) {
        Slot::Occupied(index) => *index.get(),
        Slot::Vacant(slot) => {
            fresh.push(entry.clone());
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
            looks: 0,
            quiet: 0,
            told: None,
        }
    }

    /// Runs until no handle of the log is left, or it was told to stop; then everything that waits is
    /// finished and the lease given back.
    pub(crate) async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH_ENTRIES_MAX);
        let mut look = ticks(self.core.lease_ttl / LOOKS_PER_LEASE);
        let mut exchange = ticks(Duration::from_millis(EXCHANGE_MS));
        let mut stop = self.core.stop.subscribe();
        loop {
            let takes_in = self.core.shared && self.leader.is_some() && self.quiet == 0;
            tokio::select! {
                count = self.waiting.recv_many(&mut batch, BATCH_ENTRIES_MAX) => match count {
                    0 => break,
                    _ => self.append(std::mem::take(&mut batch)).await,
                },
                // An error was told, and is met again by whoever appends.
                _ = look.tick() => drop(self.look().await),
                _ = exchange.tick(), if takes_in => self.take_in().await,
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

    /// Renews the lease, or tries to get it; and looks whether the database is as new as it was.
    async fn look(&mut self) -> Result<(), TlogError> {
        self.looks = self.looks.wrapping_add(1);
        let kept = self.keep_lease().await;
        match &kept {
            Ok(()) => {
                self.quiet = self.quiet.saturating_sub(1);
                self.told = None;
            }
            Err(error) => self.trouble(error).await,
        }
        kept
    }

    async fn keep_lease(&mut self) -> Result<(), TlogError> {
        if self.core.shared {
            let checkpoint = self.core.checkpoint().await?;
            self.core.remember(&checkpoint);
        }
        match &self.leader {
            Some(leader) if self.looks.is_multiple_of(2) => {
                let renewed = leader.lease.renew().await;
                if !renewed.map_err(TlogError::store("renewing the log's lease"))? {
                    self.step_down("the lease went to another server");
                }
                Ok(())
            }
            None if self.quiet == 0 => match self.lead().await {
                Err(TlogError::NotLeader) => Ok(()),
                other => other,
            },
            Some(_) | None => Ok(()),
        }
    }

    /// Nothing is taken over for a while. What this server has seen and the database has not is told to all.
    async fn trouble(&mut self, error: &TlogError) {
        if self.core.shared {
            self.quiet = QUIET_LOOKS;
        }
        if error.is_damage() && self.leader.is_some() {
            self.step_down("the database does not hold what this server appended");
        }
        let seen = self.core.newest.borrow().clone();
        if let (TlogError::RolledBack { size, .. }, Some(seen)) = (error, seen)
            && self.core.shared
            && seen.size > *size
            && let Err(error) = self.core.tables.tell(&self.core.server, &seen).await
        {
            tracing::warn!(error = kernel::chain(&error), "the other servers were not told");
        }
        if self.told.replace(error.code().id) != Some(error.code().id) {
            // Every write checks the fence, so going on without a renewed lease is safe.
            tracing::error!(error = kernel::chain(error), log = %self.core.tables.name, "the log cannot go on");
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
        core.shelf.forget();
        let checkpoint = core.checkpoint().await?;
        core.check_seen(&checkpoint).await?;
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
        core.remember(&checkpoint);
        self.leader = Some(Leader {
            lease,
            edge,
            checkpoint,
        });
        core.wake_tiler.notify_one();
        Ok(())
    }

    async fn append(&mut self, batch: Vec<Waiting>) {
        let span = span_of(&batch);
        self.append_all(batch).instrument(span).await;
    }

    async fn append_all(&mut self, batch: Vec<Waiting>) {
        let done = match self.core.shared && self.leader.is_none() {
            true => Err(TlogError::NotLeader),
            false => self.commit(batch.iter().map(|waiting| &waiting.entry), &[]).await,
        };
        match done {
            Ok((indexes, checkpoint)) => {
                for (waiting, index) in batch.into_iter().zip(indexes) {
                    waiting.place(index, &checkpoint);
                }
            }
            // Nothing of it was written, and it is somebody else's turn to write it.
            Err(TlogError::NotLeader | TlogError::Lost { .. }) if self.core.shared => {
                self.hand_over(batch).await;
            }
            Err(error) => refuse(batch, error),
        }
    }

    /// Has the server that appends take a batch, and waits for it; or takes the lead over meanwhile.
    async fn hand_over(&mut self, mut batch: Vec<Waiting>) {
        if let Err(error) = self.handed_over(&mut batch).await {
            let leaves: Vec<Hash> = batch.iter().map(|waiting| waiting.entry.leaf).collect();
            // What stays there is taken in one day, and does no harm.
            let _ = self.core.tables.forget(&leaves).await;
            refuse(batch, error);
        }
    }

    /// Answers those whose entries are in the log, and leaves the others in `batch` with the error.
    async fn handed_over(&mut self, batch: &mut Vec<Waiting>) -> Result<(), TlogError> {
        let entries: Vec<Accepted> = batch.iter().map(|waiting| waiting.entry.clone()).collect();
        self.core.tables.hand_over(&entries).await?;
        let mut exchange = ticks(Duration::from_millis(EXCHANGE_MS));
        let per_look = (self.core.lease_ttl / LOOKS_PER_LEASE).as_millis() / u128::from(EXCHANGE_MS);
        for round in 1..=HANDED_MS_MAX / EXCHANGE_MS {
            exchange.tick().await;
            self.answer_found(batch).await?;
            if batch.is_empty() {
                return Ok(());
            }
            if u128::from(round) % per_look.max(1) == 0 {
                self.look().await?;
            }
            if self.leader.is_some() {
                let entries = batch.iter().map(|waiting| &waiting.entry);
                let (indexes, checkpoint) = self.commit(entries, &[]).await?;
                for (waiting, index) in std::mem::take(batch).into_iter().zip(indexes) {
                    waiting.place(index, &checkpoint);
                }
                return Ok(());
            }
        }
        Err(TlogError::NotLeader)
    }

    async fn answer_found(&self, batch: &mut Vec<Waiting>) -> Result<(), TlogError> {
        let leaves: Vec<Hash> = batch.iter().map(|waiting| waiting.entry.leaf).collect();
        let found = self.core.tables.find(&leaves).await?;
        if found.is_empty() {
            return Ok(());
        }
        let checkpoint = self.core.checkpoint().await?;
        self.core.remember(&checkpoint);
        for waiting in std::mem::take(batch) {
            match found.get(&waiting.entry.leaf) {
                Some(index) => waiting.place(*index, &checkpoint),
                None => batch.push(waiting),
            }
        }
        Ok(())
    }

    /// Appends what other servers handed over.
    async fn take_in(&mut self) {
        let done = match self.core.tables.handed_over(BATCH_ENTRIES_MAX).await {
            Ok(Handed { leaves, .. }) if leaves.is_empty() => return,
            Ok(Handed { entries, leaves }) => self.commit(entries.iter(), &leaves).await.map(|_| ()),
            Err(error) => Err(error),
        };
        match done {
            Ok(()) | Err(TlogError::NotLeader | TlogError::Lost { .. }) => {}
            Err(error) => self.trouble(&error).await,
        }
    }

    /// Makes a batch durable. The answer is each entry's index and the checkpoint that includes them all. What was
    /// `handed` over no longer waits then.
    async fn commit(
        &mut self,
        batch: impl Iterator<Item = &Accepted> + Clone,
        handed: &[Hash],
    ) -> Result<(Vec<u64>, Arc<Checkpoint>), TlogError> {
        self.lead().await?;
        let core = self.core.clone();
        let leader = self.leader.as_mut().ok_or(TlogError::NotLeader)?;
        let leaves: Vec<Hash> = batch.clone().map(|entry| entry.leaf).collect();
        let known = core.tables.find(&leaves).await?;
        let size = leader.checkpoint.size;
        if known.values().any(|index| *index >= size) {
            self.step_down("another writer has appended");
            return Err(TlogError::Lost { size });
        }
        let plan = plan(size, batch, known);
        if plan.fresh.is_empty() {
            let checkpoint = leader.checkpoint.clone();
            if !handed.is_empty() {
                core.tables.forget(handed).await?;
            }
            return Ok((plan.indexes, checkpoint));
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
            handed,
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
                self.step_down("another writer moved the checkpoint, or has seen a later one");
                Err(TlogError::Lost { size })
            }
            Outcome::Unknown(error) => {
                self.step_down("the outcome of a commit could not be read back");
                Err(TlogError::Unknown(Arc::new(error)))
            }
        }
    }
}

impl Waiting {
    fn place(self, index: u64, checkpoint: &Arc<Checkpoint>) {
        let checkpoint = checkpoint.clone();
        // Whoever hung up finds the entry again when asking again.
        let _ = self.answer.send(Ok(Placed { index, checkpoint }));
    }
}

/// A span under that of the first who waits, with links to the others; none if none of them has one.
fn span_of(batch: &[Waiting]) -> Span {
    let mut spans = batch
        .iter()
        .map(|waiting| &waiting.span)
        .filter(|span| !span.is_none());
    let Some(first) = spans.next() else {
        return Span::none();
    };
    let own = tracing::info_span!(parent: first, "append batch", tlog.entries = batch.len());
    for other in spans {
        own.follows_from(other);
    }
    own
}

fn refuse(batch: Vec<Waiting>, error: TlogError) {
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

fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
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
    core.remember(&leader.checkpoint);
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
