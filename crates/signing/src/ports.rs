//! What signing asks of the world outside: a registry that holds images, a log that records signatures, and perhaps a
//! log of somebody else's that is owed them too. All are traits with a test that takes them away.

use std::collections::BTreeMap;
use std::time::Duration;

use std::sync::Arc;

use crate::trust::TrustRoot;
use async_trait::async_trait;
use bytes::Bytes;
use flow::Caller;
use kernel::{Code, Digest, Fault, Kind, Monotonic, Reference, Repository};

/// A content descriptor (OCI image specification, "Content Descriptors"), as a registry wrote it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A manifest or index as it was received; `digest` is computed from `bytes`, never taken from a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub media_type: String,
    pub digest: Digest,
    pub bytes: Bytes,
}

/// What a tag should hold next, given what it holds now; see [`Registry::update_tag`].
pub type Merge<'a> =
    dyn Fn(Option<&Manifest>) -> Result<Option<NewManifest>, RegistryError> + Send + Sync + 'a;

/// A manifest to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewManifest {
    pub media_type: String,
    pub bytes: Vec<u8>,
    /// Blobs that it names and that must be stored before it (its config changes with its layers).
    pub blobs: Vec<Bytes>,
}

/// An OCI registry. The caller's project chooses the credentials: those of one project are never used for another; the
/// empty name is a person at the command line with their own Docker configuration. Callers share the registry in turns.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// The manifest that `image` names. A digest in the reference wins over a tag; the bytes must hash to it. What
    /// hashes to it and is no manifest that we know is [`RegistryReason::Unreadable`].
    async fn manifest(&self, caller: Caller<'_>, image: &Reference) -> Result<Manifest, RegistryError>;

    /// A blob of at most `bytes_max` bytes; the bytes must hash to `digest`.
    async fn blob(
        &self,
        caller: Caller<'_>,
        repository: &Repository,
        digest: Digest,
        bytes_max: usize,
    ) -> Result<Bytes, RegistryError>;

    /// Every referrer of `subject`: from the referrers API where the registry has it, else from the
    /// fallback tag (distribution specification 1.1, "Listing Referrers"). Unfiltered. No referrers is an
    /// empty list; a failure to ask is an error.
    async fn referrers(
        &self,
        caller: Caller<'_>,
        repository: &Repository,
        subject: Digest,
    ) -> Result<Vec<Descriptor>, RegistryError>;

    /// Stores a blob, unless it is there already.
    async fn push_blob(
        &self,
        caller: Caller<'_>,
        repository: &Repository,
        bytes: Bytes,
    ) -> Result<(), RegistryError>;

    /// Stores a manifest whose `subject` is `subject` under its digest and makes it a referrer of it, in
    /// the fallback tag too where the registry did not confirm the subject (`OCI-Subject`). Returns when
    /// the registry was read back and really lists it. `manifest` is the descriptor to list.
    async fn attach(
        &self,
        caller: Caller<'_>,
        repository: &Repository,
        subject: Digest,
        manifest: &Descriptor,
        bytes: Bytes,
    ) -> Result<(), RegistryError>;

    /// Read, merge, write, read back, until `merge` has nothing left to change in what the registry holds.
    /// Other processes may write the same tag at the same time, and registries have no compare-and-swap:
    /// the tag is read again after a while, and a lost update is repaired.
    async fn update_tag(
        &self,
        caller: Caller<'_>,
        repository: &Repository,
        tag: &str,
        merge: &Merge<'_>,
    ) -> Result<(), RegistryError>;
}

/// A call to a registry that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} at {registry}")]
pub struct RegistryError {
    /// What was tried, with the object: `reading the manifest of r.example/app:1`.
    pub operation: String,
    pub registry: String,
    #[source]
    pub reason: RegistryReason,
}

