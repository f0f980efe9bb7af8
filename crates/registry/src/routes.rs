//! From a request to an answer.

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Query, Request, State};
use axum::http::{HeaderMap, Method, Response, StatusCode, header};
use axum::response::IntoResponse as _;
use kernel::{Reference, Repository};

use crate::answer::{Refusal, respond};
use crate::faults::{Calls, Countdown};
use crate::serve::Cut;
use crate::{Registry, pull, push};

/// What a path names (distribution specification, "Endpoints").
#[derive(Debug, PartialEq, Eq)]
pub enum Target<'a> {
    Ping,
    Token,
    Tags {
        repository: &'a str,
    },
    Referrers {
        repository: &'a str,
        digest: &'a str,
    },
    Manifest {
        repository: &'a str,
        reference: &'a str,
    },
    Blob {
        repository: &'a str,
        digest: &'a str,
    },
    Upload {
        repository: &'a str,
        id: Option<&'a str>,
    },
}

impl<'a> Target<'a> {
    fn parse(path: &'a str) -> Option<Self> {
        if path == "/token" {
            return Some(Self::Token);
        }
        let rest = path
            .strip_prefix("/v2")?
            .strip_prefix('/')
            .or_else(|| (path == "/v2").then_some(""))?;
        if rest.is_empty() {
            return Some(Self::Ping);
        }
        let target = if let Some(repository) = rest.strip_suffix("/tags/list") {
            Self::Tags { repository }
        } else if let Some((repository, id)) = rest.rsplit_once("/blobs/uploads") {
            Self::Upload {
                repository,
                id: id.strip_prefix('/').filter(|id| !id.is_empty()),
            }
        } else if let Some((repository, digest)) = rest.rsplit_once("/blobs/") {
            Self::Blob { repository, digest }
        } else if let Some((repository, reference)) = rest.rsplit_once("/manifests/") {
            Self::Manifest {
                repository,
                reference,
            }
        } else {
            let (repository, digest) = rest.rsplit_once("/referrers/")?;
            Self::Referrers { repository, digest }
        };
        Some(target)
    }

    fn repository(&self) -> &'a str {
        match self {
            Self::Ping | Self::Token => "",
            Self::Tags { repository }
            | Self::Referrers { repository, .. }
            | Self::Manifest { repository, .. }
            | Self::Blob { repository, .. }
            | Self::Upload { repository, .. } => repository,
        }
    }

    fn count(&self, write: bool, calls: &mut Calls) {
        *match self {
            Self::Ping => &mut calls.pings,
            Self::Token => &mut calls.tokens,
            Self::Tags { .. } => &mut calls.tag_lists,
            Self::Referrers { .. } => &mut calls.referrer_lists,
            Self::Manifest { .. } if write => &mut calls.manifest_writes,
            Self::Manifest { .. } => &mut calls.manifest_reads,
            Self::Blob { .. } => &mut calls.blob_reads,
            Self::Upload { .. } => &mut calls.blob_writes,
        } += 1;
    }
}

/// A request with its parts named.
pub struct Ask {
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
    pub query: Vec<(String, String)>,
}

impl Ask {
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

pub fn router(registry: Registry) -> Router {
    Router::new().fallback(answer).with_state(registry)
}

async fn answer(
    State(registry): State<Registry>,
    Query(query): Query<Vec<(String, String)>>,
    request: Request,
) -> Response<Body> {
    let cut = request
        .extensions()
        .get::<ConnectInfo<Cut>>()
        .map(|info| info.0.clone());
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let ask = Ask {
        method: parts.method,
        path: path.clone(),
        headers: parts.headers,
        query,
    };
    let Some(target) = Target::parse(&path) else {
        return Refusal::not_found("UNSUPPORTED").into_response();
    };
    let put = ask.method == Method::PUT;
    let response = match faulty(&registry, &target, &ask, body).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    };
    if let Some(cut) = cut
        && put
        && response.status().is_success()
        && registry.0.faults.take(Countdown::Cut)
    {
        cut.now();
    }
    response
}

