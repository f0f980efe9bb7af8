//! A project's quota as it stands.

use access::{Action, Context};
use axum::extract::State;
use web::{Json, Problem};

use crate::Signing;

/// How many new signatures the project may make, and what is left of that at this server.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct QuotaStanding {
    pub project: String,
    pub signatures_per_minute: u32,
    pub burst: u32,
    /// New signatures that would be granted at once now.
    pub left: u32,
}

#[utoipa::path(get, path = "/api/v1/quota", tag = "signatures",
    responses((status = 200, body = QuotaStanding, description = "of the caller's project, or the one that X-Portcullis-Project names")))]
pub(crate) async fn get(
    State(signing): State<Signing>,
    context: Context,
) -> Result<Json<QuotaStanding>, Problem> {
    context.require(Action::ReadProjects)?;
    let (rate, left) = signing.quota(&context).await?;
    Ok(Json(QuotaStanding {
        project: context.project.to_string(),
        signatures_per_minute: rate.per_minute,
        burst: rate.burst,
        left,
    }))
}
