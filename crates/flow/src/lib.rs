//! Who goes next, how many at once, and how often.
//!
//! One project that asks for too much must cost the others nothing, and too much altogether must be refused at once
//! instead of being kept waiting. Three rules make that, each of them pure and tested as such:
//!
//! - a [`FairQueue`] says who goes next: one queue for each project, served in turn (deficit round robin, Shreedhar
//!   and Varghese 1995), in three [`Class`]es by weight, so that none of them starves;
//! - a [`Limit`] says how many may be under way at something that we call: more while it answers well, less when it
//!   refuses or slows down (additive increase, multiplicative decrease);
//! - a [`Bucket`] says how often: a project's quota of new work (GCRA, the generic cell rate algorithm of ITU-T I.371).
//!
//! A [`Gate`] is the first two put together for those who wait: [`Gate::enter`] gives a [`Pass`] at once, or after
//! waiting in turn, or refuses at once because too much waits already. Whoever waits is never refused later: nothing
//! that was accepted is dropped.
//!
//! ```text
//!            enter(project, class, cost)
//!                      │
//!        room? ────────┼──────▶ Pass          too many wait? ──▶ refused, 429 or 503
//!                      │ no                                       (yours)  (ours)
//!                      ▼
//!          project a ▒▒▒▒▒▒▒▒▒▒ ┐
//!          project b ▒          ├─ in turn ──▶ Pass ──▶ dropped: the next one enters
//!          project c ▒▒         ┘
//! ```

mod class;
mod error;
mod gate;
mod limit;
mod queue;
mod rate;

pub use class::{Caller, Class};
pub use error::{FlowError, codes};
pub use gate::{Bounds, Gate, Pass, Standing};
pub use limit::{Limit, Outcome};
pub use queue::{COST_MAX, FairQueue};
pub use rate::{Bucket, Rate};
