//! Verdicts that are known.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kernel::{Clock, Digest, Monotonic};

use crate::verify::Report;

/// How long an accepted image stays accepted without another look, in seconds. A signature does not become
/// false; what may change meanwhile is the key's validity, and a changed set of keys is another policy.
const ACCEPTED_SECONDS: u64 = 600;
/// How long a refusal stands, in seconds: signing an image should help at once.
const REFUSED_SECONDS: u64 = 10;
/// Verdicts kept; about 1 KiB each.
const VERDICTS_MAX: usize = 10_000;

/// What a verdict is about: an image of a project under a policy. Projects share none, because whoever may read
/// an image in one registry may not in another's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VerdictKey {
    pub project: String,
    pub repository: String,
    pub digest: Digest,
    /// [`crate::verify::Policy::fingerprint`].
    pub policy: Digest,
}

/// A verdict, since when, and for how long.
struct Known {
    since: Monotonic,
    life: Duration,
    report: Arc<Report>,
}

/// A cache of verdicts; the registry stays the truth.
pub struct Verdicts {
    clock: Arc<dyn Clock>,
    known: Mutex<HashMap<VerdictKey, Known>>,
}

impl Verdicts {
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            known: Mutex::default(),
        }
    }

    /// A verdict that still holds, and its age.
    #[must_use]
    pub fn get(&self, key: &VerdictKey) -> Option<(Arc<Report>, Duration)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Known { since, life, report } = known.get(key)?;
        let age = self.clock.monotonic().since(*since);
        (age < *life).then(|| (report.clone(), age))
    }

    /// Keeps a verdict. When there is no room the oldest tenth goes.
    pub fn put(&self, key: VerdictKey, report: Arc<Report>) {
        let now = self.clock.monotonic();
        let life = match report.verified {
            true => Duration::from_secs(ACCEPTED_SECONDS),
            false => Duration::from_secs(REFUSED_SECONDS),
        };
        // One that counts for a debt counts only as long as the debt is young.
        let life = report.holds_until().map_or(life, |until| {
            let left = until.duration_since(self.clock.now());
            life.min(Duration::try_from(left).unwrap_or_default())
        });
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= VERDICTS_MAX {
            let mut ages: Vec<Monotonic> = known.values().map(|known| known.since).collect();
            ages.sort_unstable();
            let limit = ages[VERDICTS_MAX / 10];
            known.retain(|_, known| known.since > limit);
        }
        let since = now;
        known.insert(key, Known { since, life, report });
    }

    /// These images were just signed: a refusal of theirs no longer holds.
    pub fn signed(&self, digests: impl Iterator<Item = Digest>) {
        let digests: Vec<Digest> = digests.collect();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|key, known| known.report.verified || !digests.contains(&key.digest));
    }
}
