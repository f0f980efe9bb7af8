//! The program as its users have it: a process with a command line and an HTTP interface.
//!
//! The tests in `tests/e2e` start it on free ports of 127.0.0.1, beside real registries, real cosign and a real
//! PostgreSQL (crate `testkit`), kill it, damage its files, and look at what is left. This library is what
//! they share.
//!
//! ```text
//!   Server ── starts, kills, starts again ──▶ portcullis serve      data in a temporary folder
//!      ├── command ──▶ portcullis …           with the server's address and token
//!      └── api ──────▶ HTTP                   status and JSON
//!
//!   Fleet ─── several servers on one PostgreSQL
//!
//!   Issuer ── describes itself, publishes its keys, gives tokens to jobs
//! ```
//!
//! Nothing here looks inside: what a user cannot do, these tests do not do, with two exceptions that the tests
//! name: they arm the points of a crash, and they damage files.

mod api;
mod command;
mod fleet;
mod issuer;
mod server;

pub use api::{Answer, Api};
pub use command::{Ran, run};
pub use fleet::Fleet;
pub use issuer::{Issuer, Mood};
pub use server::{Server, Setup, program};
