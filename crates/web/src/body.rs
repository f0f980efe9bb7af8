//! JSON bodies within caps.

use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use kernel::limits::{JSON_DEPTH_MAX, REQUEST_BYTES_MAX};
use kernel::{Code, Fault, Kind};
use serde::de::DeserializeOwned;

use crate::{Problem, listen};

/// A JSON body, in or out. Unknown fields are the type's own decision.
#[derive(Debug)]
pub struct Json<T>(pub T);

/// Why a body was not read.
#[derive(Debug, thiserror::Error)]
enum BodyError {
    #[error("the body is larger than REQUEST_BYTES_MAX, {REQUEST_BYTES_MAX} bytes")]
    TooLarge,
    #[error("the rest of the body did not come")]
    TimedOut(#[source] listen::BodyTimeout),
    #[error("the body nests deeper than JSON_DEPTH_MAX, {JSON_DEPTH_MAX}")]
    TooDeep,
    #[error("the body ended before its time")]
    Broken,
    #[error("the body is not what this call takes")]
    Invalid(#[source] serde_json::Error),
}

impl Fault for BodyError {
    fn kind(&self) -> Kind {
        match self {
            Self::TooLarge => Kind::TooLarge,
            _ => Kind::Invalid,
        }
    }

    fn code(&self) -> &'static Code {
        match self {
            Self::TooLarge => &codes::TOO_LARGE,
            Self::TimedOut(_) => &codes::TIMED_OUT,
            Self::TooDeep | Self::Broken | Self::Invalid(_) => &codes::INVALID,
        }
    }
}

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let body = Limited::new(request.into_body(), REQUEST_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| unread(&*error))?;
        let bytes = body.to_bytes();
        if kernel::limits::too_deep(&bytes) {
            return Err(BodyError::TooDeep.into());
        }
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            let detail = error.to_string();
            Problem::from(BodyError::Invalid(error)).at(String::new(), detail)
        })
    }
}

/// Why a body was not read to its end.
fn unread(error: &(dyn std::error::Error + 'static)) -> Problem {
    let causes = || std::iter::successors(Some(error), |error| error.source());
    if causes().any(|cause| cause.is::<LengthLimitError>()) {
        return BodyError::TooLarge.into();
    }
    match causes().find_map(|cause| cause.downcast_ref::<listen::BodyTimeout>()) {
        Some(timeout) => {
            Problem::from(BodyError::TimedOut(timeout.clone())).with_status(StatusCode::REQUEST_TIMEOUT)
        }
        None => BodyError::Broken.into(),
    }
}

impl<T: serde::Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// The codes of body failures.
pub mod codes {
    use kernel::Code;

    pub const TOO_LARGE: Code = Code {
        id: "PC1801",
        title: "the request body is too large",
        explanation: "A request body has at most REQUEST_BYTES_MAX bytes (1 MiB).",
        hint: "send fewer items in one call",
    };
    pub const INVALID: Code = Code {
        id: "PC1802",
        title: "the request body is not what this call takes",
        explanation: "The body is not JSON, nests too deep, lacks a field or has one of another type. `errors` \
says where.",
        hint: "compare with the call's description in /api/v1/openapi.json",
    };
    pub const TIMED_OUT: Code = Code {
        id: "PC1805",
        title: "the request body did not come in time",
        explanation: "Of a request body nothing came for 30 s, or it took longer than 120 s in all. Whoever sends half a \
body must not hold the server. Nothing was done.",
        hint: "send it again; if it happens again, look at the network and at proxies between",
    };
    pub const ALL: &[&Code] = &[&TOO_LARGE, &INVALID, &TIMED_OUT];
}
