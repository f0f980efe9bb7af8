//! The trail at work: writes refusals, has records sealed, and reads them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use kernel::{Clock, Fault, Random};
use store::Db;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::tables::{self, Stored};
use super::{AuditRecord, Filter, Refusals};
use crate::AccessError;

/// How long a record waits for the seal at most, if all is well, in milliseconds; a refusal as long again before that.
/// It bounds what can be removed unnoticed, and each round that finds nothing costs one look into an index.
pub const SEAL_MS: u64 = 1_000;
/// Records of one round, so of one transaction: under 50 ms of work.
const SEAL_RECORDS_MAX: u32 = 512;

/// The records of a round are leaves, and have no sequence number yet.
const APPENDED: &str = "audit.appended";
/// They have their numbers.
const NUMBERED: &str = "audit.numbered";
/// Every point of this crate at which a test can end the process, in the order in which a record passes them.
pub const CRASH_POINTS: &[&str] = &[APPENDED, NUMBERED];

/// A log that can only grow, under a key of its own: what the trail asks of it. Implemented where the program is put
/// together.
#[async_trait]
pub trait SealLog: Send + Sync {
    /// Whether this server appends; one of those on a database does.
    fn leads(&self) -> bool;

    /// Appends leaves in their order and gives their indexes; a leaf that the log has keeps the index that it has.
    async fn append(&self, leaves: Vec<Vec<u8>>) -> Result<Vec<u64>, Box<dyn Fault>>;

    /// The signed checkpoint (C2SP tlog-checkpoint).
    async fn checkpoint(&self) -> Result<String, Box<dyn Fault>>;

    /// Leaves in the checkpoint.
    async fn size(&self) -> Result<u64, Box<dyn Fault>>;

    /// A tile or an entry bundle by its path (C2SP tlog-tiles); `tile/entries/…` are the records themselves.
    async fn file(&self, path: &str) -> Result<Vec<u8>, Box<dyn Fault>>;

    /// The public key that signs the checkpoint, PEM.
    fn public_key(&self) -> String;
}

/// How the trail is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Records under the seal; 0 if it cannot be asked.
    pub sealed: u64,
    /// Records that wait for it.
    pub unsealed: u64,
    /// How long the oldest of those has been waiting, in microseconds; by this server's clock, never negative.
    pub unsealed_age_us: u64,
    /// Why this server does not seal, as far as it knows: its log cannot be asked, or its last round failed.
    pub error: Option<String>,
    /// Refusals since the start.
    pub refusals: u64,
    /// Those of them that have no record but a count.
    pub refusals_lost: u64,
}

/// The audit trail. Cheap to clone.
#[derive(Clone)]
pub struct Trail {
    pub(super) db: Db,
    clock: Arc<dyn Clock>,
    pub(super) log: Arc<dyn SealLog>,
    refusals: Refusals,
    /// What the last round failed of.
    error: Arc<Mutex<Option<String>>>,
    stop: Arc<watch::Sender<bool>>,
    task: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Trail {
    /// The trail in `db` under the seal of `log`. Nothing happens until [`Trail::start`].
    #[must_use]
    pub fn new(db: Db, clock: Arc<dyn Clock>, random: Arc<dyn Random>, log: Arc<dyn SealLog>) -> Self {
        Self {
            db,
            refusals: Refusals::new(clock.clone(), random),
            clock,
            log,
            error: Arc::default(),
            stop: Arc::new(watch::Sender::new(false)),
            task: Arc::new(Mutex::new(None)),
        }
    }

    /// Where [`super::layer`] notes refusals.
    #[must_use]
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Starts to write refusals and to seal, every [`SEAL_MS`].
    pub fn start(&self) {
        let task = tokio::spawn(self.clone().run());
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    }

    /// Writes and seals what is left, and ends.
    pub async fn close(&self) {
        self.stop.send_replace(true);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(error)) = match task {
            Some(task) => Some(task.await),
            None => None,
        } {
            tracing::error!(%error, "the task of the audit trail ended badly");
        }
    }

