//! Writing: uploads of blobs, and manifests.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Method, Response, StatusCode, header};
use bytes::Bytes;
use kernel::limits::{MANIFEST_BYTES_MAX, too_deep};
use kernel::{Clock, Digest, Monotonic};

use crate::Registry;
use crate::answer::{CONTENT_DIGEST, Refusal, SUBJECT, parse_digest, respond};
use crate::ask::Ask;
use crate::shelf::Outline;

/// One blob, in bytes. It is held in memory while it is uploaded; images of a demonstration are far smaller.
const BLOB_BYTES_MAX: usize = 256 << 20;
/// Uploads under way: with the cap on a blob it bounds memory against forgotten uploads.
const UPLOADS_MAX: usize = 64;
/// How long an upload that nobody goes on with keeps its place when others need it, in seconds: a client that died
/// leaves its uploads behind.
const UPLOAD_IDLE_SECONDS_MAX: u64 = 10;

/// Uploads under way, by id.
pub struct Uploads {
    clock: Arc<dyn Clock>,
    next: AtomicU64,
    open: Mutex<HashMap<String, Upload>>,
}

struct Upload {
    repository: String,
    bytes: Vec<u8>,
    touched: Monotonic,
}

impl Uploads {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            next: AtomicU64::default(),
            open: Mutex::default(),
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, Upload>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more upload, if there is one.
    fn begin(&self, repository: &str) -> Option<String> {
        let now = self.clock.monotonic();
        let idle = Duration::from_secs(UPLOAD_IDLE_SECONDS_MAX);
        let mut open = self.open();
        if open.len() >= UPLOADS_MAX {
            open.retain(|_, upload| now.since(upload.touched) < idle);
        }
        if open.len() >= UPLOADS_MAX {
            return None;
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        let upload = Upload {
            repository: repository.to_owned(),
            bytes: Vec::new(),
            touched: now,
        };
        open.insert(id.clone(), upload);
        Some(id)
    }
}

async fn read(body: Body, bytes_max: usize) -> Result<Bytes, Refusal> {
    let too_large = || {
        Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "SIZE_INVALID",
            format!("over {bytes_max} bytes"),
        )
    };
    to_bytes(body, bytes_max).await.map_err(|_| too_large())
}

/// `POST .../blobs/uploads/`: whole with `digest`, else a new upload. `mount` is answered with an upload
/// too, which the specification allows.
pub async fn start(
    registry: &Registry,
    repository: &str,
    ask: &Ask,
    body: Body,
) -> Result<Response<Body>, Refusal> {
    let instead = registry.0.faults.plan().blob_post_status;
    if let Some(status) = instead.filter(|status| *status != 202 && ask.query("digest").is_some()) {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
        return Err(Refusal::new(status, "UNSUPPORTED", "open an upload first"));
    }
    if let Some(digest) = ask.query("digest").filter(|_| instead.is_none()) {
        let digest = parse_digest(digest)?;
        let bytes = read(body, BLOB_BYTES_MAX).await?;
        return store(registry, repository, digest, bytes).await;
    }
    let id = registry.0.uploads.begin(repository).ok_or_else(|| {
        Refusal::new(
            StatusCode::TOO_MANY_REQUESTS,
            "TOOMANYREQUESTS",
            "too many uploads",
        )
    })?;
    accepted(registry, repository, &id, 0)
}

/// `PATCH`, `PUT`, `GET` and `DELETE` of one upload.
pub async fn upload(
    registry: &Registry,
    repository: &str,
    id: &str,
    ask: &Ask,
    body: Body,
) -> Result<Response<Body>, Refusal> {
    let unknown = || Refusal::not_found("BLOB_UPLOAD_UNKNOWN");
    let uploads = &registry.0.uploads;
    let len = |open: &HashMap<String, Upload>| {
        open.get(id)
            .filter(|upload| upload.repository == repository)
            .map(|upload| upload.bytes.len())
    };
    let so_far = len(&uploads.open()).ok_or_else(unknown)?;
    if let Some(range) = ask.headers.get(header::CONTENT_RANGE) {
        let start = range
            .to_str()
            .ok()
            .and_then(|range| range.split_once('-')?.0.parse::<usize>().ok());
        if start != Some(so_far) {
            let refusal = Refusal::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "BLOB_UPLOAD_INVALID",
                "out of order",
            );
            return Err(refusal);
        }
    }
    match ask.method {
        Method::PATCH => {
            let chunk = read(body, BLOB_BYTES_MAX.saturating_sub(so_far)).await?;
            let mut open = uploads.open();
            let upload = open.get_mut(id).ok_or_else(unknown)?;
            upload.bytes.extend_from_slice(&chunk);
            upload.touched = uploads.clock.monotonic();
            let len = upload.bytes.len();
            drop(open);
            accepted(registry, repository, id, len)
        }
        Method::PUT => {
            let digest = parse_digest(ask.query("digest").unwrap_or_default())?;
            let last = read(body, BLOB_BYTES_MAX.saturating_sub(so_far)).await?;
            let mut bytes = uploads.open().remove(id).ok_or_else(unknown)?.bytes;
            bytes.extend_from_slice(&last);
            store(registry, repository, digest, bytes.into()).await
        }
        Method::GET => {
            let range = (header::RANGE, format!("0-{}", so_far.saturating_sub(1)));
            respond(StatusCode::NO_CONTENT, &[range], Body::empty())
        }
        Method::DELETE => {
            uploads.open().remove(id);
            respond(StatusCode::NO_CONTENT, &[], Body::empty())
        }
        _ => Err(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "UNSUPPORTED",
            "not a step of an upload",
        )),
    }
}

