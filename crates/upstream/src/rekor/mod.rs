//! The client of somebody else's transparency log: Rekor v1, or v2 (rekor-tiles).
//!
//! Nothing that the log says is believed. A checkpoint counts when the key that was configured signed it; that one
//! checkpoint follows another is proven, by an online proof (v1) or from tiles (v2); an entry counts when its
//! inclusion is proven under such a checkpoint and its body is the one that was sent.
//!
//! ```text
//!   config ── url, key, origin; checked without the log
//!      │
//!   Client ── checkpoint, follows (v1: /api/v1/log, /log/proof; v2: /api/v2/checkpoint, tiles)
//!      │  └── append (hashedrekord; an entry that is there already is a success)
//!      ├── contain    was the log that the probe found well once as an answer says?
//!      ├── document   pure: what the answers mean
//!      └── probe      what is looked at every few seconds
//! ```
//!
//! It keeps nothing on disk and never retries by itself: who calls knows how long it may wait.

mod append;
mod config;
mod contain;
pub mod document;
mod error;
mod probe;
mod tiles;
mod transport;

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::PoisonError;

use jiff::Timestamp;
use tlog::merkle::Hash;
use tlog::{Checkpoint, CheckpointError, LogVerifier, TlogError};

pub use append::Logged;
pub use config::{Api, ConfigError, Settings, TrustedLog};
pub use error::{RekorError, RekorReason, codes};
pub use probe::LogProbe;

use crate::certificate::Shown;
use transport::{Answer, Connections, Transport};

/// A log of somebody else's.
pub struct Client {
    transport: Transport,
    trusted: TrustedLog,
    configured: Api,
    /// Which API answered, where the configuration leaves it open.
    found: Mutex<Option<Api>>,
    known: Mutex<contain::Known>,
    /// How often an entry was searched for that the log says it has, by its leaf.
    missed: Mutex<HashMap<Hash, u32>>,
}

/// A checkpoint that was just read and is signed by the log's key, with what else its answer told.
#[derive(Debug, Clone)]
pub struct Observed {
    pub checkpoint: Checkpoint,
    pub api: Api,
    /// The log server's clock, in whole seconds.
    pub date: Option<Timestamp>,
    /// Over TLS only.
    pub certificate: Option<Shown>,
}

impl Client {
    /// A client of the log that `settings` describe. The log need not be there.
    ///
    /// # Errors
    /// When the settings cannot be used.
    pub fn new(settings: &Settings) -> Result<Self, ConfigError> {
        let checked = settings.checked()?;
        Ok(Self {
            transport: Transport::new(checked.url, settings.ca_pem.as_deref(), settings.call_seconds_max)?,
            trusted: checked.trusted,
            configured: settings.api,
            found: Mutex::new(None),
            known: Mutex::default(),
            missed: Mutex::default(),
        })
    }

    /// The log that is expected at the address.
    #[must_use]
    pub fn trusted(&self) -> &TrustedLog {
        &self.trusted
    }

    /// The address, without anything secret.
    #[must_use]
    pub fn url(&self) -> &str {
        self.transport.base.as_str()
    }

    /// Sends nothing more over connections that were opened until now.
    pub(super) fn let_go(&self) {
        self.transport.let_go();
    }

    /// Reads the newest checkpoint over a new connection, so that whoever the name leads to now answers.
    ///
    /// # Errors
    /// [`RekorReason::Unreachable`], [`RekorReason::NotALog`] or [`RekorReason::WrongLog`].
    pub async fn checkpoint(&self) -> Result<Observed, RekorError> {
        let read = async {
            match self.api() {
                Api::Auto => match self.checkpoint_by(Api::V2, Connections::Fresh).await {
                    Err(RekorReason::NotALog(v2)) => self
                        .checkpoint_by(Api::V1, Connections::Fresh)
                        .await
                        .map_err(|error| match error {
                            RekorReason::NotALog(v1) if v1 == v2 => RekorReason::NotALog(v1),
                            RekorReason::NotALog(v1) => {
                                RekorReason::NotALog(format!("as Rekor v2: {v2}; as Rekor v1: {v1}"))
                            }
                            other => other,
                        }),
                    other => other,
                },
                known => self.checkpoint_by(known, Connections::Fresh).await,
            }
        };
        self.failed("reading the checkpoint", read.await)
    }

