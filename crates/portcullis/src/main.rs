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
mod log_seen;
mod metrics;
mod output;
mod place;
mod probes;
mod readiness;
mod routes;
mod seal;
mod secrets;
mod telemetry;
mod traces;
mod wiring;
mod workloads;

use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue};
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _};

use crate::args::Command;
use crate::failure::Failure;

/// After a storm of calls it gives their memory back to the machine.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How long calls to the system that still run may hold up the end of a command, in milliseconds: whatever counts was
/// waited for before.
const END_MS_MAX: u64 = 1_000;

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
    let parsed = args::Args::command().try_get_matches();
    let parsed = parsed.and_then(|matches| Ok((args::Args::from_arg_matches(&matches)?, name(&matches))));
    let code = match parsed {
        Ok((args, name)) => run(args, &name),
        Err(error) => not_run(&without_environment(error)),
    };
    failure::settle(code)
}

/// The command's own name with those under it, as in `portcullis token create`.
fn name(matches: &ArgMatches) -> String {
    let (mut name, mut matches) = ("portcullis".to_owned(), matches);
    while let Some((own, under)) = matches.subcommand() {
        name = format!("{name} {own}");
        matches = under;
    }
    name
}

fn run(args: args::Args, name: &str) -> ExitCode {
    let globals = args.globals.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => {
            // They have traces of their own, or start what has.
            let outcome = match args.command {
                Command::Serve(_) | Command::Demo(_) => runtime.block_on(cli::run(args)),
                _ => runtime.block_on(traces::command::run(name, cli::run(args))),
            };
            // A lookup of a name or a file that hangs would hold the end up for ever.
            runtime.shutdown_timeout(Duration::from_millis(END_MS_MAX));
            outcome
        }
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
