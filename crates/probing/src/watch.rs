//! When is looked.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kernel::{Clock, Random};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::board::Board;
use crate::state::{Finding, Kind, State};

/// The longest pause between two looks, in milliseconds. With [`LOOK_MS_MAX`], and a second for a loaded machine, what
/// goes wrong just after a look is named within 10 seconds.
pub const EVERY_MS_MAX: u64 = 5_000;
/// How long a look may take, in milliseconds; whoever has said nothing by then is not there.
pub const LOOK_MS_MAX: u64 = 4_000;
/// How often the set of dependencies that come and go is looked at, in milliseconds.
const SET_MS: u64 = 1_000;
/// Dependencies of one changing set at most, so that what callers name cannot fill the board.
pub const DEPENDENCIES_MAX: usize = 32;

/// One dependency, and how it is looked at.
#[async_trait]
pub trait Probe: Send + Sync + 'static {
    /// A name that stays the same, from a bounded set.
    fn name(&self) -> &str;

    fn kind(&self) -> Kind;

    /// Who or what has to be there.
    fn expected(&self) -> String;

    /// Looks once. It need not keep to a time: it is dropped at the deadline.
    async fn look(&self) -> Finding;

    fn rhythm(&self) -> Rhythm {
        Rhythm::default()
    }
}

/// Dependencies that come and go.
pub trait Probes: Send + Sync + 'static {
    /// Those of now, each by its name.
    fn now(&self) -> Vec<Arc<dyn Probe>>;
}

/// How often and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rhythm {
    /// The longest pause; the shortest is three quarters of it, so that servers do not look in step.
    pub every: Duration,
    pub look_max: Duration,
}

impl Default for Rhythm {
    fn default() -> Self {
        Self {
            every: Duration::from_millis(EVERY_MS_MAX),
            look_max: Duration::from_millis(LOOK_MS_MAX),
        }
    }
}

