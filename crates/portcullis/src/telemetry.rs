//! Logs: JSON for machines, lines for people.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

/// Sends logs to standard error; `RUST_LOG` chooses what, `info` if it is not set.
pub fn start() {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn,hyper=warn"));
    let base = fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // It would tell standard error, with a panic, that standard error is closed.
        .log_internal_errors(false);
    // A second call, as in tests, changes nothing.
    let _ = if std::io::stderr().is_terminal() {
        base.compact().with_target(false).try_init()
    } else {
        base.json()
            .flatten_event(true)
            .with_target(false)
            .with_current_span(false)
            .try_init()
    };
}
