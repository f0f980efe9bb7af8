//! Signatures over HTTP.

use access::{Action, Context};
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use flow::Class;
use futures::stream::{self, StreamExt};
use kernel::Reference;
use kernel::limits::BATCH_ITEMS_MAX;
use tokio::time::timeout;
use tracing::{Instrument as _, Span};
use web::{Json, Page, Paging, Problem};

use super::items::{
    BATCH_CONCURRENT_MAX, BatchLine, SignBody, SignatureBody, line, release as release_items, sign, told,
    words,
};
use super::operations::{self, OperationBody, Order};
use crate::tables::{self, Filter};
use crate::{SignatureRow, Signing, SigningError};

const NDJSON: &str = "application/x-ndjson";

/// Many images to sign.
#[derive(Debug, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchBody {
    pub items: Vec<SignBody>,
    /// One statement over all images, one signature, one log entry.
    #[serde(default)]
    pub release: bool,
}

#[utoipa::path(post, path = "/api/v1/signatures", tag = "signatures", request_body = SignBody,
    params(("prefer" = Option<String>, Header, description = "`wait=N`: what takes longer than N seconds becomes an operation.")),
    responses((status = 201, body = SignatureBody), (status = 200, description = "it stood already", body = SignatureBody),
        (status = 202, description = "accepted and durable; Location names the operation", body = OperationBody)))]
pub(crate) async fn create(
    State(signing): State<Signing>,
    context: Context,
    headers: HeaderMap,
    Json(body): Json<SignBody>,
) -> Result<Response, Problem> {
    context.about(&body.image);
    let Some(wait) = operations::wait(&headers) else {
        return sign(&signing, &context, body, Class::Sign).await.map(created);
    };
    let order = Order {
        items: vec![body.clone()],
        release: false,
    };
    let (own, by) = (signing.clone(), context.clone());
    let work = tokio::spawn(async move { sign(&own, &by, body, Class::Sign).await }.in_current_span());
    match timeout(wait, work).await {
        Ok(done) => done.map_err(|_| SigningError::Lost)?.map(created),
        Err(_) => operations::accept(&signing, &context, order, wait).await,
    }
}

fn created(body: SignatureBody) -> Response {
    let fresh = !body.deduplicated || body.manifests.iter().any(|own| !own.deduplicated);
    let status = if fresh {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    (status, Json(body)).into_response()
}

#[utoipa::path(post, path = "/api/v1/signatures:batch", tag = "signatures", request_body = BatchBody,
    params(("prefer" = Option<String>, Header, description = "`wait=N`: what takes longer than N seconds becomes an operation.")),
    responses((status = 200, body = Vec<BatchLine>, description = "a line for each item; as they come with Accept: application/x-ndjson"),
        (status = 202, description = "accepted and durable; Location names the operation", body = OperationBody)))]
pub(crate) async fn batch(
    State(signing): State<Signing>,
    context: Context,
    headers: HeaderMap,
    Json(body): Json<BatchBody>,
) -> Result<Response, Problem> {
    context.require(Action::SignImages)?;
    if body.items.is_empty() || body.items.len() > BATCH_ITEMS_MAX {
        let count = body.items.len();
        let text = format!("a batch has 1 to {BATCH_ITEMS_MAX} items (BATCH_ITEMS_MAX), not {count}");
        return Err(SigningError::Request(text).into());
    }
    let streamed = headers
        .get(header::ACCEPT)
        .is_some_and(|accept| accept.as_bytes().starts_with(NDJSON.as_bytes()));
    let BatchBody { items, release } = body;
    let Some(wait) = operations::wait(&headers) else {
        return answer(signing, context, items, release, streamed).await;
    };
    let order = Order {
        items: items.clone(),
        release,
    };
    match timeout(
        wait,
        answer(signing.clone(), context.clone(), items, release, false),
    )
    .await
    {
        Ok(done) => done,
        Err(_) => operations::accept(&signing, &context, order, wait).await,
    }
}

