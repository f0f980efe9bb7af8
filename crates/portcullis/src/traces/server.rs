//! A span for every request that is worth one.

use axum::body::{Body, HttpBody as _};
use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt as _;
use tracing::field::Empty;
use tracing::{Instrument as _, Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use web::request::TraceId;

use super::context;

/// What is asked every few seconds and says nothing of anybody.
const QUIET: [&str; 3] = ["/livez", "/readyz", "/metrics"];
/// Characters of a path that are kept: the longest route with an image in it.
const PATH_CHARS_MAX: usize = 300;

/// The outermost layer, while traces are made. Attributes by the semantic conventions for HTTP (OpenTelemetry, "HTTP
/// server"); never a header, a query or a body, in which secrets may be.
pub async fn layer(mut request: Request, next: Next) -> Response {
    if QUIET.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let span = span(&request);
    if let Some(caller) = context::of_headers(request.headers()) {
        // It fails for a span that has begun, which this one has not.
        let _ = span.set_parent(caller);
    }
    if let Some(id) = context::trace_id(&span) {
        request.extensions_mut().insert(TraceId(id));
    }
    let response = next.run(request).instrument(span.clone()).await;
    let status = response.status();
    span.record("http.response.status_code", status.as_u16());
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
        span.record("error.type", status.as_str());
    }
    let id = response.headers().get("x-request-id");
    if let Some(id) = id.and_then(|value| value.to_str().ok()) {
        span.record("portcullis.request_id", id);
    }
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    // A body that is made while it is written keeps the span open to its end.
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _open = &span;
            frame
        }))
    })
}

fn span(request: &Request) -> Span {
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let method = match request.method().as_str() {
        known @ ("GET" | "POST" | "PUT" | "PATCH" | "DELETE" | "HEAD") => known,
        // What others there are is the caller's invention.
        _ => "_OTHER",
    };
    let name = match route {
        Some(route) => format!("{method} {route}"),
        None => method.to_owned(),
    };
    let path: String = request.uri().path().chars().take(PATH_CHARS_MAX).collect();
    info_span!(
        parent: None,
        "request",
        otel.name = name,
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = method,
        http.route = route,
        http.response.status_code = Empty,
        url.path = path,
        error.type = Empty,
        portcullis.request_id = Empty,
        portcullis.project = Empty,
    )
}
