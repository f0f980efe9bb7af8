//! One core for the server, the other for everything that would be on other machines.

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

/// Keeps this process off the server's core, until it is dropped.
pub struct Apart;

impl Apart {
    pub fn new() -> Result<Self> {
        pin("1")?;
        Ok(Self)
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let cores = std::thread::available_parallelism().map_or(2, usize::from).max(2);
        // Where it fails, what is measured next has one core less, and says so by its figures.
        let _ = pin(&format!("0-{}", cores - 1));
    }
}

fn pin(cores: &str) -> Result<()> {
    let own = std::process::id().to_string();
    let status = Command::new("taskset")
        .args(["--all-tasks", "--cpu-list", "--pid", cores, &own])
        .stdout(Stdio::null())
        .status()?;
    ensure!(
        status.success(),
        "taskset --cpu-list {cores} failed: this benchmark needs two cores"
    );
    Ok(())
}
