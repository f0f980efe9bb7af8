//! The clock: does it show the time?
//!
//! Others who show theirs with every answer decide: the database's, registries', an external log's. Where nobody else is
//! asked, two things still tell: a wall clock that moved otherwise than the time that passed, and one that is behind
//! the latest time that this installation has seen.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use kernel::{Clock, Monotonic};
use store::Db;

use crate::marks::Marks;
use crate::state::{Finding, Kind, State};
use crate::watch::Probe;

/// Seconds that a clock may be off: dates of HTTP are whole seconds, answers take some, and tokens and certificates
/// are never judged to the minute.
pub const OFF_SECONDS_MAX: i64 = 60;
/// How long another clock's word counts, in seconds: several looks at it.
const REFERENCE_SECONDS_MAX: u64 = 60;
/// The latest time is written down every so many seconds at most.
const MARK_EVERY_SECONDS: i64 = 60;
const MARK: &str = "clock";

/// What other clocks showed, by who showed it. Cheap to clone; any probe may add to it.
#[derive(Clone, Default)]
pub struct References(Arc<Mutex<BTreeMap<String, (SignedDuration, Monotonic)>>>);

impl References {
    /// Notes that `name` showed `theirs` now.
    pub fn note(&self, name: &str, theirs: Timestamp, clock: &dyn Clock) {
        let off = clock.now().duration_since(theirs);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(name.to_owned(), (off, clock.monotonic()));
    }

    /// How far ours is ahead of each that spoke a short while ago.
    fn recent(&self, now: Monotonic) -> Vec<(String, SignedDuration)> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, (_, at)| now.since(*at) <= Duration::from_secs(REFERENCE_SECONDS_MAX));
        all.iter().map(|(name, (off, _))| (name.clone(), *off)).collect()
    }
}

/// What is known of the clock at one moment.
#[derive(Debug, Clone)]
pub struct Observed {
    /// How far ours is ahead of others', by name.
    pub others: Vec<(String, SignedDuration)>,
    /// How much further the wall clock moved since the start than the time that passed.
    pub stepped: SignedDuration,
    /// How far ours is behind the latest time that was ever seen; negative if it is not.
    pub behind_latest: SignedDuration,
}

/// Judges it: most of the others decide; without others, a step and the past do.
#[must_use]
pub fn judge(observed: &Observed) -> Finding {
    let far = |off: &SignedDuration| off.as_secs().abs() > OFF_SECONDS_MAX;
    let expected = format!("within {OFF_SECONDS_MAX} s of the time");
    let ahead = |off: &SignedDuration| {
        let seconds = off.as_secs();
        let side = if seconds < 0 { "behind" } else { "ahead of" };
        format!("{} s {side}", seconds.abs())
    };
    if let Some((name, off)) = middle(&observed.others) {
        let told = format!("{} the clock of {name}", ahead(&off));
        let state = if far(&off) { State::WrongClock } else { State::Ok };
        return Finding::new(state, expected, told);
    }
    if observed.behind_latest.as_secs() > OFF_SECONDS_MAX {
        let found = format!(
            "{} s before the latest time that was seen",
            observed.behind_latest.as_secs()
        );
        return Finding::new(State::WrongClock, expected, found);
    }
    if far(&observed.stepped) {
        let seconds = observed.stepped.as_secs();
        let way = if seconds < 0 { "back" } else { "forward" };
        let found = format!("it was set {way} by {} s while the server ran", seconds.abs());
        return Finding::new(State::WrongClock, expected, found);
    }
    Finding::new(State::Ok, expected, "it moves evenly; no other clock was asked")
}

/// The one in the middle: a single wrong clock among others does not decide.
fn middle(others: &[(String, SignedDuration)]) -> Option<(String, SignedDuration)> {
    let mut sorted = others.to_vec();
    sorted.sort_by_key(|(_, off)| *off);
    // Of an even number the one nearer to ours.
    let at = sorted.len().checked_sub(1)?;
    let (low, high) = (sorted[at / 2].clone(), sorted[at.div_ceil(2)].clone());
    Some(if low.1.abs() <= high.1.abs() { low } else { high })
}

