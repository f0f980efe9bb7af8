//! Routes: projects, tokens, and what the caller may.

use axum::extract::{FromRef, Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Router, response::IntoResponse};
use web::{Json, Page, Paging, Problem};

use flow::Rate;

use crate::{
    Access, AccessError, Action, Actor, Context, NewToken, Pattern, Project, ProjectChange, ProjectName,
    Role, Token,
};

/// A project, as the API shows it.
#[derive(Debug, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct ProjectBody {
    pub name: String,
    /// Patterns of repositories that it may sign.
    pub images: Vec<String>,
    /// Its own quota of new signatures; absent where the server's default counts.
    #[serde(default, skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub quota: Option<QuotaBody>,
    #[serde(default, skip_deserializing)]
    pub created_at: String,
}

/// How many new signatures a project may make. Images that are signed already cost nothing.
#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QuotaBody {
    /// 0 allows none.
    pub signatures_per_minute: u32,
    /// At once after a rest; at least 1.
    pub burst: u32,
}

/// What of a project changes; what is left out stays.
#[derive(Debug, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProjectChangeBody {
    #[serde(default)]
    pub images: Option<Vec<String>>,
    /// `null` gives it the server's default again.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<QuotaBody>)]
    pub quota: Option<Option<QuotaBody>>,
}

/// `null` is not the same as nothing.
fn present<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: serde::Deserialize<'de>,
    D: serde::Deserializer<'de>,
{
    T::deserialize(deserializer).map(Some)
}

/// A token, as the API shows it; `token` only in the answer that made it.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct TokenBody {
    pub id: String,
    pub name: String,
    /// Absent for a token of the whole server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    pub role: Role,
    pub created_at: String,
    pub expires_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<String>,
    /// The secret text, shown this once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// What a new token should be.
#[derive(Debug, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTokenBody {
    pub name: String,
    pub role: Role,
    /// One project; left out, the caller's own.
    pub project: Option<String>,
    /// For all projects; only the administrator of the whole server may.
    #[serde(default)]
    pub everywhere: bool,
    /// Days until it ends, 1 to 90; 30 if left out.
    pub days: Option<i64>,
}

/// Who the caller is.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct WhoAmI {
    pub actor: String,
    pub role: Role,
    pub project: String,
    /// Whether the token is good for every project.
    pub everywhere: bool,
    /// When the token ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// For a job of a build system: the trust rule that took its token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What it may do.
    pub actions: Vec<Action>,
}

/// An answer to `can-i`.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct CanI {
    pub action: Action,
    pub allowed: bool,
}

/// The routes of this domain, below `/api/v1`.
pub fn router<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    Access: FromRef<S>,
{
    Router::new()
        .route("/projects", get(list_projects).post(create_project))
        .route("/projects/{name}", get(get_project).patch(change_project))
        .route("/tokens", get(list_tokens).post(create_token))
        .route("/tokens/{action}", post(revoke_token))
        .route("/auth/whoami", get(whoami))
        .route("/auth/can-i", get(can_i))
}

#[utoipa::path(get, path = "/api/v1/projects", tag = "access", params(web::PagingQuery), responses((status = 200, body = Page<ProjectBody>)))]
pub(crate) async fn list_projects(
    State(access): State<Access>,
    context: Context,
    paging: Paging,
) -> Result<Json<Page<ProjectBody>>, Problem> {
    context.require(Action::ReadProjects)?;
    let rows = access
        .projects(&context, paging.after_key(), paging.limit + 1)
        .await?;
    Ok(Json(paging.page(
        rows.into_iter().map(ProjectBody::from).collect(),
        |row: &ProjectBody| row.name.clone(),
    )))
}

#[utoipa::path(get, path = "/api/v1/projects/{name}", tag = "access", responses((status = 200, body = ProjectBody)))]
pub(crate) async fn get_project(
    State(access): State<Access>,
    context: Context,
    Path(name): Path<String>,
) -> Result<Json<ProjectBody>, Problem> {
    context.require(Action::ReadProjects)?;
    let name: ProjectName = name.parse()?;
    if !context.everywhere && context.project != name {
        return Err(AccessError::NotFound {
            what: "project",
            name: name.to_string(),
        }
        .into());
    }
    Ok(Json(access.project(&name).await?.into()))
}

#[utoipa::path(post, path = "/api/v1/projects", tag = "access", request_body = ProjectBody,
    responses((status = 201, body = ProjectBody)))]
pub(crate) async fn create_project(
    State(access): State<Access>,
    context: Context,
    Json(body): Json<ProjectBody>,
) -> Result<impl IntoResponse, Problem> {
    context.about(&body.name);
    context.require(Action::ManageProjects)?;
    let images = patterns(&body.images)?;
    let project = access
        .create_project(&context, body.name.parse()?, images)
        .await?;
    Ok((StatusCode::CREATED, Json(ProjectBody::from(project))))
}

#[utoipa::path(patch, path = "/api/v1/projects/{name}", tag = "access", request_body = ProjectChangeBody,
    responses((status = 200, body = ProjectBody)))]
pub(crate) async fn change_project(
    State(access): State<Access>,
    context: Context,
    Path(name): Path<String>,
    Json(body): Json<ProjectChangeBody>,
) -> Result<Json<ProjectBody>, Problem> {
    context.require(Action::ManageProjects)?;
    let quota = body.quota.map(|quota| quota.map(Rate::from));
    let images = body.images.as_deref().map(patterns).transpose()?;
    let change = ProjectChange { images, quota };
    let project = access.change_project(&context, &name.parse()?, change).await?;
    Ok(Json(project.into()))
}

