//! How Portcullis speaks HTTP.
//!
//! A handler returns `Result<_, Problem>`; any [`kernel::Fault`] becomes a [`Problem`] with `?`, and the
//! outermost layer, [`request::layer`], writes it as `application/problem+json` (RFC 9457) with the
//! request's id and, where trying later makes sense, a jittered `Retry-After`. [`Json`] reads a body within
//! the caps of `kernel::limits`; [`Paging`] reads `limit` and `cursor`; [`Page`] answers a list.
//!
//! ```text
//!   request ─▶ id ─▶ handler(Json, Paging, …) ─▶ Ok(json) │ Err(Problem)
//!                                                  └────────────┴─▶ id, problem+json, Retry-After, log line
//! ```
//!
//! [`listen`] accepts connections and sees to it that those which do nothing cost those which do something nothing; [`threads`] has those that give way to others.
//!
//! This crate knows no domain, no store and no user.

mod body;
pub mod listen;
mod page;
mod problem;
pub mod request;
pub mod route;
pub mod threads;

pub use body::{Json, codes as body_codes};
pub use page::{Page, Paging, PagingQuery};
pub use problem::{Pointer, Problem, ProblemDocument};
pub use request::RequestId;
