//! Registries that other people wrote, each in a folder of its own that goes with it.

use std::io;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::Process;

/// A registry of the distribution project, 2.8 or 3.x: neither has the referrers API.
#[derive(Debug)]
pub struct Distribution {
    address: String,
    _process: Process,
    _folder: TempDir,
}

impl Distribution {
    /// Starts `program` with storage in a temporary folder.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start(program: &Path) -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("config.yml");
        // The catalogue, redirects and health checks stay as they come; deleting is on because garbage
        // collection of signatures needs it. Traces would go to a collector that is not there.
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    \
                 enabled: true\nhttp:\n  addr: 127.0.0.1:0\n",
                folder.path().join("data").display()
            ),
        )?;
        let mut command = Command::new(program);
        command
            .arg("serve")
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none");
        let mut process = Process::start(&mut command, &folder.path().join("log"))?;
        let address = process.wait_for_log(listening)?;
        Ok(Self {
            address,
            _process: process,
            _folder: folder,
        })
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }
}

/// A registry with the referrers API.
#[derive(Debug)]
pub struct ReferrersRegistry {
    address: String,
    _process: Process,
    _folder: TempDir,
}

impl ReferrersRegistry {
    /// Starts `program` with storage in a temporary folder.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start(program: &Path) -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let blobs = folder.path().join("blobs");
        std::fs::create_dir(&blobs)?;
        let mut command = Command::new(program);
        command.arg("0").arg(&blobs);
        let mut process = Process::start(&mut command, &folder.path().join("log"))?;
        let address = process.wait_for_log(listening)?;
        Ok(Self {
            address,
            _process: process,
            _folder: folder,
        })
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }
}

/// The address in `… listening on 127.0.0.1:PORT`, which each of them writes once it listens.
fn listening(log: &str) -> Option<String> {
    let (_, rest) = log.split_once("listening on 127.0.0.1:")?;
    let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
    // The line may be half written: what follows the number proves that it is whole.
    (rest.len() > port.len()).then(|| format!("127.0.0.1:{port}"))
}
