//! Starting and stopping: said first, then soft, then hard.
//!
//! A server behind others' load balancing that closes its door the moment it is told to stop refuses whoever was just
//! sent to it. So it may say for a while that it goes (`/readyz` is 503, and every answer closes its connection) and
//! serve all the same (`server.lame_duck_seconds`); then it takes nothing new and finishes what runs.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long running requests may take after the first signal, in seconds: a signature with both formats on a slow
/// registry ends within its call's limit of 30 s, and orchestrators kill after 30.
pub const DRAIN_SECONDS_MAX: u64 = 25;

/// The longest time in which a stopping server still serves, in seconds.
pub const LAME_DUCK_SECONDS_MAX: u64 = 300;

/// The steps of stopping.
#[derive(Clone)]
pub struct Lifecycle {
    /// Serves on, and tells everybody to go elsewhere.
    pub leaving: CancellationToken,
    /// No new work; finish what runs.
    pub soft: CancellationToken,
    /// Stop now.
    pub hard: CancellationToken,
}

impl Lifecycle {
    pub fn new() -> Self {
        Self {
            leaving: CancellationToken::new(),
            soft: CancellationToken::new(),
            hard: CancellationToken::new(),
        }
    }

    /// Stops softly on the first SIGTERM, after `lame_duck`, or SIGINT, at once; hard when the drain takes too long.
    /// Each further signal goes one step on.
    pub fn on_signals(&self, lame_duck: Duration) -> std::io::Result<()> {
        let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let own = self.clone();
        tokio::spawn(async move {
            let asked =
                tokio::select! { _ = term.recv() => lame_duck, _ = interrupt.recv() => Duration::ZERO };
            own.leaving.cancel();
            if !asked.is_zero() {
                tracing::info!(
                    seconds = asked.as_secs(),
                    "leaving: not ready any more, and serving on"
                );
                tokio::select! {
                    _ = term.recv() => {}
                    _ = interrupt.recv() => {}
                    () = tokio::time::sleep(asked) => {}
                }
            }
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
