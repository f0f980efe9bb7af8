//! Sending what is owed, what is due the longest first.
//!
//! An answer proves at most that somebody with the log's key has the entry, and a refusal proves nothing at all: a web
//! server behind the log's name refuses everything. That it is the log, and not a fork or an older copy, only the probe can
//! tell, which knows what the log was. So an answer of either sort is held ([`super::held`]) until a look that began after
//! it has found the log well, and what it was proven under is proven to be a part of what that look found. One that came
//! before a look that found somebody else, or that is somebody else's, is dropped, and the entry sent again, which does no
//! harm; a look that found nobody tells nothing about answers, and they are held on. Until then the entry is owed, and who
//! asks is told so.
//!
//! Nothing waits for what is being written down: entries go on being sent and answers heard meanwhile.

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use kernel::Monotonic;
use tokio::task::JoinSet;

use super::held::{Answers, Held};
use super::rules::{self, Pace};
use super::tables::{self, Outcome, Owed, Unlogged};
use super::{BEGINNING, LOOK_AFTER, SETTLED_MAX, Settings, Stopped, ended, shortened};
use crate::parts::Parts;
use crate::ports::{Answered, Contained, ExternalLog, ExternalLogError, Looks, TreeHead};

/// Entries that are read at once. One of a large release takes the memory of its statement while it is read.
const READ_MAX: usize = 256;
/// How long the first answer waits for more that are written down with it. They are not synced: what a power cut undoes
/// is asked again, and the log has it once.
const SETTLE_AFTER: Duration = Duration::from_millis(250);
/// Between the end of such a write and the next at least: a look frees thousands of answers at once, and others want to write too.
const SETTLE_PAUSE: Duration = Duration::from_millis(12);
/// They are written down faster than they come at the highest rate, and not more than by this.
const SETTLE_TIMES: f64 = 1.5;
/// Answers that are held or asked for at most, in seconds of the highest rate; beyond it nothing is sent until a look. A
/// pause between two looks and a look take nine seconds, and what a look frees is written down within the next few.
const HELD_SECONDS: usize = 16;
/// No fewer than these, and no more; with their evidence about 4 and 64 MB.
const HELD_MIN: usize = 1_024;
const HELD_MAX: usize = 16_384;
/// The same while the last look did not find the log well: one is enough to learn that it is back.
const HELD_ILL_MAX: usize = 1;

/// As after so many failures is waited with an entry whose place another one has.
const TAKEN_TIMES: u32 = 4;

type Answer = (Owed, Monotonic, Result<Answered, ExternalLogError>);
/// What was written down, and what about it is no log's.
type Written = Result<(Vec<(String, Outcome)>, Option<String>), Stopped>;
/// Whether the log has been as tree heads say.
type Proven = (Vec<TreeHead>, Vec<Contained>);

/// Pays for as long as the fence holds. The parts of [`Payer::run`] are apart, so that a test can be its clock.
pub(super) struct Payer {
    parts: Arc<Parts>,
    log: Arc<dyn ExternalLog>,
    fence: i64,
    pace: Pace,
    waiting: VecDeque<Owed>,
    running: FuturesUnordered<BoxFuture<'static, Answer>>,
    /// Of what is waiting, running, or answered and not settled.
    busy: HashSet<String>,
    /// When what was read last is due, and its id.
    read: (i64, String),
    held: Answers,
    held_max: usize,
    /// One at most.
    proving: FuturesUnordered<BoxFuture<'static, Proven>>,
    answered: VecDeque<(String, Outcome)>,
    /// One at most. It is a task, so that it does not hold the turn to write while something else is waited for.
    writing: JoinSet<Written>,
    first_answer: Monotonic,
    next_settle: Monotonic,
    settle_pause: Duration,
    next_look: Monotonic,
}

