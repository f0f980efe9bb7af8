//! The steps between two durable writes. Each can be made the last of the process (`kernel::crash_point`),
//! and in unit tests each can be made to fail.

use crate::error::TlogError;

/// The batch is in the transaction, not committed.
pub(crate) const STAGED: &str = "tlog.staged";
/// The batch is durable, nobody was answered.
pub(crate) const COMMITTED: &str = "tlog.committed";
/// An entry bundle is durable.
pub(crate) const BUNDLE_WRITTEN: &str = "tlog.bundle_written";
/// The hash tile over it is durable.
pub(crate) const TILE_WRITTEN: &str = "tlog.tile_written";
/// A tile of a higher level is durable.
pub(crate) const UPPER_TILE_WRITTEN: &str = "tlog.upper_tile_written";
/// The rows that lie in tiles are deleted in the transaction, not committed.
pub(crate) const PRUNE_STAGED: &str = "tlog.prune_staged";
/// The rows that lie in tiles are gone.
pub(crate) const PRUNED: &str = "tlog.pruned";

/// The checkpoint is about to be read back, because a commit was not confirmed. Nothing durable happens here.
pub(crate) const READ_BACK: &str = "tlog.read_back";

/// Every point at which a test can end the process, in the order in which an entry passes them.
pub const CRASH_POINTS: &[&str] = &[
    STAGED,
    COMMITTED,
    BUNDLE_WRITTEN,
    TILE_WRITTEN,
    UPPER_TILE_WRITTEN,
    PRUNE_STAGED,
    PRUNED,
];

/// Which steps fail next, each once. Holds nothing outside of unit tests.
#[derive(Clone, Default)]
pub(crate) struct Faults {
    #[cfg(test)]
    armed: std::sync::Arc<std::sync::Mutex<Vec<&'static str>>>,
}

impl Faults {
    /// Passes a step.
    #[cfg(not(test))]
    pub(crate) fn pass(&self, point: &'static str) -> Result<(), TlogError> {
        kernel::crash_point(point);
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn pass(&self, point: &'static str) -> Result<(), TlogError> {
        let mut armed = self.armed.lock().unwrap();
        let Some(at) = armed.iter().position(|armed| *armed == point) else {
            return Ok(());
        };
        armed.swap_remove(at);
        Err(TlogError::Missing {
            what: format!("the answer at {point}"),
        })
    }

    #[cfg(test)]
    pub(crate) fn arm(&self, point: &'static str) {
        self.armed.lock().unwrap().push(point);
    }

    #[cfg(test)]
    pub(crate) fn is_armed(&self) -> bool {
        !self.armed.lock().unwrap().is_empty()
    }
}
