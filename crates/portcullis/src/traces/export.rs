//! Spans on their way to the collector: a bounded queue and one task that empties it.
//!
//! Whoever ends a span never waits. A collector that is away, slow or refuses costs spans, and nothing else: each is
//! counted, and the first is logged.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::http::{Request, Response};
use bytes::{Bytes, BytesMut};
use opentelemetry::Context;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::client;
use crate::failure::Failure;

/// Ended spans that wait: those of some hundred signatures, about two megabytes.
const QUEUE_SPANS_MAX: usize = 4_096;
/// Spans of one call to the collector, as in the specification's batching processor.
const BATCH_SPANS_MAX: usize = 512;
/// How long a span waits for others at most, in milliseconds.
const EVERY_MS: u64 = 2_000;
/// How long the collector may take, in seconds.
const EXPORT_SECONDS_MAX: u64 = 5;
/// How long a process that ends waits for the collector, in milliseconds.
const CLOSE_MS_MAX: u64 = 1_000;
/// Bytes of an answer that are read: it says in a few words what was not taken.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Spans that no collector got, since the start of the process.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// What is counted, in Prometheus' text format.
pub fn metrics() -> String {
    let count = DROPPED.load(Ordering::Relaxed);
    format!(
        "# HELP portcullis_trace_spans_dropped_total Spans of traces that the collector did not get\n\
         # TYPE portcullis_trace_spans_dropped_total counter\n\
         portcullis_trace_spans_dropped_total {count}\n"
    )
}

fn dropped(count: usize) {
    DROPPED.fetch_add(count as u64, Ordering::Relaxed);
}

enum Message {
    Ended(Box<SpanData>),
    /// Send all that came before, then say so.
    Flush(oneshot::Sender<()>),
}

/// The end of the queue that spans go in at.
#[derive(Debug)]
pub struct Queue(mpsc::Sender<Message>);

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        // Nothing is logged here: a span ends in the middle of what logs.
        if span.span_context.is_sampled() && self.0.try_send(Message::Ended(Box::new(span))).is_err() {
            dropped(1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ended(_) => "Ended",
            Self::Flush(_) => "Flush",
        })
    }
}

/// The task that sends.
pub struct Export(mpsc::Sender<Message>);

impl Export {
    /// Has all be sent that has ended, within a bound.
    pub async fn close(self) {
        let (done, flushed) = oneshot::channel();
        let flush = async {
            if self.0.send(Message::Flush(done)).await.is_ok() {
                let _ = flushed.await;
            }
        };
        // Cut off: what is lost then was only ever to be looked at.
        let _ = timeout(Duration::from_millis(CLOSE_MS_MAX), flush).await;
    }
}

/// Starts the task that sends.
pub fn start(exporter: impl SpanExporter + 'static) -> (Queue, Export) {
    let (sender, receiver) = mpsc::channel(QUEUE_SPANS_MAX);
    tokio::spawn(run(exporter, receiver));
    (Queue(sender.clone()), Export(sender))
}

async fn run(exporter: impl SpanExporter, mut receiver: mpsc::Receiver<Message>) {
    let mut ticks = interval(Duration::from_millis(EVERY_MS));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sending = Sending::default();
    loop {
        tokio::select! {
            message = receiver.recv() => match message {
                Some(Message::Ended(span)) => {
                    sending.batch.push(*span);
                    if sending.batch.len() >= BATCH_SPANS_MAX {
                        sending.send(&exporter).await;
                    }
                }
                Some(Message::Flush(done)) => {
                    sending.send(&exporter).await;
                    let _ = done.send(());
                }
                None => return sending.send(&exporter).await,
            },
            _ = ticks.tick() => sending.send(&exporter).await,
        }
    }
}

/// What is sent next, and what was told.
#[derive(Default)]
struct Sending {
    batch: Vec<SpanData>,
    /// How many spans were dropped when it was looked last.
    known: u64,
    /// Whether the log says that spans are dropped.
    told: bool,
}

impl Sending {
    async fn send(&mut self, exporter: &impl SpanExporter) {
        let batch = std::mem::take(&mut self.batch);
        let count = batch.len();
        let mut why = String::new();
        if count > 0 {
            let within = Duration::from_secs(EXPORT_SECONDS_MAX);
            let outcome = timeout(within, exporter.export(batch)).await;
            why = match outcome {
                Ok(Ok(())) => String::new(),
                Ok(Err(error)) => kernel::chain(&error),
                Err(_) => format!("it took more than {EXPORT_SECONDS_MAX} s"),
            };
            if !why.is_empty() {
                dropped(count);
            }
        }
        let now = DROPPED.load(Ordering::Relaxed);
        if now > self.known && !self.told {
            let why = if why.is_empty() { "too many wait" } else { &why };
            tracing::warn!(
                why,
                "spans of traces are dropped; portcullis_trace_spans_dropped_total counts them"
            );
            self.told = true;
        } else if now == self.known && self.told && count > 0 {
            tracing::info!(dropped = now, "the collector gets the spans of traces again");
            self.told = false;
        }
        self.known = now;
    }
}

/// The collector's address is called with this.
#[derive(Debug)]
pub struct Collector(reqwest::Client);

impl Collector {
    pub fn new() -> Result<Self, Failure> {
        client::http(Duration::from_secs(EXPORT_SECONDS_MAX)).map(Self)
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut answer = self.0.execute(request.try_into()?).await?;
        let mut body = BytesMut::new();
        while let Some(chunk) = answer.chunk().await? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(format!("an answer of more than {ANSWER_BYTES_MAX} bytes").into());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Response::builder().status(answer.status()).body(body.freeze())?)
    }
}
