//! A span for the command, as part of the trace of the build that runs it.

use std::process::ExitCode;

use tracing::field::Empty;
use tracing::{Instrument as _, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::{Traces, context};
use crate::config::TracingSection;
use crate::failure::Failure;

/// Runs a command. With `TRACEPARENT` in the environment what it asks for carries that on; with a collector in the
/// environment it has a span of its own. Neither ever makes it fail.
pub async fn run(
    name: &str,
    command: impl Future<Output = Result<ExitCode, Failure>>,
) -> Result<ExitCode, Failure> {
    let asker = context::of_environment();
    let Ok(Some(traces)) = Traces::start(&TracingSection::default()) else {
        return command.await;
    };
    // A second one, as in tests, changes nothing.
    let _ = tracing_subscriber::registry().with(traces.layer()).try_init();
    let span = info_span!("command", otel.name = name, error.type = Empty, otel.status_code = Empty);
    if let Some(asker) = asker {
        // It fails for a span that has begun, which this one has not.
        let _ = span.set_parent(asker.clone());
    }
    let outcome = command.instrument(span.clone()).await;
    if let Err(failure) = &outcome {
        span.record("otel.status_code", "ERROR");
        span.record("error.type", failure.code());
    }
    drop(span);
    traces.close().await;
    outcome
}
