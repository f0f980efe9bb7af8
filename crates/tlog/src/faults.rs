//! The steps between two durable writes. Each can be made the last of the process (`kernel::crash_point`, under the
//! name of the log, a point and the step), and in unit tests each can be made to fail.

use crate::error::TlogError;
use crate::name::Name;

/// The batch is in the transaction, not committed.
pub(crate) const STAGED: &str = "staged";
/// The batch is durable, nobody was answered.
pub(crate) const COMMITTED: &str = "committed";
/// An entry bundle is durable.
pub(crate) const BUNDLE_WRITTEN: &str = "bundle_written";
/// The hash tile over it is durable.
pub(crate) const TILE_WRITTEN: &str = "tile_written";
/// A tile of a higher level is durable.
pub(crate) const UPPER_TILE_WRITTEN: &str = "upper_tile_written";
/// The rows that lie in tiles are deleted in the transaction, not committed.
pub(crate) const PRUNE_STAGED: &str = "prune_staged";
/// The rows that lie in tiles are gone.
pub(crate) const PRUNED: &str = "pruned";

/// The checkpoint is about to be read back, because a commit was not confirmed. Nothing durable happens here.
pub(crate) const READ_BACK: &str = "read_back";

/// Every step at which a test can end the process, in the order in which an entry passes them: `tlog.staged` is the
/// first one of the signatures' log.
pub const CRASH_STEPS: &[&str] = &[
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
    /// Passes a step of the log `name`.
    #[cfg(not(test))]
    pub(crate) fn pass(&self, name: Name, step: &'static str) -> Result<(), TlogError> {
        kernel::crash_point(&format!("{}.{step}", name.prefix()));
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn pass(&self, name: Name, step: &'static str) -> Result<(), TlogError> {
        let mut armed = self.armed.lock().unwrap();
        let Some(at) = armed.iter().position(|armed| *armed == step) else {
            return Ok(());
        };
        armed.swap_remove(at);
        Err(TlogError::Missing {
            what: format!("the answer at {}.{step}", name.prefix()),
        })
    }

    #[cfg(test)]
    pub(crate) fn arm(&self, step: &'static str) {
        self.armed.lock().unwrap().push(step);
    }

    #[cfg(test)]
    pub(crate) fn is_armed(&self) -> bool {
        !self.armed.lock().unwrap().is_empty()
    }
}
