//! Sending what is owed, the oldest first.

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use kernel::Monotonic;

use super::rules::{self, Pace};
use super::tables::{self, Outcome, Owed};
use super::{Settings, Stopped};
use crate::parts::Parts;
use crate::ports::{ExternalLog, ExternalLogError, LoggedEntry};

/// Entries that are read at once. One of a large release takes the memory of its statement while it is read.
const READ_MAX: usize = 256;
/// Answers that are written down at once, and how long the first waits for more: while they are written nobody else
/// writes to SQLite. They are not synced: what a power cut undoes is asked again, and the log has it once.
const SETTLED_MAX: usize = 64;
const SETTLE_AFTER: Duration = Duration::from_millis(250);
/// How often is looked for new debt, and whether the log may be written to.
const LOOK_AFTER: Duration = Duration::from_millis(500);
/// Characters of an error that are kept.
const ERROR_CHARS_MAX: usize = 300;

type Answer = (Owed, Monotonic, Result<LoggedEntry, ExternalLogError>);

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
    answered: Vec<(String, Outcome)>,
    first_answer: Monotonic,
    next_look: Monotonic,
}

impl Payer {
    pub(super) fn new(parts: Arc<Parts>, settings: &Settings, fence: i64) -> Self {
        let now = parts.clock.monotonic();
        Self {
            pace: Pace::new(settings.entries_per_second_max, now),
            log: settings.log.clone(),
            parts,
            fence,
            waiting: VecDeque::new(),
            running: FuturesUnordered::new(),
            busy: HashSet::new(),
            answered: Vec::new(),
            first_answer: now,
            next_look: now,
        }
    }

    pub(super) async fn run(&mut self) -> Result<Infallible, Stopped> {
        loop {
            let wait = self.start().await?;
            tokio::select! {
                answer = self.running.next(), if !self.running.is_empty() => self.take(answer),
                () = tokio::time::sleep(wait) => {}
            }
            if self.is_to_settle() {
                self.settle().await?;
            }
        }
    }

    fn now(&self) -> Monotonic {
        self.parts.clock.monotonic()
    }

    /// Sends as many as may be sent now; the answer is when to look again.
    pub(super) async fn start(&mut self) -> Result<Duration, Stopped> {
        if self.log.barred().is_some() {
            // What was read is read again, should the wait be long.
            for owed in self.waiting.drain(..) {
                self.busy.remove(&owed.id);
            }
            return Ok(LOOK_AFTER.min(self.settles_in()));
        }
        loop {
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
        let limit = READ_MAX + self.busy.len();
        let owed = tables::owed(&self.parts.db, self.parts.clock.now_us(), limit).await?;
        for owed in owed {
            if self.waiting.len() < READ_MAX && self.busy.insert(owed.id.clone()) {
                self.waiting.push_back(owed);
            }
        }
        if self.waiting.is_empty() {
            self.next_look = now.after(LOOK_AFTER);
        }
        Ok(!self.waiting.is_empty())
    }

    fn send(&self, owed: Owed) {
        let (log, began) = (self.log.clone(), self.now());
        let entry = owed.entry.clone();
        self.running.push(Box::pin(async move {
            let answer = match entry {
                Ok(entry) => log.append(entry).await,
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

    fn take(&mut self, answer: Option<Answer>) {
        let Some((owed, began, answer)) = answer else {
            return;
        };
        let (now, chance) = (self.now(), rules::chance(&*self.parts.random));
        let counts = &self.parts.debts;
        let learned = answer.as_ref().map(|_| ());
        self.pace
            .learn(learned, began, now, self.running.len() + 1, chance);
        let outcome = match answer {
            Ok(entry) => Outcome::Logged(entry),
            Err(error) => {
                counts.count_failure(&error);
                let why: String = kernel::words(&error.to_string())
                    .chars()
                    .take(ERROR_CHARS_MAX)
                    .collect();
                match error {
                    ExternalLogError::Refused(_) => {
                        tracing::warn!(signature = owed.id, why, "the external log refuses an entry");
                        Outcome::Refused(why)
                    }
                    ExternalLogError::Unproven(_) => {
                        let wait = rules::retry(owed.attempts, chance);
                        Outcome::PutOff(why, later(self.parts.clock.now_us(), wait))
                    }
                    _ => Outcome::Away(why),
                }
            }
        };
        if self.answered.is_empty() {
            self.first_answer = now;
        }
        self.answered.push((owed.id, outcome));
    }

    fn settles_in(&self) -> Duration {
        match self.answered.is_empty() {
            true => LOOK_AFTER,
            false => self.first_answer.after(SETTLE_AFTER).since(self.now()),
        }
    }

    pub(super) fn is_to_settle(&self) -> bool {
        let idle = self.running.is_empty() && self.waiting.is_empty();
        let due = idle || self.answered.len() >= SETTLED_MAX || self.settles_in() == Duration::ZERO;
        !self.answered.is_empty() && due
    }

    /// Writes the answers down, all in one transaction.
    pub(super) async fn settle(&mut self) -> Result<(), Stopped> {
        if self.answered.is_empty() {
            return Ok(());
        }
        kernel::crash_point("debt.answered");
        let mut tx = self.parts.db.begin_unsynced().await?;
        if !store::lease::check(&mut tx, super::LEASE, self.fence).await? {
            return Err(Stopped::Lost);
        }
        let now = self.parts.clock.now_us();
        for (id, outcome) in &self.answered {
            tables::settle(&mut tx, id, outcome, now).await?;
        }
        tx.commit().await?;
        kernel::crash_point("debt.settled");
        for (id, outcome) in self.answered.drain(..) {
            self.busy.remove(&id);
            if matches!(outcome, Outcome::Logged(_)) {
                self.parts.debts.count_paid();
            }
        }
        Ok(())
    }
}

/// So much after a time in microseconds since 1970.
pub(super) fn later(now_us: i64, by: Duration) -> i64 {
    now_us.saturating_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX))
}
