//! The threads of the connections.
//!
//! Whoever comes is read and looked up here. What was begun for them goes on on the threads of whoever called
//! [`super::serve`], and waits behind none of those that come: a signature in the making wakes two dozen times, and a
//! thousand requests that come at once would stand before it each time. These threads have a lower priority, so that
//! also on one core what was begun is finished before more is let in (Mogul and Ramakrishnan, "Eliminating receive
//! livelock", 1996).

use std::future::Future;

use std::io;
use std::sync::Once;

use rustix::process::{getpriority_process, setpriority_process};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinError;

/// How much nicer than the others these threads are (setpriority(2)): their share of a core that others want too is a
/// third of what it would be.
pub(super) const NICE: i32 = 5;

/// Runs what is given to it until it is dropped.
pub(super) struct Front {
    handle: Handle,
    /// Taken when it is dropped.
    runtime: Option<Runtime>,
}

impl Front {
    /// As many threads as there are cores.
    ///
    /// # Errors
    /// If there can be no threads.
    pub(super) fn start() -> io::Result<Self> {
        let told = Once::new();
        let runtime = Builder::new_multi_thread()
            .enable_all()
            .thread_name("connections")
            .on_thread_start(move || tell(lower(), &told))
            .build()?;
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
        })
    }

    /// # Errors
    /// If it panics.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, JoinError> {
        self.handle.spawn(work).await
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// On Linux a priority is a thread's own.
fn lower() -> io::Result<()> {
    let nice = getpriority_process(None)?;
    Ok(setpriority_process(None, nice.saturating_add(NICE))?)
}

/// Where it is not allowed, the threads are as important as all others, and their owner hears of it once.
fn tell(lowered: io::Result<()>, told: &Once) {
    let Err(error) = lowered else { return };
    told.call_once(|| {
        tracing::warn!(
            %error,
            "the threads of connections could not be given a lower priority (setpriority): in a storm of requests \
             signatures take longer"
        );
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    use super::*;

    /// Counts what is said.
    struct Said(Arc<AtomicU32>);

    impl Subscriber for Said {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, _: &Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn a_priority_that_is_refused_is_told_once() {
        let (said, told) = (Arc::new(AtomicU32::new(0)), Once::new());
        tracing::subscriber::with_default(Said(said.clone()), || {
            tell(Ok(()), &told);
            assert_eq!(said.load(Ordering::Relaxed), 0);
            for _ in 0..3 {
                tell(Err(io::ErrorKind::PermissionDenied.into()), &told);
            }
        });
        assert_eq!(said.load(Ordering::Relaxed), 1);
    }
}
