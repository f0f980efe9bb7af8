//! The listener: connections that do nothing never cost those that do something.
//!
//! A connection takes a file descriptor, and a process has few. Whoever opens connections and sends half a request on
//! each would otherwise hold them all, for ever, and the server would be up and answer nobody. So every connection is
//! under watch ([`standing`]): it owes us a whole header 10 s after its first byte, may be idle for 75 s, and may leave
//! an answer unread for 120 s. A body that pauses for 30 s becomes an error of its request ([`body`]). Work of our own
//! has no limit here: a batch of a thousand images or an export of the log takes as long as it takes.
//!
//! ```text
//!   accept ──▶ room? ──yes──────────────────────────▶ connection ──▶ requests
//!                └─no─▶ whoever is idle the longest is cut ─┘   │
//!                          └─ nobody is: 503 and closed         └─ each second: overdue? cut
//! ```
//!
//! Those that wait for the rest of a body give way too, after 2 s. There is room for three quarters of the descriptors that the process may have ([`descriptors`]); the rest is for the
//! database, the blobs and calls to registries. When accepting fails all the same, the longest idle connection goes and
//! accepting is tried again after a pause. What was cut or refused is counted, and logged once a second at most.
//!
//! On `drain` nothing is accepted any more; connections that have nothing in flight are closed within half a second,
//! the others when their answers are finished.

mod body;
mod connection;
mod descriptors;
mod front;
mod standing;

use std::collections::HashMap;
use std::io::{ErrorKind, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use kernel::{Clock, Code, Fault, Kind};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use self::connection::{Watch, attend};
use self::front::Front;
use self::standing::Overdue;
use crate::Problem;

pub(crate) use self::body::BodyTimeout;
pub use self::descriptors::connections_max;
pub use self::standing::Patience;

/// How often connections are looked at, and the least time between two log lines, in milliseconds.
const SWEEP_MS: u64 = 1_000;
/// Pause after an accept that failed, in milliseconds: descriptors come back as connections end.
const ACCEPT_PAUSE_MS: u64 = 100;
/// How long a connection may still bring a request once the server stops, in milliseconds.
const DRAIN_IDLE_MS: u64 = 500;
/// How often a stopping server looks whether everybody is gone, in milliseconds.
const DRAIN_LOOK_MS: u64 = 20;

/// How many connections there may be, and what they may do.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub connections: usize,
    pub patience: Patience,
}

/// Serves `router` on `listener`, on threads of its own, until `drain` is cancelled and what was in flight then is
/// finished.
///
/// # Errors
/// If there can be no threads, or the listener is closed.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    clock: Arc<dyn Clock>,
    drain: CancellationToken,
) -> std::io::Result<()> {
    let front = Front::start()?;
    let listener = listener.into_std()?;
    let accepting = async move {
        // Among those that will wait for it.
        let listener = TcpListener::from_std(listener)?;
        accept(listener, router, limits, clock, drain).await;
        Ok(())
    };
    front.run(accepting).await.unwrap_or(Ok(()))
}

async fn accept(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    clock: Arc<dyn Clock>,
    drain: CancellationToken,
) {
    let connections = Arc::new(Connections::new(limits, clock));
    let mut sweep = tokio::time::interval(Duration::from_millis(SWEEP_MS));
    loop {
        tokio::select! {
            () = drain.cancelled() => break,
            _ = sweep.tick() => connections.sweep(),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.admit(stream, &router, &drain);
                    // A thousand at once are let in one by one: whoever is at work goes on between them.
                    tokio::task::yield_now().await;
                }
                Err(error) if is_the_peers(error.kind()) => {}
                Err(error) => {
                    connections.could_not_accept(&error);
                    sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
                }
            }
        }
    }
    drop(listener);
    connections.emptied().await;
}

/// Whether an accept failed only because the peer was gone already.
fn is_the_peers(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused
    )
}

/// Every open connection.
struct Connections {
    limits: Limits,
    clock: Arc<dyn Clock>,
    open: Mutex<HashMap<u64, Arc<Watch>>>,
    next: AtomicU64,
    tally: Mutex<Tally>,
    refusal: String,
}

/// What the log is yet to be told.
#[derive(Debug, Default)]
struct Tally {
    half_requests: u64,
    unread: u64,
    gave_way: u64,
    refused: u64,
    accept: Option<String>,
}

/// A place in the list, left when the connection's task ends, however it ends.
struct Place(Arc<Connections>, u64);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open().remove(&self.1);
    }
}

