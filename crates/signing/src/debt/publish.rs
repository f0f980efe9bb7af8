//! Attaching the external log's evidence to the images: a second bundle around the same signed statement, for whoever
//! believes that log and not ours.
//!
//! ```text
//!   due, a few at a time ── its registry rests ──▶ put off, without a call
//!        └── waits at its registry ── a few at once, for each registry by itself ──▶ published | put off
//! ```
//!
//! So a registry that is away, or slow, holds up its own images and no others; only that with a hundred thousand due at a
//! slow one, what is due after them is found some minutes later.

use std::collections::{HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flow::{Caller, Class};
use futures::future::join_all;
use kernel::{Digest, Fault as _, Kind, Monotonic, Repository};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::evidence::{self, PutOff, Unpublished};
use super::pay::later;
use super::{BEGINNING, LEASE, LOOK_AFTER, SETTLED_MAX, Stopped, ended, rules, shortened};
use crate::parts::Parts;
use crate::ports::{RegistryError, RegistryReason};
use crate::{SigningError, format, publish, resolve};

/// Signatures that are read at once, and of these published at once to one registry: a few, since nobody waits.
const READ_MAX: i64 = 32;
const AT_ONCE: usize = 4;
/// Signatures that wait for their turn at one registry in memory, of some kilobytes each; more are read again later.
const WAITING_MAX: usize = 64;
/// Registries that are published to at once.
const REGISTRIES_MAX: usize = 64;
/// Between two reads, if more is due: others want the database too.
const READ_PAUSE: Duration = Duration::from_millis(50);
/// Before the next pass, after one that found something: what becomes due one by one is written down together.
const GATHER_PAUSE: Duration = Duration::from_millis(250);
/// After so many attempts, which take twenty minutes, an image that its registry does not have is gone, and needs no
/// evidence. Some registries say the same while they are put back or moved.
const GONE_ATTEMPTS: u32 = 8;

/// Publishes for as long as the fence holds, to each registry at its own pace.
pub(super) struct Publisher {
    attaching: Arc<Attaching>,
    /// What was read last: when it was due, and its id.
    read: (i64, String),
    /// Whether anything was found to be done since the beginning was read.
    found: bool,
    /// By registry: what waits for its turn there. What has images in several is at the first.
    waiting: HashMap<String, Waiting>,
    /// One for each registry. They are tasks, because each may hold the turn to write that a look waits for.
    running: JoinSet<Result<Done, Stopped>>,
    /// Registries with something under way.
    at_work: HashSet<String>,
    /// Of all that waits or is under way.
    busy: HashSet<String>,
    /// Registries that did not answer, by their hosts.
    away: HashMap<String, Away>,
}

/// What waits for its turn at one registry.
#[derive(Default)]
struct Waiting {
    works: VecDeque<Work>,
    /// Whether the registry answered just now.
    answers: bool,
}

/// What attaches evidence, apart from what decides which.
struct Attaching {
    parts: Arc<Parts>,
    fence: i64,
}

/// What came of some works at one registry.
struct Done {
    registry: String,
    ids: Vec<String>,
    /// Which registries answered, and which did not and why.
    learned: HashMap<String, Option<String>>,
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
            attaching: Arc::new(Attaching { parts, fence }),
            read: BEGINNING,
            found: false,
            waiting: HashMap::new(),
            running: JoinSet::new(),
            at_work: HashSet::new(),
            busy: HashSet::new(),
            away: HashMap::new(),
        }
    }

    pub(super) async fn run(&mut self) -> Result<Infallible, Stopped> {
        let mut next_read = self.now();
        loop {
            let wait = next_read.since(self.now());
            tokio::select! {
                Some(done) = self.running.join_next() => self.learn_all(ended(done)?),
                () = sleep(wait) => {
                    let pause = self.look().await?;
                    next_read = self.now().after(pause);
                }
            }
            self.start();
        }
    }

    /// Reads all that is due and waits until it is done; whether there was anything.
    #[cfg(test)]
    pub(super) async fn round(&mut self) -> Result<bool, Stopped> {
        let mut some = self.look().await? < LOOK_AFTER;
        self.start();
        while let Some(done) = self.running.join_next().await {
            some = true;
            self.learn_all(ended(done)?);
            self.start();
        }
        Ok(some)
    }

    /// Reads some more of what is due, and has it wait at its registry; how soon to go on. A registry that is away is
    /// asked once in a pause, and what else is to go there is put off without a call.
    async fn look(&mut self) -> Result<Duration, Stopped> {
        let parts = self.attaching.parts.clone();
        let now = parts.clock.now_us();
        let items = evidence::unpublished(&parts.db, now, &self.read, READ_MAX).await?;
        let last = items.last().filter(|_| items.len() as i64 == READ_MAX);
        let is_end = last.is_none();
        self.read = last.map_or(BEGINNING, |last| (last.next_at, last.id.clone()));
        let (mut outcomes, waited) = (Vec::new(), self.busy.len());
        for item in items {
            if self.busy.contains(&item.id) {
                continue;
            }
            match self.attaching.work(item).await? {
                Err(settled) => outcomes.push(settled),
                Ok(work) => match self.resting(&work) {
                    Some(away) => {
                        let outcome = Outcome::Spared(away.why.clone(), away.spared);
                        away.spared = away.spared.saturating_add(1);
                        outcomes.push((work.item, outcome));
                    }
                    None => self.queue(work),
                },
            }
        }
        self.found |= !outcomes.is_empty() || self.busy.len() > waited;
        self.attaching.settle(&outcomes).await?;
        let pause = match (is_end, self.found) {
            (false, _) => READ_PAUSE,
            (true, true) => GATHER_PAUSE,
            (true, false) => LOOK_AFTER,
        };
        self.found &= !is_end;
        Ok(pause)
    }

    /// Has it wait for its turn at its registry. Where too many do, it is read again later.
    fn queue(&mut self, work: Work) {
        let registries = self.waiting.len();
        let waiting = match self.waiting.get_mut(work.registry()) {
            Some(waiting) => waiting,
            None if registries >= REGISTRIES_MAX => return,
            None => self.waiting.entry(work.registry().to_owned()).or_default(),
        };
        if waiting.works.len() < WAITING_MAX {
            self.busy.insert(work.item.id.clone());
            waiting.works.push_back(work);
        }
    }

    /// Begins to publish to each registry where something waits and nothing is under way: one alone to find out whether
    /// it answers, if that is not known.
    fn start(&mut self) {
        for (registry, waiting) in &mut self.waiting {
            let Waiting { works, answers } = waiting;
            if works.is_empty() || !self.at_work.insert(registry.clone()) {
                continue;
            }
            let at_once = if *answers { AT_ONCE } else { 1 };
            let works: Vec<Work> = works.drain(..at_once.min(works.len())).collect();
            let (attaching, registry) = (self.attaching.clone(), registry.clone());
            self.running
                .spawn(async move { attaching.publish_all(registry, works).await });
        }
    }

    fn learn_all(&mut self, done: Done) {
        for id in &done.ids {
            self.busy.remove(id);
        }
        self.at_work.remove(&done.registry);
        let is_away = done.learned.values().any(Option::is_some);
        let answers = done.learned.get(&done.registry).is_some_and(Option::is_none);
        for (host, unanswered) in done.learned {
            self.learn(host, unanswered);
        }
        let Some(waiting) = self.waiting.get_mut(&done.registry) else {
            return;
        };
        waiting.answers = answers;
        if is_away || waiting.works.is_empty() {
            // What waits is due still, and is read again: then it is put off.
            for work in waiting.works.drain(..) {
                self.busy.remove(&work.item.id);
            }
            self.waiting.remove(&done.registry);
        }
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
        let pause = rules::registry_pause(failures, rules::chance(&*self.attaching.parts.random));
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

    fn now(&self) -> Monotonic {
        self.attaching.parts.clock.monotonic()
    }
}

