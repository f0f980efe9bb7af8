//! What is asked for, and what stands in the end.

use flow::Class;
use jiff::Timestamp;
use kernel::{Digest, Id, Reference, Repository};

use crate::Formats;
use crate::format::Annotations;

/// What is wanted.
#[derive(Debug, Clone)]
pub struct SignRequest {
    pub image: Reference,
    /// A key of the project; [`DEFAULT_KEY`] if `None`.
    pub key: Option<String>,
    pub annotations: Annotations,
    /// Also every manifest under an index.
    pub recursive: bool,
    /// Look into the registry for a signature that stands already, and put it back if it is lost there.
    pub repair: bool,
    /// The registry's configured formats if `None`.
    pub formats: Option<Formats>,
    /// With whom it shares the turns.
    pub class: Class,
}

/// A signature that stands: durable here, in the log and in the registry.
#[derive(Debug, Clone)]
pub struct Signed {
    pub id: Id,
    pub repository: Repository,
    pub digest: Digest,
    pub key: String,
    pub key_id: String,
    pub formats: Formats,
    pub log_index: Option<u64>,
    pub created_at: Timestamp,
    /// Whether it stood already.
    pub deduplicated: bool,
    /// Whether the registry had lost it, and holds it again.
    pub repaired: bool,
}

/// What makes two requests the same before it is known which image they mean.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Ask {
    pub project: String,
    pub image: String,
    pub key_id: String,
    /// Hex SHA-256 over annotations and formats.
    pub payload: String,
    pub recursive: bool,
    pub repair: bool,
}
