//! Starting and stopping: soft first, then hard.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long running requests may take after the first signal, in seconds: a signature with both formats on a slow
/// registry ends within its call's limit of 30 s, and orchestrators kill after 30.
pub const DRAIN_SECONDS_MAX: u64 = 25;

/// The two steps of stopping.
#[derive(Clone)]
pub struct Lifecycle {
    /// No new work; finish what runs.
    pub soft: CancellationToken,
    /// Stop now.
    pub hard: CancellationToken,
}

impl Lifecycle {
    pub fn new() -> Self {
        Self {
            soft: CancellationToken::new(),
            hard: CancellationToken::new(),
        }
    }

    /// Stops softly on the first SIGTERM or SIGINT, hard when the drain takes too long, at once on the second.
    pub fn on_signals(&self) -> std::io::Result<()> {
        let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let own = self.clone();
        tokio::spawn(async move {
            tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
            tracing::info!("stopping: no new requests; running ones are finished");
            own.soft.cancel();
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
                () = tokio::time::sleep(Duration::from_secs(DRAIN_SECONDS_MAX)) => {}
            }
            tracing::warn!("stopping hard");
            own.hard.cancel();
        });
        Ok(())
    }
}
