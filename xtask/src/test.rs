//! Running every test, and saying what was not run.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use testkit::peers::{PEERS, SKIPPED_VARIABLE};

use crate::run::{self, Watch};

/// The variable that tells the end-to-end tests which program to run.
const PROGRAM_VARIABLE: &str = "PORTCULLIS_BIN";

/// Builds everything once, then runs it. With `require_peers` a peer that is missing is a failure before
/// anything is built.
pub fn all(require_peers: bool) -> Result<ExitCode> {
    let missing: Vec<&str> = PEERS
        .iter()
        .filter(|peer| peer.path().is_none())
        .map(|peer| peer.name)
        .collect();
    if require_peers && !missing.is_empty() {
        bail!(
            "peers are missing: {}; get them with `cargo xtask peers`",
            missing.join(", ")
        );
    }
    let watch = Watch::start();
    // All targets in one build: the program and the tests then share the features of every dependency, and
    // nothing is compiled twice.
    run::cargo(&["build", "--workspace", "--all-targets"])?;
    println!("built in {} s", watch.seconds());

    let skipped = tempfile::NamedTempFile::new()?;
    let mut tests = run::cargo_command()
        .args(["test", "--workspace", "--no-fail-fast"])
        .env(PROGRAM_VARIABLE, program()?)
        .env(SKIPPED_VARIABLE, skipped.path())
        .stdout(Stdio::piped())
        .spawn()
        .context("running cargo test")?;
    let mut sum = Sum::default();
    for line in BufReader::new(tests.stdout.take().context("cargo test has no output")?).lines() {
        let line = line?;
        sum.add(&line);
        println!("{line}");
    }
    let status = tests.wait()?;
    println!(
        "{} passed, {} failed in {} s",
        sum.passed,
        sum.failed,
        watch.seconds()
    );

    let skipped = std::fs::read_to_string(skipped.path())?;
    let peers: BTreeSet<&str> = skipped
        .lines()
        .filter_map(|line| line.split('\t').next())
        .collect();
    let mut good = status.success() && sum.failed == 0;
    if !peers.is_empty() {
        let tests = skipped.lines().count();
        let names: Vec<&str> = peers.into_iter().collect();
        println!("not run, for want of {} ({tests} tests)", names.join(", "));
        good &= !require_peers;
    }
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The program that `cargo build` made.
fn program() -> Result<PathBuf> {
    let metadata = run::metadata()?;
    let target = metadata["target_directory"]
        .as_str()
        .context("cargo metadata names no target directory")?;
    Ok(PathBuf::from(target).join("debug/portcullis"))
}

/// The results of all test programs.
#[derive(Debug, Default, PartialEq)]
struct Sum {
    passed: u64,
    failed: u64,
}

impl Sum {
    /// Adds a line such as `test result: ok. 12 passed; 0 failed; 0 ignored; …`; any other is nothing.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        for part in result.split(['.', ';']) {
            match part.trim().split_once(' ') {
                Some((count, "passed")) => self.passed += count.parse().unwrap_or(0),
                Some((count, "failed")) => self.failed += count.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_programs_are_added() {
        let mut sum = Sum::default();
        sum.add("test it_works ... ok");
        sum.add(
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
        );
        sum.add("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.1s");
        assert_eq!(
            sum,
            Sum {
                passed: 15,
                failed: 2
            }
        );
    }
}
