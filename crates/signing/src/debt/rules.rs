//! How fast is paid, and when again after a failure. Pure: time and chance are arguments.

use std::time::Duration;

use flow::{Bucket, Limit, Outcome, Rate};
use kernel::Monotonic;

use crate::ports::ExternalLogError;

/// Entries under way: a few at first, and at most what a slow log (a second an entry) needs for a hundred a second.
const UNDER_WAY_START: usize = 8;
const UNDER_WAY_MAX: usize = 128;
/// The share of a second's entries that may be sent at once after a rest: many at once would take the processor from
/// those who sign.
const BURST_SHARE: u32 = 100;
/// Seconds of the first pause after a failure of the log, or of a registry; each next one is twice as long, to the longest.
const PAUSE_SECONDS: u64 = 1;
const PAUSE_SECONDS_MAX: u64 = 60;
/// Seconds until one entry, or its publication, is tried again; each next time twice as long, to the longest.
const RETRY_SECONDS: u64 = 5;
const RETRY_SECONDS_MAX: u64 = 1_800;
/// Publications to a registry that is away that are read again in a minute, and how long one of them waits at most after
/// the registry is back.
const SPARED_PER_MINUTE: u32 = 1_000;
const SPARED_SECONDS_MAX: u64 = 3_600;
/// A new holder waits for a second: the one before may just have sent a second's entries.
const TAKE_OVER: Duration = Duration::from_secs(1);

/// The pace of paying: a rate, a limit of what is under way, and a pause while the log is away.
pub(super) struct Pace {
    rate: Rate,
    bucket: Bucket,
    limit: Limit,
    /// Failures of the log since its last answer.
    failures: u32,
    failed_at: Monotonic,
    until: Monotonic,
}

/// `per_second` such that a burst and what is earned within the same second are no more than it.
pub(super) fn rate(per_second: u32) -> Rate {
    let per_second = per_second.clamp(1, u32::MAX / 60);
    let burst = (per_second / BURST_SHARE).max(1);
    Rate {
        per_minute: (per_second - burst + 1) * 60,
        burst,
    }
}

impl Pace {
    pub(super) fn new(per_second: u32, now: Monotonic) -> Self {
        Self {
            rate: rate(per_second),
            bucket: Bucket::default(),
            limit: Limit::new(1, UNDER_WAY_START, UNDER_WAY_MAX),
            failures: 0,
            failed_at: now,
            until: now.after(TAKE_OVER),
        }
    }

    /// Takes the right to send one entry, with `running` under way, or says how long to wait for it; with `None` until
    /// one of those under way has ended. While the log is away one entry at a time finds out whether it is back.
    pub(super) fn take(&mut self, running: usize, now: Monotonic) -> Result<(), Option<Duration>> {
        let pause = self.until.since(now);
        if pause > Duration::ZERO {
            return Err(Some(pause));
        }
        let limit = if self.failures > 0 { 1 } else { self.limit.get() };
        if running >= limit {
            return Err(None);
        }
        self.bucket.take(self.rate, 1, now).map_err(Some)
    }

    /// Learns from a call that began at `began`. `chance` is from 0 to 1.
    pub(super) fn learn(
        &mut self,
        outcome: Result<(), &ExternalLogError>,
        began: Monotonic,
        now: Monotonic,
        running: usize,
        chance: f64,
    ) {
        let answered = Outcome::Answered("append", now.since(began));
        let (load, away) = match outcome {
            Ok(()) | Err(ExternalLogError::Refused(_) | ExternalLogError::Unproven(_)) => (answered, None),
            Err(ExternalLogError::Throttled { after }) => {
                (Outcome::Overloaded, Some(after.unwrap_or_default()))
            }
            Err(ExternalLogError::Away(_)) => (Outcome::Overloaded, Some(Duration::ZERO)),
            Err(ExternalLogError::Wrong(_)) => (Outcome::Unknown, Some(Duration::ZERO)),
        };
        self.limit.learn(load, began, now, running);
        let Some(at_least) = away else {
            self.failures = 0;
            return;
        };
        // Those who were under way together meet the same trouble; it counts once.
        if self.failures == 0 || began >= self.failed_at {
            self.failures = self.failures.saturating_add(1);
        }
        self.failed_at = now;
        let pause = doubled(PAUSE_SECONDS, PAUSE_SECONDS_MAX, self.failures - 1, chance);
        self.until = now.after(pause.max(at_least.min(Duration::from_secs(PAUSE_SECONDS_MAX))));
    }
}

/// When an entry that failed `attempts` times by itself is tried again.
pub(super) fn retry(attempts: u32, chance: f64) -> Duration {
    doubled(RETRY_SECONDS, RETRY_SECONDS_MAX, attempts, chance)
}

/// How long a registry that did not answer `failures` times in a row before this is left alone.
pub(super) fn registry_pause(failures: u32, chance: f64) -> Duration {
    doubled(PAUSE_SECONDS, PAUSE_SECONDS_MAX, failures, chance)
}

