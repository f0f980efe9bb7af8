//! Named points at which a test can make the process die.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

static ARMED: OnceLock<(String, AtomicU32)> = OnceLock::new();

/// Arms one point: `name` or `name:N` dies when the point is passed for the N-th time (from 1). Called
/// once, by `main`, from a variable that only tests set. A second call changes nothing.
pub fn arm_crash_point(spec: &str) {
    let (name, nth) = spec
        .rsplit_once(':')
        .map_or((spec, 1), |(name, nth)| (name, nth.parse().unwrap_or(1)));
    let _ = ARMED.set((name.to_owned(), AtomicU32::new(nth)));
}

/// A step between two durable writes, named `<domain>.<after what>`. Does nothing unless a test armed it;
/// then the process ends here at once, with nothing flushed and no destructor run, as under `kill -9`.
pub fn crash_point(name: &str) {
    if let Some((armed, left)) = ARMED.get()
        && armed == name
        && left.fetch_sub(1, Ordering::SeqCst) == 1
    {
        std::process::abort();
    }
}
