//! Attaching the external log's evidence to the images: a second bundle around the same signed statement, for whoever
//! believes that log and not ours.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flow::{Caller, Class};
use kernel::{Digest, Fault as _, Kind, Monotonic, Repository};
use tokio::time::sleep;

use super::pay::later;
use super::tables::{self, PutOff, Unpublished};
use super::{LEASE, LOOK_AFTER, SETTLED_MAX, Stopped, rules, shortened};
use crate::parts::Parts;
use crate::ports::{RegistryError, RegistryReason};
use crate::{SigningError, format, publish, resolve};

/// Signatures that are read at once, and of these published at once: a few, since nobody waits.
const READ_MAX: i64 = 32;
const AT_ONCE: usize = 4;
/// Between two rounds: others want to write too.
const ROUND_PAUSE: Duration = Duration::from_millis(20);
/// After so many attempts, which take twenty minutes, an image that its registry does not have is gone, and needs no
/// evidence. Some registries say the same while they are put back or moved.
const GONE_ATTEMPTS: u32 = 8;

/// Publishes for as long as the fence holds.
pub(super) struct Publisher {
    parts: Arc<Parts>,
    fence: i64,
    /// Registries that did not answer, by their hosts.
    away: HashMap<String, Away>,
}

/// A registry that did not answer.
struct Away {
    /// In a row.
    failures: u32,
    until: Monotonic,
    why: String,
    /// How many were not tried since it was asked last.
    spared: u32,
}

/// The images of one signature.
struct Work {
    item: Unpublished,
    images: Vec<(Repository, Digest)>,
}

/// What came of one signature.
enum Outcome {
    Published,
    /// Nobody can verify what its registry does not have any more.
    Gone(String),
    /// It was tried, or never can be, and not well.
    Failed(String),
    /// It was not tried: its registry is away, and so many before it were not since it was asked last.
    Spared(String, u32),
    /// It was not tried: this server does too much else at its registry.
    Busy(String),
}

/// Why one was not published: at which registry, and what.
struct Failure {
    host: String,
    error: SigningError,
}

impl Failure {
    /// Whether the registry did not answer. That our own door was full says nothing of it.
    fn is_unanswered(&self) -> bool {
        matches!(&self.error, SigningError::Registry(error)
            if matches!(error.kind(), Kind::Unavailable | Kind::Overloaded))
    }

    fn is_gone(&self) -> bool {
        let SigningError::Registry(RegistryError { reason, .. }) = &self.error else {
            return false;
        };
        matches!(reason, RegistryReason::NotFound)
    }
}

impl Publisher {
    pub(super) fn new(parts: Arc<Parts>, fence: i64) -> Self {
        Self {
            parts,
            fence,
            away: HashMap::new(),
        }
    }

    pub(super) async fn run(&mut self) -> Result<Infallible, Stopped> {
        loop {
            let pause = match self.round().await? {
                true => ROUND_PAUSE,
                false => LOOK_AFTER,
            };
            sleep(pause).await;
        }
    }

    /// Publishes what is to be published; whether there was anything. A registry that is away is asked once in a
    /// pause, and makes the others wait for that call and no more: all else that is to go there is put off without one.
    pub(super) async fn round(&mut self) -> Result<bool, Stopped> {
        let (db, now) = (&self.parts.db, self.parts.clock.now_us());
        let items = tables::unpublished(db, now, READ_MAX).await?;
        let some = !items.is_empty();
        let mut by_registry: HashMap<String, VecDeque<Work>> = HashMap::new();
        let mut outcomes = Vec::new();
        for item in items {
            match self.work(item).await? {
                Err((item, why)) => outcomes.push((item, Outcome::Failed(why))),
                // It was asked for in the legacy format alone, which has no place for evidence.
                Ok(work) if work.images.is_empty() => outcomes.push((work.item, Outcome::Published)),
                Ok(work) => match self.resting(&work) {
                    Some(away) => {
                        let outcome = Outcome::Spared(away.why.clone(), away.spared);
                        away.spared = away.spared.saturating_add(1);
                        outcomes.push((work.item, outcome));
                    }
                    None => {
                        let host = work.images.first().map(|(repository, _)| repository.registry());
                        let host = host.unwrap_or_default().to_owned();
                        by_registry.entry(host).or_default().push_back(work);
                    }
                },
            }
        }
        self.settle(&outcomes).await?;
        let own = &*self;
        let registries = by_registry.into_values().map(|works| own.registry(works));
        for learned in futures::future::join_all(registries).await {
            for (host, unanswered) in learned? {
                self.learn(host, unanswered);
            }
        }
        Ok(some)
    }