impl Payer {
    pub(super) fn new(parts: Arc<Parts>, settings: &Settings, fence: i64) -> Self {
        let now = parts.clock.monotonic();
        let per_second = usize::try_from(settings.entries_per_second_max).unwrap_or(usize::MAX);
        Self {
            pace: Pace::new(settings.entries_per_second_max, now),
            log: settings.log.clone(),
            parts,
            fence,
            waiting: VecDeque::new(),
            running: FuturesUnordered::new(),
            busy: HashSet::new(),
            read: BEGINNING,
            held: Answers::default(),
            proving: FuturesUnordered::new(),
            held_max: per_second.saturating_mul(HELD_SECONDS).clamp(HELD_MIN, HELD_MAX),
            answered: VecDeque::new(),
            writing: JoinSet::new(),
            first_answer: now,
            next_settle: now,
            settle_pause: settle_pause(settings.entries_per_second_max),
            next_look: now,
        }
    }

    pub(super) async fn run(&mut self) -> Result<Infallible, Stopped> {
        loop {
            let wait = self.start().await?;
            tokio::select! {
                answer = self.running.next(), if !self.running.is_empty() => self.take(answer),
                Some(written) = self.writing.join_next() => self.written(ended(written)?),
                Some(proven) = self.proving.next(), if !self.proving.is_empty() => self.proven(proven),
                () = tokio::time::sleep(wait) => {}
            }
            if self.is_to_settle() {
                self.write();
            }
        }
    }

    fn now(&self) -> Monotonic {
        self.parts.clock.monotonic()
    }

    /// Sends as many as may be sent now; the answer is when to look again.
    pub(super) async fn start(&mut self) -> Result<Duration, Stopped> {
        self.judge();
        if self.log.barred().is_some() {
            // What was read is read again, should the wait be long.
            for owed in self.waiting.drain(..) {
                self.busy.remove(&owed.id);
            }
            self.read = BEGINNING;
            return Ok(LOOK_AFTER.min(self.settles_in()));
        }
        let held_max = self.held_max();
        loop {
            if self.held.len() + self.running.len() >= held_max {
                return Ok(LOOK_AFTER.min(self.settles_in()));
            }
            if self.waiting.is_empty() && !self.look().await? {
                return Ok(self.next_look.since(self.now()).min(self.settles_in()));
            }
            match self.pace.take(self.running.len(), self.now()) {
                Ok(()) => {}
                Err(wait) => return Ok(wait.unwrap_or(LOOK_AFTER).min(LOOK_AFTER).min(self.settles_in())),
            }
            let Some(owed) = self.waiting.pop_front() else {
                continue;
            };
            self.send(owed);
        }
    }

    /// Reads what is owed; whether there is anything new. Not more often than every half second without.
    async fn look(&mut self) -> Result<bool, Stopped> {
        let now = self.now();
        if self.next_look.since(now) > Duration::ZERO {
            return Ok(false);
        }
        loop {
            let now_us = self.parts.clock.now_us();
            let owed = tables::owed(&self.parts.db, now_us, &self.read, READ_MAX).await?;
            let last = owed.last().filter(|_| owed.len() == READ_MAX);
            // After the end from the beginning: what was put off or dropped lies there.
            let is_end = last.is_none();
            self.read = last.map_or(BEGINNING, |last| (last.next_at, last.id.clone()));
            for owed in owed {
                if self.busy.insert(owed.id.clone()) {
                    self.waiting.push_back(owed);
                }
            }
            if !self.waiting.is_empty() {
                return Ok(true);
            }
            if is_end {
                self.next_look = now.after(LOOK_AFTER);
                return Ok(false);
            }
        }
    }

    /// Whether the last look found the log well.
    fn is_well(&self) -> bool {
        let Looks { well, ill, .. } = self.log.looks();
        well.is_some() && well > ill
    }

    fn held_max(&self) -> usize {
        match self.is_well() {
            true => self.held_max,
            false => HELD_ILL_MAX,
        }
    }

    /// Frees the answers that are to be believed, a few at a time, drops those that are worth nothing, and has proven what
    /// is to be.
    fn judge(&mut self) {
        let in_vain = self.held.judge(&self.log.looks());
        self.disbelieve(in_vain, "the log was not found well after it came");
        if self.proving.is_empty() {
            let heads = self.held.next_heads();
            if !heads.is_empty() {
                let log = self.log.clone();
                self.proving.push(Box::pin(async move {
                    let found = log.contains(&heads).await;
                    (heads, found)
                }));
            }
        }
        let now = self.now();
        while self.answered.len() < SETTLED_MAX
            && let Some(held) = self.held.pop()
        {
            if let Outcome::Not(Unlogged::Refused(why)) = &held.outcome {
                tracing::warn!(signature = held.id, why, "the external log refuses an entry");
            }
            self.push(held.id, held.outcome, now);
        }
    }

