//! The door: in which order requests are let in, and when one is told to come later.
//!
//! ```text
//! look-up, a few at a time, projects in turn ── known ──▶ answer: costs no quota, asks nobody
//!    │ new
//! singleflight ─▶ quota of the project ─▶ work at the registry, a few at a time, projects in turn
//! ```
//!
//! Everything is refused at once or not at all. Each registry has its own gate to work, so that one that hangs holds
//! nothing but its own images; within it, its calls are limited by what it can do (`upstream`). Whoever holds a turn
//! never waits for another's: a turn is given back before a flight is joined.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flow::{Bounds, Bucket, Caller, Class, FlowError, Gate, Limit, Pass, Rate, Standing};
use kernel::Clock;

/// Look-ups under way. They wait for the database alone, which answers a few at once as fast as many.
const LOOKUPS_AT_ONCE: usize = 32;
/// Look-ups that wait, each of them a parsed request of a few kilobytes.
const LOOKUPS_WAITING: Bounds = Bounds {
    project_max: 4_096,
    waiting_max: 8_192,
};
/// Images that are worked on at one registry at once, each with one to a few calls under way there.
const WORK_AT_ONCE: usize = 64;
/// Images that wait for one registry: at 30 a second, which a slow registry takes, a project's last one waits for 34 s.
const WORK_WAITING: Bounds = Bounds {
    project_max: 1_024,
    waiting_max: 4_096,
};
/// Registries with a gate of their own. Their names come from requests, so there is an end; the others share one.
const REGISTRIES_MAX: usize = 128;
/// What all registries beyond that are called.
const OTHERS: &str = "other registries";
/// Projects with a quota in use, before those that have paid everything off are forgotten.
const QUOTAS_MAX: usize = 4_096;

/// How a door stands, by what is waited for.
#[derive(Debug, Clone, Copy)]
pub struct DoorStanding {
    pub lookups: Standing,
    /// Of all registries together: sums, and the longest wait.
    pub work: Standing,
}

/// See the top of this module.
pub(crate) struct Door {
    lookups: Gate,
    registries: Mutex<HashMap<String, Gate>>,
    quotas: Mutex<HashMap<String, Bucket>>,
    clock: Arc<dyn Clock>,
}

impl Door {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let limit = Limit::fixed(LOOKUPS_AT_ONCE);
        Self {
            lookups: Gate::new("a look-up", limit, LOOKUPS_WAITING, clock.clone()),
            registries: Mutex::default(),
            quotas: Mutex::default(),
            clock,
        }
    }

    /// A turn to look things up, to be given back before anything outside is asked.
    ///
    /// # Errors
    /// At once, if too many wait.
    pub async fn look_up(&self, caller: Caller<'_>) -> Result<Pass, FlowError> {
        self.lookups.enter(caller, 1).await
    }

    /// A turn to work at a registry. `cost` is the number of images.
    ///
    /// # Errors
    /// At once, if too many wait.
    pub async fn work(&self, caller: Caller<'_>, registry: &str, cost: usize) -> Result<Pass, FlowError> {
        let cost = u32::try_from(cost).unwrap_or(u32::MAX);
        self.registry(registry).enter(caller, cost).await
    }

    /// Charges a project for `count` new signatures.
    ///
    /// # Errors
    /// [`FlowError::Quota`] if it has had what its rate allows; nothing is charged then.
    pub fn charge(&self, project: &str, rate: Rate, count: usize) -> Result<(), FlowError> {
        let now = self.clock.monotonic();
        let mut quotas = self.quotas.lock().unwrap_or_else(PoisonError::into_inner);
        if quotas.len() >= QUOTAS_MAX && !quotas.contains_key(project) {
            quotas.retain(|_, bucket| !bucket.is_rested(now));
        }
        let bucket = quotas.entry(project.to_owned()).or_default();
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        bucket.take(rate, count, now).map_err(|wait| FlowError::Quota {
            project: project.to_owned(),
            per_minute: rate.per_minute,
            burst: rate.burst,
            wait,
        })
    }

    /// New signatures that a project could make at once now.
    pub fn left(&self, project: &str, rate: Rate) -> u32 {
        let quotas = self.quotas.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = quotas.get(project).copied().unwrap_or_default();
        bucket.left(rate, self.clock.monotonic())
    }

    pub fn standing(&self) -> DoorStanding {
        // None is cloned: a gate that somebody has is one that is about to be entered.
        let registries = self.registries.lock().unwrap_or_else(PoisonError::into_inner);
        let nothing = Standing {
            running: 0,
            limit: 0,
            waiting: [0; Class::ALL.len()],
            oldest: [Duration::ZERO; Class::ALL.len()],
        };
        let work = registries
            .values()
            .map(Gate::standing)
            .fold(nothing, Standing::with);
        DoorStanding {
            lookups: self.lookups.standing(),
            work,
        }
    }

    fn registry(&self, name: &str) -> Gate {
        let mut registries = self.registries.lock().unwrap_or_else(PoisonError::into_inner);
        if registries.len() >= REGISTRIES_MAX && !registries.contains_key(name) {
            registries.retain(|_, gate| !gate.is_idle());
        }
        let full = registries.len() >= REGISTRIES_MAX && !registries.contains_key(name);
        let name = if full { OTHERS } else { name };
        let made = || {
            let what = format!("work at {name}");
            Gate::new(what, Limit::fixed(WORK_AT_ONCE), WORK_WAITING, self.clock.clone())
        };
        registries.entry(name.to_owned()).or_insert_with(made).clone()
    }
}

