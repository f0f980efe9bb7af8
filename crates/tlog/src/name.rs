//! Which log: one database and one blob store hold several.

use std::fmt;

/// One of the logs of a server. The engine is the same for all; what a leaf is, is the business of whoever appends. Its
/// tables, blobs, lease and crash points begin with a prefix of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// The transparency log: a leaf is a `hashedrekord` of Rekor v2.
    Signatures,
    /// The seal of the audit trail: a leaf is an audit record as canonical JSON.
    Audit,
}

impl Name {
    /// How the names of its durable parts begin; its lease has just this name.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Signatures => "tlog",
            Self::Audit => "audit",
        }
    }

    /// One of its tables, as errors name it.
    pub(crate) fn table(self, table: &str) -> String {
        format!("table {}_{table}", self.prefix())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Signatures => "the log",
            Self::Audit => "the audit log",
        })
    }
}
