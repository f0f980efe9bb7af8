//! Who may do what.
//!
//! A [`Project`] is the unit of separation: its tokens, keys and signatures are its own, and it says which
//! images it may sign. A token belongs to one project (or to all of them, for the administrator) and has a
//! [`Role`]; a role is a set of [`Action`]s. Every handler takes a [`Context`], which says who asks and with
//! what request, and calls [`Context::require`] before it does anything. A change and its audit record are
//! one transaction: [`audit::record`] takes the transaction, not the database. Refusals are recorded too, and all of it
//! is sealed so that nothing can be taken out of it unnoticed ([`audit`]).
//!
//! ```text
//!   Authorization: Bearer pcl_… ─▶ SHA-256 ─▶ token row ─▶ Context{actor, role, project, request}
//!                                                             │ require(Action)   │ audit::record(tx, …)
//! ```
//!
//! Only SHA-256 of tokens is stored. A token that is mistyped, unknown, expired or revoked gets a 401 with the same
//! code; the detail says which of these, so that its holder knows what to do. That tells a guesser nothing: with the
//! 178 bits of a token, whoever sends one that was ever good had it. A thing of another project gets the same 404 as
//! a thing that does not exist.

pub mod api;
pub mod audit;
mod context;
mod error;
pub mod oidc;
mod pattern;
mod project;
mod projects;
mod role;
mod tables;
mod token;

pub use context::{Actor, Context};
pub use error::{AccessError, LOSS, codes};
pub use pattern::{Pattern, completed, glob};
pub use project::{Project, ProjectChange, ProjectName, QUOTA_MAX};
pub use role::{Action, Role};
pub use tables::{Access, MIGRATIONS};
pub use token::{LIFE_DAYS_MAX, NewToken, Token, TokenText};
