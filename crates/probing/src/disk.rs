//! The disk of the data folder: is there room?

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use rustix::fs::statvfs;

use crate::state::{Finding, Kind, State};
use crate::watch::Probe;

/// Less is low, in bytes: hours of signing at a hundred signatures a second, and time for somebody to come.
const FREE_BYTES_MIN: u64 = 512 << 20;
/// Less is low, in files, where the file system counts them: the log needs a few for each 256 entries.
const FREE_FILES_MIN: u64 = 10_000;

/// Looks at a folder's file system.
pub struct DiskProbe {
    folder: PathBuf,
    /// A look that hangs, as on a network disk that is gone, holds a thread: there is never a second one.
    busy: Arc<AtomicBool>,
}

impl DiskProbe {
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            busy: Arc::default(),
        }
    }
}

/// `files` is how many there may be in all and how many more; a file system that does not count them says none at all.
fn judge(free_bytes: u64, files: (u64, u64)) -> Finding {
    let (all_files, free_files) = files;
    let megabytes = free_bytes >> 20;
    let low = free_bytes < FREE_BYTES_MIN || (all_files > 0 && free_files < FREE_FILES_MIN);
    let expected = format!(
        "at least {} MiB and {FREE_FILES_MIN} files free",
        FREE_BYTES_MIN >> 20
    );
    let mut found = format!("{megabytes} MiB");
    if all_files > 0 {
        found.push_str(&format!(" and {free_files} files"));
    }
    let state = if low { State::Low } else { State::Ok };
    Finding::new(state, expected, format!("{found} free"))
}

#[async_trait]
impl Probe for DiskProbe {
    fn name(&self) -> &str {
        "disk"
    }

    fn kind(&self) -> Kind {
        Kind::Disk
    }

    fn expected(&self) -> String {
        judge(0, (0, 0)).expected
    }

    async fn look(&self) -> Finding {
        let broken = |found: String| Finding::new(State::Unreachable, self.expected(), found);
        if self.busy.swap(true, Ordering::SeqCst) {
            return broken(format!(
                "{} has not answered an earlier look",
                self.folder.display()
            ));
        }
        let (folder, busy) = (self.folder.clone(), self.busy.clone());
        let asked = tokio::task::spawn_blocking(move || {
            let answer = statvfs(&folder);
            busy.store(false, Ordering::SeqCst);
            answer
        });
        match asked.await {
            Ok(Ok(disk)) => judge(
                disk.f_bavail.saturating_mul(disk.f_frsize),
                (disk.f_files, disk.f_favail),
            ),
            Ok(Err(error)) => broken(format!("{}: {error}", self.folder.display())),
            Err(error) => broken(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_room_or_few_files_is_low() {
        for (bytes, files, state) in [
            (FREE_BYTES_MIN, (0, 0), State::Ok),
            (FREE_BYTES_MIN - 1, (0, 0), State::Low),
            (u64::MAX, (1_000_000, FREE_FILES_MIN), State::Ok),
            (u64::MAX, (1_000_000, 9), State::Low),
        ] {
            assert_eq!(judge(bytes, files).state, state, "{bytes} {files:?}");
        }
    }

    #[tokio::test]
    async fn a_folder_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let there = DiskProbe::new(folder.path().to_owned()).look().await;
        assert_ne!(there.state, State::Unreachable, "{there:?}");
        let gone = DiskProbe::new(folder.path().join("gone")).look().await;
        assert_eq!(gone.state, State::Unreachable, "{gone:?}");
    }
}
