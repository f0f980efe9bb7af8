//! The program `portcullis`: parse, wire, run.

mod args;
mod cli;
mod client;
mod config;
mod config_error;
mod demo;
mod explain;
mod failure;
mod lifecycle;
mod metrics;
mod output;
mod secrets;
mod telemetry;
mod wiring;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    if let Ok(spec) = std::env::var("PORTCULLIS_TEST_CRASH_AT") {
        kernel::arm_crash_point(&spec);
    }
    let args = args::Args::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: starting the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let globals = args.globals.clone();
    runtime
        .block_on(cli::run(args))
        .unwrap_or_else(|failure| failure.report(&globals))
}
