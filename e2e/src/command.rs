//! Commands, and what came of them.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

/// What a command did.
#[derive(Debug, Clone)]
pub struct Ran {
    /// `None`: a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    #[must_use]
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }

    /// Everything that it wrote.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// # Panics
    /// If the command did not end with 0.
    #[track_caller]
    pub fn expect_ok(self) -> Self {
        assert!(
            self.ok(),
            "a command ended with {:?}:\n{}",
            self.code,
            self.text()
        );
        self
    }

    /// # Panics
    /// If the command did not fail with this code of ours.
    #[track_caller]
    pub fn expect_refused(self, code: &str) -> Self {
        assert!(
            !self.ok() && self.stderr.contains(&format!("error[{code}]")),
            "a command ended with {:?} and not with {code}:\n{}",
            self.code,
            self.text()
        );
        self
    }
}

/// Runs a command to its end.
///
/// # Errors
/// If it does not start.
pub fn run(command: &mut Command) -> Result<Ran> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {program}"))?;
    Ok(Ran {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
