//! How long to wait before trying again.

use std::time::Duration;

use kernel::Random;

/// Tries of one request that fails by a server error or a broken connection: three repeats outlast a
/// restart behind a load balancer, more only add to its load.
pub const ATTEMPTS_MAX: u32 = 4;
/// The first wait, in milliseconds: a broken connection is usually replaced at once.
const BACKOFF_MS_MIN: u64 = 100;
/// The longest wait of our own choice, in milliseconds.
const BACKOFF_MS_MAX: u64 = 3_000;
/// Seconds that one request waits in all because the registry asks to; beyond that the caller is told.
pub const THROTTLE_SECONDS_MAX: u64 = 15;

/// The wait after the `failures`-th failure (from 1): doubling, the upper half by chance so that clients
/// that failed together do not come back together.
pub fn backoff(failures: u32, random: &dyn Random) -> Duration {
    let ceiling = BACKOFF_MS_MIN
        .saturating_mul(1 << failures.min(16))
        .min(BACKOFF_MS_MAX);
    let half = Duration::from_millis(ceiling / 2);
    half + up_to(half, random)
}

/// A duration between zero and `max`, by chance.
pub fn up_to(max: Duration, random: &dyn Random) -> Duration {
    let mut bytes = [0; 4];
    random.fill(&mut bytes);
    max.mul_f64(f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel::SeededRandom;

    #[test]
    fn waits_double_up_to_a_limit_and_differ() {
        let random = SeededRandom::new(1);
        for (failures, low, high) in [
            (1, 100, 200),
            (2, 200, 400),
            (5, 1_500, 3_000),
            (60, 1_500, 3_000),
        ] {
            for _ in 0..50 {
                let ms = backoff(failures, &random).as_millis();
                assert!((low..=high).contains(&ms), "{ms} after {failures}");
            }
        }
        assert_ne!(backoff(5, &random), backoff(5, &random));
    }
}
