//! What happens to every request: an id, and problems written with it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use kernel::{Clock, Id, Random};

use crate::ProblemDocument;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// The shortest wait that a refused caller is told, in seconds; the jitter doubles it at most.
const RETRY_AFTER_SECONDS: u8 = 2;

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
    request.extensions_mut().insert(RequestId(id.clone()));
    let began = sources.clock.monotonic();
    let mut response = next.run(request).await;
    if let Some(mut document) = response.extensions_mut().remove::<ProblemDocument>() {
        document.request_id = Some(id.clone());
        *response.body_mut() = Body::from(document.render());
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    let later = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
    if later.contains(&response.status()) && !response.headers().contains_key(header::RETRY_AFTER) {
        let mut chance = [0];
        sources.random.fill(&mut chance);
        let seconds = RETRY_AFTER_SECONDS + chance[0] % (RETRY_AFTER_SECONDS + 1);
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(u16::from(seconds)));
    }
    let took = sources.clock.monotonic().since(began);
    log(&id, method.as_str(), &path, response.status(), took);
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(HEADER, value);
    }
    response
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

fn log(id: &str, method: &str, path: &str, status: StatusCode, took: Duration) {
    let ms = u64::try_from(took.as_micros()).unwrap_or(u64::MAX) as f64 / 1_000.0;
    tracing::info!(
        request.id = id,
        http.method = method,
        http.path = path,
        http.status = status.as_u16(),
        took_ms = ms,
        "request"
    );
}
