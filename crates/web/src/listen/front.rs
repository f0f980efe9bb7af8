//! The threads of the connections.
//!
//! Whoever comes is read and looked up here. What was begun for them goes on on the threads of whoever called
//! [`super::serve`], and waits behind none of those that come: a signature in the making wakes two dozen times, and a
//! thousand requests that come at once would stand before it each time. These threads have a lower priority, so that
//! also on one core what was begun is finished before more is let in (Mogul and Ramakrishnan, "Eliminating receive
//! livelock", 1996).

use std::future::Future;

use tokio::runtime::{Builder, Runtime};

/// How much nicer than the others these threads are (setpriority(2)): their share of a core that others want too is a
/// third of what it would be.
pub(super) const NICE: i32 = 5;

/// Runs what is given to it until it is dropped.
pub(super) struct Front(Option<Runtime>);

impl Front {
    /// As many threads as there are cores.
    pub(super) fn start() -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .enable_all()
            .thread_name("connections")
            .on_thread_start(lower)
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// `None` if it panicked, or the front was dropped.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        self.0.as_ref()?.spawn(work).await.ok()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// On Linux a priority is a thread's own.
fn lower() {
    let nice = rustix::process::getpriority_process(None).unwrap_or(0);
    // Where it is not allowed, the threads are as important as all others.
    let _ = rustix::process::setpriority_process(None, nice.saturating_add(NICE));
}
