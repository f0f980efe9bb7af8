//! Threads that give way to all others.
//!
//! [`crate::listen`] reads those who come on threads of this kind. What was begun for them goes on on the threads of
//! whoever called it, and waits behind none of those that come: a signature in the making wakes two dozen times, and a
//! thousand requests that come at once would stand before it each time. As these threads have a lower priority, also on
//! one core what was begun is finished before more is let in (Mogul and Ramakrishnan, "Eliminating receive livelock",
//! 1996). Work that nobody waits for has its place on such threads too.

use std::future::Future;
use std::io;
use std::sync::Once;

use rustix::process::{getpriority_process, setpriority_process};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

/// How threads that give way are.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Their name, of 15 bytes at most.
    pub name: &'static str,
    /// How many; as many as there are cores if there is no number.
    pub count: Option<usize>,
    /// How much nicer than the others they are (setpriority(2)): with 5 their share of a core that others want too is a
    /// third of what it would be, with 10 a tenth.
    pub nice: i32,
    /// What follows where that is not allowed.
    pub otherwise: &'static str,
}

/// Runs what is given to it until it is dropped.
pub struct Threads {
    handle: Handle,
    /// Taken when it is dropped.
    runtime: Option<Runtime>,
}

impl Threads {
    /// Starts them.
    ///
    /// # Errors
    /// If there can be no threads.
    pub fn start(settings: Settings) -> io::Result<Self> {
        let told = Once::new();
        let mut builder = Builder::new_multi_thread();
        if let Some(count) = settings.count {
            builder.worker_threads(count);
        }
        let runtime = builder
            .enable_all()
            .thread_name(settings.name)
            .on_thread_start(move || tell(lower(settings.nice), settings, &told))
            .build()?;
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
        })
    }

    /// Runs the work to its end, or until the answer is dropped.
    ///
    /// # Errors
    /// If it panics.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, JoinError> {
        AbortOnDropHandle::new(self.handle.spawn(work)).await
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// On Linux a priority is a thread's own.
fn lower(by: i32) -> io::Result<()> {
    let nice = getpriority_process(None)?;
    Ok(setpriority_process(None, nice.saturating_add(by))?)
}

/// Where it is not allowed, the threads are as important as all others, and their owner hears of it once.
fn tell(lowered: io::Result<()>, settings: Settings, told: &Once) {
    let Err(error) = lowered else { return };
    let Settings { name, otherwise, .. } = settings;
    told.call_once(|| {
        tracing::warn!(
            %error,
            "the threads named {name} could not be given a lower priority (setpriority): {otherwise}"
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
        let settings = Settings {
            name: "some",
            count: None,
            nice: 5,
            otherwise: "nothing follows",
        };
        tracing::subscriber::with_default(Said(said.clone()), || {
            tell(Ok(()), settings, &told);
            assert_eq!(said.load(Ordering::Relaxed), 0);
            for _ in 0..3 {
                tell(Err(io::ErrorKind::PermissionDenied.into()), settings, &told);
            }
        });
        assert_eq!(said.load(Ordering::Relaxed), 1);
    }
}
