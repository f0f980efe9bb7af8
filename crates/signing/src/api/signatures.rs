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
use web::{Json, Page, Paging, Problem, ProblemDocument};

use super::operations::{self, OperationBody, Order};
use crate::format::Annotations;
use crate::tables::{self, Filter};
use crate::{Formats, SignRequest, SignatureRow, Signed, Signing, SigningError};

/// Items of one batch that are worked on at once.
pub(super) const BATCH_CONCURRENT_MAX: usize = 32;
const NDJSON: &str = "application/x-ndjson";

/// An image to sign.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignBody {
    /// `registry/repository:tag` or `…@sha256:…`.
    pub image: String,
    /// A key of the project; `default` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
    /// Also every manifest under an index.
    #[serde(default)]
    pub recursive: bool,
    /// Look into the registry for a signature that stands already, and put it back if it is lost there.
    #[serde(default)]
    pub repair: bool,
    /// `bundle`, `legacy` or both; as configured for the registry if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub formats: Option<Vec<String>>,
}

/// Many images to sign.
#[derive(Debug, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchBody {
    pub items: Vec<SignBody>,
    /// One statement over all images, one signature, one log entry.
    #[serde(default)]
    pub release: bool,
}

/// A signature that stands.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct SignatureBody {
    pub id: String,
    /// With its digest.
    pub image: String,
    pub digest: String,
    pub key: String,
    pub key_id: String,
    pub formats: Vec<String>,
    /// Its place in the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_index: Option<u64>,
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
    pub created_at: String,
    /// Whether it stood before this call.
    #[serde(default)]
    pub deduplicated: bool,
    /// Whether the registry had lost it, and holds it again.
    #[serde(default)]
    pub repaired: bool,
    /// With `recursive`: the signatures of the manifests under the index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(no_recursion)]
    pub manifests: Vec<SignatureBody>,
}

/// One line of a batch's answer: the item's number in the request, and what came of it.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct BatchLine {
    pub item: usize,
    pub image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature: Option<SignatureBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<ProblemDocument>,
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
    let work = tokio::spawn(async move { sign(&own, &by, body, Class::Sign).await });
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

pub(super) async fn sign(
    signing: &Signing,
    context: &Context,
    body: SignBody,
    class: Class,
) -> Result<SignatureBody, Problem> {
    let request = request_of(body, class)?;
    let mut signed = signing
        .sign(context, &request)
        .await?
        .into_iter()
        .map(|own| body_of(own, &request.annotations));
    let first = signed.next().ok_or(SigningError::Lost)?;
    Ok(SignatureBody {
        manifests: signed.collect(),
        ..first
    })
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
        let lines = self::release(&signing, &context, items).await?;
        return Ok(if streamed {
            ndjson(stream::iter(lines))
        } else {
            Json(lines).into_response()
        });
    }
    let lines = stream::iter(items.into_iter().enumerate()).map(move |(item, body)| {
        let (signing, context) = (signing.clone(), context.clone());
        // A task of its own: what was accepted is finished, whether or not somebody reads the answer.
        let task = tokio::spawn(async move {
            let image = body.image.clone();
            let outcome = sign(&signing, &context, body, Class::Batch).await;
            told(&context, line(item, image, outcome))
        });
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

pub(super) async fn release(
    signing: &Signing,
    context: &Context,
    items: Vec<SignBody>,
) -> Result<Vec<BatchLine>, Problem> {
    let first = items[0].clone();
    let mut images: Vec<Reference> = Vec::with_capacity(items.len());
    for item in &items {
        if item.key != first.key
            || item.annotations != first.annotations
            || item.recursive
            || item.repair
            || item.formats.is_some()
        {
            let text = "a release has one key and one set of annotations for all items, and neither recursive, repair nor formats";
            return Err(SigningError::Request(text.to_owned()).into());
        }
        images.push(item.image.parse()?);
    }
    let outcome = signing
        .release(context, images, first.key, first.annotations.clone())
        .await?;
    let lines = outcome.into_iter().zip(items).enumerate();
    let body = |signed: Signed| body_of(signed, &first.annotations);
    Ok(lines
        .map(|(at, (signed, item))| line(at, item.image, signed.map(body).map_err(Problem::from)))
        .map(|line| told(context, line))
        .collect())
}

/// Has the refusal of an item recorded, as that of a whole request would be.
pub(super) fn told(context: &Context, line: BatchLine) -> BatchLine {
    if let Some(problem) = &line.problem {
        context.item_refused("signature.create", &line.image, problem);
    }
    line
}

pub(super) fn line(item: usize, image: String, outcome: Result<SignatureBody, Problem>) -> BatchLine {
    match outcome {
        Ok(signature) => BatchLine {
            item,
            image,
            signature: Some(signature),
            problem: None,
        },
        Err(problem) => BatchLine {
            item,
            image,
            signature: None,
            problem: Some(problem.document().clone()),
        },
    }
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

fn request_of(body: SignBody, class: Class) -> Result<SignRequest, Problem> {
    let formats = body
        .formats
        .map(|words| words.join(",").parse::<Formats>())
        .transpose()?;
    let SignBody {
        image,
        key,
        annotations,
        recursive,
        repair,
        ..
    } = body;
    Ok(SignRequest {
        image: image.parse()?,
        key,
        annotations,
        recursive,
        repair,
        formats,
        class,
    })
}

fn words(formats: Formats) -> Vec<String> {
    formats.to_string().split(',').map(str::to_owned).collect()
}

fn body_of(signed: Signed, annotations: &Annotations) -> SignatureBody {
    SignatureBody {
        id: signed.id.to_string(),
        image: signed.repository.at(signed.digest).to_string(),
        digest: signed.digest.to_string(),
        key: signed.key,
        key_id: signed.key_id,
        formats: words(signed.formats),
        log_index: signed.log_index,
        annotations: annotations.clone(),
        created_at: signed.created_at.to_string(),
        deduplicated: signed.deduplicated,
        repaired: signed.repaired,
        manifests: Vec::new(),
    }
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
