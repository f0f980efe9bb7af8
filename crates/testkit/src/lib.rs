//! Real peers for the tests: where they are, how they start, how they stop.
//!
//! A peer is a program that somebody else wrote and that Portcullis has to agree with: cosign, a registry,
//! PostgreSQL. `cargo xtask peers` gets each at a pinned version into a cache outside the tree; a test asks
//! for it with [`peer!`] and ends early when it is not there, which is written down, so that the run can name
//! what it did not prove.
//!
//! ```text
//!   xtask peers ── fills ──▶ cache/<name>-<version>/ ◀── looks up ── peers::find
//!                                                                        │
//!   a test ── start ──▶ Distribution | ReferrersRegistry | Postgres | ApiServer ─┘   127.0.0.1, any free port
//!        └── drop ──▶ the process ends, its folder goes
//! ```
//!
//! It does not speak to what it starts, knows nothing of Portcullis, and is no part of the program.

mod kubernetes;
pub mod peers;
mod postgres;
mod process;
mod registries;
mod switch;

pub use kubernetes::ApiServer;
pub use postgres::Postgres;
pub use process::{Log, Process, wait_for};
pub use registries::{Distribution, ReferrersRegistry};
pub use switch::Switch;

/// The path of a peer by its name, such as `peer!("cosign-3.1.3")`. If it is not there, the test that asks is
/// written down as not run for it, and returns.
#[macro_export]
macro_rules! peer {
    ($name:expr) => {
        match $crate::peers::find($name) {
            Some(path) => path,
            None => {
                $crate::peers::skip($name);
                return Default::default();
            }
        }
    };
}