    fn proven(&mut self, (heads, found): Proven) {
        let dropped = self.held.learn(heads, found, self.now());
        // What is believed goes before what is not.
        self.judge();
        for (ids, why) in dropped {
            for _ in &ids {
                self.parts
                    .debts
                    .count_failure(&ExternalLogError::Wrong(String::new()));
            }
            self.disbelieve(ids, &why);
        }
    }

    /// Owes again what was answered and is not believed.
    fn disbelieve(&mut self, ids: Vec<String>, why: &str) {
        if ids.is_empty() {
            return;
        }
        let (dropped, now) = (ids.len(), self.now());
        tracing::warn!(
            dropped,
            why,
            "answers of the external log are not believed; what they were for stays owed"
        );
        for id in ids {
            let why = format!("its answer is not believed: {why}");
            self.push(id, Outcome::Not(Unlogged::Away(shortened(&why))), now);
        }
    }

    fn push(&mut self, id: String, outcome: Outcome, now: Monotonic) {
        if self.answered.is_empty() {
            self.first_answer = now;
        }
        self.answered.push_back((id, outcome));
    }

    fn send(&self, owed: Owed) {
        let (log, began) = (self.log.clone(), self.now());
        let (entry, last_index) = (owed.entry.clone(), owed.last_index);
        self.running.push(Box::pin(async move {
            let answer = match entry {
                Ok(entry) => log.append(entry, last_index).await,
                Err(why) => Err(ExternalLogError::Unproven(why)),
            };
            (owed, began, answer)
        }));
    }

    /// Waits for one answer, if any is under way.
    #[cfg(test)]
    pub(super) async fn answer(&mut self) -> bool {
        let answer = self.running.next().await;
        let any = answer.is_some();
        self.take(answer);
        any
    }

    /// Waits for what is being proven, if anything is.
    #[cfg(test)]
    pub(super) async fn prove(&mut self) {
        if let Some(proven) = self.proving.next().await {
            self.proven(proven);
        }
    }

    fn take(&mut self, answer: Option<Answer>) {
        let Some((owed, began, answer)) = answer else {
            return;
        };
        let (now, chance) = (self.now(), rules::chance(&*self.parts.random));
        let counts = &self.parts.debts;
        let learned = answer.as_ref().map(|_| ());
        self.pace
            .learn(learned, began, now, self.running.len() + 1, chance);
        let mut head = None;
        let answer = answer.and_then(|answer| match i64::try_from(answer.entry.index) {
            Ok(_) => Ok(answer),
            Err(_) => {
                let why = format!("it says that the entry lies at {}", answer.entry.index);
                Err(ExternalLogError::Unproven(why))
            }
        });
        let outcome = match answer {
            Ok(answer) => {
                head = Some(answer.head);
                Outcome::Logged(answer.entry)
            }
            Err(error) => {
                counts.count_failure(&error);
                let why = shortened(&kernel::words(&error.to_string()));
                Outcome::Not(match error {
                    // Of whom nobody knows now who it is, nothing is final.
                    ExternalLogError::Refused(_) if self.is_well() => Unlogged::Refused(why),
                    ExternalLogError::Refused(_) | ExternalLogError::Unproven(_) => {
                        let wait = rules::retry(owed.attempts, chance);
                        Unlogged::PutOff(why, later(self.parts.clock.now_us(), wait))
                    }
                    _ => Unlogged::Away(why),
                })
            }
        };
        if matches!(outcome, Outcome::Logged(_) | Outcome::Not(Unlogged::Refused(_))) {
            self.held.push(Held {
                id: owed.id,
                began,
                answered: now,
                outcome,
                head,
            });
            return self.judge();
        }
        self.push(owed.id, outcome, now);
    }

