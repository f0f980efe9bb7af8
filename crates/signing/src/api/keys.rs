//! Keys over HTTP. Public halves leave; private halves come in (import) and never go out.

use access::{Action, Context};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use jiff::Timestamp;
use kernel::Secret;
use web::{Json, Page, Paging, Problem};

use crate::{KeyInfo, Signing, SigningError};

/// How long a rotated key's signatures verify if the request does not say, in days.
const VERIFY_DAYS: i64 = 365;

/// A key, as the API shows it.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct KeyBody {
    pub name: String,
    /// Counted from 1; rotating makes the next.
    pub version: i64,
    /// `sha256:` and hex over the public key's DER.
    pub id: String,
    /// PEM, as in `cosign.pub`.
    pub public_key: String,
    pub created_at: String,
    /// Until when signatures of this rotated version verify; absent for the current one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify_until: Option<String>,
}

/// A new key: made here, or taken in from a cosign key file.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKeyBody {
    pub name: String,
    /// The PEM of `cosign.key`, to import it.
    pub private_key: Option<String>,
    /// The password of `private_key`.
    #[schema(value_type = Option<String>)]
    pub password: Option<Secret>,
}

/// Until when what the replaced key signed verifies.
#[derive(Debug, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateBody {
    /// RFC 3339; a year from now if left out.
    #[schema(value_type = Option<String>)]
    pub verify_until: Option<Timestamp>,
}

/// PEM of a public key.
pub type CosignPub = String;

#[utoipa::path(get, path = "/api/v1/keys", tag = "keys", params(web::PagingQuery),
    responses((status = 200, body = Page<KeyBody>)))]
pub(crate) async fn list(
    State(signing): State<Signing>,
    context: Context,
    paging: Paging,
) -> Result<Json<Page<KeyBody>>, Problem> {
    context.require(Action::ReadKeys)?;
    // A project has few keys, and all of them are at hand; so the page is cut here.
    let keys = signing.keyring().list(context.project.as_str(), None).await?;
    let after = place(paging.after_key());
    let mut rows: Vec<&KeyInfo> = keys
        .iter()
        .filter(|key| (key.name.as_str(), key.version) > after)
        .collect();
    rows.sort_by_key(|key| (key.name.as_str(), key.version));
    rows.truncate(paging.limit as usize + 1);
    let Page { items, next } = paging.page(rows, |key| format!("{} {}", key.name, key.version));
    Ok(Json(Page {
        items: items.into_iter().cloned().map(KeyBody::from).collect(),
        next,
    }))
}

/// The name and version after which a page begins; those of no key on the first page.
fn place(key: &str) -> (&str, i64) {
    let (name, version) = key.rsplit_once(' ').unwrap_or((key, "0"));
    (name, version.parse().unwrap_or(0))
}

#[utoipa::path(get, path = "/api/v1/keys/{name}", tag = "keys", responses((status = 200, body = KeyBody)))]
pub(crate) async fn one(
    State(signing): State<Signing>,
    context: Context,
    Path(name): Path<String>,
) -> Result<Json<KeyBody>, Problem> {
    context.require(Action::ReadKeys)?;
    Ok(Json(
        signing
            .keyring()
            .current(context.project.as_str(), &name)
            .await?
            .into(),
    ))
}

#[utoipa::path(get, path = "/api/v1/keys/{name}/cosign.pub", tag = "keys",
    responses((status = 200, body = CosignPub, content_type = "application/x-pem-file")))]
pub(crate) async fn public(
    State(signing): State<Signing>,
    context: Context,
    Path(name): Path<String>,
) -> Result<impl IntoResponse, Problem> {
    context.require(Action::ReadKeys)?;
    let key = signing.keyring().current(context.project.as_str(), &name).await?;
    Ok((
        [(header::CONTENT_TYPE, "application/x-pem-file")],
        key.public.to_pem(),
    ))
}

#[utoipa::path(post, path = "/api/v1/keys", tag = "keys", request_body = NewKeyBody,
    responses((status = 201, body = KeyBody)))]
pub(crate) async fn create(
    State(signing): State<Signing>,
    context: Context,
    Json(body): Json<NewKeyBody>,
) -> Result<impl IntoResponse, Problem> {
    context.about(&body.name);
    context.require(Action::ManageKeys)?;
    let keyring = signing.keyring();
    let key = match (body.private_key, body.password) {
        (Some(file), password) => {
            let password = password.unwrap_or_else(|| Secret::new(String::new()));
            keyring.import(&context, &body.name, file, password).await?
        }
        (None, _) => keyring.create(&context, &body.name).await?,
    };
    Ok((StatusCode::CREATED, Json(KeyBody::from(key))))
}

#[utoipa::path(post, path = "/api/v1/keys/{name}:rotate", tag = "keys", request_body = RotateBody,
    responses((status = 201, body = KeyBody)))]
pub(crate) async fn rotate(
    State(signing): State<Signing>,
    context: Context,
    Path(call): Path<String>,
    Json(body): Json<RotateBody>,
) -> Result<impl IntoResponse, Problem> {
    context.require(Action::ManageKeys)?;
    let name = call
        .strip_suffix(":rotate")
        .ok_or_else(|| SigningError::Request("the call is KEY:rotate".to_owned()))?;
    let until = match body.verify_until {
        Some(until) => until,
        None => signing
            .now()
            .saturating_add(jiff::SignedDuration::from_hours(24 * VERIFY_DAYS))
            .unwrap_or(Timestamp::MAX),
    };
    let key = signing.keyring().rotate(&context, name, until).await?;
    Ok((StatusCode::CREATED, Json(KeyBody::from(key))))
}

impl From<KeyInfo> for KeyBody {
    fn from(key: KeyInfo) -> Self {
        Self {
            id: key.id(),
            public_key: key.public.to_pem(),
            created_at: key.created_at.to_string(),
            verify_until: key.verify_until.map(|until| until.to_string()),
            name: key.name,
            version: key.version,
        }
    }
}