/// Why a call to a registry failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryReason {
    #[error("the registry does not have it")]
    NotFound,
    #[error("the registry asks for credentials, or does not accept those it got: {0}")]
    Unauthenticated(String),
    #[error("the registry knows the credentials and refuses: {0}")]
    Denied(String),
    #[error("it is larger than the cap {name} of {bytes_max} bytes")]
    TooLarge { name: &'static str, bytes_max: usize },
    #[error("it has more than {REFERRERS_MAX} referrers, the cap REFERRERS_MAX", REFERRERS_MAX = kernel::limits::REFERRERS_MAX)]
    TooManyReferrers,
    /// A registry may copy the annotations of whoever attaches something into its list.
    #[error("the list of its referrers is larger than the cap {name} of {bytes_max} bytes")]
    ListTooLarge { name: &'static str, bytes_max: usize },
    #[error("the bytes hash to {found}, not to {expected}")]
    DigestMismatch { expected: Digest, found: Digest },
    #[error("the answer is not what the specification says: {0}")]
    Malformed(String),
    /// The registry does hold this: the bytes have the digest that was asked for, or that it names with the answer to
    /// a tag. No login page of a proxy looks so.
    #[error("what the registry holds as {digest} does not read: {why}")]
    Unreadable { digest: Digest, why: String },
    #[error("the registry refused the content: {0}")]
    Refused(String),
    #[error("too many requests; the registry asks to wait {} s", .retry_after.map_or(0, |wait| wait.as_secs()))]
    Throttled { retry_after: Option<Duration> },
    #[error("other writers kept replacing the tag; {attempts} attempts were made")]
    Contended { attempts: u32 },
    #[error("plain HTTP is only for loopback addresses unless the configuration allows it")]
    PlainHttp,
    #[error("the registry's address is not allowed: {0}")]
    Address(String),
    #[error("the registry redirected to a place that the configuration does not allow: {0}")]
    Redirect(String),
    #[error("no useful answer: {0}")]
    Unavailable(String),
}

impl Fault for RegistryError {
    fn kind(&self) -> Kind {
        match self.reason {
            RegistryReason::NotFound => Kind::NotFound,
            RegistryReason::Unauthenticated(_) | RegistryReason::Denied(_) => Kind::Denied,
            RegistryReason::TooLarge { .. } => Kind::TooLarge,
            RegistryReason::DigestMismatch { .. }
            | RegistryReason::Malformed(_)
            | RegistryReason::Unreadable { .. }
            | RegistryReason::Redirect(_) => Kind::Unavailable,
            RegistryReason::Refused(_) | RegistryReason::PlainHttp | RegistryReason::Address(_) => {
                Kind::Invalid
            }
            // Nobody sent too much: what is attached could not be asked for, so nothing is known of the image.
            RegistryReason::TooManyReferrers
            | RegistryReason::ListTooLarge { .. }
            | RegistryReason::Throttled { .. }
            | RegistryReason::Contended { .. }
            | RegistryReason::Unavailable(_) => Kind::Unavailable,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self.reason {
            RegistryReason::Throttled { retry_after } => retry_after,
            _ => None,
        }
    }

    fn code(&self) -> &'static Code {
        match self.reason {
            RegistryReason::NotFound => &codes::NOT_FOUND,
            RegistryReason::Unauthenticated(_) | RegistryReason::Denied(_) => &codes::CREDENTIALS,
            RegistryReason::TooLarge { .. } => &codes::TOO_LARGE,
            RegistryReason::TooManyReferrers | RegistryReason::ListTooLarge { .. } => &codes::LIST_TOO_LARGE,
            RegistryReason::DigestMismatch { .. } => &codes::DIGEST_MISMATCH,
            RegistryReason::Malformed(_) | RegistryReason::Unreadable { .. } => &codes::MALFORMED,
            RegistryReason::Refused(_) => &codes::REFUSED,
            RegistryReason::Throttled { .. } => &codes::THROTTLED,
            RegistryReason::Contended { .. } => &codes::CONTENDED,
            RegistryReason::PlainHttp => &codes::PLAIN_HTTP,
            RegistryReason::Address(_) => &codes::ADDRESS,
            RegistryReason::Redirect(_) => &codes::REDIRECT,
            RegistryReason::Unavailable(_) => &codes::UNAVAILABLE,
        }
    }
}

/// A signature to be logged: a hashed message, its signature, and the key that checks it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEntry {
    /// SHA-256 of the signed bytes (for DSSE, of the pre-authentication encoding).
    pub digest: Digest,
    /// The signature, ASN.1 DER.
    pub signature: Vec<u8>,
    /// The public key, SubjectPublicKeyInfo DER.
    pub public_key: Vec<u8>,
}

