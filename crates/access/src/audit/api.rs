//! Routes: the records, and what it takes to verify them.

use std::str::FromStr;

use axum::Router;
use axum::extract::{FromRef, Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use web::{Json, Page, Paging, Problem};

use super::tables::Stored;
use super::{Filter, Outcome, Trail};
use crate::{Access, AccessError, Action, Context};

/// Where the bundles of the seal begin, which hold the records of all projects.
const BUNDLES: &str = "tile/entries/";

/// An audit record, as the API shows it.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct AuditRecordBody {
    pub id: String,
    /// When (RFC 3339), by the clock of the server that wrote it.
    pub at: String,
    /// The same in microseconds since 1970, as it is sealed.
    pub at_us: i64,
    /// `token NAME (ID)`, `server`, `local`, or `unknown`.
    pub actor: String,
    /// Empty for what is about no project.
    pub project: String,
    /// `noun.verb`.
    pub action: String,
    pub resource: String,
    pub outcome: Outcome,
    /// Of a refusal: its code.
    pub code: String,
    pub detail: String,
    pub request_id: String,
    /// More than 1 for refusals that were the same within a minute.
    pub times: i64,
    /// Its place under the seal; absent for a second or so after it was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<i64>,
}

/// How the seal over the records of all projects keeps up.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct SealBody {
    /// Records under the seal; 0 if it cannot be read.
    pub sealed: u64,
    /// Records that wait for it.
    pub unsealed: u64,
    /// For how long the oldest of those has been waiting.
    pub oldest_age_seconds: f64,
    /// Why the server that answers does not seal, as far as it knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// In which order records are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Newest,
    Sequence,
    Unsealed,
}

impl FromStr for Order {
    type Err = AccessError;

    fn from_str(text: &str) -> Result<Self, AccessError> {
        match text {
            "newest" => Ok(Self::Newest),
            "sequence" => Ok(Self::Sequence),
            "unsealed" => Ok(Self::Unsealed),
            other => Err(AccessError::Invalid {
                what: "order",
                text: other.chars().take(60).collect(),
                why: "it is newest, sequence or unsealed",
            }),
        }
    }
}

/// The routes of the trail, below `/api/v1`.
pub fn router<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    Access: FromRef<S>,
    Trail: FromRef<S>,
{
    Router::new()
        .route("/audit", get(list))
        .route("/audit/seal", get(seal))
        .route("/audit/log/checkpoint", get(checkpoint))
        .route("/audit/log/key", get(key))
        .route("/audit/log/tile/{*path}", get(tile))
}

#[utoipa::path(get, path = "/api/v1/audit", tag = "audit",
    params(
        web::PagingQuery,
        ("project" = Option<String>, Query, description = "Of this project; of all if left out, or of the token's own."),
        ("actor" = Option<String>, Query, description = "Whose actor has this in it, such as a token's name or id."),
        ("action" = Option<String>, Query, description = "With this action; `*` stands for anything, as in `token.*`."),
        ("resource" = Option<String>, Query, description = "About this resource; `*` stands for anything."),
        ("outcome" = Option<String>, Query, description = "`success`, `denied` or `failed`."),
        ("since" = Option<String>, Query, description = "From this time on (RFC 3339)."),
        ("until" = Option<String>, Query, description = "Before this time (RFC 3339)."),
        ("order" = Option<String>, Query, description = "`newest` first, sealed records by their `sequence`, or the `unsealed` ones.")
    ),
    responses((status = 200, body = Page<AuditRecordBody>)))]
pub(crate) async fn list(
    State(trail): State<Trail>,
    context: Context,
    paging: Paging,
) -> Result<Json<Page<AuditRecordBody>>, Problem> {
    context.require(Action::ReadAudit)?;
    let mut filter = Filter::read(|name| paging.filter(name))?;
    if !context.everywhere {
        let own = context.project.as_str();
        if !filter.project.is_empty() && filter.project != own {
            let name = filter.project.chars().take(60).collect();
            return Err(AccessError::NotFound {
                what: "project",
                name,
            }
            .into());
        }
        own.clone_into(&mut filter.project);
    }
    let order = paging.filter("order").unwrap_or("newest").parse()?;
    let rows = trail
        .rows(order, &filter, paging.after_key(), paging.limit + 1)
        .await?;
    let key = |row: &Stored| match (order, row.sequence) {
        (Order::Sequence, Some(sequence)) => format!("{sequence} {}", row.record.id),
        _ => row.record.id.clone(),
    };
    let Page { items, next } = paging.page(rows, key);
    Ok(Json(Page {
        items: items.into_iter().map(AuditRecordBody::from).collect(),
        next,
    }))
}

/// How the seal of the audit trail keeps up.
///
/// Nothing of what is recorded is in it: whoever may see how the server is may see this.
#[utoipa::path(get, path = "/api/v1/audit/seal", tag = "audit", responses((status = 200, body = SealBody)))]
pub(crate) async fn seal(State(trail): State<Trail>, context: Context) -> Result<Json<SealBody>, Problem> {
    context.require(Action::ReadDependencies)?;
    let status = trail.status().await?;
    Ok(Json(SealBody {
        sealed: status.sealed,
        unsealed: status.unsealed,
        oldest_age_seconds: status.unsealed_age_us as f64 / 1e6,
        error: status.error,
    }))
}

#[utoipa::path(get, path = "/api/v1/audit/log/checkpoint", tag = "audit", responses((status = 200, body = String,
    content_type = "text/plain", description = "The signed checkpoint of the seal (C2SP tlog-checkpoint).")))]
pub(crate) async fn checkpoint(State(trail): State<Trail>, context: Context) -> Result<String, Problem> {
    context.require(Action::ReadAudit)?;
    trail
        .log
        .checkpoint()
        .await
        .map_err(|error| Problem::new(&*error))
}

#[utoipa::path(get, path = "/api/v1/audit/log/key", tag = "audit", responses((status = 200, body = String,
    content_type = "text/plain", description = "The public key that signs the checkpoint, PEM.")))]
pub(crate) async fn key(State(trail): State<Trail>, context: Context) -> Result<String, Problem> {
    context.require(Action::ReadAudit)?;
    Ok(trail.log.public_key())
}

#[utoipa::path(get, path = "/api/v1/audit/log/tile/{path}", tag = "audit", responses((status = 200,
    body = Vec<u8>, content_type = "application/octet-stream", description = "A tile of the seal (C2SP tlog-tiles). \
    Bundles, whose path begins with `entries/`, hold the records of all projects and are for tokens that are good for all.")))]
pub(crate) async fn tile(
    State(trail): State<Trail>,
    context: Context,
    Path(path): Path<String>,
) -> Result<Response, Problem> {
    context.require(Action::ReadAudit)?;
    let path = format!("tile/{path}");
    if path.starts_with(BUNDLES) {
        context.require_everywhere(Action::ReadAudit)?;
    }
    let bytes = trail
        .log
        .file(&path)
        .await
        .map_err(|error| Problem::new(&*error))?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}

impl From<Stored> for AuditRecordBody {
    fn from(Stored { record, sequence }: Stored) -> Self {
        Self {
            at: record.at(),
            id: record.id,
            at_us: record.at_us,
            actor: record.actor,
            project: record.project,
            action: record.action,
            resource: record.resource,
            outcome: record.outcome,
            code: record.code,
            detail: record.detail,
            request_id: record.request_id,
            times: record.times,
            sequence,
        }
    }
}

/// The descriptions of these routes.
#[derive(utoipa::OpenApi)]
#[openapi(paths(list, seal, checkpoint, key, tile))]
pub struct Docs;
