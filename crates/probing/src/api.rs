//! Routes: what is known of each dependency.

use access::{Access, AccessError, Action, Context};
use axum::Router;
use axum::extract::{FromRef, Path, State};
use axum::routing::{get, post};
use web::{Json, Problem};

use crate::acknowledge::Acknowledgements;
use crate::board::{Board, Status};
use crate::loss::Loss;
use crate::verdict::{CanDeploy, Verdict};
use crate::{Kind, State as Found};

/// All dependencies, and what they come to.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct DependenciesBody {
    /// Whether images can be signed and verified right now.
    pub can_deploy: CanDeploy,
    /// Why not, or not all of it; the worst first.
    pub reasons: Vec<String>,
    pub dependencies: Vec<DependencyBody>,
}

/// One dependency, as its probe found it last.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct DependencyBody {
    pub name: String,
    pub kind: Kind,
    pub state: Found,
    /// Who or what has to be there.
    pub expected: String,
    /// Who or what is.
    pub found: String,
    /// Since when it is in this state.
    pub since: String,
    /// When the last look ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checked_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_good: Option<String>,
    /// How long the last look took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    /// Days until its certificate, or the first of its keys, ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_days_left: Option<i64>,
    /// What stops working while it is broken.
    pub blast_radius: String,
    /// What to do first; empty if there is nothing to do.
    pub hint: String,
}

impl From<Status> for DependencyBody {
    fn from(status: Status) -> Self {
        Self {
            blast_radius: status.kind.blast_radius(status.state).to_owned(),
            hint: status.kind.hint(status.state).to_owned(),
            name: status.name,
            kind: status.kind,
            state: status.state,
            expected: status.expected,
            found: status.found,
            since: status.since.to_string(),
            checked_at: status.checked_at.map(|at| at.to_string()),
            last_good: status.last_good.map(|at| at.to_string()),
            latency_ms: status.latency.map(|latency| latency.as_secs_f64() * 1_000.0),
            certificate_days_left: status.certificate_days_left,
        }
    }
}

/// The routes of this domain, below `/api/v1`.
pub fn router<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    Access: FromRef<S>,
    Board: FromRef<S>,
    Acknowledgements: FromRef<S>,
{
    Router::new()
        .route("/dependencies", get(list))
        .route("/dependencies/{action}", post(acknowledge))
}

#[utoipa::path(get, path = "/api/v1/dependencies", tag = "dependencies", responses((status = 200, body = DependenciesBody)))]
pub(crate) async fn list(
    State(board): State<Board>,
    context: Context,
) -> Result<Json<DependenciesBody>, Problem> {
    context.require(Action::ReadDependencies)?;
    let all = board.all();
    let Verdict { can_deploy, reasons } = Verdict::of(&all);
    Ok(Json(DependenciesBody {
        can_deploy,
        reasons,
        dependencies: all.into_iter().map(DependencyBody::from).collect(),
    }))
}

/// That a person has looked.
#[derive(Debug, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AcknowledgementBody {
    /// What was looked for, and what was found; 1 to 500 characters, for the audit trail.
    pub reason: String,
}

/// What is no longer named.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct AcknowledgedBody {
    /// In words.
    pub told: String,
    /// Of the database: the highest count that a server had seen acknowledged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub known: Option<i64>,
    /// Of the database: the lowest that was found after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<i64>,
    /// Of the database: when that was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

impl From<Loss> for AcknowledgedBody {
    fn from(loss: Loss) -> Self {
        Self {
            told: loss.to_string(),
            known: Some(loss.known),
            found: Some(loss.found),
            since: Some(loss.since.to_string()),
        }
    }
}

/// Says that a person has looked at what the database lost (`database`), or that the log that answers now is the one
/// (`external-log`): all servers forget what they saw there before.
#[utoipa::path(post, path = "/api/v1/dependencies/{name}:acknowledge", tag = "dependencies",
    request_body = AcknowledgementBody,
    responses((status = 200, body = AcknowledgedBody, description = "what is named no longer")))]
pub(crate) async fn acknowledge(
    State(looked): State<Acknowledgements>,
    context: Context,
    Path(action): Path<String>,
    Json(body): Json<AcknowledgementBody>,
) -> Result<Json<AcknowledgedBody>, Problem> {
    let done = match action.as_str() {
        "database:acknowledge" => looked.losses.acknowledge(&context, &body.reason).await?.into(),
        "external-log:acknowledge" => AcknowledgedBody {
            told: looked.external_log(&context, &body.reason).await?,
            known: None,
            found: None,
            since: None,
        },
        _ => {
            return Err(AccessError::NotFound {
                what: "action on dependencies named",
                name: action.chars().take(60).collect(),
            }
            .into());
        }
    };
    Ok(Json(done))
}

/// The descriptions of these routes.
#[derive(utoipa::OpenApi)]
#[openapi(paths(list, acknowledge))]
pub struct Docs;
