//! How many connections the process may have: its file descriptors, less what everything else needs.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors kept for the database, blobs and calls to registries: a quarter, and this many at least.
const RESERVE_MIN: u64 = 64;
/// Connections with however many descriptors: each takes some 20 KiB, so that this is 160 MiB at worst.
const CONNECTIONS_MAX: u64 = 8_192;
/// Connections with however few descriptors.
const CONNECTIONS_MIN: u64 = 16;
/// What most systems give, for one that does not say.
const DESCRIPTORS_USUAL: u64 = 1_024;

/// Raises the process's limit of descriptors as far as it may, and says how many connections that allows.
#[must_use]
pub fn connections_max() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let soft = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        // Then it stays as it is.
        Err(_) => limit.current,
    };
    // No limit at all is said with none.
    let descriptors = soft.or(limit.current).unwrap_or(DESCRIPTORS_USUAL);
    usize::try_from(connections_of(descriptors)).unwrap_or(usize::MAX)
}

fn connections_of(descriptors: u64) -> u64 {
    let reserve = (descriptors / 4).max(RESERVE_MIN);
    descriptors
        .saturating_sub(reserve)
        .clamp(CONNECTIONS_MIN, CONNECTIONS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_and_at_least_64_descriptors_stay_free() {
        assert_eq!(connections_of(256), 192);
        assert_eq!(connections_of(1_024), 768);
        assert_eq!(connections_of(100), 36);
        assert_eq!(connections_of(64), CONNECTIONS_MIN);
        assert_eq!(connections_of(1 << 20), CONNECTIONS_MAX);
    }
}
