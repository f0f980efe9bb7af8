//! Is what we depend on there, and is it the right one?
//!
//! A name that leads to the wrong backend looks healthy to whoever only checks that a port is open. So a [`Probe`]
//! asks each dependency who it is, and compares the answer with who it has to be: a key, an installation's id, the
//! last checkpoint that was seen. The outcome is a [`Finding`], a [`State`] with what was expected and what was found.
//!
//! ```text
//!   Probe ── look, within LOOK_MS_MAX ──▶ Finding ──▶ Board ──▶ GET /dependencies, status, metrics, readyz?verbose
//!     ▲                                                │
//!     │ every EVERY_MS_MAX at most, a task of its own   └── since when, last good, latency (pure: Status::after)
//!   Watch
//!
//!   log  clock  expiry  verdict        pure rules
//!   database  blobs  disk              probes of what this crate can reach itself
//!   loss                               writes that the database lost, until a person has looked
//!   acknowledge                        what a person says to have looked at
//!   log_mark                           the last good checkpoint of a log outside, which all servers share
//!   marks                              what has to be remembered over a restart
//! ```
//!
//! - A probe runs on a task of its own with a deadline of its own: one that hangs delays no other.
//! - No request waits for a probe; what is shown is what was found last, and how long ago.
//! - With the longest pause and the longest look, what goes wrong is named within 10 seconds.
//! - A server is ready whatever is found. One finding closes something: a wrong database takes no changes, which would be
//!   lost or be in somebody else's data.
//!
//! It knows no protocol of what is outside: the probes of registries and of an external log are `upstream`'s.

mod acknowledge;
pub mod api;
mod blobs;
mod board;
pub mod clock;
mod database;
mod disk;
pub mod expiry;
pub mod log;
mod log_mark;
pub mod loss;
mod marks;
mod state;
mod verdict;
mod watch;

pub use acknowledge::Acknowledgements;
pub use blobs::{BlobsProbe, INSTALLATION_BLOB};
pub use board::{Board, OVERDUE_MS_MAX, Status};
pub use clock::{ClockProbe, References};
pub use database::DatabaseProbe;
pub use disk::DiskProbe;
pub use expiry::ExpiryProbe;
pub use log_mark::{Known, LogMark, MarkError, Read};
pub use loss::Losses;
pub use marks::{MIGRATIONS, Marks};
pub use state::{Finding, Kind, Severity, State};
pub use verdict::{CanDeploy, Verdict};
pub use watch::{DEPENDENCIES_MAX, EVERY_MS_MAX, LOOK_MS_MAX, Probe, Probes, Rhythm, Watch};
