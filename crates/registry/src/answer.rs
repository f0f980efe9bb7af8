//! What goes back over HTTP.

use axum::body::Body;
use axum::http::{HeaderName, Response, StatusCode, header};
use kernel::Digest;

use crate::RegistryError;

/// `Docker-Content-Digest` (distribution specification, "Pulling manifests").
pub const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// `OCI-Subject` (distribution specification, "Pushing manifests with subject").
pub const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
/// `OCI-Filters-Applied` (distribution specification, "Listing referrers").
pub const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

/// A refusal: status and error code of the specification ("Error codes").
#[derive(Debug)]
pub struct Refusal {
    pub status: StatusCode,
    pub code: &'static str,
    pub message: String,
}

impl Refusal {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
        }
    }

    pub fn not_found(code: &'static str) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, "not found")
    }

    pub fn into_response(self) -> Response<Body> {
        let body = serde_json::json!({ "errors": [{ "code": self.code, "message": self.message }] });
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = self.status;
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static("application/json"),
        );
        response
    }
}

impl From<RegistryError> for Refusal {
    fn from(error: RegistryError) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "UNKNOWN",
            kernel::chain(&error),
        )
    }
}

/// A response with headers whose values are made of digests, paths and media types.
///
/// # Errors
/// When a value is not a legal header, which only a media type sent by a client can be.
pub fn respond(
    status: StatusCode,
    headers: &[(HeaderName, String)],
    body: Body,
) -> Result<Response<Body>, Refusal> {
    let mut builder = Response::builder().status(status);
    for (name, value) in headers {
        builder = builder.header(name, value);
    }
    builder.body(body).map_err(|_| {
        Refusal::new(
            StatusCode::BAD_REQUEST,
            "MANIFEST_INVALID",
            "a header is not legal",
        )
    })
}

/// A digest in a path or a query.
///
/// # Errors
/// `DIGEST_INVALID` when it is not a sha256 digest.
pub fn parse_digest(text: &str) -> Result<Digest, Refusal> {
    text.parse().map_err(|_| {
        Refusal::new(
            StatusCode::BAD_REQUEST,
            "DIGEST_INVALID",
            "only sha256 digests are known",
        )
    })
}
