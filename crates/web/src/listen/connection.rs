//! One connection: its bytes and requests are seen by the watch that decides whether it may stay.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes};
use futures::FutureExt as _;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use kernel::Clock;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::body::Timed;
use super::standing::{Patience, Standing};

/// What is known of a connection, shared between it and the list of all of them.
pub(super) struct Watch {
    standing: Mutex<Standing>,
    clock: Arc<dyn Clock>,
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
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            standing: Mutex::new(Standing::new(clock.monotonic())),
            clock,
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

    pub(super) fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InFlight {
    fn begin(watch: &Arc<Watch>) -> Self {
        watch.standing().asked();
        Self(watch.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let now = self.0.clock.monotonic();
        self.0.standing().answered(now);
    }
}

/// Serves HTTP/1 and HTTP/2 on a connection until either side ends it. Once `drain` is cancelled, what is in flight is
/// finished, and nothing more is taken.
pub(super) async fn attend(
    stream: TcpStream,
    router: Router,
    patience: Patience,
    watch: Arc<Watch>,
    drain: CancellationToken,
) {
    let service = service_fn(|request: Request<Incoming>| {
        let in_flight = InFlight::begin(&watch);
        let answer = router
            .clone()
            .oneshot(request.map(|body| Body::new(Timed::new(body, patience, watch.body()))));
        async move {
            let Ok(answer) = answer.await;
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
        // A peer that went away, or does not speak HTTP, is no matter of ours.
        _ = connection.as_mut() => return,
        () = watch.cut.cancelled() => {}
        () = drain.cancelled() => {
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
