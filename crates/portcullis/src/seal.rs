//! The log under the audit trail: the engine of the transparency log, with leaves, a key and a name of its own.
//!
//! Whoever reads or verifies must not suffer from a damaged seal: the server starts, says so, writes records and seals
//! none, and `portcullis audit verify` names the damage. With a key that is lost or another log's it does not start, as
//! with the transparency log's: a second seal beside the first would prove nothing.

use std::sync::Arc;
use std::time::Duration;

use access::audit::SealLog;
use async_trait::async_trait;
use kernel::{Clock, Code, Fault, Kind, Random};
use store::{Blobs, Db};
use tlog::tile::TilePath;
use tlog::{Accepted, CheckpointError, LogKey, LogVerifier, Name, Owner, Settings, Tlog, TlogError};

use crate::config::Config;
use crate::failure::Failure;
use crate::{place, secrets};

/// How the origin of an audit log ends; a random part before it makes it one of a kind.
const ORIGIN: &str = "audit.portcullis";

/// The audit log behind the trail's port.
pub struct Seal {
    log: Result<Tlog, Damaged>,
    verifier: LogVerifier,
}

/// Why the log was not opened.
#[derive(Debug, Clone)]
struct Damaged(Arc<TlogError>);

impl std::fmt::Display for Damaged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the audit log was damaged when the server started")
    }
}

impl std::error::Error for Damaged {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

impl Fault for Damaged {
    fn kind(&self) -> Kind {
        self.0.kind()
    }

    fn code(&self) -> &'static Code {
        self.0.code()
    }

    fn hint(&self) -> String {
        HINT.to_owned()
    }
}

/// What helps where the transparency log's hints would mislead.
const HINT: &str = "keep a copy of the data folder as evidence, put the named file or row back from the last backup, \
and start the server again; portcullis audit verify tells whether all is well";

/// What opening needs beside the configuration.
pub struct Place {
    pub db: Db,
    pub blobs: Blobs,
    /// This server's name on the lease.
    pub holder: String,
    pub lease_ttl: Duration,
    /// By what the blobs are known to be this installation's.
    pub owner: Owner,
}

impl Seal {
    /// Opens the audit log of a database. One that there is not yet gets its key.
    pub async fn open(
        config: &Config,
        place: Place,
        clock: &dyn Clock,
        random: &dyn Random,
    ) -> Result<Self, Failure> {
        let file = config.secret_file(config.audit.key_file.as_ref(), "audit.json");
        let fresh = !tlog::exists(&place.db, Name::Audit).await.map_err(Failure::log)?;
        let secret = secrets::log_key(&file, ORIGIN, fresh, clock, random)?;
        let key = LogKey::new(&secret.origin, &secret.pkcs8)
            .map_err(|error| Failure::local("the audit log's key", &error))?;
        let verifier = key.verifier().clone();
        let shared = place.db.is_shared();
        let settings = Settings {
            name: Name::Audit,
            db: place.db,
            blobs: place.blobs,
            key,
            holder: place.holder,
            server: place::server_name(&config.data.folder)?,
            lease_ttl: place.lease_ttl,
            shared,
            mark: Some(config.data.folder.join("audit.checkpoint")),
            owner: Some(place.owner),
        };
        let log = match Tlog::open(settings).await {
            Ok(log) => Ok(log),
            Err(error) if is_another(&error) => {
                return Err(Failure::log(error).with_hint(format!(
                    "put back the audit key that belongs to this database at {}, or give every server the same",
                    file.display()
                )));
            }
            Err(error) if error.is_damage() => {
                tracing::error!(
                    error = kernel::chain(&error),
                    "the audit log is damaged: records are written and not sealed until it is put back"
                );
                Err(Damaged(Arc::new(error)))
            }
            Err(error) => return Err(Failure::log(error)),
        };
        Ok(Self { log, verifier })
    }

    /// Stops the log, after what waits is sealed.
    pub async fn close(&self) {
        if let Ok(log) = &self.log {
            log.close().await;
        }
    }

    fn log(&self) -> Result<&Tlog, Box<dyn Fault>> {
        self.log.as_ref().map_err(|damaged| boxed(damaged.clone()))
    }
}

/// Whether what is there was signed by another key or under another name.
fn is_another(error: &TlogError) -> bool {
    matches!(
        error,
        TlogError::Checkpoint(CheckpointError::Origin { .. } | CheckpointError::NotSigned { .. })
    )
}

fn boxed(fault: impl Fault) -> Box<dyn Fault> {
    Box::new(fault)
}

#[async_trait]
impl SealLog for Seal {
    fn leads(&self) -> bool {
        self.log.as_ref().is_ok_and(Tlog::leads)
    }

    async fn append(&self, leaves: Vec<Vec<u8>>) -> Result<Vec<u64>, Box<dyn Fault>> {
        let leaves = leaves.into_iter().map(Accepted::of).collect::<Result<_, _>>();
        let leaves = leaves.map_err(|error| boxed(TlogError::Entry(error)))?;
        self.log()?.include_all(leaves).await.map_err(boxed)
    }

    async fn checkpoint(&self) -> Result<String, Box<dyn Fault>> {
        let checkpoint = self.log()?.checkpoint().await.map_err(boxed)?;
        Ok(checkpoint.note)
    }

    async fn size(&self) -> Result<u64, Box<dyn Fault>> {
        Ok(self.log()?.checkpoint().await.map_err(boxed)?.size)
    }

    async fn file(&self, path: &str) -> Result<Vec<u8>, Box<dyn Fault>> {
        let log = self.log()?;
        let rest = path.strip_prefix("tile/").unwrap_or(path);
        let path = TilePath::parse(rest).map_err(|_| boxed(no_tile(path)))?;
        log.tile(path).await.map_err(boxed)
    }

    fn public_key(&self) -> String {
        self.verifier.pem()
    }
}

fn no_tile(path: &str) -> TlogError {
    TlogError::NotFound {
        size: 0,
        what: path.chars().take(60).collect(),
    }
}
