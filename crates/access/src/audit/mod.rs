//! The audit trail: who did what to what, with what outcome, and a seal over it.
//!
//! A change writes its record in its own transaction ([`record`]): both are durable, or neither. A refusal has no
//! transaction; it is noted in memory ([`Refusals`]). The first of a kind is written within a second; those like it are
//! counted and written when the minute ends, so a process that is killed takes the count of up to a minute with it. All
//! of it is bounded, so that a flood neither fills the disk nor slows anybody. A task seals what was written ([`Trail`]): each record becomes a leaf of a
//! log that can only grow ([`SealLog`], a port), and gets its place there as its sequence number.
//!
//! ```text
//!   change ── record(tx) ─────────────┐
//!                                     ▼
//!   refusal ── Refusals ──(1 s)──▶ table audit ──(1 s, by whoever leads)──▶ SealLog ──▶ sequence
//!                                     │                                       │
//!                                     └────────── verify: each row is a leaf, each leaf has its row
//! ```
//!
//! What the seal proves: a record that was sealed is there, unchanged and in its place, or it is named ([`compare`]).
//! What it does not: a record that somebody with the database in hand removes, changes or adds within the second before
//! it is sealed. Nor does it make true what was written.
//!
//! `record`, `export`, `filter`, `operation`, `compare` and `ocsf` are pure; `trail` and `refusals` write; `asker` and `api` are the
//! edges.

mod api;
mod asker;
mod compare;
mod export;
mod filter;
mod ocsf;
mod operation;
mod record;
mod refusals;
mod tables;
mod trail;

use kernel::{Clock, Id, Random};
use store::{StoreError, Tx};

use crate::{AccessError, Context};

pub use api::{Docs, router};
pub use asker::{Asker, layer};
pub use compare::{Finding, Leaves, Wrong};
pub use export::ExportLine;
pub use filter::Filter;
pub use ocsf::ocsf;
pub use operation::operation;
pub use record::{AuditRecord, Outcome, RecordError};
pub use refusals::{ACTOR_DETAILS_MAX, ACTOR_REFUSALS_MAX, REFUSALS_MAX, Refusals, WINDOW_SECONDS};
pub use trail::{CRASH_POINTS, SEAL_MS, SealLog, Status, Trail};

pub(crate) use tables::MIGRATION;

/// Characters of a reason that a person gives.
const REASON_CHARS_MAX: usize = 500;

/// What happened to what.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// `noun.verb`, as in `signature.create`.
    pub action: &'a str,
    /// The thing: an image with its digest, a key's name, a token's id.
    pub resource: &'a str,
    /// More about it; never a secret.
    pub detail: &'a str,
}

/// Writes a record in the transaction of the change that it records: both are durable, or neither.
///
/// # Errors
/// If the database refuses; the change must then not be committed.
pub async fn record(
    tx: &mut Tx,
    context: &Context,
    clock: &dyn Clock,
    random: &dyn Random,
    record: Record<'_>,
) -> Result<(), StoreError> {
    let record = AuditRecord {
        action: record.action.to_owned(),
        actor: context.actor.to_string(),
        at_us: clock.now_us(),
        code: String::new(),
        detail: record.detail.to_owned(),
        id: Id::new("aud", clock, random).to_string(),
        outcome: Outcome::Success,
        project: context.project.to_string(),
        request_id: context.request_id.clone(),
        resource: record.resource.to_owned(),
        times: 1,
    };
    tables::insert(tx, &record).await
}

/// The reason that a person gives for a change, as it stands in a record: in printable characters.
///
/// # Errors
/// [`AccessError::Invalid`] if there is none, or it is longer than 500 characters.
pub fn reason(text: &str) -> Result<String, AccessError> {
    let reason = kernel::words(text).trim().to_owned();
    if reason.is_empty() || reason.chars().count() > REASON_CHARS_MAX {
        return Err(AccessError::Invalid {
            what: "reason",
            text: reason.chars().take(60).collect(),
            why: "it is kept in the audit trail: 1 to 500 characters that say what was looked for and what was found",
        });
    }
    Ok(reason)
}
