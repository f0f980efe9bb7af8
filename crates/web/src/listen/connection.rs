//! One connection: its bytes and requests are seen by the watch that decides whether it may stay.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Version, header};
use futures::FutureExt as _;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use kernel::{Clock, Monotonic};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::body::Timed;
use super::refusal::Refusal;
use super::standing::{Overdue, Patience, Standing};

/// What all connections have in common.
pub(super) struct Serving {
    pub(super) router: Router,
    /// The paths that are answered on connections that are kept for them.
    pub(super) vital: &'static [&'static str],
    pub(super) refusal: Refusal,
    /// Requests that were refused since the log was told.
    pub(super) refused: AtomicU64,
    pub(super) drain: CancellationToken,
}

/// What is known of a connection, shared between it and the list of all of them.
pub(super) struct Watch {
    standing: Mutex<Standing>,
    clock: Arc<dyn Clock>,
    patience: Patience,
    /// Whether it is kept for what is vital, and closed after one answer.
    vital: bool,
    /// Its first request came.
    asked: CancellationToken,
    /// Ends the connection at once.
    pub(super) cut: CancellationToken,
}

/// A request whose answer is not finished.
struct InFlight(Arc<Watch>);

/// An answer's body; the request is in flight until it was sent or dropped.
struct Answer {
    body: Body,
    _in_flight: InFlight,
}

/// A socket under watch.
struct Watched {
    stream: TcpStream,
    watch: Arc<Watch>,
}

impl Watch {
    pub(super) fn new(clock: Arc<dyn Clock>, patience: Patience, vital: bool) -> Self {
        Self {
            standing: Mutex::new(Standing::new(clock.monotonic())),
            clock,
            patience: if vital { patience.of_vital() } else { patience },
            vital,
            asked: CancellationToken::new(),
            cut: CancellationToken::new(),
        }
    }

    /// Who is told when a request's body is waited for.
    fn body(self: &Arc<Self>) -> impl Fn(bool) + Send + Sync + 'static {
        let watch = self.clone();
        move |waits| match waits {
            true => watch.standing().awaits_body(watch.clock.monotonic()),
            false => watch.standing().has_body(),
        }
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn overdue(&self, now: Monotonic) -> Option<Overdue> {
        self.standing().overdue(now, &self.patience)
    }

    pub(super) fn gives_way_since(&self, now: Monotonic) -> Option<Monotonic> {
        self.standing().gives_way_since(now, &self.patience)
    }

    /// Waits until nothing more is to be taken than what was asked; one request may be.
    async fn is_last(&self, drain: &CancellationToken) {
        if !self.vital {
            drain.cancelled().await;
        }
        self.asked.cancelled().await;
    }
}

impl InFlight {
    fn begin(watch: &Arc<Watch>, version: Version) -> Self {
        watch.standing().asked(version > Version::HTTP_11);
        watch.asked.cancel();
        Self(watch.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let now = self.0.clock.monotonic();
        self.0.standing().answered(now);
    }
}

impl Serving {
    async fn answer(&self, request: Request<Body>, watch: &Watch) -> Response<Body> {
        let version = request.version();
        let mut answer = if watch.vital && !self.vital.contains(&request.uri().path()) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            self.refusal.answer(request.into_body()).await
        } else {
            let Ok(answer) = self.router.clone().oneshot(request).await;
            answer
        };
        // HTTP/2 says it by GOAWAY.
        if version <= Version::HTTP_11 && (watch.vital || self.drain.is_cancelled()) {
            let close = HeaderValue::from_static("close");
            answer.headers_mut().insert(header::CONNECTION, close);
        }
        answer
    }
}

/// Serves HTTP/1 and HTTP/2 on a connection until either side ends it. Once the drain begins, what is in flight is
/// finished, and nothing more is taken; one that has asked nothing yet may ask once.
pub(super) async fn attend(stream: TcpStream, serving: Arc<Serving>, watch: Arc<Watch>) {
    let service = service_fn(|request: Request<Incoming>| {
        let in_flight = InFlight::begin(&watch, request.version());
        let (serving, watch) = (serving.clone(), watch.clone());
        let request = request.map(|body| Body::new(Timed::new(body, watch.patience, watch.body())));
        async move {
            let answer = serving.answer(request, &watch).await;
            let body = |body| Answer {
                body,
                _in_flight: in_flight,
            };
            Ok::<Response<Answer>, Infallible>(answer.map(body))
        }
    });
    let socket = Watched {
        stream,
        watch: watch.clone(),
    };
    let http = auto::Builder::new(TokioExecutor::new());
    let mut connection = pin!(http.serve_connection(TokioIo::new(socket), service));
    tokio::select! {
        // First: what came is heard before the connection ends.
        biased;
        // A peer that went away, or does not speak HTTP, is no matter of ours.
        _ = connection.as_mut() => return,
        () = watch.cut.cancelled() => {}
        () = watch.is_last(&serving.drain) => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                _ = connection.as_mut() => return,
                () = watch.cut.cancelled() => {}
            }
        }
    }
    // HTTP/2 says that it goes, if that can be said at once.
    connection.as_mut().graceful_shutdown();
    let _ = connection.now_or_never();
}

impl Watched {
    /// Tells the watch what came of an attempt to write.
    fn wrote(&self, outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let now = self.watch.clock.monotonic();
        self.watch.standing().wrote(now, outcome.is_ready());
        outcome
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            let now = self.watch.clock.monotonic();
            self.watch.standing().received(now);
        }
        outcome
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