    /// A registry of this work that is left alone for now.
    fn resting(&mut self, work: &Work) -> Option<&mut Away> {
        let now = self.now();
        let mut hosts = work.images.iter().map(|(repository, _)| repository.registry());
        let rests = |host: &&str| self.away.get(*host).is_some_and(|away| away.until > now);
        let host = hosts.find(rests)?;
        self.away.get_mut(host)
    }

    /// Learns that a registry answered, or why not.
    fn learn(&mut self, host: String, unanswered: Option<String>) {
        let Some(why) = unanswered else {
            self.away.remove(&host);
            return;
        };
        let failures = self.away.get(&host).map_or(0, |away| away.failures);
        let pause = rules::registry_pause(failures, rules::chance(&*self.parts.random));
        tracing::warn!(
            registry = host,
            why,
            pause_s = pause.as_secs(),
            "evidence of the external log was not published; it is tried again"
        );
        let away = Away {
            failures: failures.saturating_add(1),
            until: self.now().after(pause),
            why,
            spared: 0,
        };
        self.away.insert(host, away);
    }

    /// The hosts of the registries that did not answer.
    #[cfg(test)]
    pub(super) fn leaves_alone(&self) -> Vec<&String> {
        self.away.keys().collect()
    }

    async fn work(&self, item: Unpublished) -> Result<Result<Work, (Unpublished, String)>, Stopped> {
        let images = tables::images(&self.parts.db, &item.id).await?;
        Ok(match images {
            Ok(images) => Ok(Work { item, images }),
            Err(why) => Err((item, why)),
        })
    }

    /// Publishes to one registry, with one signature first, until one does not answer: the rest is due still, and read
    /// again. Which registries answered, and which did not and why.
    async fn registry(&self, mut works: VecDeque<Work>) -> Result<HashMap<String, Option<String>>, Stopped> {
        let mut learned = HashMap::new();
        let mut at_once = 1;
        while !works.is_empty() && learned.values().all(Option::is_none) {
            let some: Vec<Work> = works.drain(..at_once.min(works.len())).collect();
            at_once = AT_ONCE;
            let tried = futures::future::join_all(some.iter().map(|work| self.publish(work))).await;
            let mut outcomes = Vec::with_capacity(some.len());
            for (work, tried) in some.into_iter().zip(tried) {
                let outcome = match tried {
                    Ok(()) => {
                        let hosts = work.images.iter().map(|(repository, _)| repository.registry());
                        for host in hosts {
                            learned.entry(host.to_owned()).or_default();
                        }
                        Outcome::Published
                    }
                    Err(failure) => {
                        if failure.is_unanswered() {
                            let why = kernel::words(&kernel::chain(&failure.error));
                            learned.insert(failure.host.clone(), Some(why));
                        }
                        failed(&work.item, &failure)
                    }
                };
                outcomes.push((work.item, outcome));
            }
            self.settle(&outcomes).await?;
        }
        Ok(learned)
    }

    fn now(&self) -> Monotonic {
        self.parts.clock.monotonic()
    }

