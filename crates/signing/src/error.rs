//! Why something was not signed, or could not be verified.

use kernel::{Code, Digest, Fault, Kind, Reference};

use crate::DamagedKey;
use crate::key::{KeyFileError, PublicKeyError, SignerError};
use crate::ports::RegistryError;

/// A failure of this domain. "Not verified" is no failure; see [`crate::verify::Report`].
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    #[error("there is no key {name} in project {project}")]
    NoKey { name: String, project: String },
    #[error("there is a key {name} in project {project} already")]
    KeyExists { name: String, project: String },
    #[error("the key name {0:?} is not valid")]
    KeyName(String),
    #[error("opening the private key")]
    KeyFile(#[source] KeyFileError),
    #[error("reading the public key")]
    PublicKey(#[from] PublicKeyError),
    #[error("signing with key {name}")]
    Sign { name: String, source: SignerError },
    #[error("{0}")]
    KeyDamaged(Box<DamagedKey>),
    /// `key` is its name, project, version and id.
    #[error("the private half of key {key} in the table signing_key does not open")]
    KeyClosed { key: String, source: SignerError },
    #[error("too many keys are being made, imported or rotated at the moment")]
    KeysBusy,
    #[error("logging the signature")]
    Log(#[source] LogError),
    #[error(transparent)]
    Busy(#[from] flow::FlowError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Access(#[from] access::AccessError),
    #[error(transparent)]
    Store(#[from] store::StoreError),
    #[error("there is no operation {0} in this project")]
    NoOperation(String),
    #[error("no evidence of the external log waits for the registry {0}")]
    NothingUnpublished(String),
    #[error("the index {0} names itself")]
    IndexCycle(Digest),
    #[error("the index {image} has more than {max} manifests, the cap INDEX_MANIFESTS_MAX", max = kernel::limits::INDEX_MANIFESTS_MAX)]
    IndexTooLarge { image: Digest },
    #[error("{image} was {was} when it was signed and is {now} now; the signature stands for {was}")]
    TagMoved {
        image: Box<Reference>,
        was: Digest,
        now: Digest,
    },
    #[error(
        "the registry is slow: {read} of {of} candidates of {image} were read in {seconds} s, and none of them counts"
    )]
    Slow {
        image: Box<Reference>,
        read: usize,
        of: usize,
        seconds: u64,
    },
    #[error("the signature tag {tag} holds something that is not signatures: {why}")]
    LegacyTag { tag: String, why: String },
    #[error("{0}")]
    Request(String),
    #[error("there is no signature {0}")]
    NoSignature(String),
    #[error("the image policy cannot be used{}{place}: {why}", if place.is_empty() { "" } else { ": " })]
    ImagePolicy { place: String, why: String },
    #[error("there is no image policy {0}")]
    NoImagePolicy(String),
    #[error("the image policy {policy} says nothing about {image}")]
    NotCovered { policy: String, image: Box<Reference> },
    #[error("the image policy {0} was changed meanwhile")]
    ImagePolicyChanged(String),
    #[error("the trusted root does not read: {0}")]
    TrustedRoot(String),
    #[error("the database holds a signature that does not read: {0}")]
    Row(String),
    #[error("the task that signed ended early")]
    Lost,
    /// The failure of the one who worked, as told to all who waited for the same.
    #[error(transparent)]
    Shared(std::sync::Arc<SigningError>),
}

/// A log's own failure, carried whole so that its code and hint reach the caller.
#[derive(Debug)]
pub struct LogError(pub Box<dyn Fault>);

impl std::fmt::Display for LogError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for LogError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// Characters of a place in a document; the deepest that is known has 60.
const PLACE_CHARS_MAX: usize = 120;

impl SigningError {
    /// A policy that cannot be used, and where: `spec.authorities[0].key`.
    pub(crate) fn image_policy(place: &str, why: impl std::fmt::Display) -> Self {
        let place = if place == "." { "" } else { place };
        // Names of fields come from outside too.
        Self::ImagePolicy {
            place: kernel::words(place).chars().take(PLACE_CHARS_MAX).collect(),
            why: kernel::words(&why.to_string()),
        }
    }
}

impl From<KeyFileError> for SigningError {
    fn from(source: KeyFileError) -> Self {
        Self::KeyFile(source)
    }
}

impl Fault for SigningError {
    fn kind(&self) -> Kind {
        match self {
            Self::NoKey { .. }
            | Self::NoSignature(_)
            | Self::NoImagePolicy(_)
            | Self::NoOperation(_)
            | Self::NothingUnpublished(_) => Kind::NotFound,
            Self::KeyExists { .. }
            | Self::TagMoved { .. }
            | Self::LegacyTag { .. }
            | Self::ImagePolicyChanged(_) => Kind::Conflict,
            Self::KeyName(_)
            | Self::KeyFile(_)
            | Self::PublicKey(_)
            | Self::IndexCycle(_)
            | Self::Request(_)
            | Self::ImagePolicy { .. }
            | Self::NotCovered { .. }
            | Self::TrustedRoot(_) => Kind::Invalid,
            Self::IndexTooLarge { .. } => Kind::TooLarge,
            Self::KeyDamaged(_) | Self::KeyClosed { .. } | Self::Slow { .. } => Kind::Unavailable,
            Self::KeysBusy => Kind::Overloaded,
            Self::Sign { .. } | Self::Row(_) | Self::Lost => Kind::Bug,
            Self::Shared(source) => source.kind(),
            Self::Busy(source) => source.kind(),
            Self::Log(source) => source.0.kind(),
            Self::Registry(source) => source.kind(),
            Self::Access(source) => source.kind(),
            Self::Store(source) => source.kind(),
        }
    }

    fn code(&self) -> &'static Code {
        match self {
            Self::NoKey { .. } => &codes::NO_KEY,
            Self::KeyExists { .. } | Self::KeyName(_) => &codes::KEY_NAME,
            Self::KeyFile(_) => &codes::KEY_FILE,
            Self::PublicKey(_) => &codes::PUBLIC_KEY,
            Self::KeyDamaged(_) => &codes::KEY_DAMAGED,
            Self::KeyClosed { .. } => &codes::KEY_CLOSED,
            Self::KeysBusy => &codes::KEYS_BUSY,
            Self::Slow { .. } => &codes::SLOW,
            Self::Sign { .. } | Self::Row(_) | Self::Lost => &codes::INTERNAL,
            Self::IndexCycle(_) | Self::IndexTooLarge { .. } => &codes::INDEX,
            Self::TagMoved { .. } => &codes::TAG_MOVED,
            Self::LegacyTag { .. } => &codes::LEGACY_TAG,
            Self::Request(_) => &codes::REQUEST,
            Self::NoSignature(_) => &codes::NO_SIGNATURE,
            Self::NoOperation(_) => &codes::NO_OPERATION,
            Self::NothingUnpublished(_) => &codes::NOTHING_UNPUBLISHED,
            Self::TrustedRoot(_) => &codes::TRUSTED_ROOT,
            Self::ImagePolicy { .. } => &codes::IMAGE_POLICY,
            Self::NoImagePolicy(_) => &codes::NO_IMAGE_POLICY,
            Self::NotCovered { .. } => &codes::NOT_COVERED,
            Self::ImagePolicyChanged(_) => &codes::IMAGE_POLICY_CHANGED,
            Self::Shared(source) => source.code(),
            Self::Busy(source) => source.code(),
            Self::Log(source) => source.0.code(),
            Self::Registry(source) => source.code(),
            Self::Access(source) => source.code(),
            Self::Store(source) => source.code(),
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Shared(source) => source.hint(),
            Self::Log(source) => source.0.hint(),
            Self::Access(source) => source.hint(),
            Self::TagMoved { image, .. } => format!("portcullis sign {image}"),
            _ => self.code().hint.to_owned(),
        }
    }

    fn retry_after(&self) -> Option<std::time::Duration> {
        match self {
            Self::Shared(source) => source.retry_after(),
            Self::Busy(source) => source.retry_after(),
            Self::Registry(source) => source.retry_after(),
            _ => None,
        }
    }
}

/// The codes of signing.
pub mod codes {
    use kernel::Code;

    pub const NO_KEY: Code = Code {
        id: "PC1201",
        title: "there is no such key",
        explanation: "Keys belong to a project. The name was mistyped, the key is of another project, or the \
project has none yet.",
        hint: "portcullis key list; portcullis key create NAME",
    };
    pub const KEY_NAME: Code = Code {
        id: "PC1202",
        title: "the key's name cannot be used",
        explanation: "A key's name is 1 to 63 lower-case letters, digits and dashes, and stands once in its \
project. To replace a key keep its name and rotate it.",
        hint: "choose another name, or portcullis key rotate NAME",
    };
    pub const KEY_FILE: Code = Code {
        id: "PC1203",
        title: "the private key does not open",
        explanation: "A private key file is PEM as cosign writes it, closed with a password. The password is \
wrong, the file is damaged, or it holds a key that is not P-256, the one kind that signs.",
        hint: "set COSIGN_PASSWORD; make a key with `cosign generate-key-pair` or `portcullis key create`",
    };
    pub const PUBLIC_KEY: Code = Code {
        id: "PC1204",
        title: "the public key does not read",
        explanation: "A public key is PEM with the label PUBLIC KEY: P-256, P-384, Ed25519 or RSA of 2048 bits or \
more.",
        hint: "give the file that cosign calls cosign.pub",
    };
    pub const INDEX: Code = Code {
        id: "PC1205",
        title: "the index cannot be followed",
        explanation: "`--recursive` signs an index and every manifest under it. An index that names itself, at any \
depth, or one with too many manifests is refused before anything is signed.",
        hint: "sign without --recursive, or rebuild the index",
    };
    pub const TAG_MOVED: Code = Code {
        id: "PC1206",
        title: "the tag moved while its image was signed",
        explanation: "A tag is resolved once; what is signed is the digest that it named then. Meanwhile somebody \
pushed another image under the tag. The signature of the first one stands; the new one is not signed.",
        hint: "sign again if the new image is the one you mean; better sign by digest",
    };
    pub const LEGACY_TAG: Code = Code {
        id: "PC1207",
        title: "the signature tag holds something else",
        explanation: "The legacy format keeps signatures in the tag sha256-<hex>.sig. What is there does not read \
as signatures, and is left as it is.",
        hint: "look at it with `portcullis image tree`; sign with formats = [\"bundle\"]",
    };
    pub const REQUEST: Code = Code {
        id: "PC1208",
        title: "the request cannot be carried out as it stands",
        explanation: "Two parts of the request contradict each other, or it asks for more than a cap allows. The \
message says which.",
        hint: "correct the request",
    };
    pub const NO_SIGNATURE: Code = Code {
        id: "PC1209",
        title: "there is no such signature",
        explanation: "It was never made by this server, or belongs to another project.",
        hint: "portcullis signature list",
    };
    pub const TRUSTED_ROOT: Code = Code {
        id: "PC1210",
        title: "the trusted root does not read",
        explanation: "A trusted root is JSON of media type application/vnd.dev.sigstore.trustedroot+json. It names \
the logs, certificate authorities and timestamp authorities that a verifier believes.",
        hint: "fetch this server's: GET /api/v1/trust/trusted_root.json",
    };
    pub const IMAGE_POLICY: Code = Code {
        id: "PC1211",
        title: "the image policy cannot be used",
        explanation: "An image policy is a ClusterImagePolicy of policy.sigstore.dev. What it asks for has to be \
known here, down to each field: a rule that is left out silently would accept what its author meant to refuse. \
Known are images.glob, and authorities with key.data or keyless.identities, ctlog, trustRootRef and \
signatureFormat; mode is for gates. Besides, an authority with a key may say log: required (the signature's entry in the \
external log is proven) or log: within 1h (or this server has owed it for less).",
        hint: "correct the field that the message names; trusted roots are in portcullis.toml under [trusted_roots]",
    };
    pub const NO_IMAGE_POLICY: Code = Code {
        id: "PC1212",
        title: "there is no such image policy",
        explanation: "Image policies belong to a project. The name was mistyped, or the policy is of another \
project.",
        hint: "portcullis image-policy list; portcullis image-policy apply FILE",
    };
    pub const NOT_COVERED: Code = Code {
        id: "PC1213",
        title: "the image policy is about other images",
        explanation: "A policy says nothing about images that none of its globs names; neither yes nor no would be \
its answer.",
        hint: "portcullis image-policy get NAME shows its globs; verify with the policy of this image",
    };
    pub const IMAGE_POLICY_CHANGED: Code = Code {
        id: "PC1214",
        title: "the image policy was changed meanwhile",
        explanation: "The request said which policy it would replace, and another one stands now. Nothing was \
written.",
        hint: "read the policy again and apply the change to it",
    };
    pub const KEY_DAMAGED: Code = Code {
        id: "PC1215",
        title: "a stored key is damaged",
        explanation: "A row of the table signing_key does not read, or its parts contradict each other. The other keys \
go on signing and verifying. Whether this key made a signature cannot be said without it, so the answer is no verdict.",
        hint: "restore the row that the message names from a backup of the database",
    };
    pub const KEY_CLOSED: Code = Code {
        id: "PC1216",
        title: "a stored key does not open",
        explanation: "The server closes private keys with the password of [keys] password_file. One of two things is \
the cause: the password is not the one that closed this key, or the column private_pem of its row in the table \
signing_key is damaged. Where no key opens, it is the password.",
        hint: "put the file secrets/keys.password back that belongs to this database; else restore the row from a backup",
    };
    pub const KEYS_BUSY: Code = Code {
        id: "PC1217",
        title: "too many keys are being made at once",
        explanation: "To open or close a key file costs 64 MiB or more and a tenth of a second, by design. One is worked \
on at a time and a few wait, so that keys do not take the memory that signing needs.",
        hint: "try again in a second",
    };
    pub const SLOW: Code = Code {
        id: "PC1218",
        title: "the registry is too slow for what is attached to the image",
        explanation: "Everything that is attached to an image may be its signature, and has to be read. The time for that \
has a bound, so that an image with hundreds of attachments in a slow registry does not hold a request for hours. What \
was not read is not known: this is no verdict.",
        hint: "look at what is attached with `portcullis image tree`, remove what nobody needs, then try again",
    };
    pub const NO_OPERATION: Code = Code {
        id: "PC1219",
        title: "there is no such operation",
        explanation: "Operations belong to a project, and are kept for a day after they are done. What they signed stays.",
        hint: "portcullis signature list shows what is signed",
    };
    pub const NOTHING_UNPUBLISHED: Code = Code {
        id: "PC1220",
        title: "no evidence waits for this registry",
        explanation: "A registry is given up so that the external log's evidence, which cannot be attached to its images \
any more, is not tried for ever. For this one nothing waits: its name was mistyped, or it took everything. It is the \
part of an image's name before the first slash, with the port.",
        hint: "portcullis external-log list names what waits, and why",
    };
    pub const INTERNAL: Code = Code {
        id: "PC1299",
        title: "signing failed by our own mistake",
        explanation: "Something that cannot happen happened. The server's log has the details under the request's \
id; nothing was answered with success that is not durable.",
        hint: "report it with the request's id and the server's log",
    };
    pub const ALL: &[&Code] = &[
        &NO_KEY,
        &KEY_NAME,
        &KEY_FILE,
        &PUBLIC_KEY,
        &INDEX,
        &TAG_MOVED,
        &LEGACY_TAG,
        &REQUEST,
        &NO_SIGNATURE,
        &TRUSTED_ROOT,
        &IMAGE_POLICY,
        &NO_IMAGE_POLICY,
        &NOT_COVERED,
        &IMAGE_POLICY_CHANGED,
        &KEY_DAMAGED,
        &KEY_CLOSED,
        &KEYS_BUSY,
        &SLOW,
        &NO_OPERATION,
        &NOTHING_UNPUBLISHED,
        &INTERNAL,
    ];
}
