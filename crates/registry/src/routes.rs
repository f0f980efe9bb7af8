//! From a request to an answer.

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Query, Request, State};
use axum::http::{Method, Response, StatusCode, header};
use axum::response::IntoResponse as _;
use kernel::{Reference, Repository};

use crate::answer::{Refusal, respond};
use crate::ask::{Ask, Target};
use crate::faults::Countdown;
use crate::serve::Cut;
use crate::{Registry, pull, push};

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
    if !plan.latency.is_zero() {
        tokio::time::sleep(plan.latency).await;
    }
    if faults.take(Countdown::Throttle) {
        let refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "slow down");
        let mut response = refusal.into_response();
        if let Some(seconds) = plan.retry_after_seconds {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(date) = plan.retry_after_date.and_then(|date| date.parse().ok()) {
            response.headers_mut().insert(header::RETRY_AFTER, date);
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