    fn settles_in(&self) -> Duration {
        // Whoever waits is woken when what is being written is written.
        if self.answered.is_empty() || !self.writing.is_empty() {
            return LOOK_AFTER;
        }
        let idle = self.running.is_empty() && self.waiting.is_empty();
        let wait = match idle || self.answered.len() >= SETTLED_MAX {
            true => Duration::ZERO,
            false => self.first_answer.after(SETTLE_AFTER).since(self.now()),
        };
        wait.max(self.next_settle.since(self.now()))
    }

    pub(super) fn is_to_settle(&self) -> bool {
        !self.answered.is_empty() && self.settles_in() == Duration::ZERO
    }

    /// Writes all answers down that count.
    pub(super) async fn settle(&mut self) -> Result<(), Stopped> {
        loop {
            self.write();
            let Some(written) = self.writing.join_next().await else {
                return Ok(());
            };
            self.written(ended(written)?);
        }
    }

    /// Begins to write down some of the answers that count, if none are being written.
    pub(super) fn write(&mut self) {
        if self.answered.is_empty() || !self.writing.is_empty() {
            return;
        }
        let some = self.answered.len().min(SETTLED_MAX);
        let answers = self.answered.drain(..some).collect();
        self.next_settle = self.now().after(self.settle_pause);
        self.writing.spawn(write(self.parts.clone(), self.fence, answers));
    }

    fn written(&mut self, (answers, contradiction): (Vec<(String, Outcome)>, Option<String>)) {
        if let Some(why) = contradiction {
            self.log.contradicts(&why);
        }
        self.next_settle = self.next_settle.max(self.now().after(SETTLE_PAUSE));
        for (id, outcome) in answers {
            self.busy.remove(&id);
            if matches!(outcome, Outcome::Logged(_)) {
                self.parts.debts.count_paid();
            }
        }
    }

    /// Answers that are held or being waited for.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.held.len() + self.running.len()
    }
}

/// Writes answers down, all in one transaction.
async fn write(parts: Arc<Parts>, fence: i64, mut answers: Vec<(String, Outcome)>) -> Written {
    kernel::crash_point("debt.answered");
    let mut tx = parts.db.begin_unsynced().await?;
    if !store::lease::check(&mut tx, super::LEASE, fence).await? {
        return Err(Stopped::Lost);
    }
    let now = parts.clock.now_us();
    let logged = answers.iter().filter_map(|(id, outcome)| match outcome {
        Outcome::Logged(entry) => Some((&**id, entry)),
        Outcome::Not(_) => None,
    });
    let all = tables::all_logged(&mut tx, &logged.collect::<Vec<_>>(), now).await?;
    let mut contradiction = None;
    for (id, outcome) in &mut answers {
        if let Outcome::Logged(entry) = outcome
            && !all
            && !tables::logged(&mut tx, id, entry, now).await?
        {
            let why = format!(
                "it says that the entry lies at {}, where another of ours lies; if the log was put back from an older copy: \
                 portcullis external-log retry --paid-since TIME",
                entry.index
            );
            tracing::warn!(signature = id, why, "the external log is not believed");
            let wait = rules::retry(TAKEN_TIMES, rules::chance(&*parts.random));
            parts.debts.count_failure(&ExternalLogError::Wrong(String::new()));
            contradiction = Some(format!(
                "two of our entries are proven to lie at {}; if the log was put back from an older copy, what it lost is to \
                 be owed again: portcullis external-log retry --paid-since TIME",
                entry.index
            ));
            *outcome = Outcome::Not(Unlogged::PutOff(why, later(now, wait)));
        }
        if let Outcome::Not(why) = outcome {
            tables::unlogged(&mut tx, id, why).await?;
        }
    }
    tx.commit().await?;
    kernel::crash_point("debt.settled");
    Ok((answers, contradiction))
}

/// From one write of [`SETTLED_MAX`] answers to the next: what a look frees is spread over the time to the next one.
fn settle_pause(entries_per_second_max: u32) -> Duration {
    let per_second = f64::from(entries_per_second_max.max(1)) * SETTLE_TIMES;
    Duration::from_secs_f64(SETTLED_MAX as f64 / per_second).clamp(SETTLE_PAUSE, LOOK_AFTER)
}

/// So much after a time in microseconds since 1970.
pub(super) fn later(now_us: i64, by: Duration) -> i64 {
    now_us.saturating_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX))
}
