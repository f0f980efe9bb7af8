//! The embedded log behind the signing domain's port.

use std::sync::Arc;

use async_trait::async_trait;
use kernel::Fault;
use signing::ports::{Log, LoggedEntry, NewEntry};
use signing::trust::TrustRoot;
use tlog::{HashedRekord, Tlog};

/// The embedded log behind the signing domain's port.
pub struct EmbeddedLog {
    pub tlog: Tlog,
    pub trust: Arc<TrustRoot>,
}

#[async_trait]
impl Log for EmbeddedLog {
    async fn append(&self, entry: NewEntry) -> Result<LoggedEntry, Box<dyn Fault>> {
        let NewEntry {
            digest,
            signature,
            public_key,
        } = entry;
        let verifier = tlog::Verifier::PublicKey(public_key);
        let entry = HashedRekord {
            digest: digest.as_bytes().to_vec(),
            signature,
            verifier,
        };
        match self.tlog.append(&entry).await {
            Ok(entry) => Ok(LoggedEntry {
                index: entry.index,
                json: entry.json,
            }),
            Err(error) => Err(Box::new(error)),
        }
    }

    fn trust(&self) -> &Arc<TrustRoot> {
        &self.trust
    }
}
