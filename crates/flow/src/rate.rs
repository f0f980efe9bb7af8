//! How often. Pure: the time is an argument.

use std::time::Duration;

use kernel::Monotonic;

/// So much in a minute, and so much at once after a rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// 0 means none at all.
    pub per_minute: u32,
    /// At least 1.
    pub burst: u32,
}

impl Rate {
    /// The time that one item takes at this rate.
    fn interval(self) -> Duration {
        Duration::from_secs(60) / self.per_minute.max(1)
    }
}

/// A quota in use (GCRA as a virtual scheduling algorithm, ITU-T I.371 annex A): one number for each project.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bucket {
    /// When everything that was taken would be paid off, and the rate at which.
    paid_at: Option<(Monotonic, Rate)>,
}

impl Bucket {
    /// Takes `count`, or says how long to wait for it and takes nothing. A count over the burst is let through when
    /// the bucket is full: it is paid off afterwards.
    ///
    /// # Errors
    /// After how long it would be granted.
    pub fn take(&mut self, rate: Rate, count: u32, now: Monotonic) -> Result<(), Duration> {
        if rate.per_minute == 0 {
            return Err(Duration::MAX);
        }
        let interval = rate.interval();
        let owed = self.owed(rate, now);
        let room = interval * rate.burst.max(1);
        let asked = interval * count;
        // What is over the burst could never be granted.
        let needed = asked.min(room);
        if owed + needed > room {
            return Err(owed + needed - room);
        }
        self.paid_at = Some((now.after(owed + asked), rate));
        Ok(())
    }

    /// The time that what is not paid off takes at `rate`: of another rate, as many items are owed at the new one.
    fn owed(&self, rate: Rate, now: Monotonic) -> Duration {
        let Some((paid_at, at)) = self.paid_at else {
            return Duration::ZERO;
        };
        let owed = paid_at.since(now);
        match at == rate {
            true => owed,
            false => rate.interval().mul_f64(owed.div_duration_f64(at.interval())),
        }
    }

    /// Whether everything that was taken is paid off: then there is nothing to remember.
    #[must_use]
    pub fn is_rested(&self, now: Monotonic) -> bool {
        self.paid_at.is_none_or(|(paid_at, _)| paid_at <= now)
    }

    /// How many could be taken at once now.
    #[must_use]
    pub fn left(&self, rate: Rate, now: Monotonic) -> u32 {
        if rate.per_minute == 0 {
            return 0;
        }
        let owed = self.owed(rate, now);
        let room = (rate.interval() * rate.burst.max(1)).saturating_sub(owed);
        u32::try_from(room.as_nanos() / rate.interval().as_nanos().max(1)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use kernel::{Clock as _, TestClock};
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate {
        per_minute: 60,
        burst: 5,
    };

    #[test]
    fn a_burst_then_the_rate() {
        let (clock, mut bucket) = (TestClock::at(Timestamp::UNIX_EPOCH), Bucket::default());
        for left in (0..5).rev() {
            assert_eq!(bucket.take(RATE, 1, clock.monotonic()), Ok(()));
            assert_eq!(bucket.left(RATE, clock.monotonic()), left);
        }
        assert_eq!(
            bucket.take(RATE, 1, clock.monotonic()),
            Err(Duration::from_secs(1))
        );
        assert_eq!(
            bucket.take(RATE, 3, clock.monotonic()),
            Err(Duration::from_secs(3))
        );
        clock.advance(Duration::from_secs(1));
        assert_eq!(bucket.take(RATE, 1, clock.monotonic()), Ok(()));
        assert!(bucket.take(RATE, 1, clock.monotonic()).is_err());
        assert!(!bucket.is_rested(clock.monotonic()));
        clock.advance(Duration::from_secs(3_600));
        assert_eq!(bucket.left(RATE, clock.monotonic()), 5);
        assert!(bucket.is_rested(clock.monotonic()));
        // A release over the burst is not refused for ever.
        assert_eq!(bucket.take(RATE, 10, clock.monotonic()), Ok(()));
        assert_eq!(
            bucket.take(RATE, 1, clock.monotonic()),
            Err(Duration::from_secs(6))
        );
    }

    #[test]
    fn a_new_rate_takes_over_what_is_owed_and_not_how_long_it_took() {
        let (clock, mut bucket) = (TestClock::at(Timestamp::UNIX_EPOCH), Bucket::default());
        let slow = Rate {
            per_minute: 1,
            burst: 3,
        };
        bucket.take(slow, 3, clock.monotonic()).unwrap();
        assert_eq!(
            bucket.take(slow, 1, clock.monotonic()),
            Err(Duration::from_secs(60))
        );
        assert_eq!(bucket.left(RATE, clock.monotonic()), 2);
        assert_eq!(bucket.take(RATE, 2, clock.monotonic()), Ok(()));
        assert_eq!(
            bucket.take(RATE, 1, clock.monotonic()),
            Err(Duration::from_secs(1))
        );
    }

    #[test]
    fn a_rate_of_none_grants_none() {
        let clock = TestClock::at(Timestamp::UNIX_EPOCH);
        let none = Rate {
            per_minute: 0,
            burst: 5,
        };
        assert!(Bucket::default().take(none, 1, clock.monotonic()).is_err());
        assert_eq!(Bucket::default().left(none, clock.monotonic()), 0);
    }

    proptest! {
        /// Whatever is asked and when: never more than the burst and the rate allow, and who waits as told is let in.
        #[test]
        fn never_more_than_the_rate(steps in proptest::collection::vec((0..5_000_u64, 1..4_u32), 1..200)) {
            let (clock, mut bucket) = (TestClock::at(Timestamp::UNIX_EPOCH), Bucket::default());
            let began = clock.monotonic();
            let mut granted = 0;
            for (ms, count) in steps {
                clock.advance(Duration::from_millis(ms));
                match bucket.take(RATE, count, clock.monotonic()) {
                    Ok(()) => granted += u64::from(count),
                    Err(wait) => {
                        clock.advance(wait);
                        prop_assert_eq!(bucket.take(RATE, count, clock.monotonic()), Ok(()));
                        granted += u64::from(count);
                    }
                }
                let seconds = clock.monotonic().since(began).as_millis() as u64;
                prop_assert!(granted * 1_000 <= seconds + 5_000, "{granted} in {seconds} ms");
            }
        }
    }
}
