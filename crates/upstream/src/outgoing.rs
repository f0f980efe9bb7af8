//! Calls as part of a trace: a span for each, and a header with it, while somebody makes traces.
//!
//! What nobody asked for has no span around it and gets none, as probes do not. Attributes by the semantic conventions
//! for HTTP (OpenTelemetry, "HTTP client"), without the address as a whole: those of redirects and uploads carry
//! signatures and tokens.

use std::sync::OnceLock;

use reqwest::header::HeaderMap;
use reqwest::{Request, RequestBuilder, Response};
use tracing::field::Empty;
use tracing::{Instrument as _, Span, info_span};

/// Adds the headers that tell the other side of a span.
pub type AddHeaders = fn(&Span, &mut HeaderMap);

static ADD: OnceLock<AddHeaders> = OnceLock::new();

/// From now on calls carry the headers that `add` adds. Only the first one counts.
pub fn add_trace_headers(add: AddHeaders) {
    let _ = ADD.set(add);
}

/// Who is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whom {
    /// The registry that an image's name names.
    Registry,
    /// Somebody of the configuration, by what he is.
    Known(&'static str),
    /// Whoever a registry sent us to: nothing of ours goes along.
    Stranger,
}

/// Sends a request.
pub(crate) async fn send(request: RequestBuilder, whom: Whom) -> reqwest::Result<Response> {
    let Some(add) = ADD.get().filter(|_| !Span::current().is_none()) else {
        return request.send().await;
    };
    let (client, request) = request.build_split();
    let mut request = request?;
    let what = match whom {
        Whom::Registry => of_registry(request.url().path()),
        Whom::Known(what) => what,
        Whom::Stranger => "redirected",
    };
    let span = span(&request, what);
    if whom != Whom::Stranger {
        add(&span, request.headers_mut());
    }
    let outcome = client.execute(request).instrument(span.clone()).await;
    ended(&span, &outcome);
    outcome
}

/// The span of a call, up to the head of its answer.
#[must_use]
pub fn span(request: &Request, what: &str) -> Span {
    let (method, url) = (request.method().as_str(), request.url());
    info_span!(
        "call",
        otel.name = format!("{method} {what}"),
        otel.kind = "client",
        otel.status_code = Empty,
        http.request.method = method,
        http.response.status_code = Empty,
        server.address = url.host_str(),
        server.port = url.port_or_known_default(),
        error.type = Empty,
    )
}

/// Notes in the span what came of the call.
pub fn ended(span: &Span, outcome: &reqwest::Result<Response>) {
    let error = match outcome {
        Ok(response) => {
            let status = response.status();
            span.record("http.response.status_code", status.as_u16());
            let error = status.is_client_error() || status.is_server_error();
            error.then(|| status.as_str().to_owned())
        }
        Err(error) if error.is_timeout() => Some("timeout".to_owned()),
        Err(error) if error.is_connect() => Some("connect".to_owned()),
        Err(_) => Some("broken".to_owned()),
    };
    if let Some(error) = error {
        span.record("otel.status_code", "ERROR");
        span.record("error.type", error);
    }
}

/// What is asked of a registry, by the path (OCI distribution specification 1.1, "Endpoints"). Names in it are not
/// looked at from the front: a repository may be called `blobs`.
fn of_registry(path: &str) -> &'static str {
    let parts: Vec<&str> = path.trim_end_matches('/').rsplit('/').take(3).collect();
    match parts[..] {
        [_, "uploads", "blobs"] | ["uploads", "blobs", ..] => "upload",
        [_, "manifests", ..] => "manifest",
        [_, "blobs", ..] => "blob",
        [_, "referrers", ..] => "referrers",
        ["list", "tags", ..] => "tags",
        ["v2", ..] => "version",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_to_a_registry_is_named_by_what_it_asks_for() {
        for (path, what) in [
            ("/v2/", "version"),
            ("/v2/a/manifests/v1", "manifest"),
            ("/v2/a/b/blobs/sha256:00", "blob"),
            ("/v2/blobs/uploads/manifests/v1", "manifest"),
            ("/v2/a/blobs/uploads/", "upload"),
            ("/v2/a/blobs/uploads/7b1f", "upload"),
            ("/v2/a/referrers/sha256:00", "referrers"),
            ("/v2/a/tags/list", "tags"),
            ("/token", "other"),
            ("", "other"),
        ] {
            assert_eq!(of_registry(path), what, "{path}");
        }
    }
}
