//! Places for connections: so many and no more, and whoever is idle the longest makes room.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kernel::Monotonic;

use super::connection::Watch;

/// Places of one kind, and who has them.
pub(super) struct Places {
    most: usize,
    taken: Mutex<HashMap<u64, Arc<Watch>>>,
    next: AtomicU64,
}

/// One of them, left when it is dropped: when the connection's task ends, however it ends.
pub(super) struct Place {
    places: Arc<Places>,
    id: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken().remove(&self.id);
    }
}

impl Places {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            taken: Mutex::default(),
            next: AtomicU64::new(0),
        })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<u64, Arc<Watch>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_full(&self) -> bool {
        self.taken().len() >= self.most
    }

    pub(super) fn is_empty(&self) -> bool {
        self.taken().is_empty()
    }

    pub(super) fn take(self: &Arc<Self>, watch: Arc<Watch>) -> Place {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.taken().insert(id, watch);
        Place {
            places: self.clone(),
            id,
        }
    }

    /// Cuts the connection that has been idle the longest. `false`: all of them work.
    pub(super) fn make_room(&self, now: Monotonic) -> bool {
        let mut taken = self.taken();
        let idle = taken
            .iter()
            .filter_map(|(id, watch)| Some((watch.gives_way_since(now)?, *id)));
        let Some((_, id)) = idle.min() else {
            return false;
        };
        // Off the list at once: its place is taken by whoever comes.
        if let Some(watch) = taken.remove(&id) {
            watch.cut.cancel();
        }
        true
    }

    pub(super) fn for_each(&self, what: impl FnMut(&Arc<Watch>)) {
        self.taken().values().for_each(what);
    }
}
