//! Where one waits for one's turn.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kernel::{Clock, Monotonic};
use tokio::sync::oneshot;

use crate::{Caller, Class, FairQueue, FlowError, Limit, Outcome};

/// How many may wait.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Of one project.
    pub project_max: usize,
    /// Altogether.
    pub waiting_max: usize,
}

/// Lets in as many at once as its limit says, in fair turns. Cheap to clone.
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

struct Inner {
    /// What is waited for, in the words of an error.
    what: String,
    bounds: Bounds,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

struct State {
    queue: FairQueue<Waiting>,
    running: usize,
    limit: Limit,
}

struct Waiting {
    came: Monotonic,
    turn: oneshot::Sender<Pass>,
}

/// Somebody is in. Dropped, the next one enters.
pub struct Pass {
    gate: Gate,
    began: Monotonic,
    outcome: Outcome,
}

/// How it stands at a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    pub running: usize,
    pub limit: usize,
    /// By class, in the order of [`Class::ALL`].
    pub waiting: [usize; Class::ALL.len()],
    /// How long the first of each class has waited.
    pub oldest: [Duration; Class::ALL.len()],
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("what", &self.0.what)
            .field("standing", &self.standing())
            .finish_non_exhaustive()
    }
}

impl Standing {
    /// Two gates as one: sums, and the longest waits.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            running: self.running + other.running,
            limit: self.limit + other.limit,
            waiting: std::array::from_fn(|at| self.waiting[at] + other.waiting[at]),
            oldest: std::array::from_fn(|at| self.oldest[at].max(other.oldest[at])),
        }
    }
}

impl Gate {
    /// A gate to `what`.
    #[must_use]
    pub fn new(what: impl Into<String>, limit: Limit, bounds: Bounds, clock: Arc<dyn Clock>) -> Self {
        let state = State {
            queue: FairQueue::default(),
            running: 0,
            limit,
        };
        Self(Arc::new(Inner {
            what: what.into(),
            bounds,
            clock,
            state: Mutex::new(state),
        }))
    }

    /// Waits for a turn. Who goes away while it waits loses it, and nobody else does.
    ///
    /// # Errors
    /// [`FlowError::Project`] or [`FlowError::Full`], at once, if too many wait already. Never after waiting.
    pub async fn enter(&self, caller: Caller<'_>, cost: u32) -> Result<Pass, FlowError> {
        let turn = {
            let mut state = self.state();
            if state.queue.is_empty() && state.running < state.limit.get() {
                state.running += 1;
                return Ok(self.pass());
            }
            self.require_room(&state.queue, caller.project)?;
            let (turn, wait) = oneshot::channel();
            let came = self.0.clock.monotonic();
            let waiting = Waiting { came, turn };
            state.queue.push(caller.class, caller.project, cost, waiting);
            wait
        };
        // Those who waited and went away may be all that was in the queue.
        self.next();
        match turn.await {
            Ok(pass) => Ok(pass),
            // The sender lives in the gate, which this call keeps alive.
            Err(_) => Err(self.full(0)),
        }
    }