fn accepted(registry: &Registry, repository: &str, id: &str, len: usize) -> Result<Response<Body>, Refusal> {
    let origin = registry.0.faults.plan().upload_origin.unwrap_or_default();
    let headers = [
        (
            header::LOCATION,
            format!("{origin}/v2/{repository}/blobs/uploads/{id}"),
        ),
        (header::RANGE, format!("0-{}", len.saturating_sub(1))),
    ];
    respond(StatusCode::ACCEPTED, &headers, Body::empty())
}

async fn store(
    registry: &Registry,
    repository: &str,
    digest: Digest,
    bytes: Bytes,
) -> Result<Response<Body>, Refusal> {
    if Digest::of(&bytes) != digest {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "DIGEST_INVALID",
            "the bytes hash to another digest",
        ));
    }
    registry.0.shelf.put_blob(repository, bytes).await?;
    let headers = [
        (header::LOCATION, format!("/v2/{repository}/blobs/{digest}")),
        (CONTENT_DIGEST, digest.to_string()),
    ];
    respond(StatusCode::CREATED, &headers, Body::empty())
}

/// `PUT .../manifests/<reference>` (distribution specification, "Pushing Manifests").
pub async fn manifest(
    registry: &Registry,
    repository: &str,
    reference: &str,
    ask: &Ask,
    body: Body,
) -> Result<Response<Body>, Refusal> {
    let invalid = |why: &str| Refusal::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", why);
    let media_type = ask
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let media_type = media_type
        .ok_or_else(|| invalid("a Content-Type is needed"))?
        .to_owned();
    let bytes = read(body, MANIFEST_BYTES_MAX).await?;
    let digest = Digest::of(&bytes);
    if reference.contains(':') && parse_digest(reference)? != digest {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "DIGEST_INVALID",
            "the bytes hash to another digest",
        ));
    }
    if too_deep(&bytes) {
        return Err(invalid("nested too deep"));
    }
    let outline: Outline = serde_json::from_slice(&bytes).map_err(|_| invalid("not a manifest"))?;
    for part in outline.config.iter().chain(&outline.layers) {
        if !registry
            .0
            .shelf
            .has_blob(repository, parse_digest(&part.digest)?)
            .await?
        {
            return Err(Refusal::not_found("MANIFEST_BLOB_UNKNOWN"));
        }
    }
    registry
        .0
        .shelf
        .put_manifest(repository, &media_type, bytes)
        .await?;
    if !reference.contains(':') {
        registry.0.shelf.put_tag(repository, reference, digest).await?;
    }
    let mut headers = vec![
        (header::LOCATION, format!("/v2/{repository}/manifests/{digest}")),
        (CONTENT_DIGEST, digest.to_string()),
    ];
    if let (true, Some(subject)) = (registry.0.options.referrers, outline.subject) {
        headers.push((SUBJECT, subject.digest));
    }
    respond(StatusCode::CREATED, &headers, Body::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_that_nobody_goes_on_with_make_room() {
        let clock = Arc::new(kernel::TestClock::at(kernel::SystemClock::new().now()));
        let uploads = Uploads::new(clock.clone());
        let forgotten: Vec<_> = (0..UPLOADS_MAX).map(|_| uploads.begin("a").unwrap()).collect();
        assert!(uploads.begin("a").is_none());
        clock.advance(Duration::from_secs(UPLOAD_IDLE_SECONDS_MAX));
        let fresh = uploads.begin("a").unwrap();
        let open = uploads.open();
        assert!(open.contains_key(&fresh) && !open.contains_key(&forgotten[0]));
    }
}