impl Connections {
    fn new(limits: Limits, clock: Arc<dyn Clock>) -> Self {
        Self {
            limits,
            clock,
            open: Mutex::default(),
            next: AtomicU64::new(0),
            tally: Mutex::default(),
            refusal: refusal(),
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Arc<Watch>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(self: &Arc<Self>, stream: TcpStream, router: &Router, drain: &CancellationToken) {
        let full = self.open().len() >= self.limits.connections;
        if full && !self.make_room() {
            self.tally().refused += 1;
            return self.refuse(stream);
        }
        // Lines of a batch go out as they come; a failure costs only time.
        let _ = stream.set_nodelay(true);
        let watch = Arc::new(Watch::new(self.clock.clone()));
        let place = Place(self.clone(), self.next.fetch_add(1, Ordering::Relaxed));
        self.open().insert(place.1, watch.clone());
        let served = attend(stream, router.clone(), self.limits.patience, watch, drain.clone());
        tokio::spawn(async move {
            let _place = place;
            served.await;
        });
    }

    /// Cuts the connection that has been idle the longest. `false`: all of them work.
    fn make_room(&self) -> bool {
        let now = self.clock.monotonic();
        let mut open = self.open();
        let waiting = open.iter().filter_map(|(id, watch)| {
            let since = watch.standing().gives_way_since(now, &self.limits.patience)?;
            Some((since, *id))
        });
        let Some((_, id)) = waiting.min() else {
            return false;
        };
        // Off the list at once: its place is taken by whoever comes.
        if let Some(watch) = open.remove(&id) {
            watch.cut.cancel();
        }
        drop(open);
        self.tally().gave_way += 1;
        true
    }

    /// Says why, if the socket takes it, and closes.
    fn refuse(&self, stream: TcpStream) {
        if let Ok(mut stream) = stream.into_std() {
            let _ = stream.write(self.refusal.as_bytes());
        }
    }

    fn could_not_accept(&self, error: &std::io::Error) {
        self.make_room();
        self.tally().accept = Some(error.to_string());
    }

    /// Cuts what is overdue, and logs what there is to say.
    fn sweep(&self) {
        let now = self.clock.monotonic();
        for watch in self.open().values() {
            let overdue = watch.standing().overdue(now, &self.limits.patience);
            let Some(overdue) = overdue else { continue };
            if watch.cut.is_cancelled() {
                continue;
            }
            watch.cut.cancel();
            match overdue {
                Overdue::Header => self.tally().half_requests += 1,
                Overdue::Reader => self.tally().unread += 1,
                Overdue::Idle => {}
            }
        }
        let tally = std::mem::take(&mut *self.tally());
        tally.log(self.limits.connections);
    }

    /// Waits until everybody is gone; whoever does nothing is cut after a moment.
    async fn emptied(&self) {
        let since = self.clock.monotonic();
        let mut cut = false;
        while !self.open().is_empty() {
            let now = self.clock.monotonic();
            if cut || now.since(since) >= Duration::from_millis(DRAIN_IDLE_MS) {
                let open = self.open();
                let patience = &self.limits.patience;
                let idle = |watch: &&Arc<Watch>| watch.standing().gives_way_since(now, patience).is_some();
                open.values().filter(idle).for_each(|watch| watch.cut.cancel());
                cut = true;
            }
            sleep(Duration::from_millis(DRAIN_LOOK_MS)).await;
        }
    }
}

impl Tally {
    fn log(&self, most: usize) {
        let Self {
            half_requests,
            unread,
            gave_way,
            refused,
            accept,
        } = self;
        if *half_requests + unread > 0 {
            tracing::warn!(half_requests, unread, "connections that did nothing were closed");
        }
        if *gave_way + refused > 0 {
            tracing::warn!(most, gave_way, refused, "too many connections");
        }
        if let Some(error) = accept {
            tracing::warn!(error, "a connection could not be accepted");
        }
    }
}

/// Why a connection is refused.
#[derive(Debug, thiserror::Error)]
#[error("every connection that the server can have is at work")]
struct Full;

impl Fault for Full {
    fn kind(&self) -> Kind {
        Kind::Overloaded
    }

    fn code(&self) -> &'static Code {
        &codes::FULL
    }
}

/// A whole answer (RFC 9112), for a connection that is not read from.
fn refusal() -> String {
    let mut document = Problem::quiet(&Full).document().clone();
    document.status = 503;
    let body = document.render();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nRetry-After: 2\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The codes of connections.
pub mod codes {
    use kernel::Code;

    pub const FULL: Code = Code {
        id: "PC1806",
        title: "the server has no connection left",
        explanation: "The server keeps a quarter of its file descriptors for its own work; as many connections as the \
rest allows are open, and each has a request in flight. Idle connections would have been closed.",
        hint: "try again later; the server's operator can raise its limit of open files (ulimit -n)",
    };
    pub const ALL: &[&Code] = &[&FULL];
}

#[cfg(test)]
mod tests;
