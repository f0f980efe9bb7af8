//! Whether others should send requests here.
//!
//! A server is ready from when it listens until it is told to leave. Nothing outside plays a part, its database
//! neither: where that is away every server is as well off as this one, verifies what it knows, and says in each answer
//! what it cannot do; an orchestrator that took all of them out of service would make it an outage.

use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderValue, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use probing::{Board, Severity};
use tokio_util::sync::CancellationToken;

/// `GET /readyz`. `?verbose` lists what the server depends on, which changes nothing.
pub async fn readyz(State(board): State<Board>, RawQuery(query): RawQuery) -> Response {
    let mut text = "ready\n".to_owned();
    if query.is_some_and(|query| query.split('&').any(|word| word == "verbose")) {
        for dependency in board.all() {
            let mark = match dependency.state.severity() {
                Severity::Fine => '+',
                Severity::Warning => '!',
                Severity::Broken => '-',
            };
            // Without what was found: whoever asks here has shown no token.
            text.push_str(&format!("[{mark}] {} {}\n", dependency.kind, dependency.state));
        }
    }
    text.into_response()
}

/// A server that leaves answers all the same, is not ready, and has everybody come over a new connection, which leads
/// elsewhere (RFC 9112, section 9.6; HTTP/2 says it by GOAWAY when the server stops).
pub async fn layer(State(leaving): State<CancellationToken>, request: Request, next: Next) -> Response {
    let (probe, version) = (request.uri().path() == "/readyz", request.version());
    let mut response = match probe && leaving.is_cancelled() {
        true => (StatusCode::SERVICE_UNAVAILABLE, "leaving\n").into_response(),
        false => next.run(request).await,
    };
    if leaving.is_cancelled() && version <= Version::HTTP_11 {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}