    /// Proves that `new` has everything that `old` had, in the same order. Both are of this log.
    ///
    /// # Errors
    /// [`RekorReason::Forked`] if they contradict each other; others if that could not be found out.
    pub async fn follows(&self, old: &Checkpoint, new: &Observed) -> Result<(), RekorError> {
        let work = async {
            let view = self.view(new, Connections::Fresh)?;
            self.proves(&contain::head(old), new, &view, Connections::Fresh)
                .await
        };
        self.failed("proving that the log only grew", work.await)
    }

    fn api(&self) -> Api {
        let found = *self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.unwrap_or(self.configured)
    }

    fn verifier(&self, api: Api) -> LogVerifier {
        let verifier = self.trusted.verifier.clone();
        if api == Api::V1 {
            verifier.with_tree_number()
        } else {
            verifier
        }
    }

    async fn checkpoint_by(&self, api: Api, connections: Connections) -> Result<Observed, RekorReason> {
        let path = match api {
            Api::V1 => "api/v1/log",
            Api::V2 | Api::Auto => "api/v2/checkpoint",
        };
        let answer = self.transport.get(connections, path).await?.found()?;
        let note = match api {
            Api::V1 => document::signed_tree_head(&answer.body),
            Api::V2 | Api::Auto => document::note(&answer.body),
        };
        let note = note.map_err(|why| RekorReason::NotALog(answer.described(&why)))?;
        let checkpoint = self.verified(api, &note, &answer)?;
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(api);
        let Answer {
            date, certificate, ..
        } = answer;
        Ok(Observed {
            checkpoint,
            api,
            date,
            certificate,
        })
    }

    /// Checks a checkpoint against the key and name that were configured.
    fn verified(&self, api: Api, note: &str, answer: &Answer) -> Result<Checkpoint, RekorReason> {
        self.verifier(api).verify(note).map_err(|error| match error {
            CheckpointError::Malformed => {
                RekorReason::NotALog(answer.described("it is not a signed checkpoint"))
            }
            wrong => RekorReason::WrongLog {
                expected: self.trusted.described(),
                found: found(note, &wrong),
            },
        })
    }

    fn failed<T>(&self, operation: &str, outcome: Result<T, RekorReason>) -> Result<T, RekorError> {
        outcome.map_err(|reason| RekorError {
            operation: operation.to_owned(),
            log: self.url().to_owned(),
            reason,
        })
    }
}

/// A checkpoint in one line.
pub(crate) fn statement(checkpoint: &Checkpoint) -> String {
    let root = &hex::encode(checkpoint.root)[..12];
    format!("{} entries, root {root}…", checkpoint.size)
}

/// Whose checkpoint it was instead.
fn found(note: &str, error: &CheckpointError) -> String {
    let Ok(checkpoint) = Checkpoint::parse(note) else {
        return kernel::words(&error.to_string());
    };
    let signers = checkpoint.signers().join(", ");
    let found = format!("{} signed by {signers}", checkpoint.origin);
    if *error == CheckpointError::Signature {
        return kernel::words(&format!("{found}, and the signature does not verify"));
    }
    kernel::words(&found)
}

/// What a failed proof from tiles means.
fn unproven(error: TlogError) -> RekorReason {
    match error {
        TlogError::Fetch { source, .. } => match source.downcast::<RekorReason>() {
            Ok(reason) => *reason,
            Err(other) => RekorReason::Unreachable(kernel::words(&other.to_string())),
        },
        // Tiles that are not there yet, or no more, contradict nothing.
        TlogError::Missing { what } => RekorReason::Unreachable(format!(
            "{what}, which its checkpoint promises, is missing; several servers may answer behind the name, or an older copy"
        )),
        other => RekorReason::Unproven(kernel::words(&kernel::chain(&other))),
    }
}
