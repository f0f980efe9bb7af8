//! What a dependency is, and what a probe can find.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Days before the end from which on it is told: time for a change that needs a review and a roll-out.
pub const WARN_DAYS_MIN: i64 = 14;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant),* }

        impl $name {
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words! {
    /// What a probe found.
    State {
        /// No probe has ended yet.
        Unknown = "UNKNOWN",
        /// There, and the one that it has to be.
        Ok = "OK",
        /// No answer, or none in time.
        Unreachable = "UNREACHABLE",
        /// Something answers that is not a log.
        NotALog = "NOT_A_LOG",
        /// A log with another name or key.
        WrongLog = "WRONG_LOG",
        /// Less than was seen before: an older copy.
        RolledBack = "ROLLED_BACK",
        /// Not what was seen before, and more.
        Forked = "FORKED",
        /// It does not move although it should, or the probe itself does not end.
        Stale = "STALE",
        /// Something answers that is not a registry.
        NotARegistry = "NOT_A_REGISTRY",
        /// A registry that proves another name, or sends for tokens elsewhere than before.
        WrongRegistry = "WRONG_REGISTRY",
        /// A database of another installation.
        WrongDatabase = "WRONG_DATABASE",
        /// Blobs of another installation, or none where there were some; of the log, parts that are missing or damaged.
        WrongStore = "WRONG_STORE",
        /// The clock is not where it should be.
        WrongClock = "WRONG_CLOCK",
        /// Little room is left.
        Low = "LOW",
        /// A certificate or key ends soon.
        Expiring = "EXPIRING",
        /// A certificate or key has ended.
        Expired = "EXPIRED",
        /// The canary did not come through.
        Failing = "FAILING",
    }
}

words! {
    /// What sort of dependency it is.
    Kind {
        Database = "database",
        Blobs = "blobs",
        Log = "log",
        ExternalLog = "external-log",
        Registry = "registry",
        TokenIssuer = "token-issuer",
        Clock = "clock",
        Disk = "disk",
        TrustRoots = "trust-roots",
        Canary = "canary",
        /// Who raises the alarm outside when nothing comes any more.
        DeadMansSwitch = "dead-mans-switch",
    }
}

/// How bad a state is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Fine,
    /// It still works; somebody has to look before it does not.
    Warning,
    Broken,
}

/// What one look came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub state: State,
    /// Who or what has to be there.
    pub expected: String,
    /// Who or what is.
    pub found: String,
    /// Days until the certificate that was shown ends; whole days, rounded down.
    pub certificate_days_left: Option<i64>,
}

impl State {
    #[must_use]
    pub const fn severity(self) -> Severity {
        match self {
            Self::Unknown | Self::Ok => Severity::Fine,
            Self::Low | Self::Expiring => Severity::Warning,
            _ => Severity::Broken,
        }
    }

    /// Whether something answers there that is not what has to be there, or not as it was.
    #[must_use]
    pub const fn is_somebody_else(self) -> bool {
        matches!(
            self,
            Self::NotALog
                | Self::WrongLog
                | Self::RolledBack
                | Self::Forked
                | Self::NotARegistry
                | Self::WrongRegistry
                | Self::WrongDatabase
                | Self::WrongStore
        )
    }

    /// What to do first, whatever it is.
    const fn hint(self) -> &'static str {
        match self {
            Self::Unknown | Self::Ok => "",
            Self::Unreachable => "check that it runs, that its name resolves, and the network between",
            Self::NotALog | Self::NotARegistry => {
                "look where the name leads: something else answers at this address"
            }
            Self::WrongLog | Self::WrongRegistry => {
                "look where the name leads; if it was replaced on purpose, configure the new one and restart"
            }
            Self::WrongDatabase => {
                "point database.url back at this installation's database; if it was replaced on purpose, remove \
                 database.mark from the data folder and restart"
            }
            Self::WrongStore => {
                "point blobs.url back at this installation's blobs, or put them back; portcullis log fsck names what is \
                 missing or damaged"
            }
            Self::RolledBack => {
                "it was put back from an older copy, or a replica took over that lacked the last writes: find out which \
                 copy is the right one before anything is written to it"
            }
            Self::Forked => "keep both checkpoints, stop trusting new entries of it, and ask its operator",
            Self::Stale => "look whether it is blocked: a lock, a full queue, a frozen process",
            Self::WrongClock => {
                "set the clock and keep it set (NTP); tokens and certificates are judged by it"
            }
            Self::Low => "make room before writes are refused",
            Self::Expiring | Self::Expired => "renew it, and restart or replace what holds it",
            Self::Failing => "the step that failed is in what was found",
        }
    }
}

impl Kind {
    /// Every one, in the order in which they are shown.
    pub const ALL: &[Self] = &[
        Self::Database,
        Self::Log,
        Self::Blobs,
        Self::Registry,
        Self::ExternalLog,
        Self::TokenIssuer,
        Self::Clock,
        Self::Disk,
        Self::TrustRoots,
        Self::Canary,
        Self::DeadMansSwitch,
    ];

