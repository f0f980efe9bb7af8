//! What was found last, of everything.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kernel::{Clock, Monotonic};

use crate::state::{Finding, Kind, Severity, State};

/// Milliseconds after which a finding no longer counts, beyond the pause of its probe: three looks were missed.
pub const OVERDUE_MS_MAX: u64 = 30_000;

/// What is known of one dependency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub name: String,
    pub kind: Kind,
    pub state: State,
    pub expected: String,
    pub found: String,
    /// Since when it is in this state.
    pub since: Timestamp,
    /// When the last look ended.
    pub checked_at: Option<Timestamp>,
    pub last_good: Option<Timestamp>,
    /// How long the last look took.
    pub latency: Option<Duration>,
    pub certificate_days_left: Option<i64>,
    /// When the last look began that found it well, when the last one ended that did not, and when the last one ended
    /// that found somebody else.
    pub well: Option<Monotonic>,
    pub ill: Option<Monotonic>,
    pub wrong: Option<Monotonic>,
    /// The pause between two looks.
    every: Duration,
    ended: Monotonic,
}

impl Status {
    fn unknown(
        name: &str,
        kind: Kind,
        expected: String,
        every: Duration,
        at: (Timestamp, Monotonic),
    ) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            state: State::Unknown,
            expected,
            found: "not looked at yet".to_owned(),
            since: at.0,
            checked_at: None,
            last_good: None,
            latency: None,
            certificate_days_left: None,
            well: None,
            ill: None,
            wrong: None,
            every,
            ended: at.1,
        }
    }

    /// What is known after a look that ended now.
    fn after(&self, finding: Finding, latency: Duration, at: (Timestamp, Monotonic)) -> Self {
        let (now, ended) = at;
        // That nothing is known is not that it was good.
        let good = finding.state.severity() != Severity::Broken && finding.state != State::Unknown;
        Self {
            since: if finding.state == self.state {
                self.since
            } else {
                now
            },
            state: finding.state,
            expected: finding.expected,
            found: finding.found,
            checked_at: Some(now),
            last_good: if good { Some(now) } else { self.last_good },
            latency: Some(latency),
            certificate_days_left: finding.certificate_days_left.or(self.certificate_days_left),
            well: if good {
                Some(ended.before(latency))
            } else {
                self.well
            },
            ill: if good { self.ill } else { Some(ended) },
            wrong: if finding.state.is_somebody_else() {
                Some(ended)
            } else {
                self.wrong
            },
            name: self.name.clone(),
            kind: self.kind,
            every: self.every,
            ended,
        }
    }

    /// The same as it counts at a later time: what was found too long ago is not known any more.
    fn at(&self, at: (Timestamp, Monotonic)) -> Self {
        let age = at.1.since(self.ended);
        if age <= self.every + Duration::from_millis(OVERDUE_MS_MAX) {
            return self.clone();
        }
        let before = match self.checked_at {
            Some(checked) => format!(
                "no look has ended since {checked}; it found {}: {}",
                self.state, self.found
            ),
            None => "no look has ended yet".to_owned(),
        };
        let since = at.0.checked_sub(jiff::SignedDuration::from_millis(
            i64::try_from(age.as_millis()).unwrap_or(i64::MAX),
        ));
        Self {
            state: State::Stale,
            found: before,
            since: since.unwrap_or(self.since),
            ..self.clone()
        }
    }
}

/// Everything that is watched. Cheap to clone; reading it waits for nothing.
#[derive(Clone)]
pub struct Board {
    entries: Arc<Mutex<BTreeMap<(Kind, String), Status>>>,
    clock: Arc<dyn Clock>,
}

impl Board {
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            entries: Arc::default(),
            clock,
        }
    }

    fn now(&self) -> (Timestamp, Monotonic) {
        (self.clock.now(), self.clock.monotonic())
    }

    /// Everything, in the order of the kinds and then by name.
    #[must_use]
    pub fn all(&self) -> Vec<Status> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.now();
        let mut all: Vec<Status> = entries.values().map(|status| status.at(now)).collect();
        let place = |kind| Kind::ALL.iter().position(|own| *own == kind);
        all.sort_by_key(|status| place(status.kind));
        all
    }

    pub(crate) fn add(&self, name: &str, kind: Kind, expected: String, every: Duration) {
        let status = Status::unknown(name, kind, expected, every, self.now());
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.entry((kind, name.to_owned())).or_insert(status);
    }

    pub(crate) fn remove(&self, name: &str, kind: Kind) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.remove(&(kind, name.to_owned()));
    }

    /// Writes down what a look came to, and says a change of state in the log, once.
    pub(crate) fn note(&self, name: &str, kind: Kind, finding: Finding, latency: Duration) {
        let now = self.now();
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(status) = entries.get_mut(&(kind, name.to_owned())) else {
            return;
        };
        let next = status.after(finding, latency, now);
        if next.state != status.state {
            say(status.state, &next);
        }
        *status = next;
    }
}

fn say(before: State, next: &Status) {
    let Status {
        name,
        state,
        expected,
        found,
        ..
    } = next;
    let (state, before) = (state.as_str(), before.as_str());
    match next.state.severity() {
        Severity::Fine => tracing::info!(
            dependency = name,
            state,
            before,
            found,
            "a dependency is as it should be"
        ),
        Severity::Warning => tracing::warn!(
            dependency = name,
            state,
            before,
            expected,
            found,
            "a dependency needs somebody"
        ),
        Severity::Broken => {
            tracing::error!(
                dependency = name,
                state,
                before,
                expected,
                found,
                "a dependency is not as it should be"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use kernel::TestClock;

    use super::*;

    #[test]
    fn a_state_lasts_from_its_first_look_and_the_last_good_one_stays() {
        let clock = Arc::new(TestClock::at(Timestamp::UNIX_EPOCH));
        let board = Board::new(clock.clone());
        board.add("log", Kind::ExternalLog, "it".to_owned(), Duration::from_secs(4));
        let one = || board.all().remove(0);
        assert_eq!((one().state, one().checked_at), (State::Unknown, None));
        let look = |state| {
            clock.advance(Duration::from_secs(4));
            board.note(
                "log",
                Kind::ExternalLog,
                Finding::new(state, "it", "x"),
                Duration::ZERO,
            );
            clock.now()
        };
        let good = look(State::Ok);
        let wrong = look(State::WrongLog);
        look(State::WrongLog);
        assert_eq!((one().since, one().last_good), (wrong, Some(good)));
        // A warning is good enough to work with.
        let warned = look(State::Expiring);
        assert_eq!((one().since, one().last_good), (warned, Some(warned)));
    }

    /// Shown to fail: with `Status::at` returning the status as it is, the last assertion finds OK.
    #[test]
    fn p15_a_probe_that_does_not_end_any_more_is_not_shown_as_fine() {
        let clock = Arc::new(TestClock::at(Timestamp::UNIX_EPOCH));
        let board = Board::new(clock.clone());
        board.add("log", Kind::ExternalLog, "it".to_owned(), Duration::from_secs(4));
        board.note(
            "log",
            Kind::ExternalLog,
            Finding::new(State::Ok, "it", "it"),
            Duration::ZERO,
        );
        clock.advance(Duration::from_secs(33));
        assert_eq!(board.all()[0].state, State::Ok);
        clock.advance(Duration::from_secs(2));
        let late = board.all().remove(0);
        assert_eq!(late.state, State::Stale);
        assert!(late.found.contains("found OK"), "{}", late.found);
    }
}
