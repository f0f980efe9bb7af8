//! The manifest that carries a bundle as a referrer of an image (OCI image specification 1.1, "Guidelines for
//! Artifact Usage").

use std::collections::BTreeMap;

use kernel::Digest;

use super::{bundle, statement};
use crate::ports::Descriptor;

pub const IMAGE_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const IMAGE_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The config of an artifact that has none.
pub const EMPTY_CONFIG: &str = "application/vnd.oci.empty.v1+json";
/// Its content.
pub const EMPTY_JSON: &[u8] = b"{}";

#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    schema_version: u8,
    media_type: &'static str,
    artifact_type: &'static str,
    config: Descriptor,
    layers: [Descriptor; 1],
    subject: &'a Descriptor,
    annotations: BTreeMap<&'static str, &'static str>,
}

/// Writes the manifest and the descriptor by which the image's referrers list it. There is no creation time in
/// it: the same signature always gives the same manifest, and pushing it twice changes nothing.
#[must_use]
pub fn write(subject: &Descriptor, bundle_bytes: &[u8]) -> (Descriptor, Vec<u8>) {
    let plain = |media_type: &str, bytes: &[u8]| Descriptor {
        media_type: media_type.to_owned(),
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
        artifact_type: None,
        annotations: BTreeMap::new(),
    };
    let annotations = BTreeMap::from([
        ("dev.sigstore.bundle.content", "dsse-envelope"),
        ("dev.sigstore.bundle.predicateType", statement::PREDICATE),
    ]);
    let manifest = Manifest {
        schema_version: 2,
        media_type: IMAGE_MANIFEST,
        artifact_type: bundle::MEDIA_TYPE,
        config: plain(EMPTY_CONFIG, EMPTY_JSON),
        layers: [plain(bundle::MEDIA_TYPE, bundle_bytes)],
        subject,
        annotations: annotations.clone(),
    };
    // Strings and numbers always have a JSON form.
    let bytes = serde_json::to_vec(&manifest).unwrap_or_default();
    let mut descriptor = plain(IMAGE_MANIFEST, &bytes);
    descriptor.artifact_type = Some(bundle::MEDIA_TYPE.to_owned());
    descriptor.annotations = annotations
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    (descriptor, bytes)
}