/// Runs probes, each on a task of its own, until it is stopped.
#[derive(Clone)]
pub struct Watch {
    board: Board,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Watch {
    #[must_use]
    pub fn new(board: Board, clock: Arc<dyn Clock>, random: Arc<dyn Random>) -> Self {
        Self {
            board,
            clock,
            random,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    #[must_use]
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// Looks at `probe` from now on.
    pub fn add(&self, probe: Arc<dyn Probe>) {
        self.spawn(probe, self.stop.child_token());
    }

    /// Looks at whatever is in the set, from now on.
    pub fn add_all(&self, set: Arc<dyn Probes>) {
        let own = self.clone();
        self.tasks.spawn(async move {
            let mut running: HashMap<(Kind, String), CancellationToken> = HashMap::new();
            loop {
                let mut now = set.now();
                now.truncate(DEPENDENCIES_MAX);
                let key = |probe: &Arc<dyn Probe>| (probe.kind(), probe.name().to_owned());
                running.retain(|known, stop| {
                    let stays = now.iter().any(|probe| key(probe) == *known);
                    if !stays {
                        stop.cancel();
                        own.board.remove(&known.1, known.0);
                    }
                    stays
                });
                for probe in now {
                    running.entry(key(&probe)).or_insert_with(|| {
                        let stop = own.stop.child_token();
                        own.spawn(probe, stop.clone());
                        stop
                    });
                }
                tokio::select! {
                    () = own.stop.cancelled() => return,
                    () = tokio::time::sleep(Duration::from_millis(SET_MS)) => {}
                }
            }
        });
    }

    /// Stops all, and waits until the last has stopped.
    pub async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn spawn(&self, probe: Arc<dyn Probe>, stop: CancellationToken) {
        let (name, kind) = (probe.name().to_owned(), probe.kind());
        self.board
            .add(&name, kind, probe.expected(), probe.rhythm().every);
        let own = self.clone();
        self.tasks.spawn(async move {
            loop {
                let began = own.clock.monotonic();
                let finding = tokio::select! {
                    () = stop.cancelled() => return,
                    finding = own.look(&*probe) => finding,
                };
                let latency = own.clock.monotonic().since(began);
                own.board.note(&name, kind, finding, latency);
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(own.pause(probe.rhythm().every)) => {}
                }
            }
        });
    }

    async fn look(&self, probe: &dyn Probe) -> Finding {
        let most = probe.rhythm().look_max;
        tokio::time::timeout(most, probe.look())
            .await
            .unwrap_or_else(|_| {
                let found = format!("no answer within {} s", most.as_secs_f64());
                let kinds = probe.kind().states();
                let state = [State::Unreachable, State::Failing]
                    .into_iter()
                    .find(|state| kinds.contains(state));
                Finding::new(state.unwrap_or(State::Stale), probe.expected(), found)
            })
    }

    /// Between three quarters of the longest pause and all of it.
    fn pause(&self, every: Duration) -> Duration {
        let mut bytes = [0; 4];
        self.random.fill(&mut bytes);
        let chance = f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX);
        every.mul_f64(0.75 + 0.25 * chance)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use kernel::{SeededRandom, SystemClock};

    use super::*;

    struct Scripted {
        name: &'static str,
        hangs: bool,
        looks: AtomicU32,
    }

    #[async_trait]
    impl Probe for Scripted {
        fn name(&self) -> &str {
            self.name
        }

        fn kind(&self) -> Kind {
            Kind::Registry
        }

        fn expected(&self) -> String {
            "it".to_owned()
        }

        async fn look(&self) -> Finding {
            self.looks.fetch_add(1, Ordering::SeqCst);
            if self.hangs {
                std::future::pending::<()>().await;
            }
            Finding::new(State::Ok, "it", "it")
        }

        fn rhythm(&self) -> Rhythm {
            Rhythm {
                every: Duration::from_millis(20),
                look_max: Duration::from_millis(200),
            }
        }
    }

    fn probe(name: &'static str, hangs: bool) -> Arc<Scripted> {
        let looks = AtomicU32::new(0);
        Arc::new(Scripted { name, hangs, looks })
    }

    fn watch() -> Watch {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        Watch::new(Board::new(clock.clone()), clock, Arc::new(SeededRandom::new(1)))
    }

    /// Shown to fail: without the deadline, the hanging one stays UNKNOWN.
    #[tokio::test]
    async fn a_probe_that_hangs_is_named_and_delays_no_other() {
        let (watch, good, bad) = (watch(), probe("good", false), probe("hangs", true));
        watch.add(bad.clone());
        watch.add(good.clone());
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert!(good.looks.load(Ordering::SeqCst) > 5);
        let states: Vec<_> = watch
            .board()
            .all()
            .into_iter()
            .map(|s| (s.name, s.state))
            .collect();
        let expected = [("good", State::Ok), ("hangs", State::Unreachable)];
        assert_eq!(states, expected.map(|(name, state)| (name.to_owned(), state)));
        watch.close().await;
        let looks = good.looks.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(good.looks.load(Ordering::SeqCst), looks);
    }

    struct Set(std::sync::Mutex<Vec<Arc<Scripted>>>);

    impl Probes for Set {
        fn now(&self) -> Vec<Arc<dyn Probe>> {
            let all = self.0.lock().unwrap();
            all.iter().map(|probe| probe.clone() as Arc<dyn Probe>).collect()
        }
    }

    #[tokio::test]
    async fn what_is_no_longer_in_a_set_is_looked_at_no_more() {
        let (watch, gone) = (watch(), probe("gone", false));
        let set = Arc::new(Set(std::sync::Mutex::new(vec![gone.clone()])));
        watch.add_all(set.clone());
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(watch.board().all().len(), 1);
        set.0.lock().unwrap().clear();
        tokio::time::sleep(Duration::from_millis(SET_MS + 200)).await;
        assert!(watch.board().all().is_empty());
        let looks = gone.looks.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(gone.looks.load(Ordering::SeqCst), looks);
        watch.close().await;
    }

    /// Shown to fail: with a `Watch::pause` from three quarters to one and a half times, one of 5.5 s.
    #[test]
    fn p14_the_longest_pause_and_the_longest_look_are_under_ten_seconds() {
        const { assert!(EVERY_MS_MAX + LOOK_MS_MAX < 10_000) };
        let watch = watch();
        for _ in 0..1_000 {
            let pause = watch.pause(Duration::from_millis(EVERY_MS_MAX));
            assert!(
                (3_750..=EVERY_MS_MAX).contains(&(pause.as_millis() as u64)),
                "{pause:?}"
            );
        }
    }
}
