//! A request's body ends: it is waited for only so long.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use super::standing::Patience;

/// The rest of a request's body did not come.
#[derive(Debug, Clone, thiserror::Error)]
#[error("nothing more of the body came for {0:?}")]
pub(crate) struct BodyTimeout(Duration);

/// A request's body that is an error when its sender pauses too long, or takes too long in all.
pub(super) struct Timed<B> {
    body: B,
    patience: Patience,
    /// Told `true` when the sender is waited for, for the first time, and `false` when no more.
    waits: Box<dyn Fn(bool) + Send + Sync>,
    /// Begins when there is nothing to read for the first time, which for small bodies is never.
    whole: Option<Pin<Box<Sleep>>>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl<B> Timed<B> {
    pub(super) fn new(body: B, patience: Patience, waits: impl Fn(bool) + Send + Sync + 'static) -> Self {
        Self {
            body,
            patience,
            waits: Box::new(waits),
            whole: None,
            pause: None,
        }
    }

    /// Whether the sender has been waited for long enough.
    fn poll_timeout(&mut self, cx: &mut Context<'_>) -> Poll<BodyTimeout> {
        let Patience { body, whole_body, .. } = self.patience;
        if self.whole.is_none() {
            (self.waits)(true);
        }
        for (timer, at_most) in [(&mut self.pause, body), (&mut self.whole, whole_body)] {
            let timer = timer.get_or_insert_with(|| Box::pin(sleep(at_most)));
            if timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(BodyTimeout(at_most));
            }
        }
        Poll::Pending
    }
}

impl<B> Timed<B> {
    /// The sender owes nothing any more.
    fn settle(&mut self) {
        if self.whole.take().is_some() {
            (self.waits)(false);
        }
    }
}

impl<B> Drop for Timed<B> {
    fn drop(&mut self) {
        self.settle();
    }
}

impl<B> HttpBody for Timed<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<axum::BoxError>,
{
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.pause = None;
            if !matches!(frame, Some(Ok(_))) {
                self.settle();
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        self.poll_timeout(cx).map(|timeout| Some(Err(timeout.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
