//! Signs and verifies container images.
//!
//! To sign is to say "I vouch for this digest" in a way that any Sigstore tool can check: a statement about
//! digests ([`format::statement`]) in an envelope ([`format::dsse`]) in a bundle ([`format::bundle`]), attached
//! to the image as a referrer ([`format::referrer`]), and, for older readers, a tag beside the image
//! ([`format::legacy`]). To verify is to look at everything that is attached and to find one candidate that a
//! policy accepts, or to say of each why it did not count.
//!
//! ```text
//!   sign     look up ─▶ known? answer                       verify   resolve ─▶ list ─▶ candidates
//!              │ no                                                              │ each: type, subject, key,
//!              ▼                                                                 ▼       log, annotations
//!            singleflight ─▶ sign ─▶ STAGE ─▶ log ─▶ push ─▶ DONE ─▶ answer   one accepted, or why not
//! ```
//!
//! STAGE and DONE are transactions: a signature is durable before anybody outside sees it, and an answer is
//! given only when log entry, signature and audit record are durable. What died in between goes on from its
//! stage the next time the same image is signed; log and registry recognise what they have already.
//!
//! This crate owns keys, signatures and verdicts. It knows registries and logs only as [`ports`].

pub mod api;
pub mod debt;
mod door;
mod draft;
mod error;
mod flight;
pub mod format;
pub mod image_policy;
pub mod key;
mod keyring;
pub mod local;
mod operations;
mod parts;
pub mod ports;
mod publish;
mod release;
mod repair;
mod request;
mod resolve;
mod sign;
mod tables;
mod tally;
pub mod trust;
mod verdicts;
pub mod verify;
mod verify_service;

pub use door::DoorStanding;
pub use error::{SigningError, codes};
pub use keyring::{DamagedKey, KeyInfo, Keyring};
pub use operations::Open;
pub use parts::{FormatsOf, Settings};
pub use publish::Formats;
pub use request::{SignRequest, Signed};
pub use sign::{DEFAULT_KEY, Signing};
pub use tables::SignatureRow;
pub use tally::Tally;
pub use verdicts::{VerdictKey, Verdicts};
pub use verify_service::{Asked, Verdict, VerifyRequest, Verifying};

/// The tables of this domain.
pub const MIGRATIONS: &[store::Migration] = &[
    tables::MIGRATION,
    image_policy::MIGRATION,
    operations::MIGRATION,
    debt::MIGRATION,
    debt::PLACES_MIGRATION,
    debt::DUE_MIGRATION,
    debt::AGAIN_MIGRATION,
    operations::SHARES_MIGRATION,
];