#[cfg(test)]
mod tests {
    use kernel::{Fault as _, SystemClock};

    use super::*;

    const SIGN: Caller<'_> = Caller::new("a", Class::Sign);

    /// Shown to fail: with one gate for all registries in `Door::registry`, what is to be done at the other one waits for ever.
    #[tokio::test]
    async fn p19_work_at_one_registry_takes_no_turn_of_another() {
        let door = Door::new(Arc::new(SystemClock::new()));
        let mut held = Vec::new();
        for _ in 0..WORK_AT_ONCE {
            held.push(door.work(SIGN, "hangs.example", 1).await.unwrap());
        }
        let blocked = tokio::time::timeout(Duration::from_millis(20), door.work(SIGN, "hangs.example", 1));
        assert!(blocked.await.is_err());
        drop(door.work(SIGN, "works.example", 1).await.unwrap());
        drop(door.look_up(SIGN).await.unwrap());
        assert_eq!(door.standing().work.running, WORK_AT_ONCE);
    }

    #[tokio::test]
    async fn names_of_registries_do_not_fill_the_memory() {
        let door = Door::new(Arc::new(SystemClock::new()));
        let mut held = Vec::new();
        for number in 0..REGISTRIES_MAX + 40 {
            held.push(door.work(SIGN, &format!("r{number}.example"), 1).await.unwrap());
        }
        let count = || door.registries.lock().unwrap().len();
        assert_eq!(count(), REGISTRIES_MAX + 1);
        held.clear();
        drop(door.work(SIGN, "new.example", 1).await.unwrap());
        assert_eq!(count(), 1);
    }

    /// Shown to fail: with a gate idle as soon as nobody is in and nobody waits, as it was, the next who comes gets another
    /// gate to the same registry.
    #[tokio::test]
    async fn a_gate_that_somebody_is_about_to_enter_stays_the_only_one_to_its_registry() {
        let door = Door::new(Arc::new(SystemClock::new()));
        let entering = door.registry("slow.example");
        for number in 0..REGISTRIES_MAX {
            drop(door.registry(&format!("r{number}.example")));
        }
        let _pass = entering.enter(SIGN, 1).await.unwrap();
        drop(entering);
        assert_eq!(door.registry("slow.example").standing().running, 1);
    }

    #[test]
    fn the_quota_of_one_project_is_not_another_s() {
        let door = Door::new(Arc::new(SystemClock::new()));
        let rate = Rate {
            per_minute: 60,
            burst: 3,
        };
        door.charge("a", rate, 3).unwrap();
        let refused = door.charge("a", rate, 1).unwrap_err();
        assert_eq!(refused.code().id, "PC2001");
        assert!(
            refused
                .retry_after()
                .is_some_and(|wait| wait <= Duration::from_secs(1))
        );
        assert_eq!((door.left("a", rate), door.left("b", rate)), (0, 3));
        door.charge("b", rate, 1).unwrap();
    }
}
