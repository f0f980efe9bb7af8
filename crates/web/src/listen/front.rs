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
