//! The listener: connections that do nothing never cost those that do something.
//!
//! A connection takes a file descriptor, and a process has few. Whoever opens connections and sends half a request on
//! each would otherwise hold them all, for ever, and the server would be up and answer nobody. So every connection is
//! under watch ([`standing`]): it owes us a whole header 10 s after its first byte, may be idle for 75 s, and may leave
//! an answer unread for 120 s. A body that pauses for 30 s becomes an error of its request ([`body`]). Work of our own
//! has no limit here: a batch of a thousand images or an export of the log takes as long as it takes.
//!
//! ```text
//!   accept ──▶ place? ──yes──────────────────────────▶ connection ──▶ requests
//!                └─no─▶ whoever is idle the longest is cut ─┘   │
//!                          │                                    └─ each second: overdue? cut
//!                          └─ nobody is ──▶ one of the last places: is the server alive? ──▶ one answer
//!                                              └─ none: 503 and closed ([`refusal`])
//! ```
//!
//! Those that wait for the rest of a body give way too, after 2 s. There is room ([`places`]) for three quarters of the
//! descriptors that the process may have ([`descriptors`]); the rest is for the database, the blobs and calls to
//! registries. A few of the places are kept for the probes of whoever runs the server: a server that works as much as
//! it can is not dead, and would be made so by an orchestrator that finds no place to ask. When accepting fails all the
//! same, the longest idle connection goes and accepting is tried again after a pause. What was cut or refused is
//! counted, and logged once a second at most.
//!
//! On `drain` whoever the kernel has let in already is let in too, and nobody after them; connections that have nothing
//! in flight are closed within half a second, the others when their answers are finished.

mod body;
mod connection;
mod descriptors;
mod error;
mod places;
mod refusal;
mod standing;

use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use kernel::Clock;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::connection::{Serving, Watch, attend};
use self::places::Places;
use self::refusal::Refusal;
use self::standing::Overdue;
use crate::threads::{self, Threads};

pub(crate) use self::body::BodyTimeout;
pub use self::descriptors::connections_max;
pub use self::error::ListenError;
pub use self::standing::Patience;

/// The threads of the connections.
const FRONT: threads::Settings = threads::Settings {
    name: "connections",
    count: None,
    nice: 5,
    otherwise: "in a storm of requests signatures take longer",
};
/// How often connections are looked at, and the least time between two log lines, in milliseconds.
const SWEEP_MS: u64 = 1_000;
/// Pause after an accept that failed, in milliseconds: descriptors come back as connections end.
const ACCEPT_PAUSE_MS: u64 = 100;
/// How long a connection may still bring a request once the server stops, in milliseconds.
const DRAIN_IDLE_MS: u64 = 500;
/// How often a stopping server looks whether everybody is gone, in milliseconds.
const DRAIN_LOOK_MS: u64 = 20;
/// How many connections a stopping server lets in at most: as many as Linux lets wait (net.core.somaxconn).
const BACKLOG_MAX: usize = 4_096;
/// Connections for what is vital: several probes, metrics and the people who look, each for one short answer.
const VITAL_CONNECTIONS_MAX: usize = 16;
/// Of few connections no more than one of these is kept for it.
const VITAL_SHARE: usize = 8;

/// How many connections there may be, and what they may do.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// In all; the last 16 of them, or an eighth, take nothing but what is vital.
    pub connections: usize,
    pub patience: Patience,
    /// The paths by which others learn whether the server lives, and which are answered however much it works.
    pub vital: &'static [&'static str],
}

/// Serves `router` on `listener`, on threads of its own, until `drain` is cancelled and what was in flight then is
/// finished.
///
/// # Errors
/// If there can be no threads, or letting connections in ends by itself, which is a defect.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    clock: Arc<dyn Clock>,
    drain: CancellationToken,
) -> Result<(), ListenError> {
    let front = Threads::start(FRONT).map_err(ListenError::Start)?;
    let listener = listener.into_std().map_err(ListenError::Start)?;
    let accepting = async move {
        // Among those that will wait for it.
        let listener = TcpListener::from_std(listener)?;
        let serving = Arc::new(Serving {
            router,
            vital: limits.vital,
            refusal: Refusal::new(),
            refused: AtomicU64::new(0),
            drain,
        });
        accept(listener, Connections::new(limits, clock, serving)).await;
        Ok(())
    };
    let accepted = front.run(accepting).await.map_err(ListenError::Ended)?;
    accepted.map_err(ListenError::Start)
}

async fn accept(listener: TcpListener, connections: Connections) {
    let drain = connections.serving.drain.clone();
    let mut sweep = tokio::time::interval(Duration::from_millis(SWEEP_MS));
    loop {
        tokio::select! {
            () = drain.cancelled() => break,
            _ = sweep.tick() => connections.sweep(),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.admit(stream);
                    // A thousand at once are let in one by one: whoever is at work goes on between them.
                    tokio::task::yield_now().await;
                }
                Err(error) => connections.could_not_accept(&error).await,
            }
        }
    }
    // Longer only if descriptors are short.
    let waiting = timeout(
        Duration::from_millis(DRAIN_IDLE_MS),
        accept_waiting(listener, &connections),
    );
    if let Ok(Err(error)) = waiting.await {
        tracing::warn!(%error, "connections that waited when the server stopped were lost");
    }
    connections.emptied().await;
}

