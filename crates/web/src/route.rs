//! What is answered where no handler is.

use axum::http::{Method, StatusCode, Uri};
use kernel::{Code, Fault, Kind};

use crate::Problem;

/// Characters of a path that an answer repeats.
const PATH_CHARS_MAX: usize = 200;

#[derive(Debug, thiserror::Error)]
enum RouteError {
    #[error("there is nothing at {path}")]
    Path { path: String },
    #[error("{path} does not take {method}")]
    Method { method: Method, path: String },
}

impl Fault for RouteError {
    fn kind(&self) -> Kind {
        match self {
            Self::Path { .. } => Kind::NotFound,
            Self::Method { .. } => Kind::Invalid,
        }
    }

    fn code(&self) -> &'static Code {
        match self {
            Self::Path { .. } => &codes::PATH,
            Self::Method { .. } => &codes::METHOD,
        }
    }
}

/// The fallback of a router: 404.
pub async fn unknown_path(uri: Uri) -> Problem {
    let path = path_of(&uri);
    RouteError::Path { path }.into()
}

/// The fallback for paths that take other methods: 405; axum adds `Allow`.
pub async fn wrong_method(method: Method, uri: Uri) -> Problem {
    let path = path_of(&uri);
    Problem::from(RouteError::Method { method, path }).with_status(StatusCode::METHOD_NOT_ALLOWED)
}

fn path_of(uri: &Uri) -> String {
    uri.path().chars().take(PATH_CHARS_MAX).collect()
}

/// The codes of addresses.
pub mod codes {
    use kernel::Code;

    pub const PATH: Code = Code {
        id: "PC1803",
        title: "there is no such address",
        explanation: "The server has nothing at this path. What it has stands in /api/v1/openapi.json, which needs no \
token.",
        hint: "compare the path with /api/v1/openapi.json, and the versions of client and server",
    };
    pub const METHOD: Code = Code {
        id: "PC1804",
        title: "the address does not take this method",
        explanation: "There is something at this path, but not for this HTTP method; the header Allow names those \
that it takes.",
        hint: "use a method that the header Allow names; /api/v1/openapi.json describes each call",
    };
    pub const ALL: &[&Code] = &[&PATH, &METHOD];
}