/// An entry that is durable and included.
#[derive(Debug, Clone)]
pub struct LoggedEntry {
    pub index: u64,
    /// The `TransparencyLogEntry` of the Sigstore protobuf specification as JSON, ready for a bundle.
    pub json: Box<serde_json::value::RawValue>,
}

/// A transparency log.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// Appends, or finds the same entry again. When this returns the entry is durable and included.
    async fn append(&self, entry: NewEntry) -> Result<LoggedEntry, Box<dyn Fault>>;

    /// By what verifiers believe this log, and nothing else.
    fn trust(&self) -> &Arc<TrustRoot>;
}

/// What a log was when it signed a checkpoint (RFC 6962, section 2.1).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TreeHead {
    /// The name in the checkpoint's first line.
    pub origin: String,
    /// Entries.
    pub size: u64,
    pub root: [u8; 32],
}

/// An entry that whoever has an external log's key has included, proven under `head`.
#[derive(Debug, Clone)]
pub struct Answered {
    pub entry: LoggedEntry,
    pub head: TreeHead,
}

/// Whether the log that was found well by a look is one that was once as a tree head says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contained {
    /// That was proven.
    Yes,
    /// It is another log, a fork or a copy, and how that shows.
    No(String),
    /// It is larger than the log was at that look: a later one tells.
    NotYet,
    /// It could not be found out, and why.
    Unknown(String),
}

/// A transparency log of somebody else's. It is written to in the background, and nobody waits for it.
#[async_trait]
pub trait ExternalLog: Send + Sync + 'static {
    /// Has the log include an entry, or finds that it has it: at `last_index` it was once, if that is known, and is
    /// looked for first. What is returned was proven under its tree head, which may be a fork's; after any failure the
    /// same may be asked again, and the log has the entry once.
    async fn append(&self, entry: NewEntry, last_index: Option<u64>) -> Result<Answered, ExternalLogError>;

    /// Whether these were all the log that the last good look found ([`Looks::well`]): for each, in their order.
    async fn contains(&self, heads: &[TreeHead]) -> Vec<Contained>;

    /// Why nothing may be sent there now, if so: it is not known yet who answers there, or not the right one does.
    fn barred(&self) -> Option<String>;

    /// When it was looked who answers there. Whoever signs with the right key may still be a fork or an older copy, and
    /// only a look tells.
    fn looks(&self) -> Looks;

    /// Learns that something which was proven contradicts what it proved before; the next look names it.
    fn contradicts(&self, why: &str);
}

/// The last looks at a log, by the clock of whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Looks {
    /// When the last one began that found it to be the right one.
    pub well: Option<Monotonic>,
    /// When the last one ended that did not, whatever it found.
    pub ill: Option<Monotonic>,
    /// When the last one ended that found somebody else.
    pub wrong: Option<Monotonic>,
    /// How often a person has had another log taken for this one.
    pub taken: u64,
}

/// Why an entry is not in the external log, or is not proven to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExternalLogError {
    #[error("{0}")]
    Away(String),
    #[error("it asks to come back later")]
    Throttled { after: Option<Duration> },
    /// Somebody else answers there.
    #[error("{0}")]
    Wrong(String),
    #[error("{0}")]
    Unproven(String),
    /// It says that it does not take this entry.
    #[error("{0}")]
    Refused(String),
}

impl ExternalLogError {
    /// The words of [`Self::reason`], for who counts by them.
    pub const REASONS: [&'static str; 5] = ["away", "throttled", "wrong", "unproven", "refused"];

    /// A stable word.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        let at = match self {
            Self::Away(_) => 0,
            Self::Throttled { .. } => 1,
            Self::Wrong(_) => 2,
            Self::Unproven(_) => 3,
            Self::Refused(_) => 4,
        };
        Self::REASONS[at]
    }
}

/// The codes of registry failures.
pub mod codes {
    use kernel::Code;

