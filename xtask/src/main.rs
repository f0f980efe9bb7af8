//! `cargo xtask`: what a developer and the build do with this repository, in one place.
//!
//! ```text
//!   cargo xtask peers [--list]            gets the real peers that the tests run against
//!   cargo xtask test [--require-peers]    runs every test
//!   cargo xtask house                     holds the crates against the architecture
//!   cargo xtask bench NAME…               measures; see bench/
//! ```

mod house;
mod peers;
mod run;
mod test;

use std::process::ExitCode;

use anyhow::Result;

const USAGE: &str = "usage:
  cargo xtask peers [--list]           get the real peers that the tests run against, or say what is there
  cargo xtask test [--require-peers]   run every test; with CI=true or the option, no peer may be missing
  cargo xtask house                    hold the crates against the architecture
  cargo xtask bench NAME [--json]      measure: all, or one of those that it lists when asked without a name
  cargo xtask bench log-memory         fills a log of ten million entries, most of an hour; in `all`, one million
  cargo xtask soak [--minutes M] [--seed N]  three servers at half load with everything going wrong; 60 minutes
  cargo xtask bench kill [TIMES]       the kill tests, 50 times over if not said otherwise: over 10,000 kills";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match dispatch(&words) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(words: &[&str]) -> Result<ExitCode> {
    match words {
        ["peers"] => peers::get(),
        ["peers", "--list"] => peers::list(),
        ["test"] => test::all(std::env::var("CI").is_ok_and(|value| value == "true")),
        ["test", "--require-peers"] => test::all(true),
        ["house"] => house::report(),
        ["bench", "kill", times @ ..] => kill(times),
        ["bench", args @ ..] => bench(args),
        ["soak", args @ ..] => soak(args),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        _ => {
            eprintln!("{USAGE}");
            Ok(ExitCode::from(2))
        }
    }
}

/// Measures with the release profile: what users run. Both programs are built at once, so that the server is
/// compiled with the same features in each run and not built again for another set.
fn bench(args: &[&str]) -> Result<ExitCode> {
    run::cargo(&[
        "build",
        "--release",
        "--package",
        "portcullis",
        "--package",
        "bench",
    ])?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| run::root().join("target"), Into::into);
    let status = std::process::Command::new(target.join("release/bench"))
        .args(args)
        .status()?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// An hour of load in which everything goes wrong. The same seed brings the same troubles.
fn soak(args: &[&str]) -> Result<ExitCode> {
    let (mut minutes, mut seed) = ("60", "1");
    for pair in args.chunks(2) {
        match pair {
            ["--minutes", value] => minutes = value,
            ["--seed", value] => seed = value,
            _ => anyhow::bail!("cargo xtask soak [--minutes M] [--seed N]"),
        }
    }
    bench(&["soak", minutes, seed])
}

/// The kill tests many times over, with the release build of the program.
fn kill(times: &[&str]) -> Result<ExitCode> {
    run::cargo(&[
        "build",
        "--release",
        "--package",
        "portcullis",
        "--package",
        "bench",
    ])?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| run::root().join("target"), Into::into);
    let status = run::cargo_command()
        .args(["test", "--package", "e2e", "--", "--nocapture", "kill_"])
        .env("PORTCULLIS_BIN", target.join("release/portcullis"))
        .env("PORTCULLIS_KILLS_TIMES", times.first().unwrap_or(&"50"))
        .status()?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
