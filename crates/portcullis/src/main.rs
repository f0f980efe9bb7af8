//! The program `portcullis`: parse, wire, run.

// They panic where the output cannot be written, and the exit code is lost: see `output`.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod backup;
mod bearer;
mod canary;
mod cli;
mod client;
mod codes;
mod config;
mod config_error;
mod dead_man;
mod demo;
mod dependency_metrics;
mod docs;
mod embedded_log;
mod explain;
mod external_log;
mod failure;
mod lifecycle;
mod metrics;
mod output;
mod place;
mod probes;
mod readiness;
mod seal;
mod secrets;
mod telemetry;
mod wiring;
mod workloads;

use std::process::ExitCode;

use clap::Parser as _;
use clap::error::{ContextKind, ContextValue};

use crate::failure::Failure;

/// Options with a variable, as a usage line shows them.
const FROM_ENVIRONMENT: [&str; 4] = [
    " --server <URL>",
    " --token <TOKEN>",
    " --project <NAME>",
    " --config <FILE>",
];

fn main() -> ExitCode {
    if let Ok(spec) = std::env::var("PORTCULLIS_TEST_CRASH_AT") {
        kernel::arm_crash_point(&spec);
    }
    let code = match args::Args::try_parse() {
        Ok(args) => run(args),
        Err(error) => not_run(&without_environment(error)),
    };
    failure::settle(code)
}

fn run(args: args::Args) -> ExitCode {
    let globals = args.globals.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(cli::run(args)),
        Err(error) => Err(Failure::local("starting the runtime", &error)),
    };
    outcome.unwrap_or_else(|failure| failure.report(&globals))
}

/// clap counts an option that the environment sets as given, and then shows it as if the command needed it.
fn without_environment(mut error: clap::Error) -> clap::Error {
    if let Some(ContextValue::StyledStr(usage)) = error.get(ContextKind::Usage) {
        let mut usage = usage.to_string();
        for option in FROM_ENVIRONMENT {
            usage = usage.replace(option, "");
        }
        error.insert(ContextKind::Usage, ContextValue::StyledStr(usage.into()));
    }
    error
}

/// Help and version, which were asked for, and command lines that do not parse.
fn not_run(error: &clap::Error) -> ExitCode {
    let printed = error.print();
    if error.use_stderr() {
        output::say(&format!("code: {0} (portcullis explain {0})", codes::USAGE.id));
        return ExitCode::from(failure::USAGE);
    }
    output::remember(printed);
    ExitCode::SUCCESS
}
