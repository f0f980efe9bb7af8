//! What can go wrong with a log of somebody else's.

use kernel::{Code, Fault, Kind};

/// An operation on the log that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} of the external log at {log}")]
pub struct RekorError {
    pub operation: String,
    pub log: String,
    #[source]
    pub reason: RekorReason,
}

/// Why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RekorReason {
    #[error("no useful answer: {0}")]
    Unreachable(String),
    #[error("what answers is not a log: {0}")]
    NotALog(String),
    #[error("it is another log: {found}, and not {expected}")]
    WrongLog { expected: String, found: String },
    #[error("whoever answers does not prove the name: {0}")]
    Impostor(String),
    #[error("its certificate has ended: {0}")]
    Expired(String),
    #[error("it has forked: {new} does not follow {old}")]
    Forked { old: String, new: String },
    #[error("what it says could not be proven: {0}")]
    Unproven(String),
    #[error("it asks to come back later{}", .after_seconds.map(|seconds| format!(", in {seconds} s")).unwrap_or_default())]
    Throttled { after_seconds: Option<u64> },
    #[error("it refused the entry: {0}")]
    Refused(String),
}

impl Fault for RekorError {
    fn kind(&self) -> Kind {
        match self.reason {
            RekorReason::Refused(_) => Kind::Invalid,
            _ => Kind::Unavailable,
        }
    }

    fn code(&self) -> &'static Code {
        match self.reason {
            RekorReason::Unreachable(_) | RekorReason::Expired(_) | RekorReason::Throttled { .. } => {
                &codes::UNREACHABLE
            }
            RekorReason::NotALog(_) => &codes::NOT_A_LOG,
            RekorReason::WrongLog { .. } | RekorReason::Impostor(_) => &codes::WRONG_LOG,
            RekorReason::Forked { .. } | RekorReason::Unproven(_) => &codes::FORKED,
            RekorReason::Refused(_) => &codes::REFUSED,
        }
    }
}

/// The codes of the external log.
pub mod codes {
    use kernel::Code;

    pub const CONFIG: Code = Code {
        id: "PC1560",
        title: "the configuration of the external log cannot be used",
        explanation: "The section [external_log] names a Rekor by its url, and who it is: a public_key (a PEM file) or \
a trusted_root (a trusted_root.json that has the log). Whether the log answers is not asked at the start.",
        hint: "the cause names the key or file; `portcullis init` shows the section with its keys",
    };
    pub const UNREACHABLE: Code = Code {
        id: "PC1561",
        title: "the external log does not answer",
        explanation: "The log that [external_log] names refused the connection, said nothing in time, asked to come \
back later, or its name does not resolve. Signing goes on with the embedded log.",
        hint: "check the address and the network; `portcullis status` says when it last answered",
    };
    pub const NOT_A_LOG: Code = Code {
        id: "PC1562",
        title: "what answers at the external log's address is not a log",
        explanation: "Something speaks HTTP there, but its answer is not a checkpoint: a web server, a login page, \
or a proxy that lost its backend.",
        hint: "look where the name leads: compare the address behind it with that of the log",
    };
    pub const WRONG_LOG: Code = Code {
        id: "PC1563",
        title: "another log answers at the external log's address",
        explanation: "A log answers, but its checkpoint has another name, or was not signed by the key that is \
configured. Whoever writes there writes into the wrong log, which nobody who knows the right one can verify.",
        hint: "look where the name leads; if the log's key was changed on purpose, configure the new one",
    };
    pub const FORKED: Code = Code {
        id: "PC1564",
        title: "the external log contradicts what it said before",
        explanation: "The log's checkpoint is signed by the right key, but does not follow, or could not be proven \
to follow, the last one that was seen: it was put back from an older copy and went on, or it shows different logs to \
different callers.",
        hint: "keep both checkpoints (portcullis status -o json) and ask the log's operator",
    };
    pub const REFUSED: Code = Code {
        id: "PC1565",
        title: "the external log refused the entry",
        explanation: "The log read the entry and does not take it: a kind of key that it does not know, or a signature \
that it could not verify. Sending it again will not help.",
        hint: "the cause has the log's own words",
    };
    pub const ALL: &[&Code] = &[&CONFIG, &UNREACHABLE, &NOT_A_LOG, &WRONG_LOG, &FORKED, &REFUSED];
}
