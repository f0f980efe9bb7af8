//! Why something is not allowed, or was not understood.

use kernel::{Code, Fault, Kind};

use crate::Action;

#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("the request has no token")]
    NoToken,
    #[error("the token is not valid: {0}")]
    BadToken(&'static str),
    #[error("{actor} may not {action} in project {project}")]
    Denied {
        actor: String,
        action: Action,
        project: String,
    },
    #[error("{actor} is of one project and may not {action} for the whole server")]
    Everywhere { actor: String, action: Action },
    #[error("project {project} may not sign {image}: its patterns are {patterns}")]
    Image {
        project: String,
        image: String,
        patterns: String,
    },
    #[error("there is no {what} {name}")]
    NotFound { what: &'static str, name: String },
    #[error("there is a {what} {name} already")]
    Exists { what: &'static str, name: String },
    #[error("{text:?} is no {what}; known are: {known}")]
    Word {
        what: &'static str,
        text: String,
        known: String,
    },
    #[error("{what} {text:?} is not valid: {why}")]
    Invalid {
        what: &'static str,
        text: String,
        why: &'static str,
    },
    #[error(transparent)]
    Oidc(#[from] crate::oidc::OidcError),
    #[error(transparent)]
    Store(#[from] store::StoreError),
    #[error("sealing the audit trail")]
    Seal(#[source] SealError),
}

/// A failure of the log that seals the trail, carried whole so that its code and hint reach the caller.
#[derive(Debug)]
pub struct SealError(pub Box<dyn Fault>);

impl std::fmt::Display for SealError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for SealError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

impl From<Box<dyn Fault>> for AccessError {
    fn from(fault: Box<dyn Fault>) -> Self {
        Self::Seal(SealError(fault))
    }
}

/// What there is none of when somebody acknowledges a loss that there is not.
pub const LOSS: &str = "loss to acknowledge in the";

impl Fault for AccessError {
    fn kind(&self) -> Kind {
        match self {
            Self::NoToken | Self::BadToken(_) => Kind::Unauthenticated,
            Self::Denied { .. } | Self::Everywhere { .. } | Self::Image { .. } => Kind::Denied,
            Self::NotFound { .. } => Kind::NotFound,
            Self::Exists { .. } => Kind::Conflict,
            Self::Word { .. } | Self::Invalid { .. } => Kind::Invalid,
            Self::Oidc(source) => source.kind(),
            Self::Store(source) => source.kind(),
            Self::Seal(source) => source.0.kind(),
        }
    }

    fn code(&self) -> &'static Code {
        match self {
            Self::NoToken | Self::BadToken(_) => &codes::TOKEN,
            Self::Denied { .. } | Self::Everywhere { .. } => &codes::DENIED,
            Self::Image { .. } => &codes::IMAGE,
            Self::NotFound { .. } => &codes::NOT_FOUND,
            Self::Exists { .. } => &codes::EXISTS,
            Self::Word { .. } | Self::Invalid { .. } => &codes::INVALID,
            Self::Oidc(source) => source.code(),
            Self::Store(source) => source.code(),
            Self::Seal(source) => source.0.code(),
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Denied { action, project, .. } => {
                format!(
                    "ask for a token that may: portcullis token create NAME --project {project} --role ROLE (needs {action})"
                )
            }
            Self::Everywhere { .. } => {
                "only an administrator whose token is good for every project may; for a token of \
                your own project, leave --everywhere out"
                    .to_owned()
            }
            Self::NotFound { what: LOSS, .. } => {
                "see what is named: portcullis status; nothing has to be acknowledged while it is OK, and of several \
                 servers the one that names it has to be asked. An external log of another key is not acknowledged: \
                 configure its key"
                    .to_owned()
            }
            _ => self.code().hint.to_owned(),
        }
    }
}

/// The codes of refusals.
pub mod codes {
    use kernel::Code;

    pub const TOKEN: Code = Code {
        id: "PC1601",
        title: "the request has no valid token",
        explanation: "A call carries `Authorization: Bearer pcl_…`. The token is missing, mistyped (it has a \
checksum), expired, revoked, or of another server. If no administrator has one that is good, \
`portcullis token create NAME --role admin --everywhere --local` makes one in the database itself, beside the stopped \
server (SQLite) or with its configuration (PostgreSQL).",
        hint: "set PORTCULLIS_TOKEN, or ask an administrator for `portcullis token create`; if none has a good token \
either: `portcullis token create NAME --role admin --everywhere --local` on the server's machine",
    };
    pub const DENIED: Code = Code {
        id: "PC1602",
        title: "the token's role does not allow this",
        explanation: "A token has one role in one project. `portcullis auth whoami` shows both, \
`portcullis auth can-i ACTION` asks for one action.",
        hint: "portcullis auth whoami",
    };
    pub const IMAGE: Code = Code {
        id: "PC1603",
        title: "the project may not sign this image",
        explanation: "A project has patterns of repositories that it may sign, so that one team's token cannot \
vouch for another team's images. `*` stands for anything but a slash, `**` for anything.",
        hint: "portcullis project get NAME shows the patterns; an administrator sets them",
    };
    pub const NOT_FOUND: Code = Code {
        id: "PC1604",
        title: "there is no such thing",
        explanation: "It does not exist, or it belongs to another project.",
        hint: "list what there is: portcullis project list, portcullis token list",
    };
    pub const EXISTS: Code = Code {
        id: "PC1605",
        title: "it exists already",
        explanation: "Names are unique; the existing one was left as it is.",
        hint: "choose another name",
    };
    pub const INVALID: Code = Code {
        id: "PC1606",
        title: "a value is not valid",
        explanation: "A name, a number, a word or a pattern has a form that cannot be meant. `detail` names the value \
and what it has to look like; nothing was changed.",
        hint: "the cause says what the value has to look like; `--help` of the command and /api/v1/openapi.json \
describe each one",
    };
    pub const TAMPERED: Code = Code {
        id: "PC1620",
        title: "the audit trail was tampered with, or is damaged",
        explanation: "Every audit record becomes a leaf of a log that can only grow, signed by a key that lies outside \
the database. A record that was removed, altered, added or moved after that does not fit its leaf, and is named with its \
id and its place. A part of the log itself that is missing or changed is named too.",
        hint: "keep a copy of the data folder and the database as evidence; the sealed content of a record that is gone \
is still in the log: portcullis audit verify -o json",
    };
    pub const ALL: &[&Code] = &[&TAMPERED, &TOKEN, &DENIED, &IMAGE, &NOT_FOUND, &EXISTS, &INVALID];
}
