//! What is owed to the external log.

use access::{Action, Context};
use axum::extract::State;
use web::{Json, Problem};

use crate::Signing;
use crate::debt::{Refused, Standing};

/// The debt of all servers together.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct ExternalLogBody {
    /// Whether signatures are owed to an external log; if not, what follows is what was owed to one before.
    pub configured: bool,
    /// Entries that the log has yet to get.
    pub owed: u64,
    /// How long the oldest of them has been owed.
    pub oldest_age_seconds: f64,
    /// Entries that the log has, and whose evidence is not attached to their images yet.
    pub unpublished: u64,
    /// How long ago the oldest of these came into the log.
    pub oldest_unpublished_age_seconds: f64,
    /// Entries that the log will never take.
    pub refused: u64,
    /// Over the last five seconds.
    pub paid_per_second: f64,
    /// What last went wrong with the entry that is owed the longest; empty if nothing did.
    pub last_error: String,
    /// The oldest of the caller's project, at most 20.
    pub refused_entries: Vec<RefusedEntry>,
}

/// An entry that the log will never take.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct RefusedEntry {
    /// The id of the signature.
    pub signature: String,
    /// In the log's words.
    pub why: String,
}

#[utoipa::path(get, path = "/api/v1/external-log", tag = "dependencies",
    responses((status = 200, body = ExternalLogBody)))]
pub(crate) async fn get(
    State(signing): State<Signing>,
    context: Context,
) -> Result<Json<ExternalLogBody>, Problem> {
    context.require(Action::ReadDependencies)?;
    let refused_entries = signing.refused_debt(&context).await?;
    let Standing {
        owed,
        oldest,
        unpublished,
        oldest_unpublished,
        refused,
        paid_per_second,
        last_error,
    } = signing.debt().await?;
    Ok(Json(ExternalLogBody {
        configured: signing.owes(),
        owed,
        oldest_age_seconds: oldest.as_secs_f64(),
        unpublished,
        oldest_unpublished_age_seconds: oldest_unpublished.as_secs_f64(),
        refused,
        paid_per_second,
        last_error,
        refused_entries: refused_entries.into_iter().map(RefusedEntry::from).collect(),
    }))
}

impl From<Refused> for RefusedEntry {
    fn from(Refused { signature, why }: Refused) -> Self {
        Self { signature, why }
    }
}
