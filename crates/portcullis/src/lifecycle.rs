//! Starting and stopping: said first, then soft, then hard.
//!
//! A server behind others' load balancing that closes its door the moment it is told to stop refuses whoever was just
//! sent to it. So it may say for a while that it goes (`/readyz` is 503, and every answer closes its connection) and
//! serve all the same (`server.lame_duck_seconds`); then it takes nothing new and finishes what runs. Each step has a
//! limit, closing too: a server whose database is frozen ends all the same.

use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long running requests may take after the first signal, in seconds. Most signatures take less than one; with a
/// slow registry one is several calls of up to 30 s each, and may be cut off: its caller gets no answer and asks again,
/// and what was stored is found then. A longer wait would make every roll-out longer that meets a hanging registry.
pub const DRAIN_SECONDS_MAX: u64 = 25;

/// How long closing may take after that, in seconds: sealing and the database's last writes take less than one, and for
/// a database that is frozen nobody should wait. With the drain it is 35 s after `server.lame_duck_seconds`, and a few
/// for the traces: `TimeoutStopSec` in deploy/systemd and `terminationGracePeriodSeconds` in deploy/helm leave 5.
pub const CLOSE_SECONDS_MAX: u64 = 10;

/// The longest time in which a stopping server still serves, in seconds.
pub const LAME_DUCK_SECONDS_MAX: u64 = 300;

/// Added to a signal's number it is the exit code of a process that the signal ended, as shells say it.
const SIGNALLED: i32 = 128;

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

/// What asks the process to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
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
    /// Each further signal goes one step on; the step after the hard one is the process's end.
    pub fn on_signals(&self, lame_duck: Duration) -> std::io::Result<()> {
        let mut signals = Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        };
        let own = self.clone();
        tokio::spawn(async move {
            let asked = match signals.next().await {
                kind if kind == SignalKind::terminate() => lame_duck,
                _ => Duration::ZERO,
            };
            own.leaving.cancel();
            if !asked.is_zero() {
                tracing::info!(
                    seconds = asked.as_secs(),
                    "leaving: not ready any more, and serving on"
                );
                // Either ends it.
                let _ = timeout(asked, signals.next()).await;
            }
            tracing::info!("stopping: no new requests; running ones are finished");
            own.soft.cancel();
            let _ = timeout(Duration::from_secs(DRAIN_SECONDS_MAX), signals.next()).await;
            tracing::warn!("stopping hard");
            own.hard.cancel();
            let kind = signals.next().await;
            tracing::warn!("ended by a further signal; what was answered is durable all the same");
            std::process::exit(SIGNALLED + kind.as_raw_value());
        });
        Ok(())
    }
}

impl Signals {
    async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        }
    }
}

/// Waits for the end of `closing`, but no longer than `at_most`.
pub async fn close(closing: impl Future<Output = ()>, at_most: Duration) {
    if timeout(at_most, closing).await.is_err() {
        tracing::warn!(
            seconds = at_most.as_secs(),
            "the database or the logs did not close in time and are left as they are; what was answered is durable all \
             the same"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn closing_ends_though_the_database_does_not() {
        let closing = close(std::future::pending(), Duration::from_millis(10));
        assert!(timeout(Duration::from_secs(10), closing).await.is_ok());
    }
}