/// The door and the planned faults, then the real work.
async fn faulty(
    registry: &Registry,
    target: &Target<'_>,
    ask: &Ask,
    body: Body,
) -> Result<Response<Body>, Refusal> {
    let faults = &registry.0.faults;
    let write = !matches!(ask.method, Method::GET | Method::HEAD);
    let _under_way = faults.count(|calls| {
        target.count(write, calls);
        calls.authorized += u64::from(ask.headers.contains_key(header::AUTHORIZATION));
    });
    let plan = faults.plan();
    if plan.hang {
        std::future::pending::<()>().await;
    }
    if faults.take(Countdown::Throttle) {
        let refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "slow down");
        let mut response = refusal.into_response();
        if let Some(seconds) = plan.retry_after_seconds {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        return Ok(response);
    }
    if faults.take(if write { Countdown::Write } else { Countdown::Read }) {
        return Err(Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "UNKNOWN",
            "a planned failure",
        ));
    }
    if *target == Target::Token {
        let token = registry.0.access.token(&ask.headers, &ask.query)?;
        return respond(
            StatusCode::OK,
            &[(header::CONTENT_TYPE, "application/json".to_owned())],
            token.into(),
        );
    }
    let action = if write { "push" } else { "pull" };
    let realm = plan.realm.as_deref();
    if let Err(challenge) = registry
        .0
        .access
        .check(&ask.headers, target.repository(), action, realm)
    {
        let body = Body::from(r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#);
        let headers = [
            (header::WWW_AUTHENTICATE, challenge),
            (header::CONTENT_TYPE, "application/json".to_owned()),
        ];
        return respond(StatusCode::UNAUTHORIZED, &headers, body);
    }
    dispatch(registry, target, ask, body).await
}

async fn dispatch(
    registry: &Registry,
    target: &Target<'_>,
    ask: &Ask,
    body: Body,
) -> Result<Response<Body>, Refusal> {
    let name = target.repository();
    if !name.is_empty() && format!("localhost/{name}").parse::<Repository>().is_err() {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "NAME_INVALID",
            "not a repository name",
        ));
    }
    let read = matches!(ask.method, Method::GET | Method::HEAD);
    match target {
        Target::Ping | Target::Token if read => Ok(StatusCode::OK.into_response()),
        Target::Tags { repository } if read => pull::tags(registry, repository, ask).await,
        Target::Referrers { repository, digest } if read => {
            pull::referrers(registry, repository, digest, ask).await
        }
        Target::Manifest {
            repository,
            reference,
        } if read => pull::manifest(registry, repository, reference).await,
        Target::Blob { repository, digest } if read => pull::blob(registry, repository, digest, ask).await,
        Target::Manifest {
            repository,
            reference,
        } if ask.method == Method::PUT => {
            let whole = format!("localhost/{repository}:{reference}");
            if !reference.contains(':') && whole.parse::<Reference>().is_err() {
                return Err(Refusal::new(
                    StatusCode::BAD_REQUEST,
                    "MANIFEST_INVALID",
                    "not a tag",
                ));
            }
            push::manifest(registry, repository, reference, ask, body).await
        }
        Target::Upload { repository, id: None } if ask.method == Method::POST => {
            push::start(registry, repository, ask, body).await
        }
        Target::Upload {
            repository,
            id: Some(id),
        } => push::upload(registry, repository, id, ask, body).await,
        _ => Err(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "UNSUPPORTED",
            "not done by this registry",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_what_the_specification_says() {
        let table = [
            ("/v2/", Some(Target::Ping)),
            ("/v2", Some(Target::Ping)),
            ("/token", Some(Target::Token)),
            ("/v2/a/b/tags/list", Some(Target::Tags { repository: "a/b" })),
            (
                "/v2/a/manifests/v1",
                Some(Target::Manifest {
                    repository: "a",
                    reference: "v1",
                }),
            ),
            (
                "/v2/a/manifests/manifests/v1",
                Some(Target::Manifest {
                    repository: "a/manifests",
                    reference: "v1",
                }),
            ),
            (
                "/v2/a/blobs/sha256:00",
                Some(Target::Blob {
                    repository: "a",
                    digest: "sha256:00",
                }),
            ),
            (
                "/v2/a/blobs/uploads/",
                Some(Target::Upload {
                    repository: "a",
                    id: None,
                }),
            ),
            (
                "/v2/a/blobs/uploads/7",
                Some(Target::Upload {
                    repository: "a",
                    id: Some("7"),
                }),
            ),
            (
                "/v2/a/referrers/sha256:00",
                Some(Target::Referrers {
                    repository: "a",
                    digest: "sha256:00",
                }),
            ),
            ("/v2/a", None),
            ("/v2x/", None),
            ("/", None),
        ];
        for (path, want) in table {
            assert_eq!(Target::parse(path), want, "{path}");
        }
    }
}
