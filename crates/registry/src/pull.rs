//! Reading: manifests, blobs, tags, referrers.

use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::http::{Method, Response, StatusCode, header};
use bytes::Bytes;
use futures::stream;
use kernel::Digest;

use crate::Registry;
use crate::answer::{CONTENT_DIGEST, FILTERS, Refusal, parse_digest, respond};
use crate::ask::Ask;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub async fn manifest(
    registry: &Registry,
    repository: &str,
    reference: &str,
) -> Result<Response<Body>, Refusal> {
    let shelf = &registry.0.shelf;
    let plan = registry.0.faults.plan();
    if plan.endless_manifest {
        return endless();
    }
    let digest = match reference.contains(':') {
        true => parse_digest(reference)?,
        false => shelf
            .tag(repository, reference)
            .await?
            .ok_or_else(|| Refusal::not_found("MANIFEST_UNKNOWN"))?,
    };
    let mut held = shelf
        .manifest(repository, digest)
        .await?
        .ok_or_else(|| Refusal::not_found("MANIFEST_UNKNOWN"))?;
    let nth = registry.0.manifest_reads.fetch_add(1, Ordering::Relaxed);
    if plan.flip_flop && nth % 2 == 1 {
        held.bytes = Bytes::from([held.bytes.as_ref(), b"\n"].concat());
    }
    let named = if plan.wrong_digest_header {
        Digest::of(b"something else")
    } else {
        Digest::of(&held.bytes)
    };
    let headers = [
        (header::CONTENT_TYPE, held.media_type),
        (CONTENT_DIGEST, named.to_string()),
    ];
    if plan.stall_manifests {
        let half = held.bytes.slice(..held.bytes.len() / 2);
        let start = stream::once(async { Ok::<_, std::io::Error>(half) });
        let body = Body::from_stream(futures::StreamExt::chain(start, stream::pending()));
        return respond(StatusCode::OK, &headers, body);
    }
    respond(StatusCode::OK, &headers, Body::from(held.bytes))
}

/// JSON that opens a string and never closes it.
fn endless() -> Result<Response<Body>, Refusal> {
    let start =
        stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"{\"schemaVersion\":2,\"x\":\"")) });
    let rest = stream::repeat_with(|| Ok(Bytes::from_static(&[b'a'; 64 << 10])));
    let body = Body::from_stream(futures::StreamExt::chain(start, rest));
    respond(
        StatusCode::OK,
        &[(
            header::CONTENT_TYPE,
            "application/vnd.oci.image.manifest.v1+json".to_owned(),
        )],
        body,
    )
}

pub async fn blob(
    registry: &Registry,
    repository: &str,
    digest: &str,
    ask: &Ask,
) -> Result<Response<Body>, Refusal> {
    let digest = parse_digest(digest)?;
    let bytes = registry
        .0
        .shelf
        .blob(repository, digest)
        .await?
        .ok_or_else(|| Refusal::not_found("BLOB_UNKNOWN"))?;
    if let (Some(origin), &Method::GET) = (registry.0.faults.plan().redirect_blobs, &ask.method) {
        return redirect(StatusCode::TEMPORARY_REDIRECT, &origin, ask);
    }
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (CONTENT_DIGEST, digest.to_string()),
    ];
    respond(StatusCode::OK, &headers, Body::from(bytes))
}

fn redirect(status: StatusCode, origin: &str, ask: &Ask) -> Result<Response<Body>, Refusal> {
    respond(
        status,
        &[(header::LOCATION, format!("{origin}{}", ask.path))],
        Body::empty(),
    )
}

/// Tags, with `n` and `last` (distribution specification, "Listing Tags").
pub async fn tags(registry: &Registry, repository: &str, ask: &Ask) -> Result<Response<Body>, Refusal> {
    let mut tags = registry.0.shelf.tags(repository).await?;
    if tags.is_empty() {
        return Err(Refusal::not_found("NAME_UNKNOWN"));
    }
    if let Some(last) = ask.query("last") {
        tags.retain(|tag| tag.as_str() > last);
    }
    let mut headers = vec![(header::CONTENT_TYPE, "application/json".to_owned())];
    let count = ask.query("n").and_then(|n| n.parse::<usize>().ok());
    if let Some(count) = count.filter(|&count| count < tags.len()) {
        tags.truncate(count);
        if let Some(last) = tags.last() {
            let link = format!("</v2/{repository}/tags/list?n={count}&last={last}>; rel=\"next\"");
            headers.push((header::LINK, link));
        }
    }
    let body = serde_json::json!({ "name": repository, "tags": tags });
    respond(StatusCode::OK, &headers, Body::from(body.to_string()))
}

/// Referrers of a digest (distribution specification, "Listing Referrers").
pub async fn referrers(
    registry: &Registry,
    repository: &str,
    digest: &str,
    ask: &Ask,
) -> Result<Response<Body>, Refusal> {
    let plan = registry.0.faults.plan();
    if let Some(status) = plan
        .listing_status
        .and_then(|status| StatusCode::from_u16(status).ok())
    {
        return Err(Refusal::new(
            status,
            "UNKNOWN",
            "a planned failure of the listing",
        ));
    }
    if let Some(origin) = plan.redirect_listings {
        return redirect(StatusCode::SEE_OTHER, &origin, ask);
    }
    if !registry.0.options.referrers {
        return Err(Refusal::not_found("UNSUPPORTED"));
    }
    let subject = parse_digest(digest)?;
    let mut headers = vec![(
        header::CONTENT_TYPE,
        plan.listing_content_type.unwrap_or_else(|| INDEX.to_owned()),
    )];
    let mut found = registry.0.shelf.referrers(repository, subject).await?;
    if plan.endless_listing {
        found.clear();
        headers.push((header::LINK, format!("<{}?last=again>; rel=\"next\"", ask.path)));
    }
    if let Some(kind) = ask.query("artifactType") {
        found.retain(|entry| entry.artifact_type.as_deref() == Some(kind));
        headers.push((FILTERS, "artifactType".to_owned()));
    }
    if let Some(last) = ask.query("last") {
        found.retain(|entry| entry.digest.to_string().as_str() > last);
    }
    let per_page = registry.0.options.referrers_per_page.max(1);
    if found.len() > per_page {
        found.truncate(per_page);
        let last = found[per_page - 1].digest;
        let kind = ask
            .query("artifactType")
            .map(|kind| format!("&artifactType={kind}"))
            .unwrap_or_default();
        headers.push((
            header::LINK,
            format!("<{}?last={last}{kind}>; rel=\"next\"", ask.path),
        ));
    }
    let body = serde_json::json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": found });
    respond(StatusCode::OK, &headers, Body::from(body.to_string()))
}
