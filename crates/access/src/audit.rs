//! The audit trail.

use kernel::{Clock, Id, Random};
use store::{StoreError, Tx, args};

use crate::Context;

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
    let id = Id::new("aud", clock, random);
    tx.execute(
        "INSERT INTO audit (id, at, actor, project, action, resource, detail, request_id) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        args![
            &id,
            clock.now_us(),
            context.actor.to_string(),
            context.project.as_str(),
            record.action,
            record.resource,
            record.detail,
            &context.request_id
        ],
    )
    .await
    .map(|_| ())
}