    /// Publishes one to each of its images that is there; an error is also that one is not.
    #[tracing::instrument(name = "publish evidence", skip_all)]
    async fn publish(&self, work: &Work) -> Result<(), Failure> {
        let Unpublished {
            statement,
            signature,
            material,
            ..
        } = &work.item;
        let (key, evidence) = material.as_ref().map_err(|why| Failure {
            host: String::new(),
            error: SigningError::Row(why.clone()),
        })?;
        let bundle = format::bundle::write(key, statement, signature, Some(evidence));
        let bundle = Bytes::from(bundle);
        let mut gone = None;
        for (repository, digest) in &work.images {
            let attached = self
                .attach(&work.item.project, repository, *digest, bundle.clone())
                .await;
            if let Err(error) = attached {
                let host = repository.registry().to_owned();
                let failure = Failure { host, error };
                match failure.is_gone() {
                    true => gone = Some(failure),
                    false => return Err(failure),
                }
            }
        }
        gone.map_or(Ok(()), Err)
    }

    async fn attach(
        &self,
        project: &str,
        repository: &Repository,
        digest: Digest,
        bundle: Bytes,
    ) -> Result<(), SigningError> {
        let (registry, caller) = (&*self.parts.registry, Caller::new(project, Class::Batch));
        let _turn = self.parts.door.work(caller, repository.registry(), 1).await?;
        let image = repository.at(digest);
        let subjects = resolve::subjects(registry, caller, &image, false).await?;
        publish::bundle(registry, caller, repository, &subjects[0], bundle).await
    }

    /// Writes down what came of some.
    async fn settle(&self, outcomes: &[(Unpublished, Outcome)]) -> Result<(), Stopped> {
        for some in outcomes.chunks(SETTLED_MAX) {
            self.settle_some(some).await?;
        }
        Ok(())
    }

    async fn settle_some(&self, outcomes: &[(Unpublished, Outcome)]) -> Result<(), Stopped> {
        kernel::crash_point("debt.published");
        // Not synced: what a power cut undoes is published again, and the registry has it already.
        let mut tx = self.parts.db.begin_unsynced().await?;
        if !store::lease::check(&mut tx, LEASE, self.fence).await? {
            return Err(Stopped::Lost);
        }
        let now = self.parts.clock.now_us();
        let published = outcomes.iter().filter_map(|(item, outcome)| match outcome {
            Outcome::Published => Some((&*item.id, item.images)),
            _ => None,
        });
        tables::all_published(&mut tx, &published.collect::<Vec<_>>(), now).await?;
        let mut put_off = Vec::new();
        for (item, outcome) in outcomes {
            let chance = rules::chance(&*self.parts.random);
            let (attempts, why, wait) = match outcome {
                Outcome::Published => continue,
                Outcome::Gone(why) => {
                    let why = shortened(why);
                    tables::published(&mut tx, &item.id, item.images, &why, now).await?;
                    continue;
                }
                Outcome::Busy(why) => (0, why, rules::retry(0, chance)),
                Outcome::Failed(why) => (1, why, rules::retry(item.attempts, chance)),
                Outcome::Spared(why, before) => (0, why, rules::spared(*before, chance)),
            };
            put_off.push(PutOff {
                id: &item.id,
                attempts,
                why: shortened(why),
                next_at: later(now, wait),
            });
        }
        tables::all_put_off(&mut tx, &put_off).await?;
        Ok(tx.commit().await?)
    }
}

/// What a publication that failed comes to.
fn failed(item: &Unpublished, failure: &Failure) -> Outcome {
    let why = kernel::words(&kernel::chain(&failure.error));
    let signature = &item.id;
    if failure.is_gone() && item.attempts >= GONE_ATTEMPTS {
        tracing::warn!(
            signature,
            why,
            "evidence of the external log is not published: the image is gone"
        );
        return Outcome::Gone(why);
    }
    if matches!(failure.error, SigningError::Busy(_)) {
        tracing::debug!(signature, why, "its evidence was not published");
        return Outcome::Busy(why);
    }
    // A registry that does not answer is named once in a pause.
    if !failure.is_unanswered() {
        tracing::warn!(
            signature,
            why,
            attempts = item.attempts.saturating_add(1),
            "evidence of the external log was not published"
        );
    }
    Outcome::Failed(why)
}
