//! Every route of a server, and what a handler may ask the wiring for.

use access::Access;
use access::audit::{self, Trail};
use axum::extract::{FromRef, State};
use axum::http::header;
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use probing::{Acknowledgements, Board, Losses};
use signing::image_policy::ImagePolicies;
use signing::trust;
use signing::{Signing, Verifying};
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi as _;

use crate::wiring::App;
use crate::{dependency_metrics, log_seen, metrics, readiness, traces};

/// The paths by which others learn whether a server lives: a few connections are kept for them.
pub const VITAL: &[&str] = &["/livez", "/readyz", "/metrics"];

impl FromRef<App> for Access {
    fn from_ref(app: &App) -> Self {
        app.access.clone()
    }
}

impl FromRef<App> for Trail {
    fn from_ref(app: &App) -> Self {
        app.trail.clone()
    }
}

impl FromRef<App> for Board {
    fn from_ref(app: &App) -> Self {
        app.watch.board().clone()
    }
}

impl FromRef<App> for Acknowledgements {
    fn from_ref(app: &App) -> Self {
        let (db, clock, random) = (app.db.clone(), app.clock.clone(), app.random.clone());
        Self {
            losses: Losses::new(db, clock.clone(), random.clone()),
            external_log: app.external_mark.clone(),
            clock,
            random,
        }
    }
}

impl FromRef<App> for Signing {
    fn from_ref(app: &App) -> Self {
        app.signing.clone()
    }
}

impl FromRef<App> for ImagePolicies {
    fn from_ref(app: &App) -> Self {
        app.policies.clone()
    }
}

impl FromRef<App> for Verifying {
    fn from_ref(app: &App) -> Self {
        app.verifying.clone()
    }
}

/// Every route of the server, until it is `leaving`.
pub fn router(app: &App, leaving: CancellationToken) -> Router {
    let sources = web::request::Sources {
        clock: app.clock.clone(),
        random: app.random.clone(),
    };
    let api = Router::new()
        .merge(access::api::router::<App>())
        .merge(audit::router::<App>())
        .merge(signing::api::router::<App>())
        .merge(probing::api::router::<App>())
        .merge(log_seen::router())
        .route("/trust/trusted_root.json", get(trusted_root))
        .route("/trust/signing_config.json", get(signing_config))
        .route("/openapi.json", get(|| async { Json(openapi()) }));
    let router = Router::new()
        .nest("/api/v1", api)
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readiness::readyz))
        .route("/metrics", get(render_metrics))
        .with_state(app.clone())
        .method_not_allowed_fallback(web::route::wrong_method)
        // Below, those of Rekor v2: their errors are gRPC's.
        .merge(tlog::router(app.tlog.clone()))
        .fallback(web::route::unknown_path)
        .layer(from_fn_with_state(app.trail.refusals().clone(), audit::layer))
        .layer(from_fn_with_state(app.metrics.clone(), metrics::layer))
        .layer(map_response(no_sniff))
        .layer(from_fn_with_state(leaving, readiness::layer))
        .layer(from_fn_with_state(sources, web::request::layer));
    match app.traced {
        true => router.layer(from_fn(traces::server::layer)),
        false => router,
    }
}

async fn no_sniff(mut response: Response) -> Response {
    let value = axum::http::HeaderValue::from_static("nosniff");
    response
        .headers_mut()
        .insert(header::X_CONTENT_TYPE_OPTIONS, value);
    response
}

async fn render_metrics(State(app): State<App>) -> String {
    if let Ok(checkpoint) = app.tlog.checkpoint().await {
        app.metrics.log_entries(checkpoint.size);
    }
    app.metrics.log_leads(app.tlog.leads());
    if let Ok(status) = app.trail.status().await {
        app.metrics.audit(&status);
    }
    let standing = app.signing.debt().await.ok();
    app.metrics.debt(standing.as_ref(), &app.signing);
    app.metrics.signing(&app.signing);
    let open = app.signing.open_operations().await.ok();
    app.metrics.operations(open.as_ref());
    app.metrics.render()
        + &dependency_metrics::render(&app.watch.board().all(), &*app.clock)
        + &traces::metrics()
}

async fn trusted_root(State(app): State<App>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "application/json")],
        trust::trusted_root(&app.identity),
    )
}

async fn signing_config(State(app): State<App>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "application/json")],
        trust::signing_config(&app.identity, &app.public_url),
    )
}

/// The API's description (OpenAPI 3.1).
pub fn openapi() -> utoipa::openapi::OpenApi {
    #[derive(utoipa::OpenApi)]
    #[openapi(info(title = "Portcullis", description = "Signs and verifies container images."))]
    struct Root;
    let mut root = Root::openapi();
    root.merge(access::api::Docs::openapi());
    root.merge(audit::Docs::openapi());
    root.merge(signing::api::Docs::openapi());
    root.merge(probing::api::Docs::openapi());
    root.merge(log_seen::Docs::openapi());
    crate::docs::complete(root)
}

#[cfg(test)]
mod tests {
    /// The API's description is a contract: a change of it is a change of this file, in the same commit.
    #[test]
    fn the_openapi_description_is_the_committed_one() {
        let now = serde_json::to_string_pretty(&super::openapi()).unwrap() + "\n";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        if std::env::var_os("PORTCULLIS_UPDATE_SNAPSHOTS").is_some() {
            std::fs::write(path, &now).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == now,
            "docs/openapi.json is out of date: PORTCULLIS_UPDATE_SNAPSHOTS=1 cargo test -p portcullis"
        );
    }
}
