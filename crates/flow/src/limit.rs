//! How many at once. Pure: the time is an argument.

use std::collections::HashMap;
use std::time::Duration;

use kernel::Monotonic;

/// What is kept of the limit after it was too high.
const DECREASE: f64 = 0.7;
/// Times the usual time of a call at which it counts as slow: what waits in the called one's own queue.
const SLOW_TIMES: f64 = 4.0;
/// A call under this time is never slow: scheduling alone takes that long on a busy machine.
const SLOW_MS_MIN: u64 = 50;
/// By how much the usual time may rise in a second: what is slow for good is usual after a few seconds.
const USUAL_RISE: f64 = 1.1;

/// How a call ended, as far as it says something about the load there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// This kind of call was answered, whatever the answer was, in this time. Kinds differ in what is usual.
    Answered(&'static str, Duration),
    /// Refused for load, failed as under load, or not answered in time.
    Overloaded,
    /// Says nothing about load, such as a name that does not resolve.
    Unknown,
}

/// A number of calls under way that grows by one for each limit's worth of good answers while it is used, and shrinks
/// by a third when calls are refused or slow (additive increase, multiplicative decrease; Chiu and Jain 1989).
#[derive(Debug, Clone)]
pub struct Limit {
    now: f64,
    min: f64,
    max: f64,
    /// The time of an undisturbed call, in seconds, and when it was last told: it falls at once, and rises slowly.
    usual: HashMap<&'static str, (f64, Monotonic)>,
    /// The last decrease: calls that began before it say nothing new.
    decreased: Option<Monotonic>,
}

impl Limit {
    /// Begins at `start`, and stays within `min` and `max`.
    #[must_use]
    pub fn new(min: usize, start: usize, max: usize) -> Self {
        let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let min = number(min.max(1));
        let max = number(max).max(min);
        Self {
            now: number(start).clamp(min, max),
            min,
            max,
            usual: HashMap::new(),
            decreased: None,
        }
    }

    /// One that never changes.
    #[must_use]
    pub fn fixed(count: usize) -> Self {
        Self::new(count, count, count)
    }

    /// How many may be under way.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it lies within 1 and 2^32"
    )]
    pub fn get(&self) -> usize {
        self.now as usize
    }

    /// Learns from a call that began at `began` and ended at `now`, with `running` under way, itself among them.
    pub fn learn(&mut self, outcome: Outcome, began: Monotonic, now: Monotonic, running: usize) {
        match outcome {
            Outcome::Unknown => {}
            Outcome::Overloaded => self.decrease(began, now),
            Outcome::Answered(call, took) => {
                let usual = self.usual_with(call, took, now);
                let slow =
                    took.as_secs_f64() > usual * SLOW_TIMES && took > Duration::from_millis(SLOW_MS_MIN);
                if slow {
                    self.decrease(began, now);
                } else if running * 2 > self.get() {
                    // One that is not used says nothing about what could be.
                    self.now = (self.now + 1.0 / self.now).min(self.max);
                }
            }
        }
    }

    fn usual_with(&mut self, call: &'static str, took: Duration, now: Monotonic) -> f64 {
        let took = took.as_secs_f64();
        let usual = self.usual.get(call).map_or(took, |(usual, told)| {
            let risen = usual * USUAL_RISE.powf(now.since(*told).as_secs_f64());
            took.min(risen)
        });
        self.usual.insert(call, (usual, now));
        usual
    }

    fn decrease(&mut self, began: Monotonic, now: Monotonic) {
        // Those who were under way together meet the same trouble; it counts once.
        if self.decreased.is_some_and(|decreased| began < decreased) {
            return;
        }
        self.decreased = Some(now);
        self.now = (self.now * DECREASE).max(self.min);
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use kernel::{Clock as _, TestClock};

    use super::*;

    /// Calls in rounds of as many as are allowed, at something that works on `capacity` at once, each for 20 ms.
    fn rounds(limit: &mut Limit, clock: &TestClock, capacity: usize, rounds: usize) {
        for _ in 0..rounds {
            let (began, running) = (clock.monotonic(), limit.get());
            for number in 0..running {
                // The later ones wait there for the earlier ones.
                let took = Duration::from_millis(20 * (1 + number / capacity) as u64);
                limit.learn(Outcome::Answered("read", took), began, began, running);
            }
            clock.advance(Duration::from_millis(20 * (1 + (running - 1) / capacity) as u64));
        }
    }

    #[test]
    fn it_finds_about_what_the_called_one_can_do_and_follows_it() {
        let clock = TestClock::at(Timestamp::UNIX_EPOCH);
        let mut limit = Limit::new(2, 16, 256);
        rounds(&mut limit, &clock, 1_000, 300);
        assert_eq!(limit.get(), 256, "nothing was slow");
        rounds(&mut limit, &clock, 8, 100);
        assert!((8..=40).contains(&limit.get()), "{}", limit.get());
        rounds(&mut limit, &clock, 1_000, 400);
        assert_eq!(limit.get(), 256);
    }

    #[test]
    fn refusals_of_one_moment_count_once_and_it_never_closes() {
        let clock = TestClock::at(Timestamp::UNIX_EPOCH);
        let mut limit = Limit::new(2, 100, 100);
        let began = clock.monotonic();
        clock.advance(Duration::from_secs(1));
        for _ in 0..50 {
            limit.learn(Outcome::Overloaded, began, clock.monotonic(), 100);
        }
        assert_eq!(limit.get(), 70);
        for _ in 0..50 {
            clock.advance(Duration::from_secs(1));
            limit.learn(Outcome::Overloaded, clock.monotonic(), clock.monotonic(), 1);
        }
        assert_eq!(limit.get(), 2);
        limit.learn(Outcome::Unknown, began, clock.monotonic(), 1);
        assert_eq!(limit.get(), 2);
    }

    #[test]
    fn what_is_not_used_does_not_grow_and_what_is_fixed_stays() {
        let clock = TestClock::at(Timestamp::UNIX_EPOCH);
        let mut limit = Limit::new(1, 10, 100);
        for _ in 0..1_000 {
            let took = Outcome::Answered("read", Duration::from_millis(5));
            limit.learn(took, clock.monotonic(), clock.monotonic(), 2);
        }
        assert_eq!(limit.get(), 10);
        let mut fixed = Limit::fixed(7);
        fixed.learn(Outcome::Overloaded, clock.monotonic(), clock.monotonic(), 7);
        assert_eq!(fixed.get(), 7);
    }
}