/// When what was not even tried is read again, of a registry with `spared` of these since it was asked last: about when
/// it is asked again, so that they do not stand before others; and of very many about a thousand a minute, so that
/// reading them costs nothing.
pub(super) fn spared(spared: u32, chance: f64) -> Duration {
    let times = 1 + u64::from(spared / SPARED_PER_MINUTE);
    let seconds = PAUSE_SECONDS_MAX.saturating_mul(times).min(SPARED_SECONDS_MAX);
    doubled(seconds, seconds, 0, chance)
}

/// Three quarters to the whole of `first` seconds, doubled `times`, and of no more than `most`.
fn doubled(first: u64, most: u64, times: u32, chance: f64) -> Duration {
    let seconds = first.saturating_mul(1 << times.min(30)).min(most);
    Duration::from_secs(seconds).mul_f64(0.75 + chance / 4.0)
}

/// A number from 0 to 1.
pub(super) fn chance(random: &dyn kernel::Random) -> f64 {
    let mut bytes = [0; 4];
    random.fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use kernel::{Clock as _, TestClock};

    use super::*;

    fn away() -> ExternalLogError {
        ExternalLogError::Away(String::new())
    }

    /// Sends as fast as the pace lets it, for so many seconds; when each was sent, in microseconds.
    fn sent(per_second: u32, seconds: u64) -> Vec<i64> {
        let clock = TestClock::at(Timestamp::UNIX_EPOCH);
        let mut pace = Pace::new(per_second, clock.monotonic());
        let mut sent = Vec::new();
        while clock.now_us() < 1_000_000 * i64::try_from(seconds).unwrap() {
            match pace.take(0, clock.monotonic()) {
                Ok(()) => sent.push(clock.now_us()),
                Err(wait) => clock.advance(wait.unwrap().max(Duration::from_micros(1))),
            }
        }
        sent
    }

    #[test]
    fn in_no_second_is_more_sent_than_the_rate() {
        for per_second in [1, 2, 19, 20, 50, 1_000] {
            let sent = sent(per_second, 6);
            let most = |from: &i64| {
                sent.iter()
                    .filter(|at| (*from..*from + 1_000_000).contains(at))
                    .count()
            };
            let most = sent.iter().map(most).max().unwrap();
            assert!(
                most <= per_second as usize,
                "{most} in a second at {per_second}/s"
            );
            // And nearly that much is: it waits for a second first.
            let least = per_second as usize * 5 * 9 / 10;
            assert!(sent.len() >= least, "{} in 5 s at {per_second}/s", sent.len());
        }
    }

    #[test]
    fn a_log_that_is_away_is_asked_ever_more_rarely_and_one_entry_at_a_time() {
        let clock = TestClock::at(Timestamp::UNIX_EPOCH);
        let mut pace = Pace::new(50, clock.monotonic());
        clock.advance(TAKE_OVER);
        assert_eq!(pace.take(0, clock.monotonic()), Ok(()));
        let began = clock.monotonic();
        clock.advance(Duration::from_millis(10));
        for _ in 0..8 {
            pace.learn(Err(&away()), began, clock.monotonic(), 8, 1.0);
        }
        let mut pauses = Vec::new();
        for _ in 0..9 {
            let pause = pace.take(0, clock.monotonic()).unwrap_err().unwrap();
            pauses.push(pause.as_secs());
            clock.advance(pause);
            assert_eq!(pace.take(0, clock.monotonic()), Ok(()));
            assert_eq!(pace.take(1, clock.monotonic()), Err(None), "one at a time");
            pace.learn(Err(&away()), clock.monotonic(), clock.monotonic(), 1, 1.0);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        // It is back.
        clock.advance(Duration::from_secs(60));
        pace.learn(Ok(()), clock.monotonic(), clock.monotonic(), 1, 1.0);
        clock.advance(Duration::from_secs(1));
        assert_eq!(pace.take(1, clock.monotonic()), Ok(()));
    }

    #[test]
    fn a_log_that_asks_for_a_pause_gets_it_and_an_entry_of_its_own_trouble_delays_no_other() {
        let clock = TestClock::at(Timestamp::UNIX_EPOCH);
        let mut pace = Pace::new(500, clock.monotonic());
        clock.advance(TAKE_OVER);
        let now = clock.monotonic();
        for own in [
            ExternalLogError::Refused(String::new()),
            ExternalLogError::Unproven(String::new()),
        ] {
            pace.learn(Err(&own), now, now, 1, 0.0);
            assert_eq!(pace.take(1, now), Ok(()), "{own:?}");
        }
        let after = Some(Duration::from_secs(30));
        pace.learn(Err(&ExternalLogError::Throttled { after }), now, now, 1, 0.0);
        assert_eq!(pace.take(0, now), Err(after));
        assert_eq!(spared(0, 1.0).as_secs(), 60);
        assert_eq!(spared(50_000, 1.0).as_secs(), 51 * 60);
        assert_eq!(spared(u32::MAX, 1.0).as_secs(), 3_600);
        assert_eq!(retry(0, 1.0).as_secs(), 5);
        assert_eq!(retry(3, 0.0).as_secs(), 30);
        assert_eq!(retry(u32::MAX, 1.0).as_secs(), 1_800);
    }
}
