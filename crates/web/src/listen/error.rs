//! What ends a listener that nobody told to end.

use std::io;

use kernel::{Code, Fault, Kind};
use tokio::task::JoinError;

use super::codes;

/// Nobody is let in, or nobody any more.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("starting the threads of the connections")]
    Start(#[source] io::Error),
    /// It panicked, or was ended from outside.
    #[error("letting connections in")]
    Ended(#[source] JoinError),
}

impl Fault for ListenError {
    fn kind(&self) -> Kind {
        Kind::Bug
    }

    fn code(&self) -> &'static Code {
        match self {
            Self::Start(_) => &codes::START,
            Self::Ended(_) => &codes::ENDED,
        }
    }
}