/// Lets in whoever waits at the door: they may have asked something already, and closing the listener would reset them.
async fn accept_waiting(listener: TcpListener, connections: &Connections) -> io::Result<()> {
    // It says at once, and for certain, that nobody waits.
    let listener = listener.into_std()?;
    for _ in 0..BACKLOG_MAX {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                connections.admit(TcpStream::from_std(stream)?);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => connections.could_not_accept(&error).await,
        }
    }
    Ok(())
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
    serving: Arc<Serving>,
    ordinary: Arc<Places>,
    vital: Arc<Places>,
    tally: Mutex<Tally>,
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

impl Connections {
    fn new(limits: Limits, clock: Arc<dyn Clock>, serving: Arc<Serving>) -> Self {
        let vital = VITAL_CONNECTIONS_MAX.min(limits.connections / VITAL_SHARE);
        Self {
            limits,
            clock,
            serving,
            ordinary: Places::new(limits.connections - vital),
            vital: Places::new(vital),
            tally: Mutex::default(),
        }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, stream: TcpStream) {
        let has_place = |places: &&Arc<Places>| !places.is_full() || self.make_room(places);
        let Some(places) = [&self.ordinary, &self.vital].into_iter().find(has_place) else {
            self.serving.refused.fetch_add(1, Ordering::Relaxed);
            return self.serving.refusal.say(stream);
        };
        // Lines of a batch go out as they come; a failure costs only time.
        let _ = stream.set_nodelay(true);
        let vital = Arc::ptr_eq(places, &self.vital);
        let watch = Arc::new(Watch::new(self.clock.clone(), self.limits.patience, vital));
        let place = places.take(watch.clone());
        let served = attend(stream, self.serving.clone(), watch);
        tokio::spawn(async move {
            let _place = place;
            served.await;
        });
    }

    fn make_room(&self, places: &Places) -> bool {
        let made = places.make_room(self.clock.monotonic());
        self.tally().gave_way += u64::from(made);
        made
    }

    /// Makes room if it was for want of it, and waits a moment.
    async fn could_not_accept(&self, error: &io::Error) {
        if is_the_peers(error.kind()) {
            return;
        }
        let _ = self.make_room(&self.ordinary) || self.make_room(&self.vital);
        self.tally().accept = Some(error.to_string());
        sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
    }

    /// Cuts what is overdue, and logs what there is to say.
    fn sweep(&self) {
        let now = self.clock.monotonic();
        let mut tally = std::mem::take(&mut *self.tally());
        let look = |watch: &Arc<Watch>| {
            let Some(overdue) = watch.overdue(now) else { return };
            if watch.cut.is_cancelled() {
                return;
            }
            watch.cut.cancel();
            match overdue {
                Overdue::Header => tally.half_requests += 1,
                Overdue::Reader => tally.unread += 1,
                Overdue::Idle => {}
            }
        };
        self.for_each(look);
        tally.refused += self.serving.refused.swap(0, Ordering::Relaxed);
        tally.log(self.limits.connections);
    }

    fn for_each(&self, mut what: impl FnMut(&Arc<Watch>)) {
        self.ordinary.for_each(&mut what);
        self.vital.for_each(what);
    }

    /// Waits until everybody is gone; whoever does nothing is cut after a moment.
    async fn emptied(&self) {
        let since = self.clock.monotonic();
        let mut cut = false;
        while !(self.ordinary.is_empty() && self.vital.is_empty()) {
            let now = self.clock.monotonic();
            if cut || now.since(since) >= Duration::from_millis(DRAIN_IDLE_MS) {
                self.for_each(|watch| {
                    if watch.gives_way_since(now).is_some() {
                        watch.cut.cancel();
                    }
                });
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

/// The codes of connections.
pub mod codes {
    use kernel::Code;

    pub const FULL: Code = Code {
        id: "PC1806",
        title: "the server has no connection left",
        explanation: "The server keeps a quarter of its file descriptors for its own work; as many connections as the \
rest allows are open, and each has a request in flight. Idle connections would have been closed. The last few are kept \
for /livez, /readyz and /metrics.",
        hint: "try again later; the server's operator can raise its limit of open files (ulimit -n)",
    };
    pub const START: Code = Code {
        id: "PC1807",
        title: "the server cannot begin to take connections",
        explanation: "The operating system gave it no threads for them, or no way to wait for them.",
        hint: "check free memory, the limits of processes and of open files (ulimit -u, ulimit -n) of the server's user",
    };
    pub const ENDED: Code = Code {
        id: "PC1808",
        title: "the server takes no connections any more",
        explanation: "Letting connections in ended though nobody told the server to stop: a defect of the server. It \
ends with an error, so that whoever watches over it (systemd, Kubernetes) starts it again. What was answered is durable.",
        hint: "start it again, and report this with the lines of the log before it",
    };
    pub const ALL: &[&Code] = &[&FULL, &START, &ENDED];
}

#[cfg(test)]
mod tests;
