//! One answer to "can we deploy right now?".

use serde::{Deserialize, Serialize};

use crate::board::Status;
use crate::state::Severity;

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CanDeploy {
    Yes,
    /// Some of it does not work, or will stop to.
    Degraded,
    No,
}

/// The answer with its reasons, the worst first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub can_deploy: CanDeploy,
    pub reasons: Vec<String>,
}

impl Verdict {
    /// Judges everything that is known.
    #[must_use]
    pub fn of(all: &[Status]) -> Self {
        let weight = |status: &&Status| (status.state.severity(), status.kind.stops_signing(status.state));
        let mut bad: Vec<&Status> = all
            .iter()
            .filter(|status| weight(status).0 != Severity::Fine)
            .collect();
        bad.sort_by_key(|status| std::cmp::Reverse(weight(status)));
        let stops = |status: &&Status| {
            status.state.severity() == Severity::Broken && status.kind.stops_signing(status.state)
        };
        let can_deploy = match bad.first() {
            None => CanDeploy::Yes,
            Some(worst) if stops(worst) => CanDeploy::No,
            Some(_) => CanDeploy::Degraded,
        };
        let reason = |status: &&Status| {
            let Status {
                name,
                state,
                found,
                kind,
                ..
            } = status;
            format!(
                "{name} is {state}: {found}; affected: {}",
                kind.blast_radius(*state)
            )
        };
        Self {
            can_deploy,
            reasons: bad.iter().map(reason).collect(),
        }
    }
}

impl std::fmt::Display for CanDeploy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Yes => "yes",
            Self::Degraded => "degraded",
            Self::No => "no",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use jiff::Timestamp;
    use kernel::TestClock;

    use super::*;
    use crate::{Board, Finding, Kind, State};

    #[test]
    fn only_what_signing_needs_is_a_no() {
        let board = Board::new(Arc::new(TestClock::at(Timestamp::UNIX_EPOCH)));
        let note = |kind: Kind, state| {
            board.add(kind.as_str(), kind, String::new(), Duration::ZERO);
            board.note(kind.as_str(), kind, Finding::new(state, "", ""), Duration::ZERO);
            Verdict::of(&board.all())
        };
        assert_eq!(note(Kind::Database, State::Ok).can_deploy, CanDeploy::Yes);
        let wrong = note(Kind::ExternalLog, State::WrongLog);
        assert_eq!(wrong.can_deploy, CanDeploy::Degraded);
        assert!(
            wrong.reasons[0].starts_with("external-log is WRONG_LOG"),
            "{wrong:?}"
        );
        assert_eq!(note(Kind::Disk, State::Low).can_deploy, CanDeploy::Degraded);
        let gone = note(Kind::Database, State::Unreachable);
        assert_eq!((gone.can_deploy, gone.reasons.len()), (CanDeploy::No, 3));
        assert!(gone.reasons[0].starts_with("database"), "{gone:?}");
        // Writes were lost, and new ones are taken.
        let lost = note(Kind::Database, State::RolledBack);
        assert_eq!((lost.can_deploy, lost.reasons.len()), (CanDeploy::Degraded, 3));
    }
}
