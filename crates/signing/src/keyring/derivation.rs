//! Key derivations, one at a time.
//!
//! A key file is opened and closed with scrypt, which is made to cost memory: 64 MiB as cosign has it, and up to
//! 128 MiB for a file that asks for them. Whoever may make keys could otherwise fill the memory with two dozen
//! requests, and a server that is killed signs and verifies nothing for anybody. So one derivation runs, a few
//! wait for it, and the next is told at once to come again.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::SigningError;

/// Requests that hold a place, the one that runs with them: at a tenth of a second each, for a second.
pub(crate) const PLACES_MAX: usize = 8;

/// The turn of the one derivation that runs, and the places of those that wait for it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Derivations {
    turn: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

/// The right to derive, one derivation after the other.
pub(crate) struct Place {
    turn: Arc<Semaphore>,
    /// None for those who are bounded elsewhere.
    _held: Option<OwnedSemaphorePermit>,
}

impl Derivations {
    pub(crate) fn new() -> Self {
        Self {
            turn: Arc::new(Semaphore::new(1)),
            places: Arc::new(Semaphore::new(PLACES_MAX)),
        }
    }

    /// A place in the queue.
    ///
    /// # Errors
    /// [`SigningError::KeysBusy`] at once if there is none.
    pub(crate) fn place(&self) -> Result<Place, SigningError> {
        let held = self.places.clone().try_acquire_owned();
        Ok(Place {
            turn: self.turn.clone(),
            _held: Some(held.map_err(|_| SigningError::KeysBusy)?),
        })
    }

    /// A place beside those for requests, for work of which there is one at a time in any case: signing must not be
    /// refused because keys are being imported.
    pub(crate) fn place_apart(&self) -> Place {
        Place {
            turn: self.turn.clone(),
            _held: None,
        }
    }
}

impl Place {
    /// Runs `work` on a thread of its own when its turn has come. A caller that goes away gives up its place, but a
    /// derivation that runs cannot be stopped: it keeps the turn to its end.
    ///
    /// # Errors
    /// [`SigningError::Lost`] if it panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, SigningError> {
        let turn = self.turn.clone().acquire_owned().await;
        let turn = turn.map_err(|_| SigningError::Lost)?;
        let work = move || {
            let done = work();
            drop(turn);
            done
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| SigningError::Lost)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use futures::future::join_all;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn of_thirty_derivations_one_runs_and_those_without_a_place_are_told_at_once() {
        let derivations = Derivations::new();
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let one = async |_| {
            let place = derivations.place()?;
            let (running, most) = (running.clone(), most.clone());
            let work = move || {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(20));
                running.fetch_sub(1, Ordering::SeqCst);
            };
            place.run(work).await
        };
        let outcomes = join_all((0..30).map(one)).await;
        let done = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!((done, most.load(Ordering::SeqCst)), (PLACES_MAX, 1));
        assert!(
            outcomes
                .iter()
                .flat_map(|outcome| outcome.as_ref().err())
                .all(|error| matches!(error, SigningError::KeysBusy))
        );
        one(0).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_caller_that_goes_away_frees_its_place_and_its_derivation_keeps_the_turn() {
        let derivations = Derivations::new();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let place = derivations.place().unwrap();
        let gone = tokio::spawn(async move { place.run(move || wait.recv()).await });
        while derivations.turn.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        gone.abort();
        gone.await.unwrap_err();
        assert_eq!(derivations.places.available_permits(), PLACES_MAX);
        assert_eq!(derivations.turn.available_permits(), 0);
        go.send(()).unwrap();
        derivations.place_apart().run(|| ()).await.unwrap();
    }
}
