//! Why somebody is told to come later.

use std::time::Duration;

use kernel::{Code, Fault, Kind};

/// A refusal for load. It is made at once, and nothing was begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    #[error("project {project} may make {per_minute} new signatures a minute ({burst} at once), and has")]
    Quota {
        project: String,
        per_minute: u32,
        burst: u32,
        wait: Duration,
    },
    #[error("{waiting} requests of project {project} wait for {what} already")]
    Project {
        project: String,
        what: String,
        waiting: usize,
    },
    #[error("{waiting} requests wait for {what} already")]
    Full { what: String, waiting: usize },
}

impl Fault for FlowError {
    fn kind(&self) -> Kind {
        match self {
            Self::Quota { .. } | Self::Project { .. } => Kind::Quota,
            Self::Full { .. } => Kind::Overloaded,
        }
    }

    fn code(&self) -> &'static Code {
        match self {
            Self::Quota { .. } => &codes::QUOTA,
            Self::Project { .. } => &codes::PROJECT,
            Self::Full { .. } => &codes::FULL,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Quota { wait, .. } => Some(*wait),
            Self::Project { .. } | Self::Full { .. } => None,
        }
    }
}

/// The codes of refusals for load.
pub mod codes {
    use kernel::Code;

    pub const QUOTA: Code = Code {
        id: "PC2001",
        title: "the project's quota of new signatures is used up",
        explanation: "A project may make so many new signatures a minute, so that one that signs without end costs \
the others nothing. Images that are signed already cost no quota. Nothing was begun. The quota holds for each server.",
        hint: "wait as Retry-After says; sign only what changed; see what is left with portcullis project quota",
    };
    pub const PROJECT: Code = Code {
        id: "PC2002",
        title: "too many requests of this project wait already",
        explanation: "Each project has a queue of its own, and this one's is full. Other projects are served. Nothing \
was begun.",
        hint: "wait as Retry-After says, and send fewer requests at once; a batch takes up to 1,000 images",
    };
    pub const FULL: Code = Code {
        id: "PC2003",
        title: "the server has no room for more at the moment",
        explanation: "Everything that was accepted is worked on and will be answered; to take more would make all of \
it late. Nothing was begun.",
        hint: "wait as Retry-After says; if it stays, look at portcullis_queue_waiting, and add a server",
    };
    pub const ALL: &[&Code] = &[&QUOTA, &PROJECT, &FULL];
}
