//! Image policies over HTTP, in the shape of `ClusterImagePolicy`.

use access::Context;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use kernel::Digest;
use web::{Json, Page, Paging, Problem};

use crate::SigningError;
use crate::image_policy::{ImagePolicies, StoredPolicy};

/// A `ClusterImagePolicy` of `policy.sigstore.dev`.
#[derive(Debug, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
pub struct ImagePolicyBody(pub serde_json::Value);

#[utoipa::path(get, path = "/api/v1/image-policies", tag = "image-policies", params(web::PagingQuery),
    responses((status = 200, body = Page<ImagePolicyBody>)))]
pub(crate) async fn list(
    State(policies): State<ImagePolicies>,
    context: Context,
    paging: Paging,
) -> Result<Json<Page<ImagePolicyBody>>, Problem> {
    let rows = policies
        .list(&context, paging.after_key(), paging.limit + 1)
        .await?;
    let page = paging.page(rows, |row: &StoredPolicy| row.name.clone());
    let items = page.items.into_iter().map(|row| ImagePolicyBody(row.document));
    Ok(Json(Page {
        items: items.collect(),
        next: page.next,
    }))
}

#[utoipa::path(get, path = "/api/v1/image-policies/{name}", tag = "image-policies",
    responses((status = 200, body = ImagePolicyBody, description = "With its ETag.")))]
pub(crate) async fn one(
    State(policies): State<ImagePolicies>,
    context: Context,
    Path(name): Path<String>,
) -> Result<impl IntoResponse, Problem> {
    let stored = policies.get(&context, &name).await?;
    Ok(answer(stored))
}

#[utoipa::path(put, path = "/api/v1/image-policies/{name}", tag = "image-policies",
    request_body = ImagePolicyBody,
    params(("If-Match" = Option<String>, Header, description = "Write only over the policy with this ETag.")),
    responses((status = 200, body = ImagePolicyBody), (status = 201, body = ImagePolicyBody)))]
pub(crate) async fn put(
    State(policies): State<ImagePolicies>,
    context: Context,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(ImagePolicyBody(document)): Json<ImagePolicyBody>,
) -> Result<impl IntoResponse, Problem> {
    let expected = expected(&headers)?;
    let (stored, new) = policies.put(&context, &name, document, expected).await?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, answer(stored)))
}

#[utoipa::path(delete, path = "/api/v1/image-policies/{name}", tag = "image-policies",
    responses((status = 204)))]
pub(crate) async fn delete(
    State(policies): State<ImagePolicies>,
    context: Context,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    policies.delete(&context, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn answer(stored: StoredPolicy) -> impl IntoResponse {
    let etag = format!("\"{}\"", stored.digest);
    ([(header::ETAG, etag)], Json(ImagePolicyBody(stored.document)))
}

/// The digest in `If-Match` (RFC 9110 section 13.1.1); one entity tag, as this API gives it.
fn expected(headers: &HeaderMap) -> Result<Option<Digest>, SigningError> {
    let Some(value) = headers.get(header::IF_MATCH) else {
        return Ok(None);
    };
    let tag = value.to_str().ok().map(|tag| tag.trim_matches('"'));
    let digest = tag.and_then(|tag| tag.parse().ok());
    digest
        .map(Some)
        .ok_or_else(|| SigningError::Request("If-Match is the ETag that this server gave".to_owned()))
}