fn patterns(images: &[String]) -> Result<Vec<Pattern>, AccessError> {
    images.iter().map(|text| text.parse()).collect()
}

#[utoipa::path(get, path = "/api/v1/tokens", tag = "access", params(web::PagingQuery), responses((status = 200, body = Page<TokenBody>)))]
pub(crate) async fn list_tokens(
    State(access): State<Access>,
    context: Context,
    paging: Paging,
) -> Result<Json<Page<TokenBody>>, Problem> {
    context.require(Action::ManageTokens)?;
    let rows = access
        .tokens(&context, paging.after_key(), paging.limit + 1)
        .await?;
    Ok(Json(paging.page(
        rows.into_iter().map(TokenBody::from).collect(),
        |row: &TokenBody| row.id.clone(),
    )))
}

#[utoipa::path(post, path = "/api/v1/tokens", tag = "access", request_body = NewTokenBody,
    responses((status = 201, body = TokenBody)))]
pub(crate) async fn create_token(
    State(access): State<Access>,
    context: Context,
    Json(body): Json<NewTokenBody>,
) -> Result<impl IntoResponse, Problem> {
    context.about(&body.name);
    context.require(Action::ManageTokens)?;
    let named: Option<ProjectName> = body.project.as_deref().map(str::parse).transpose()?;
    if body.everywhere {
        context.require_everywhere(Action::ManageTokens)?;
    }
    if let Some(other) = named
        .as_ref()
        .filter(|name| !context.everywhere && **name != context.project)
    {
        return Err(AccessError::Denied {
            actor: context.actor.to_string(),
            action: Action::ManageTokens,
            project: other.to_string(),
        }
        .into());
    }
    let project = if body.everywhere {
        None
    } else {
        Some(named.unwrap_or_else(|| context.project.clone()))
    };
    let new = NewToken {
        name: body.name,
        project,
        role: body.role,
        days: body.days.unwrap_or(30),
    };
    let (token, text) = access.create_token(&context, new).await?;
    let answer = TokenBody {
        token: Some(text.expose().to_owned()),
        ..token.into()
    };
    Ok((StatusCode::CREATED, Json(answer)))
}

#[utoipa::path(post, path = "/api/v1/tokens/{id}:revoke", tag = "access", responses((status = 204)))]
pub(crate) async fn revoke_token(
    State(access): State<Access>,
    context: Context,
    Path(action): Path<String>,
) -> Result<StatusCode, Problem> {
    context.require(Action::ManageTokens)?;
    let id = action
        .strip_suffix(":revoke")
        .ok_or_else(|| AccessError::NotFound {
            what: "call",
            name: action.chars().take(60).collect(),
        })?;
    access.revoke_token(&context, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(get, path = "/api/v1/auth/whoami", tag = "access", responses((status = 200, body = WhoAmI)))]
pub(crate) async fn whoami(context: Context) -> Json<WhoAmI> {
    let actions = Action::ALL
        .iter()
        .copied()
        .filter(|action| context.require(*action).is_ok())
        .collect();
    Json(WhoAmI {
        actor: context.actor.to_string(),
        role: context.role,
        project: context.project.to_string(),
        everywhere: context.everywhere,
        expires_at: context.expires_at.map(|at| at.to_string()),
        rule: match context.actor {
            Actor::Workload { rule, .. } => Some(rule),
            _ => None,
        },
        actions,
    })
}

#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
pub(crate) struct CanIQuery {
    /// `verb-noun`, such as `sign-images`.
    action: String,
}

#[utoipa::path(get, path = "/api/v1/auth/can-i", tag = "access", params(CanIQuery), responses((status = 200, body = CanI)))]
pub(crate) async fn can_i(context: Context, Query(query): Query<CanIQuery>) -> Result<Json<CanI>, Problem> {
    let action: Action = query.action.parse()?;
    Ok(Json(CanI {
        action,
        allowed: context.require(action).is_ok(),
    }))
}

impl From<Project> for ProjectBody {
    fn from(project: Project) -> Self {
        Self {
            name: project.name.to_string(),
            images: project.images.iter().map(ToString::to_string).collect(),
            quota: project.quota.map(QuotaBody::from),
            created_at: project.created_at.to_string(),
        }
    }
}

impl From<Rate> for QuotaBody {
    fn from(rate: Rate) -> Self {
        Self {
            signatures_per_minute: rate.per_minute,
            burst: rate.burst,
        }
    }
}

impl From<QuotaBody> for Rate {
    fn from(body: QuotaBody) -> Self {
        Self {
            per_minute: body.signatures_per_minute,
            burst: body.burst,
        }
    }
}

impl From<Token> for TokenBody {
    fn from(token: Token) -> Self {
        Self {
            id: token.id.to_string(),
            name: token.name,
            project: token.project.map(|name| name.to_string()),
            role: token.role,
            created_at: token.created_at.to_string(),
            expires_at: token.expires_at.to_string(),
            revoked_at: token.revoked_at.map(|at| at.to_string()),
            token: None,
        }
    }
}

/// The descriptions of these routes.
#[derive(utoipa::OpenApi)]
#[openapi(paths(
    list_projects,
    get_project,
    create_project,
    change_project,
    list_tokens,
    create_token,
    revoke_token,
    whoami,
    can_i
))]
pub struct Docs;
