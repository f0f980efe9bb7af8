//! What ends: the certificates and keys of trusted roots.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use kernel::Clock;

use crate::state::{Finding, Kind, State, WARN_DAYS_MIN};
use crate::watch::Probe;

const DAY_SECONDS: i64 = 86_400;

/// Whole days from `now` to `end`, rounded down; negative when it has passed.
#[must_use]
pub fn days_left(end: Timestamp, now: Timestamp) -> i64 {
    end.duration_since(now).as_secs().div_euclid(DAY_SECONDS)
}

/// Judges what ends first of `ends`, each with its name. What has no end is not among them.
#[must_use]
pub fn judge(ends: &[(String, Timestamp)], now: Timestamp) -> Finding {
    let expected = format!("more than {WARN_DAYS_MIN} days");
    let Some((name, end)) = ends.iter().min_by_key(|(_, end)| *end) else {
        return Finding::new(State::Ok, expected, "nothing in it ends");
    };
    let days = days_left(*end, now);
    let (state, found) = if *end <= now {
        (State::Expired, format!("{name} ended at {end}"))
    } else if days < WARN_DAYS_MIN {
        (State::Expiring, format!("{name} ends in {days} days, at {end}"))
    } else {
        (State::Ok, format!("{name} ends first, in {days} days"))
    };
    Finding {
        certificate_days_left: Some(days),
        ..Finding::new(state, expected, found)
    }
}

/// Looks at one set of things that end.
pub struct ExpiryProbe {
    name: String,
    ends: Vec<(String, Timestamp)>,
    clock: Arc<dyn Clock>,
}

impl ExpiryProbe {
    #[must_use]
    pub fn new(name: String, ends: Vec<(String, Timestamp)>, clock: Arc<dyn Clock>) -> Self {
        Self { name, ends, clock }
    }
}

#[async_trait]
impl Probe for ExpiryProbe {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> Kind {
        Kind::TrustRoots
    }

    fn expected(&self) -> String {
        format!("more than {WARN_DAYS_MIN} days")
    }

    async fn look(&self) -> Finding {
        judge(&self.ends, self.clock.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P18 for what others hold: told two weeks before, and when it is over.
    #[test]
    fn p18_what_ends_is_told_before_and_after() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let end = |days: i64| {
            let at = now.as_second() + days * DAY_SECONDS;
            ("the key".to_owned(), Timestamp::from_second(at).unwrap())
        };
        for (ends, state) in [
            (vec![], State::Ok),
            (vec![end(400)], State::Ok),
            (vec![end(400), end(13)], State::Expiring),
            (vec![end(0)], State::Expired),
            (vec![end(-1), end(400)], State::Expired),
        ] {
            assert_eq!(judge(&ends, now).state, state, "{ends:?}");
        }
    }
}
