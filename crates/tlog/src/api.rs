//! The interface of Rekor v2 and of C2SP tlog-tiles over HTTP.
//!
//! | method and path | answer |
//! |---|---|
//! | `POST /api/v2/log/entries` | 201 and a `TransparencyLogEntry`; for a duplicate the old entry, also 201 |
//! | `GET /api/v2/checkpoint` | the signed note |
//! | `GET /api/v2/tile/<L>/<N>[.p/<W>]` | a hash tile |
//! | `GET /api/v2/tile/entries/<N>[.p/<W>]` | an entry bundle |
//!
//! Errors are those of grpc-gateway, which clients of Rekor v2 read: `{"code", "message", "details"}`.

use std::error::Error as _;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http_body_util::LengthLimitError;
use kernel::limits::REQUEST_BYTES_MAX;
use kernel::{Fault, Kind};

use crate::error::TlogError;
use crate::log::Tlog;
use crate::request::parse_request;
use crate::tile::TilePath;

/// A tile never changes under its path; partial ones neither, since the width is in the path.
const IMMUTABLE: (HeaderName, &str) = (header::CACHE_CONTROL, "public, max-age=31536000, immutable");
const NOT_CACHED: (HeaderName, &str) = (header::CACHE_CONTROL, "no-cache");

/// The routes of the log.
pub fn router(tlog: Tlog) -> Router {
    Router::new()
        .route("/api/v2/log/entries", post(create_entry))
        .route("/api/v2/checkpoint", get(checkpoint))
        .route("/api/v2/tile/{level}/{*rest}", get(tile))
        .with_state(tlog)
}

async fn create_entry(State(tlog): State<Tlog>, request: Request) -> Response {
    let body = match to_bytes(request.into_body(), REQUEST_BYTES_MAX).await {
        Ok(body) => body,
        Err(error) => return unread(&error),
    };
    let entry = match parse_request(&body).map_err(TlogError::from) {
        Ok(entry) => tlog.append(&entry).await,
        Err(error) => Err(error),
    };
    match entry {
        Ok(entry) => {
            let headers = [(header::CONTENT_TYPE, "application/json")];
            (StatusCode::CREATED, headers, entry.json.get().to_owned()).into_response()
        }
        Err(error) => refuse(&error),
    }
}

/// Why a body was not read to its end.
fn unread(error: &axum::Error) -> Response {
    if error.source().is_some_and(|cause| cause.is::<LengthLimitError>()) {
        let message =
            format!("the request body is over the cap REQUEST_BYTES_MAX of {REQUEST_BYTES_MAX} bytes");
        return status(StatusCode::PAYLOAD_TOO_LARGE, RESOURCE_EXHAUSTED, &message);
    }
    let message = format!("the request body did not come whole: {}", kernel::chain(error));
    status(StatusCode::BAD_REQUEST, INVALID_ARGUMENT, &message)
}

async fn checkpoint(State(tlog): State<Tlog>) -> Response {
    match tlog.checkpoint().await {
        Ok(checkpoint) => {
            let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), NOT_CACHED];
            (headers, checkpoint.note).into_response()
        }
        Err(error) => refuse(&error),
    }
}

async fn tile(State(tlog): State<Tlog>, Path((level, rest)): Path<(String, String)>) -> Response {
    let path = match TilePath::parse(&format!("{level}/{rest}")) {
        Ok(path) => path,
        Err(error) => return status(StatusCode::BAD_REQUEST, INVALID_ARGUMENT, &error.to_string()),
    };
    match tlog.tile(path).await {
        Ok(bytes) => (
            [(header::CONTENT_TYPE, "application/octet-stream"), IMMUTABLE],
            bytes,
        )
            .into_response(),
        Err(error) => refuse(&error),
    }
}

// Codes of gRPC (google/rpc/code.proto).
const INVALID_ARGUMENT: u32 = 3;
const NOT_FOUND: u32 = 5;
const PERMISSION_DENIED: u32 = 7;
const RESOURCE_EXHAUSTED: u32 = 8;
const ABORTED: u32 = 10;
const INTERNAL: u32 = 13;
const UNAVAILABLE: u32 = 14;
const UNAUTHENTICATED: u32 = 16;

/// An error as grpc-gateway writes it. What is wrong with the request is said in full; what is wrong inside
/// is named by its code and stays in the server's log.
fn refuse(error: &TlogError) -> Response {
    let kind = error.kind();
    let (http, grpc) = match kind {
        Kind::Invalid => (StatusCode::BAD_REQUEST, INVALID_ARGUMENT),
        Kind::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, RESOURCE_EXHAUSTED),
        Kind::NotFound => (StatusCode::NOT_FOUND, NOT_FOUND),
        Kind::Denied => (StatusCode::FORBIDDEN, PERMISSION_DENIED),
        Kind::Unauthenticated => (StatusCode::UNAUTHORIZED, UNAUTHENTICATED),
        Kind::Quota => (StatusCode::TOO_MANY_REQUESTS, RESOURCE_EXHAUSTED),
        Kind::Conflict => (StatusCode::CONFLICT, ABORTED),
        Kind::Overloaded | Kind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE),
        Kind::Full => (StatusCode::INSUFFICIENT_STORAGE, RESOURCE_EXHAUSTED),
        Kind::Bug => (StatusCode::INTERNAL_SERVER_ERROR, INTERNAL),
    };
    let code = error.code();
    let message = match kind {
        Kind::Invalid | Kind::TooLarge | Kind::NotFound => format!("{} [{}]", kernel::chain(error), code.id),
        _ => {
            tracing::error!(
                error = kernel::chain(error),
                code = code.id,
                "a request to the log failed"
            );
            format!("{} [{}]", code.title, code.id)
        }
    };
    status(http, grpc, &message)
}

fn status(http: StatusCode, code: u32, message: &str) -> Response {
    let body = serde_json::json!({ "code": code, "message": message, "details": [] });
    (http, axum::Json(body)).into_response()
}
