//! Errors as RFC 9457 says.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use kernel::{Fault, Kind};
use std::time::Duration;

/// An error on its way out.
#[derive(Debug)]
pub struct Problem {
    kind: Kind,
    /// Boxed, so that results stay small where nothing goes wrong.
    document: Box<ProblemDocument>,
    retry_after: Option<Duration>,
}

/// The body of an error, `application/problem+json`.
#[derive(Debug, Clone, serde::Serialize, utoipa::ToSchema)]
pub struct ProblemDocument {
    /// Names the code's page: `portcullis explain PC1001` prints it.
    #[serde(rename = "type")]
    pub kind: String,
    /// One line that is the same for every error of this code.
    pub title: String,
    pub status: u16,
    /// What was tried and why it failed.
    pub detail: String,
    /// The stable code, `PC` and four digits.
    pub code: String,
    /// What to do next.
    pub hint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// For invalid input: where, and what is wrong there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Pointer>,
}

/// After how long it makes sense to try again; the layer of every request makes the header of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RetryAfter(pub Duration);

/// One place of an invalid body.
#[derive(Debug, Clone, serde::Serialize, utoipa::ToSchema)]
pub struct Pointer {
    /// JSON pointer (RFC 6901).
    pub pointer: String,
    pub detail: String,
}

impl Problem {
    #[must_use]
    pub fn new(fault: &dyn Fault) -> Self {
        Self::quiet(fault).logged(fault)
    }

    /// The same, without a line in the log.
    pub(crate) fn quiet(fault: &dyn Fault) -> Self {
        let (kind, code) = (fault.kind(), fault.code());
        Self {
            kind,
            retry_after: fault.retry_after(),
            document: Box::new(ProblemDocument {
                kind: format!("urn:portcullis:{}", code.id),
                title: code.title.to_owned(),
                status: kind.http_status(),
                // Our own mistakes are for the log, not for the caller.
                detail: if kind == Kind::Bug {
                    code.title.to_owned()
                } else {
                    kernel::chain(fault)
                },
                code: code.id.to_owned(),
                hint: fault.hint(),
                request_id: None,
                errors: Vec::new(),
            }),
        }
    }

    /// With the places of the body that are wrong.
    #[must_use]
    pub fn at(mut self, pointer: String, detail: String) -> Self {
        self.document.errors.push(Pointer { pointer, detail });
        self
    }

    /// With a status of its own, where HTTP has one that is finer than the kind.
    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.document.status = status.as_u16();
        self
    }

    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// After how long it makes sense to try again, where that is known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The same once more, for each of those whom it concerns.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self {
            kind: self.kind,
            document: self.document.clone(),
            retry_after: self.retry_after,
        }
    }

    #[must_use]
    pub fn document(&self) -> &ProblemDocument {
        &self.document
    }

    /// The one place where a failed request is logged; what the caller did wrong is not our failure.
    fn logged(self, fault: &dyn Fault) -> Self {
        let error = kernel::chain(fault);
        match self.kind {
            Kind::Bug => tracing::error!(code = fault.code().id, error, "request failed"),
            Kind::Unavailable | Kind::Full | Kind::Overloaded => {
                tracing::warn!(code = fault.code().id, error, "request failed");
            }
            _ => tracing::debug!(code = fault.code().id, error, "request refused"),
        }
        self
    }
}

impl<F: Fault> From<F> for Problem {
    fn from(fault: F) -> Self {
        Self::new(&fault)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.document.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, self.document.render()).into_response();
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(wait) = self.retry_after {
            response.extensions_mut().insert(RetryAfter(wait));
        }
        response.extensions_mut().insert(*self.document);
        response
    }
}

impl ProblemDocument {
    pub(crate) fn render(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}