    /// The states that it can be in.
    #[must_use]
    pub const fn states(self) -> &'static [State] {
        use State::{
            Expired, Expiring, Failing, Forked, Low, NotALog, NotARegistry, Ok, RolledBack, Stale, Unknown,
            Unreachable, WrongClock, WrongDatabase, WrongLog, WrongRegistry, WrongStore,
        };
        match self {
            Self::Database => &[Unknown, Ok, Unreachable, WrongDatabase, RolledBack, Stale],
            Self::Blobs => &[Unknown, Ok, Unreachable, WrongStore, Stale],
            Self::Log => &[
                Unknown,
                Ok,
                Unreachable,
                WrongLog,
                WrongStore,
                RolledBack,
                Forked,
                Stale,
            ],
            Self::ExternalLog => &[
                Unknown,
                Ok,
                Unreachable,
                NotALog,
                WrongLog,
                RolledBack,
                Forked,
                Stale,
                Expiring,
                Expired,
            ],
            Self::Registry => &[
                Unknown,
                Ok,
                Unreachable,
                NotARegistry,
                WrongRegistry,
                Stale,
                Expiring,
                Expired,
            ],
            Self::TokenIssuer => &[Unknown, Ok, Unreachable, Stale],
            Self::Clock => &[Unknown, Ok, WrongClock, Stale],
            Self::Disk => &[Unknown, Ok, Unreachable, Low, Stale],
            Self::TrustRoots => &[Unknown, Ok, Expiring, Expired, Stale],
            Self::Canary => &[Unknown, Ok, Failing, Stale],
            Self::DeadMansSwitch => &[Unknown, Ok, Unreachable, Stale],
        }
    }

    /// What stops working while it is in this state, if that is a broken one, and what does not.
    #[must_use]
    pub const fn blast_radius(self, state: State) -> &'static str {
        match self {
            Self::Database if matches!(state, State::RolledBack) => {
                "what was changed last: revoked tokens may be valid again, policies and keys older; signing goes on unless \
                 the log says otherwise"
            }
            Self::Database if matches!(state, State::WrongDatabase) => {
                "signing and every other change; verification of what is known goes on"
            }
            Self::Database => {
                "signing and every other change; if it does not even answer, also verification of images that are not known yet"
            }
            Self::Log => {
                "new signatures; images that are signed already are answered, and verification goes on"
            }
            Self::Blobs => {
                "old parts of the log cannot be read; signing goes on until the log's tail is full"
            }
            Self::Registry => "signing and verification of this registry's images; those of others go on",
            Self::ExternalLog => "entries in that log; signing goes on with the embedded one",
            Self::TokenIssuer => {
                "build systems' jobs whose token names a key that is new; those with known keys go on for a week"
            }
            Self::Clock => "tokens, certificates and records are judged by the wrong time",
            Self::Disk => "writes, when it is full; verification of known images goes on",
            Self::TrustRoots => "verification under the policies that name this root",
            Self::Canary => "nothing by itself: what it does, users cannot do either",
            Self::DeadMansSwitch => "nothing here; outside an alarm is raised",
        }
    }

    /// Whether nothing new can be signed while it is in this state, if that is a broken one. A database that lost
    /// writes takes new ones; what must not go on from an older copy is the log.
    #[must_use]
    pub const fn stops_signing(self, state: State) -> bool {
        match self {
            Self::Database => !matches!(state, State::RolledBack),
            Self::Log => true,
            _ => false,
        }
    }

    /// What to do first.
    #[must_use]
    pub const fn hint(self, state: State) -> &'static str {
        match (self, state) {
            (Self::Database, State::RolledBack) => {
                "look for revoked tokens that are valid again, older policies and missing keys \
                 (docs/runbooks/rolled-back.md), then: portcullis status --acknowledge database --reason TEXT"
            }
            (Self::ExternalLog, State::Unreachable) => {
                "check that it runs, that its name resolves, and the network between; if a tile is missing, look whether \
                 several servers or an older copy answer behind the name"
            }
            (Self::ExternalLog, State::WrongLog) => {
                "look where the name leads; if the log's key was changed on purpose, configure the new one and restart; if \
                 it is a new log under the same key: portcullis status --acknowledge external-log --reason TEXT"
            }
            (Self::ExternalLog, State::RolledBack | State::Forked) => {
                "nothing is sent there: look who answers behind the name, keep both checkpoints, and ask its operator; if \
                 what answers is the log from now on: portcullis status --acknowledge external-log --reason TEXT"
            }
            (_, state) => state.hint(),
        }
    }
}

impl Finding {
    #[must_use]
    pub fn new(state: State, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            state,
            expected: expected.into(),
            found: found.into(),
            certificate_days_left: None,
        }
    }

    /// Adds the end of a certificate: a dependency that is fine except for that is expiring.
    #[must_use]
    pub fn with_certificate_days(mut self, days_left: Option<i64>) -> Self {
        self.certificate_days_left = days_left;
        if let Some(days) = days_left
            && self.state == State::Ok
            && days < WARN_DAYS_MIN
        {
            self.state = State::Expiring;
            self.found = format!("{}; its certificate ends in {days} days", self.found);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_can_be_unknown_fine_and_stale() {
        for kind in Kind::ALL {
            for state in [State::Unknown, State::Ok, State::Stale] {
                assert!(kind.states().contains(&state), "{kind}: {state}");
            }
        }
    }
}
