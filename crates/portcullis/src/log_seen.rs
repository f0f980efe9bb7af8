//! Routes: what servers have seen of a log that the database does not have, and dismissing it.

use access::audit::{self, Record};
use access::{Action, Context};
use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use jiff::Timestamp;
use tlog::Name;
use web::{Json, Problem};

use crate::wiring::App;

/// One of the logs.
#[derive(Debug, Clone, Copy, Default, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogName {
    /// The transparency log.
    #[default]
    Signatures,
    /// The seal of the audit trail.
    Audit,
}

impl LogName {
    const ALL: [Self; 2] = [Self::Signatures, Self::Audit];

    fn name(self) -> Name {
        match self {
            Self::Signatures => Name::Signatures,
            Self::Audit => Name::Audit,
        }
    }
}

/// Every checkpoint that a server told of because the database did not have it.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct SeenBody {
    pub items: Vec<SeenCheckpoint>,
}

/// A checkpoint that a server has seen and told of because the database did not have it.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct SeenCheckpoint {
    pub log: LogName,
    /// The server's host and data folder.
    pub server: String,
    /// Entries.
    pub size: u64,
    /// The root hash, in hexadecimal.
    pub root: String,
    /// Whether nobody appends because of it.
    pub stops: bool,
    /// Why it no longer counts, if it was dismissed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dismissed_at: Option<String>,
}

/// What is to be dismissed.
#[derive(Debug, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Dismissal {
    #[serde(default)]
    pub log: LogName,
    /// Entries of the checkpoint, as it was told.
    pub size: u64,
    /// Why it was never this log's, or that what is missing is lost for good; 1 to 500 characters. It is kept in the audit
    /// trail and in the list.
    pub reason: String,
}

pub fn router() -> Router<App> {
    Router::new()
        .route("/log/seen", get(list))
        .route("/log/seen/dismissals", post(dismiss))
}

#[utoipa::path(get, path = "/api/v1/log/seen", tag = "log", responses((status = 200, body = SeenBody)))]
pub(crate) async fn list(State(app): State<App>, context: Context) -> Result<Json<SeenBody>, Problem> {
    context.require(Action::ReadDependencies)?;
    Ok(Json(seen(&app).await?))
}

/// From then on it does not stop the log, and no server holds it against the database. Whoever holds that checkpoint
/// will see a fork. A higher one stops the log again.
#[utoipa::path(post, path = "/api/v1/log/seen/dismissals", tag = "log", request_body = Dismissal,
    responses((status = 200, body = SeenBody)))]
pub(crate) async fn dismiss(
    State(app): State<App>,
    context: Context,
    Json(dismissal): Json<Dismissal>,
) -> Result<Json<SeenBody>, Problem> {
    context.require(Action::ManageLog)?;
    let Dismissal { log, size, reason } = dismissal;
    let reason = audit::reason(&reason)?;
    let mut tx = app.db.begin().await?;
    let roots = tlog::dismiss(&mut tx, log.name(), size, &reason, app.clock.now_us()).await?;
    let resource = format!("{}, checkpoint of {size} entries", log.name());
    let detail = format!("roots {}; reason: {reason}", roots.join(" "));
    let record = Record {
        action: "log.dismiss",
        resource: &resource,
        detail: &detail,
    };
    audit::record(&mut tx, &context, &*app.clock, &*app.random, record).await?;
    tx.commit().await?;
    Ok(Json(seen(&app).await?))
}

async fn seen(app: &App) -> Result<SeenBody, Problem> {
    let mut items = Vec::new();
    for log in LogName::ALL {
        for told in tlog::told(&app.db, log.name()).await? {
            let (reason, at) = told.dismissed.unzip();
            let at = at.and_then(|at| Timestamp::from_microsecond(at).ok());
            items.push(SeenCheckpoint {
                log,
                server: told.server,
                size: told.size,
                root: told.root,
                stops: told.stops,
                reason,
                dismissed_at: at.map(|at| at.to_string()),
            });
        }
    }
    Ok(SeenBody { items })
}

/// The descriptions of these routes.
#[derive(utoipa::OpenApi)]
#[openapi(paths(list, dismiss))]
pub struct Docs;
