//! Logs: JSON for machines, lines for people. Spans are for traces alone.

use std::io::IsTerminal as _;

use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

use crate::traces::Traces;

/// Sends logs to standard error; `RUST_LOG` chooses what, `info` if it is not set. Spans go to the traces, if there are
/// any; otherwise no span is ever made.
pub fn start(traces: Option<&Traces>) {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn,hyper=warn"));
    let lines = filter.and(filter_fn(|metadata| metadata.is_event()));
    let base = fmt::layer()
        .with_writer(std::io::stderr)
        // It would tell standard error, with a panic, that standard error is closed.
        .log_internal_errors(false);
    let written = if std::io::stderr().is_terminal() {
        base.compact().with_target(false).with_filter(lines).boxed()
    } else {
        base.json()
            .flatten_event(true)
            .with_target(false)
            .with_current_span(false)
            .with_span_list(false)
            .with_filter(lines)
            .boxed()
    };
    // A second call, as in tests, changes nothing.
    let _ = tracing_subscriber::registry()
        .with(written)
        .with(traces.map(Traces::layer))
        .try_init();
}
