//! A process that ends with the test.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

/// How often something that is awaited is looked at, in milliseconds.
const LOOK_MS: u64 = 10;
/// How long a process may take to do what is awaited, in seconds: a loaded machine is slow, a hang is longer.
const WAIT_SECONDS_MAX: u64 = 60;

/// Asks `question` until it answers, or a minute has passed.
pub fn wait_for<T>(mut question: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 0..WAIT_SECONDS_MAX * 1_000 / LOOK_MS {
        if let Some(answer) = question() {
            return Some(answer);
        }
        thread::sleep(Duration::from_millis(LOOK_MS));
    }
    None
}

/// What a process wrote, both streams in one file.
#[derive(Debug, Clone)]
pub struct Log {
    path: PathBuf,
}

impl Log {
    /// # Errors
    /// If the file cannot be made.
    fn create(path: &Path) -> io::Result<(Self, File)> {
        let file = File::options().create(true).append(true).open(path)?;
        Ok((
            Self {
                path: path.to_owned(),
            },
            file,
        ))
    }

    /// All of it so far.
    #[must_use]
    pub fn text(&self) -> String {
        std::fs::read(&self.path)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }
}

/// A running process. Dropped, it is killed and waited for.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: Log,
}

impl Process {
    /// Starts `command` with both its streams into the file `log`.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(command: &mut Command, log: &Path) -> io::Result<Self> {
        let (log, file) = Log::create(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("starting {:?}: {error}", command.get_program()),
                )
            })?;
        Ok(Self { child, log })
    }

    /// Waits until `question` finds its answer in what the process wrote.
    ///
    /// # Errors
    /// If the process ends before, or does not come to it within a minute; the error holds what it wrote.
    pub fn wait_for_log<T>(&mut self, question: impl Fn(&str) -> Option<T>) -> io::Result<T> {
        let log = self.log.clone();
        let found = wait_for(|| {
            let ended = self.child.try_wait().ok().flatten().is_some();
            // Looked at after the end was asked for, so that the last lines of a process that ends count.
            match question(&log.text()) {
                Some(found) => Some(Some(found)),
                None => ended.then_some(None),
            }
        });
        found
            .flatten()
            .ok_or_else(|| io::Error::other(format!("a process did not come up; it wrote:\n{}", log.text())))
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal by its name, such as `TERM`.
    ///
    /// # Errors
    /// If it cannot be sent.
    pub fn signal(&self, name: &str) -> io::Result<()> {
        Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.id().to_string())
            .status()
            .map(|_| ())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it does not end within a minute.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        wait_for(|| self.child.try_wait().transpose())
            .unwrap_or_else(|| Err(io::Error::other("a process did not end")))
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
