//! The blob store: is it ours?
//!
//! A blob with the installation's id lies in it. The database remembers that it was written, so a store without it is
//! not a new one but another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use kernel::Clock;
use store::Blobs;

use crate::database::unanswered;
use crate::marks::Marks;
use crate::state::{Finding, Kind, State};
use crate::watch::Probe;

/// The name of the blob.
pub const INSTALLATION_BLOB: &str = "installation";
/// The name of the mark that it was written.
const MARK: &str = "blobs";

/// Looks at the blob store.
pub struct BlobsProbe {
    blobs: Blobs,
    marks: Marks,
    clock: Arc<dyn Clock>,
    installation: String,
    remembered: AtomicBool,
}

impl BlobsProbe {
    #[must_use]
    pub fn new(blobs: Blobs, marks: Marks, clock: Arc<dyn Clock>, installation: String) -> Self {
        Self {
            blobs,
            marks,
            clock,
            installation,
            remembered: AtomicBool::new(false),
        }
    }

    /// Writes the blob into the store of an installation that never had one. Of two servers that begin at once with
    /// two places, one is refused.
    async fn begin(&self) -> Finding {
        let expected = self.expected();
        let written = self
            .blobs
            .put(INSTALLATION_BLOB, self.installation.clone().into_bytes().into());
        let claimed = self
            .marks
            .claim(MARK, &self.installation, self.clock.now(), written);
        match claimed.await {
            Ok(true) => {
                self.remembered.store(true, Ordering::Relaxed);
                Finding::new(State::Ok, expected.clone(), expected)
            }
            // Another server on the same store may just have been first.
            Ok(false) => match self.blobs.get(INSTALLATION_BLOB).await {
                Ok(Some(found)) if found == self.installation.as_bytes() => {
                    Finding::new(State::Ok, expected.clone(), expected)
                }
                Ok(_) => Finding::new(
                    State::WrongStore,
                    expected,
                    "a store that was never this installation's, or lost its blobs",
                ),
                Err(error) => Finding::new(State::Unreachable, expected, unanswered(&error)),
            },
            Err(error) => Finding::new(State::Unreachable, expected, unanswered(&error)),
        }
    }

    /// Writes down, once, that the blob is there. Until that has gone well, every look tries.
    async fn remember(&self) {
        if self.remembered.load(Ordering::Relaxed) {
            return;
        }
        match self.marks.keep(MARK, &self.installation, self.clock.now()).await {
            Ok(()) => self.remembered.store(true, Ordering::Relaxed),
            Err(error) => tracing::debug!(
                error = kernel::chain(&error),
                "not written down that blobs are there"
            ),
        }
    }
}

#[async_trait]
impl Probe for BlobsProbe {
    fn name(&self) -> &str {
        "blobs"
    }

    fn kind(&self) -> Kind {
        Kind::Blobs
    }

    fn expected(&self) -> String {
        format!("installation {}", self.installation)
    }

    async fn look(&self) -> Finding {
        let expected = self.expected();
        match self.blobs.get(INSTALLATION_BLOB).await {
            Err(error) => Finding::new(State::Unreachable, expected, unanswered(&error)),
            Ok(None) => self.begin().await,
            Ok(Some(found)) if found == self.installation.as_bytes() => {
                self.remember().await;
                Finding::new(State::Ok, expected.clone(), expected)
            }
            Ok(Some(found)) => {
                let found = kernel::words(&String::from_utf8_lossy(&found));
                Finding::new(State::WrongStore, expected, format!("installation {found}"))
            }
        }
    }
}