impl Work {
    /// The host of the registry at which it waits.
    fn registry(&self) -> &str {
        self.images
            .first()
            .map_or("", |(repository, _)| repository.registry())
    }
}

impl Attaching {
    /// Its images; or what came of it without any.
    async fn work(&self, item: Unpublished) -> Result<Result<Work, (Unpublished, Outcome)>, Stopped> {
        let images = match evidence::images(&self.parts.db, &item.id).await? {
            Ok(images) => images,
            Err(why) => return Ok(Err((item, Outcome::Failed(why)))),
        };
        let outcome = match (images.there.is_empty(), images.given_up) {
            (false, _) => {
                let images = images.there;
                return Ok(Ok(Work { item, images }));
            }
            (true, Some(registry)) => Outcome::Gone(format!("the registry {registry} was given up")),
            // It was asked for in the legacy format alone, which has no place for evidence.
            (true, None) => Outcome::Published,
        };
        Ok(Err((item, outcome)))
    }

    /// Publishes some at once, and writes down what came of it.
    async fn publish_all(&self, registry: String, works: Vec<Work>) -> Result<Done, Stopped> {
        let mut learned: HashMap<String, Option<String>> = HashMap::new();
        let tried = join_all(works.iter().map(|work| self.publish(work))).await;
        let (mut ids, mut outcomes) = (Vec::with_capacity(works.len()), Vec::with_capacity(works.len()));
        for (work, tried) in works.into_iter().zip(tried) {
            let outcome = match tried {
                Ok(()) => {
                    for (repository, _) in &work.images {
                        learned.entry(repository.registry().to_owned()).or_default();
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
            ids.push(work.item.id.clone());
            outcomes.push((work.item, outcome));
        }
        self.settle(&outcomes).await?;
        Ok(Done {
            registry,
            ids,
            learned,
        })
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
        let published = outcomes.iter().filter_map(|(item, outcome)| match outcome {
            Outcome::Published => Some((item, String::new())),
            Outcome::Gone(why) => Some((item, shortened(why))),
            _ => None,
        });
        let published: Vec<_> = published.collect();
        if !published.is_empty() {
            kernel::crash_point("debt.published");
        }
        // Not synced: what a power cut undoes is published again, and the registry has it already.
        let mut tx = self.parts.db.begin_unsynced().await?;
        if !store::lease::check(&mut tx, LEASE, self.fence).await? {
            return Err(Stopped::Lost);
        }
        let now = self.parts.clock.now_us();
        evidence::published(&mut tx, &published, now).await?;
        let mut put_off = Vec::new();
        for (item, outcome) in outcomes {
            let chance = rules::chance(&*self.parts.random);
            let (attempts, why, wait) = match outcome {
                Outcome::Published | Outcome::Gone(_) => continue,
                Outcome::Busy(why) => (0, why, rules::retry(0, chance)),
                Outcome::Failed(why) => (1, why, rules::retry(item.attempts, chance)),
                Outcome::Spared(why, before) => (0, why, rules::spared(*before, chance)),
            };
            put_off.push(PutOff {
                id: &item.id,
                logged_at: item.logged_at,
                attempts,
                why: shortened(why),
                next_at: later(now, wait),
            });
        }
        evidence::all_put_off(&mut tx, &put_off).await?;
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
