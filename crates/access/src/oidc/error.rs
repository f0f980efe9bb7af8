//! Why a workload's token is not taken.

use jiff::Timestamp;
use kernel::{Code, Fault, Kind};

/// None of these texts holds the token, its signature, or what a rule wants.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    #[error("the workload's token is not acceptable: {0}")]
    Malformed(&'static str),
    #[error("the workload's token says alg \"{0}\"; RS256 and ES256 are taken")]
    Algorithm(String),
    #[error("no trust rule is for the issuer \"{issuer}\" of the workload's token")]
    Issuer { issuer: String },
    #[error("no trust rule for {issuer} has the audience \"{audiences}\" of the workload's token")]
    Audience { issuer: String, audiences: String },
    #[error("no trust rule takes \"{subject}\" of {issuer}: {why}")]
    Claims {
        issuer: String,
        subject: String,
        why: String,
    },
    #[error("the workload's token names the key \"{kid}\", which {issuer} does not publish")]
    Key { issuer: String, kid: String },
    #[error("the signature of the workload's token is not that of the key \"{kid}\" of {issuer}")]
    Signature { issuer: String, kid: String },
    #[error("the workload's token ended at {at}")]
    Ended { at: Timestamp },
    #[error("the workload's token is not valid before {at}")]
    Early { at: Timestamp },
    #[error(
        "the workload's token names the key \"{kid}\", which is not known here, and {issuer} was not heard: {why}"
    )]
    Unheard {
        issuer: String,
        kid: String,
        why: String,
    },
}

impl Fault for OidcError {
    fn kind(&self) -> Kind {
        match self {
            Self::Unheard { .. } => Kind::Unavailable,
            _ => Kind::Unauthenticated,
        }
    }

    fn code(&self) -> &'static Code {
        match self {
            Self::Malformed(_) | Self::Algorithm(_) => &codes::FORM,
            Self::Issuer { .. } | Self::Audience { .. } | Self::Claims { .. } => &codes::RULE,
            Self::Key { .. } | Self::Signature { .. } => &codes::KEY,
            Self::Ended { .. } | Self::Early { .. } => &codes::TIME,
            Self::Unheard { .. } => &codes::UNHEARD,
        }
    }
}

/// The codes of workloads' tokens.
pub mod codes {
    use kernel::Code;

    pub const FORM: Code = Code {
        id: "PC1607",
        title: "the workload's token is not acceptable",
        explanation: "A bearer with dots in it is read as a JSON Web Token of a build system. It has to be in compact \
form, of at most 8 KiB, signed with RS256 or ES256, with a key id and the claims iss, sub, aud and exp, and each member \
of its JSON may stand once. Unsigned tokens (alg none) and those with a shared secret (HS256) are never taken.",
        hint: "send the token as the build system gave it; tokens of Portcullis begin with pcl_",
    };
    pub const RULE: Code = Code {
        id: "PC1608",
        title: "no trust rule takes the workload's token",
        explanation: "A trust rule ([[oidc]] in portcullis.toml) names issuer, audience and claims, and each has to be \
exactly that of the token. The detail says which one is not, by the token's own value.",
        hint: "compare the claim that the detail names with the rules in portcullis.toml; the audience is asked for with \
PORTCULLIS_AUDIENCE, and is the server's address if that is not set",
    };
    pub const KEY: Code = Code {
        id: "PC1609",
        title: "the workload's token is not signed by its issuer",
        explanation: "The issuer's published keys do not have the one that the token names, or the signature is another \
one's. Keys that the issuer no longer publishes are not taken either. A key that it has only just begun to publish is \
known within half a minute.",
        hint: "run the job again for a fresh token; if that does not help, the token is not of the issuer that it names",
    };
    pub const TIME: Code = Code {
        id: "PC1610",
        title: "the workload's token is over, or not yet valid",
        explanation: "A workload's token lives for minutes. Its exp, nbf and iat are held against the server's clock, \
with 60 seconds of grace.",
        hint: "have the job fetch a token just before it is used; check the clock of the server",
    };
    pub const UNHEARD: Code = Code {
        id: "PC1611",
        title: "the issuer of the workload's token does not answer",
        explanation: "The token names a key that this server has not seen, and the issuer, which could say whether it \
is its own, was not heard. This is neither a yes nor a no. Tokens with known keys are taken as ever, for seven days \
after the issuer was last heard.",
        hint: "try again in half a minute; check that the server reaches the issuer's /.well-known/openid-configuration",
    };
    pub const ALL: &[&Code] = &[&FORM, &RULE, &KEY, &TIME, &UNHEARD];
}