    async fn run(self) {
        let mut stop = self.stop.subscribe();
        let mut well = true;
        loop {
            let last = tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(SEAL_MS)) => false,
                _ = stop.wait_for(|stop| *stop) => true,
            };
            let (written, sealed) = (self.write_refusals(last).await, self.seal().await);
            let failed = [written.err(), sealed.err()].into_iter().flatten().next();
            match &failed {
                Some(error) if well => tracing::error!(
                    error = kernel::chain(error),
                    "audit records wait: they are written, and not sealed; or refusals, and not written"
                ),
                None if !well => tracing::info!("audit records are sealed again"),
                _ => {}
            }
            well = failed.is_none();
            *self.error.lock().unwrap_or_else(PoisonError::into_inner) =
                failed.as_ref().map(|error| kernel::chain(error));
            if last {
                return;
            }
        }
    }

    /// Writes the refusals that were noted, in one transaction; those that cannot be written are kept.
    pub async fn write_refusals(&self, last: bool) -> Result<(), AccessError> {
        let records = self.refusals.take(last);
        if records.is_empty() {
            return Ok(());
        }
        let written = self.write(&records).await;
        if written.is_ok() {
            return written;
        }
        // One that the database does not take must not stand before all others: it is one if a later one is taken.
        let (mut kept, mut bad) = (Vec::new(), Vec::new());
        for record in records {
            match self.write(std::slice::from_ref(&record)).await {
                Ok(()) => bad.append(&mut kept),
                Err(error) => kept.push((record, error)),
            }
        }
        for (record, error) in &bad {
            let (id, error) = (&record.id, kernel::chain(error));
            tracing::error!(id, error, "a refusal cannot be recorded, though others are");
            self.refusals.count_lost(record.times);
        }
        let all = kept.is_empty();
        self.refusals
            .put_back(kept.into_iter().map(|(record, _)| record).collect());
        if all { Ok(()) } else { written }
    }

    async fn write(&self, records: &[AuditRecord]) -> Result<(), AccessError> {
        let mut tx = self.db.begin().await?;
        for record in records {
            tables::insert(&mut tx, record).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Seals what waits, if this server leads, and gives the number of records. A round that died after its records
    /// became leaves finds them again: the log knows each by its content.
    ///
    /// # Errors
    /// If the log or the database does not answer.
    pub async fn seal(&self) -> Result<u64, AccessError> {
        let (mut after, mut count) = (String::new(), 0);
        while self.log.leads() {
            let all = Filter::default();
            let rows = tables::unsealed(&self.db, &all, &after, SEAL_RECORDS_MAX).await?;
            let Some(last) = rows.last() else { break };
            after.clone_from(&last.record.id);
            let leaves = rows.iter().map(|row| row.record.leaf()).collect();
            let indexes = self.log.append(leaves).await?;
            kernel::crash_point(APPENDED);
            let places: Vec<(String, i64)> = rows
                .into_iter()
                .zip(indexes)
                .map(|(row, index)| (row.record.id, i64::try_from(index).unwrap_or(i64::MAX)))
                .collect();
            let mut tx = self.db.begin().await?;
            tables::number(&mut tx, &places).await?;
            tx.commit().await?;
            kernel::crash_point(NUMBERED);
            count += places.len() as u64;
        }
        Ok(count)
    }

    /// How the trail is.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn status(&self) -> Result<Status, AccessError> {
        let (unsealed, oldest) = tables::waiting(&self.db).await?;
        let (refusals, refusals_lost) = self.refusals.counts();
        let now = self.clock.now_us();
        let age = oldest.map_or(0, |oldest| now.saturating_sub(oldest));
        let size = self.log.size().await;
        let failed = self.error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Status {
            error: size
                .as_ref()
                .err()
                .map(|error| kernel::chain(&**error))
                .or(failed),
            sealed: size.unwrap_or(0),
            unsealed: u64::try_from(unsealed).unwrap_or(0),
            unsealed_age_us: u64::try_from(age).unwrap_or(0),
            refusals,
            refusals_lost,
        })
    }

    pub(super) async fn rows(
        &self,
        order: super::api::Order,
        filter: &Filter,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Stored>, AccessError> {
        use super::api::Order;
        match order {
            Order::Newest => tables::newest(&self.db, filter, after, limit).await,
            Order::Unsealed => tables::unsealed(&self.db, filter, after, limit).await,
            Order::Sequence => {
                let read = |after: &str| {
                    let (sequence, id) = after.split_once(' ')?;
                    Some((sequence.parse().ok()?, id.to_owned()))
                };
                let (after, id) = match after {
                    "" => (i64::MIN, String::new()),
                    after => read(after).ok_or_else(|| AccessError::Invalid {
                        what: "cursor",
                        text: after.chars().take(60).collect(),
                        why: "it is of a list in another order",
                    })?,
                };
                tables::sealed(&self.db, filter, (after, &id), limit).await
            }
        }
    }
}