/// Looks at the clock of this machine.
pub struct ClockProbe {
    clock: Arc<dyn Clock>,
    marks: Marks,
    /// The database, if it has a clock of its own.
    db: Option<Db>,
    references: References,
    start: (Timestamp, Monotonic),
    latest: Mutex<Latest>,
}

struct Latest {
    seen: Option<Timestamp>,
    written: Option<Timestamp>,
}

impl ClockProbe {
    /// `latest` is what [`ClockProbe::latest`] gave at the start.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, db: &Db, references: References, latest: Option<Timestamp>) -> Self {
        Self {
            start: (clock.now(), clock.monotonic()),
            marks: Marks::new(db.clone()),
            db: db.is_shared().then(|| db.clone()),
            references,
            latest: Mutex::new(Latest {
                seen: latest,
                written: latest,
            }),
            clock,
        }
    }

    /// The latest time that any server of this installation has seen.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn latest(marks: &Marks) -> Result<Option<Timestamp>, store::StoreError> {
        let mark = marks.read(MARK).await?;
        Ok(mark.and_then(|text| text.parse().ok()))
    }

    fn observe(&self) -> Observed {
        let (now, passed) = (self.clock.now(), self.clock.monotonic());
        let moved = now.duration_since(self.start.0);
        let passed_for = SignedDuration::try_from(passed.since(self.start.1)).unwrap_or(SignedDuration::MAX);
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        Observed {
            others: self.references.recent(passed),
            stepped: moved - passed_for,
            behind_latest: latest
                .seen
                .map_or(SignedDuration::MIN, |seen| seen.duration_since(now)),
        }
    }

    /// Remembers a time that is not in doubt, and now and then writes it down.
    async fn remember(&self) {
        let now = self.clock.now();
        let due = {
            let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
            latest.seen = Some(now);
            let due = latest
                .written
                .is_none_or(|written| now.duration_since(written).as_secs().abs() >= MARK_EVERY_SECONDS);
            if due {
                latest.written = Some(now);
            }
            due
        };
        if due && let Err(error) = self.marks.keep(MARK, &now.to_string(), now).await {
            tracing::debug!(
                error = kernel::chain(&error),
                "the latest time was not written down"
            );
        }
    }
}

#[async_trait]
impl Probe for ClockProbe {
    fn name(&self) -> &str {
        "clock"
    }

    fn kind(&self) -> Kind {
        Kind::Clock
    }

    fn expected(&self) -> String {
        format!("within {OFF_SECONDS_MAX} s of the time")
    }

    async fn look(&self) -> Finding {
        if let Some(db) = &self.db
            && let Ok(theirs) = db.now_us().await
            && let Ok(theirs) = Timestamp::from_microsecond(theirs)
        {
            self.references.note("the database", theirs, &*self.clock);
        }
        let finding = judge(&self.observe());
        if finding.state == State::Ok {
            self.remember().await;
        }
        finding
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(others: &[i64], stepped: i64, behind_latest: i64) -> Observed {
        let named = |(at, off): (usize, &i64)| (format!("clock {at}"), SignedDuration::from_secs(*off));
        Observed {
            others: others.iter().enumerate().map(named).collect(),
            stepped: SignedDuration::from_secs(stepped),
            behind_latest: SignedDuration::from_secs(behind_latest),
        }
    }

    #[test]
    fn others_decide_and_without_others_a_step_and_the_past() {
        for (others, stepped, behind, state) in [
            (&[][..], 0, -5, State::Ok),
            (&[], 61, -5, State::WrongClock),
            (&[], -3_600, 3_600, State::WrongClock),
            (&[], 0, 3_600, State::WrongClock),
            // A step that brought the clock to where the others are mends it.
            (&[1], 3_600, -5, State::Ok),
            (&[0, 3_600, 1], 0, -5, State::Ok),
            (&[-3_600, -3_600, 0], -3_600, 0, State::WrongClock),
            (&[3_600], 0, -5, State::WrongClock),
            (&[0, 3_600], 0, -5, State::Ok),
        ] {
            let finding = judge(&observed(others, stepped, behind));
            assert_eq!(finding.state, state, "{others:?} {stepped} {behind}: {finding:?}");
        }
        let back = judge(&observed(&[-3_600], 0, 0)).found;
        assert_eq!(back, "3600 s behind the clock of clock 0");
    }
}