/// The lines of a batch; `streamed`, as they come.
async fn answer(
    signing: Signing,
    context: Context,
    items: Vec<SignBody>,
    release: bool,
    streamed: bool,
) -> Result<Response, Problem> {
    if release {
        let lines = release_items(&signing, &context, items).await?;
        return Ok(if streamed {
            ndjson(stream::iter(lines))
        } else {
            Json(lines).into_response()
        });
    }
    // A streamed answer is made outside of the request that asked for it.
    let span = Span::current();
    let lines = stream::iter(items.into_iter().enumerate()).map(move |(item, body)| {
        let (signing, context) = (signing.clone(), context.clone());
        // A task of its own: what was accepted is finished, whether or not somebody reads the answer.
        let work = async move {
            let image = body.image.clone();
            let outcome = sign(&signing, &context, body, Class::Batch).await;
            told(&context, line(item, image, outcome))
        };
        let task = tokio::spawn(work.instrument(span.clone()));
        async move {
            task.await
                .unwrap_or_else(|_| line(item, String::new(), Err(SigningError::Lost.into())))
        }
    });
    if streamed {
        return Ok(ndjson(lines.buffer_unordered(BATCH_CONCURRENT_MAX)));
    }
    Ok(Json(lines.buffered(BATCH_CONCURRENT_MAX).collect::<Vec<_>>().await).into_response())
}

fn ndjson(lines: impl futures::Stream<Item = BatchLine> + Send + 'static) -> Response {
    let lines = lines.map(|line| {
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        Ok::<_, serde_json::Error>(Bytes::from(text))
    });
    ([(header::CONTENT_TYPE, NDJSON)], Body::from_stream(lines)).into_response()
}

#[utoipa::path(get, path = "/api/v1/signatures", tag = "signatures",
    params(
        web::PagingQuery,
        ("image" = Option<String>, Query, description = "Of this repository, or of one image by its digest."),
        ("digest" = Option<String>, Query, description = "Of the image with this digest, in every repository."),
        ("key" = Option<String>, Query, description = "By the key of this name.")
    ),
    responses((status = 200, body = Page<SignatureBody>)))]
pub(crate) async fn list(
    State(signing): State<Signing>,
    context: Context,
    paging: Paging,
) -> Result<Json<Page<SignatureBody>>, Problem> {
    context.require(Action::ReadSignatures)?;
    let image: Option<Reference> = paging.filter("image").map(str::parse).transpose()?;
    let repository = image
        .as_ref()
        .map(|image| image.repository().to_string())
        .unwrap_or_default();
    let of_image = image
        .as_ref()
        .and_then(Reference::digest)
        .map(|digest| digest.to_string());
    let digest = paging
        .filter("digest")
        .map(str::to_owned)
        .or(of_image)
        .unwrap_or_default();
    let filter = Filter {
        repository: &repository,
        digest: &digest,
        key: paging.filter("key").unwrap_or_default(),
    };
    let (project, after) = (context.project.as_str(), paging.after_key());
    let rows = tables::list(&signing.parts.db, project, &filter, after, paging.limit + 1).await?;
    let key = |row: &SignatureRow| format!("{} {} {}", row.id, row.digest, row.repository);
    let Page { items, next } = paging.page(rows, key);
    Ok(Json(Page {
        items: items.into_iter().map(body_of_row).collect(),
        next,
    }))
}

#[utoipa::path(get, path = "/api/v1/signatures/{id}", tag = "signatures",
    responses((status = 200, description = "one line for each image of it", body = Page<SignatureBody>)))]
pub(crate) async fn one(
    State(signing): State<Signing>,
    context: Context,
    Path(id): Path<String>,
) -> Result<Json<Page<SignatureBody>>, Problem> {
    context.require(Action::ReadSignatures)?;
    let rows = tables::get(&signing.parts.db, context.project.as_str(), &id).await?;
    if rows.is_empty() {
        return Err(SigningError::NoSignature(id.chars().take(60).collect()).into());
    }
    Ok(Json(Page {
        items: rows.into_iter().map(body_of_row).collect(),
        next: None,
    }))
}

fn body_of_row(row: SignatureRow) -> SignatureBody {
    SignatureBody {
        id: row.id.to_string(),
        image: format!("{}@{}", row.repository, row.digest),
        digest: row.digest.to_string(),
        key: row.key_name,
        key_id: row.key_id,
        formats: words(row.formats),
        log_index: row.log_index,
        annotations: row.annotations,
        created_at: row.created_at.to_string(),
        deduplicated: true,
        repaired: false,
        manifests: Vec::new(),
    }
}
