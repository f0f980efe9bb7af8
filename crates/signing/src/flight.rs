//! Singleflight: of many who want the same, one works and all get its answer.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::{BoxFuture, FutureExt, Shared};
use tokio::runtime::Handle;
use tracing::{Instrument as _, Span};

/// Work in flight, by what it makes.
///
/// The work is a task of its own: a caller that goes away cancels nothing, neither for itself nor for those who
/// wait with it.
pub(crate) struct Flights<K, V> {
    open: Arc<Mutex<HashMap<K, Flight<V>>>>,
    /// Where the work goes on, wherever it was asked for.
    runtime: Handle,
}

struct Flight<V> {
    answer: Shared<BoxFuture<'static, Option<V>>>,
    /// The work's own, under that of whoever came first.
    span: Span,
}

impl<K: Hash + Eq + Clone + Send + 'static, V: Clone + Send + Sync + 'static> Flights<K, V> {
    pub(crate) fn new(runtime: Handle) -> Self {
        Self {
            open: Arc::default(),
            runtime,
        }
    }

    /// Joins the flight for `key`, or starts `work` for it. Others can join until the work drops its `Boarding`, at
    /// the latest when it ends. The answer is `None` only if the work's task died.
    pub(crate) async fn join<F>(
        &self,
        key: K,
        work: impl FnOnce(Boarding<K, V>) -> F + Send + 'static,
    ) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let answer = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            match open.get(&key) {
                Some(flight) => {
                    // A trace has one parent: the others are told where the work is.
                    Span::current().follows_from(&flight.span);
                    flight.answer.clone()
                }
                None => {
                    let boarding = Boarding {
                        open: self.open.clone(),
                        key: key.clone(),
                    };
                    // The work begins in its own task: here it would find the list locked, should it end at once.
                    let span = tracing::info_span!("lead");
                    let work = async move { work(boarding).await };
                    let task = self.runtime.spawn(work.instrument(span.clone()));
                    let answer = task.map(Result::ok).boxed().shared();
                    let own = answer.clone();
                    open.insert(key, Flight { answer, span });
                    own
                }
            }
        };
        answer.await
    }
}

/// Others can join the flight as long as this lives.
pub(crate) struct Boarding<K: Hash + Eq, V> {
    open: Arc<Mutex<HashMap<K, Flight<V>>>>,
    key: K,
}

impl<K: Hash + Eq, V> Drop for Boarding<K, V> {
    fn drop(&mut self) {
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    #[tokio::test]
    async fn many_callers_one_work_and_a_hang_up_cancels_nothing() {
        let flights = Arc::new(Flights::<&str, u32>::new(Handle::current()));
        let runs = Arc::new(AtomicU32::new(0));
        let call = |flights: Arc<Flights<&'static str, u32>>, runs: Arc<AtomicU32>| async move {
            let work = |boarding| async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                drop(boarding);
                runs.fetch_add(1, Ordering::SeqCst) + 1
            };
            flights.join("image", work).await
        };
        let first = tokio::spawn(call(flights.clone(), runs.clone()));
        tokio::task::yield_now().await;
        let others: Vec<_> = (0..20)
            .map(|_| tokio::spawn(call(flights.clone(), runs.clone())))
            .collect();
        tokio::task::yield_now().await;
        first.abort();
        for other in others {
            assert_eq!(other.await.unwrap(), Some(1));
        }
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert_eq!(call(flights, runs).await, Some(2));
    }

    #[test]
    fn the_work_outlives_the_threads_on_which_it_was_asked_for() {
        let runtime = || tokio::runtime::Runtime::new().unwrap();
        let (own, callers) = (runtime(), runtime());
        let flights = Flights::<u8, u8>::new(own.handle().clone());
        let (begun, beginning) = std::sync::mpsc::channel();
        let (ended, mut end) = tokio::sync::mpsc::unbounded_channel();
        callers.spawn(async move {
            let work = |_boarding| async move {
                begun.send(()).unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
                ended.send(7).unwrap();
                7
            };
            flights.join(1, work).await
        });
        beginning.recv().unwrap();
        callers.shutdown_background();
        assert_eq!(own.block_on(end.recv()), Some(7));
    }

    #[tokio::test]
    async fn a_work_that_panics_is_told_and_does_not_stay() {
        let flights = Flights::<u8, u8>::new(Handle::current());
        assert_eq!(
            flights.join(1, |_boarding| async { panic!("on purpose") }).await,
            None
        );
        assert_eq!(flights.join(1, |_boarding| async { 7 }).await, Some(7));
    }

    #[tokio::test]
    async fn who_comes_after_boarding_gets_a_flight_of_its_own() {
        let flights = Arc::new(Flights::<&str, u32>::new(Handle::current()));
        let (left, mut gone) = tokio::sync::mpsc::unbounded_channel();
        let (land, landing) = tokio::sync::oneshot::channel::<()>();
        let first = tokio::spawn({
            let flights = flights.clone();
            async move {
                let work = |boarding| async move {
                    drop(boarding);
                    left.send(()).unwrap();
                    landing.await.unwrap();
                    1
                };
                flights.join("tag", work).await
            }
        });
        gone.recv().await.unwrap();
        assert_eq!(flights.join("tag", |_boarding| async { 2 }).await, Some(2));
        land.send(()).unwrap();
        assert_eq!(first.await.unwrap(), Some(1));
    }
}
