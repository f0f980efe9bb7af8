//! Routes of signing, below `/api/v1`.

mod external_log;
mod image_policies;
mod items;
mod keys;
mod operations;
mod quota;
mod signatures;
mod verifications;

use access::Access;
use axum::Router;
use axum::extract::FromRef;
use axum::routing::{get, post};

pub use external_log::{ExternalLogBody, GiveUpBody, GivenUpBody, RetryBody, TroubledEntry};
pub use image_policies::ImagePolicyBody;
pub use items::{BatchLine, SignBody, SignatureBody};
pub use keys::{CosignPub, KeyBody, NewKeyBody};
pub use operations::OperationBody;
pub use quota::QuotaStanding;
pub use signatures::BatchBody;
pub use verifications::{CandidateBody, ReportBody, VerifyBody};

use crate::Signing;
use crate::image_policy::ImagePolicies;
use crate::verify_service::Verifying;

/// The routes of this domain.
pub fn router<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    Access: FromRef<S>,
    Signing: FromRef<S>,
    Verifying: FromRef<S>,
    ImagePolicies: FromRef<S>,
{
    Router::new()
        .route("/signatures", get(signatures::list).post(signatures::create))
        .route("/signatures:batch", post(signatures::batch))
        .route("/signatures/{id}", get(signatures::one))
        .route("/verifications", post(verifications::create))
        .route("/image-policies", get(image_policies::list))
        .route(
            "/image-policies/{name}",
            get(image_policies::one)
                .put(image_policies::put)
                .delete(image_policies::delete),
        )
        .route("/operations/{id}", get(operations::get))
        .route("/quota", get(quota::get))
        .route("/external-log", get(external_log::get))
        .route("/external-log/registry:give-up", post(external_log::give_up))
        .route("/external-log/{action}", post(external_log::retry))
        .route("/keys", get(keys::list).post(keys::create))
        .route("/keys/{name}", get(keys::one).post(keys::rotate))
        .route("/keys/{name}/cosign.pub", get(keys::public))
}

/// The descriptions of these routes.
#[derive(utoipa::OpenApi)]
#[openapi(paths(
    signatures::list,
    signatures::create,
    signatures::batch,
    signatures::one,
    verifications::create,
    image_policies::list,
    image_policies::one,
    image_policies::put,
    image_policies::delete,
    operations::get,
    quota::get,
    external_log::get,
    external_log::retry,
    external_log::give_up,
    keys::list,
    keys::create,
    keys::one,
    keys::rotate,
    keys::public
))]
pub struct Docs;
