//! What happens to every request: an id, and problems written with it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use kernel::{Clock, Id, Random};

use crate::ProblemDocument;
use crate::problem::RetryAfter;
use crate::route::unknown_path;

/// A NUL character in a path: nothing of ours has one in its name, and PostgreSQL takes none in a text.
const NUL: &str = "%00";
const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// The wait that a refused caller is told where nothing better is known, in seconds; the jitter doubles it at most.
const RETRY_AFTER_SECONDS: u64 = 2;
/// The longest wait that anybody is told, in seconds, before jitter.
const RETRY_AFTER_SECONDS_MAX: u64 = 3_600;

/// The id of a request; also in the answer's `X-Request-Id`, in logs and in audit records.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

impl<S: Sync> FromRequestParts<S> for RequestId {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts
            .extensions
            .get::<Self>()
            .cloned()
            .unwrap_or_else(|| Self(String::new())))
    }
}

/// The trace that a request is part of, in 32 hex digits; for the log.
#[derive(Debug, Clone)]
pub struct TraceId(pub String);

/// The sources that [`layer`] draws from.
#[derive(Clone)]
pub struct Sources {
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
}

/// The outermost layer: gives the request an id, logs its end, and completes problems.
pub async fn layer(
    axum::extract::State(sources): axum::extract::State<Sources>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = request_id(&request, &sources);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let trace = request.extensions_mut().remove::<TraceId>().map(|TraceId(id)| id);
    request.extensions_mut().insert(RequestId(id.clone()));
    let began = sources.clock.monotonic();
    let mut response = match path.contains(NUL) {
        true => unknown_path(request.uri().clone()).await.into_response(),
        false => next.run(request).await,
    };
    if let Some(mut document) = response.extensions_mut().remove::<ProblemDocument>() {
        document.request_id = Some(id.clone());
        *response.body_mut() = Body::from(document.render());
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    let later = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
    if later.contains(&response.status()) && !response.headers().contains_key(header::RETRY_AFTER) {
        let seconds = retry_after_seconds(response.extensions().get(), &*sources.random);
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    let took = sources.clock.monotonic().since(began);
    let ids = (id.as_str(), trace.as_deref());
    log(ids, method.as_str(), &path, response.status(), took);
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(HEADER, value);
    }
    response
}

/// Once to twice the wait: callers that were refused together must not come again together.
fn retry_after_seconds(known: Option<&RetryAfter>, random: &dyn Random) -> u64 {
    let up = |wait: Duration| wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let least = known.map_or(RETRY_AFTER_SECONDS, |RetryAfter(wait)| up(*wait));
    let least = least.clamp(1, RETRY_AFTER_SECONDS_MAX);
    let mut chance = [0; 2];
    random.fill(&mut chance);
    least + u64::from(u16::from_be_bytes(chance)) % (least + 1)
}

/// A caller's own id is kept if it is harmless, so that its logs and ours can be joined.
fn request_id(request: &Request, sources: &Sources) -> String {
    let own = request
        .headers()
        .get(&HEADER)
        .and_then(|value| value.to_str().ok());
    let harmless = |id: &&str| {
        (8..=64).contains(&id.len())
            && id
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    match own.filter(harmless) {
        Some(id) => id.to_owned(),
        None => Id::new("req", &*sources.clock, &*sources.random).to_string(),
    }
}

fn log((id, trace): (&str, Option<&str>), method: &str, path: &str, status: StatusCode, took: Duration) {
    let ms = u64::try_from(took.as_micros()).unwrap_or(u64::MAX) as f64 / 1_000.0;
    tracing::info!(
        request.id = id,
        trace_id = trace,
        http.method = method,
        http.path = path,
        http.status = status.as_u16(),
        took_ms = ms,
        "request"
    );
}
