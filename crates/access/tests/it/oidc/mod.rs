//! Workloads' tokens: what is taken, what is not, and what an issuer that is not itself may cost.

mod issuer;
mod keys;
mod rules;
mod tokens;

pub use issuer::{AUDIENCE, ISSUER, Mood, Signer, World, header};