    /// Whether nobody is in, waits or is about to enter: nobody else has it.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// How it stands now.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let now = self.0.clock.monotonic();
        let state = self.state();
        let oldest = |class| state.queue.oldest(class, |waiting| waiting.came);
        Standing {
            running: state.running,
            limit: state.limit.get(),
            waiting: Class::ALL.map(|class| state.queue.waiting(class)),
            oldest: Class::ALL.map(|class| oldest(class).map_or(Duration::ZERO, |came| now.since(came))),
        }
    }

    fn require_room(&self, queue: &FairQueue<Waiting>, project: &str) -> Result<(), FlowError> {
        let own = queue.waiting_of(project);
        if own >= self.0.bounds.project_max {
            return Err(FlowError::Project {
                project: project.to_owned(),
                what: self.0.what.clone(),
                waiting: own,
            });
        }
        match queue.len() {
            waiting if waiting >= self.0.bounds.waiting_max => Err(self.full(waiting)),
            _ => Ok(()),
        }
    }

    fn full(&self, waiting: usize) -> FlowError {
        FlowError::Full {
            what: self.0.what.clone(),
            waiting,
        }
    }

    fn pass(&self) -> Pass {
        Pass {
            gate: self.clone(),
            began: self.0.clock.monotonic(),
            outcome: Outcome::Unknown,
        }
    }

    /// Lets in whoever's turn it is, as far as there is room.
    fn next(&self) {
        loop {
            let waiting = {
                let mut state = self.state();
                if state.running >= state.limit.get() {
                    return;
                }
                let Some(waiting) = state.queue.pop() else { return };
                if waiting.turn.is_closed() {
                    continue;
                }
                state.running += 1;
                waiting
            };
            // Outside the lock: who went away just now hands the pass back, and its end takes the lock.
            let _ = waiting.turn.send(self.pass());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass {
    /// Ends it, and lets the limit learn how it went.
    pub fn end(mut self, outcome: impl FnOnce(Duration) -> Outcome) {
        self.outcome = outcome(self.gate.0.clock.monotonic().since(self.began));
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let now = self.gate.0.clock.monotonic();
        {
            let mut state = self.gate.state();
            let running = state.running;
            state.limit.learn(self.outcome, self.began, now, running);
            state.running -= 1;
        }
        self.gate.next();
    }
}

#[cfg(test)]
mod tests {
    use kernel::{Fault as _, Kind, SystemClock};
    use tokio::sync::mpsc;

    use super::*;

    fn gate(limit: usize, project_max: usize, waiting_max: usize) -> Gate {
        let bounds = Bounds {
            project_max,
            waiting_max,
        };
        Gate::new(
            "a test",
            Limit::fixed(limit),
            bounds,
            Arc::new(SystemClock::new()),
        )
    }

    const fn sign(project: &str) -> Caller<'_> {
        Caller::new(project, Class::Sign)
    }

    #[tokio::test]
    async fn no_more_are_in_than_the_limit_and_all_come_in() {
        let gate = gate(3, 1_000, 1_000);
        let (count, mut counted) = mpsc::unbounded_channel();
        let tasks: Vec<_> = (0..200)
            .map(|number: u32| {
                let (gate, count) = (gate.clone(), count.clone());
                tokio::spawn(async move {
                    let _pass = gate
                        .enter(sign(if number < 70 { "a" } else { "b" }), 1)
                        .await
                        .unwrap();
                    count.send(gate.standing().running).unwrap();
                    tokio::task::yield_now().await;
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        drop(count);
        let mut most = 0;
        while let Some(running) = counted.recv().await {
            most = most.max(running);
        }
        assert_eq!(most, 3);
        let standing = gate.standing();
        assert_eq!((standing.running, standing.waiting), (0, [0; 3]));
    }

    #[tokio::test]
    async fn who_asks_for_one_thing_is_the_second_to_come_in() {
        let gate = gate(1, 5_000, 5_000);
        let first = gate.enter(sign("storm"), 1).await.unwrap();
        let (order, mut came) = mpsc::unbounded_channel();
        for number in 0..1_200 {
            let (gate, order) = (gate.clone(), order.clone());
            tokio::spawn(async move {
                let _pass = gate.enter(sign("storm"), 1).await.unwrap();
                order.send(format!("storm {number}")).unwrap();
            });
        }
        while gate.standing().waiting[1] < 1_200 {
            tokio::task::yield_now().await;
        }
        let other = tokio::spawn({
            let gate = gate.clone();
            async move {
                let _pass = gate.enter(sign("other"), 1).await.unwrap();
                order.send("other".to_owned()).unwrap();
            }
        });
        while gate.standing().waiting[1] < 1_201 {
            tokio::task::yield_now().await;
        }
        drop(first);
        other.await.unwrap();
        let order: Vec<String> = std::iter::from_fn(|| came.try_recv().ok()).collect();
        assert!(
            order.iter().position(|who| who == "other").unwrap() <= 1,
            "{order:?}"
        );
    }

    #[tokio::test]
    async fn what_is_too_much_is_refused_at_once_and_what_waits_never_is() {
        let gate = gate(1, 2, 3);
        let pass = gate.enter(sign("a"), 1).await.unwrap();
        let waiting: Vec<_> = ["a", "a", "b"]
            .map(|project| {
                let gate = gate.clone();
                tokio::spawn(async move { gate.enter(sign(project), 1).await.is_ok() })
            })
            .into();
        while gate.standing().waiting[1] < 3 {
            tokio::task::yield_now().await;
        }
        let own = gate.enter(sign("a"), 1).await.err().unwrap();
        assert_eq!((own.kind(), own.code().id), (Kind::Quota, "PC2002"));
        let ours = gate.enter(sign("c"), 1).await.err().unwrap();
        assert_eq!((ours.kind(), ours.code().id), (Kind::Overloaded, "PC2003"));
        drop(pass);
        for waiting in waiting {
            assert!(waiting.await.unwrap());
        }
    }

    #[tokio::test]
    async fn who_goes_away_takes_no_place_with_it() {
        let gate = gate(1, 100, 100);
        let pass = gate.enter(sign("a"), 1).await.unwrap();
        let tasks: Vec<_> = (0..50)
            .map(|_| {
                let gate = gate.clone();
                tokio::spawn(async move { drop(gate.enter(sign("a"), 1).await) })
            })
            .collect();
        while gate.standing().waiting[1] < 50 {
            tokio::task::yield_now().await;
        }
        for task in tasks {
            task.abort();
            let _ = task.await;
        }
        drop(pass);
        drop(gate.enter(sign("b"), 1).await.unwrap());
        let standing = gate.standing();
        assert_eq!((standing.running, standing.waiting), (0, [0; 3]));
    }

    #[tokio::test]
    async fn a_limit_that_shrinks_lets_nobody_in_until_there_is_room() {
        let bounds = Bounds {
            project_max: 100,
            waiting_max: 100,
        };
        let clock = Arc::new(SystemClock::new());
        let gate = Gate::new("a test", Limit::new(1, 4, 4), bounds, clock);
        let mut passes = Vec::new();
        for _ in 0..4 {
            passes.push(gate.enter(sign("a"), 1).await.unwrap());
        }
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter(sign("a"), 1).await.is_ok() }
        });
        while gate.standing().waiting[1] < 1 {
            tokio::task::yield_now().await;
        }
        passes.pop().unwrap().end(|_| Outcome::Overloaded);
        tokio::task::yield_now().await;
        let standing = gate.standing();
        assert_eq!((standing.running, standing.limit, standing.waiting[1]), (3, 2, 1));
        passes.clear();
        assert!(waiting.await.unwrap());
    }
}
