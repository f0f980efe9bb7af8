//! What signing has come to since the start.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts that only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Images that were signed.
    pub new: u64,
    /// Answers with a signature that stood already.
    pub known: u64,
}

#[derive(Default)]
pub(crate) struct Counts {
    new: AtomicU64,
    known: AtomicU64,
}

impl Counts {
    pub fn count_new(&self) {
        self.new.fetch_add(1, Ordering::Relaxed);
    }

    pub fn count_known(&self) {
        self.known.fetch_add(1, Ordering::Relaxed);
    }

    pub fn read(&self) -> Tally {
        Tally {
            new: self.new.load(Ordering::Relaxed),
            known: self.known.load(Ordering::Relaxed),
        }
    }
}