    pub const NOT_FOUND: Code = Code {
        id: "PC1501",
        title: "the registry does not have it",
        explanation: "The registry answered that there is no such manifest or blob. Some registries answer \
the same to those who may not know.",
        hint: "check the name and the tag, and that the image was pushed",
    };
    pub const CREDENTIALS: Code = Code {
        id: "PC1502",
        title: "the registry does not accept the credentials",
        explanation: "The registry asked for credentials, did not accept those it got, or accepted them and \
refused the action. Signing needs permission to push to the image's repository.",
        hint: "log in with `docker login`, or set the registry's credentials in the server's configuration",
    };
    pub const TOO_LARGE: Code = Code {
        id: "PC1503",
        title: "what the registry holds is over a cap",
        explanation: "Manifests and signature blobs have caps, so that a hostile registry cannot fill memory. The \
message names the cap.",
        hint: "look at what is attached to the image with `portcullis image tree`",
    };
    pub const DIGEST_MISMATCH: Code = Code {
        id: "PC1504",
        title: "the registry sent other bytes than were asked for",
        explanation: "Everything is named by its digest, and the digest is computed from the bytes received. \
The registry, or something between, answered with different content.",
        hint: "try again; if it stays, the registry's storage is damaged or somebody changes its answers",
    };
    pub const MALFORMED: Code = Code {
        id: "PC1505",
        title: "the registry's answer does not follow the specification",
        explanation: "The answer cannot be read as the OCI distribution specification says, or it can be read \
in two ways (a document with both `layers` and `manifests` is refused).",
        hint: "check that the address is a registry and not a proxy or a login page",
    };
    pub const REFUSED: Code = Code {
        id: "PC1506",
        title: "the registry refused the content",
        explanation: "The registry does not take this manifest or blob: an old registry may not know the media \
type, or the repository is immutable.",
        hint: "try `formats = [\"legacy\"]` for this registry",
    };
    pub const THROTTLED: Code = Code {
        id: "PC1507",
        title: "the registry asks us to slow down",
        explanation: "The registry answered 429 for longer than a call may wait.",
        hint: "try again later; lower `concurrent_calls_max` for this registry",
    };
    pub const CONTENDED: Code = Code {
        id: "PC1508",
        title: "other writers kept replacing the tag",
        explanation: "The registry has no referrers API, so signatures of one image share a tag that can only \
be replaced whole. Each writer reads back and repairs; this one lost every round.",
        hint: "sign again",
    };
    pub const PLAIN_HTTP: Code = Code {
        id: "PC1509",
        title: "plain HTTP is only for loopback",
        explanation: "Without TLS anybody between can change what a registry says and read credentials.",
        hint: "use TLS, or set `plain_http = true` for this registry",
    };
    pub const REDIRECT: Code = Code {
        id: "PC1510",
        title: "the registry redirected to a forbidden place",
        explanation: "Redirects are followed without credentials, and never to loopback, link-local or private \
addresses unless the registry itself is there.",
        hint: "check the registry's storage configuration",
    };
    pub const UNAVAILABLE: Code = Code {
        id: "PC1511",
        title: "the registry does not answer usefully",
        explanation: "The connection failed, timed out or broke, or the registry answered with a server error. \
Nothing is known about the image: this is not the same as unsigned.",
        hint: "check the registry, then try again",
    };
    pub const ADDRESS: Code = Code {
        id: "PC1512",
        title: "the registry's address is not allowed",
        explanation: "The reference names, or its host name resolves to, a link-local, metadata or multicast \
address. No registry is there, but services that give out credentials of the machine are.",
        hint: "check the registry's name in the reference",
    };
    pub const LIST_TOO_LARGE: Code = Code {
        id: "PC1513",
        title: "too much is attached to the image",
        explanation: "The list of what is attached to the image has caps, on its length and on its bytes, so that \
nobody who may attach something fills memory. Any of it may be the signature, so a list that was not read to its end is \
no verdict. Some registries copy the annotations of what is attached into the list.",
        hint: "list it with the registry's own tools and delete what nobody needs, then try again",
    };
    pub const ALL: &[&Code] = &[
        &NOT_FOUND,
        &CREDENTIALS,
        &TOO_LARGE,
        &DIGEST_MISMATCH,
        &MALFORMED,
        &REFUSED,
        &THROTTLED,
        &CONTENDED,
        &PLAIN_HTTP,
        &REDIRECT,
        &UNAVAILABLE,
        &ADDRESS,
        &LIST_TOO_LARGE,
    ];
}
