//! The format before bundles: a tag `sha256-<hex>.sig` beside the image, one layer a signature over a "simple
//! signing" payload (containers/image, `atomic-signature.md`; cosign `specs/SIGNATURE_SPEC.md`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use kernel::{Digest, Repository, words};
use serde::{Deserialize, Serialize};

use super::Annotations;
use super::referrer::IMAGE_MANIFEST;
use super::statement::text_of;
use crate::key::PublicKey;
use crate::ports::{Descriptor, Manifest, NewManifest};

/// The media type of a layer that is a signature.
pub const LAYER: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The layer's annotation with the signature, base64.
pub const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const KIND: &str = "cosign container image signature";
/// The creation time of reproducible images: none.
const NO_TIME: &str = "0001-01-01T00:00:00Z";
/// Signatures in one tag; a tag with more is not one that people made.
const LAYERS_MAX: usize = 256;

/// The tag that holds the legacy signatures of `image`.
#[must_use]
pub fn tag(image: Digest) -> String {
    format!("sha256-{}.sig", image.hex())
}

/// Why a payload or manifest is not of this format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LegacyError {
    #[error("the payload is not simple signing: {0}")]
    Payload(String),
    #[error("the payload's type is {0:?}, not {KIND:?}")]
    Kind(String),
    #[error("the manifest of the signature tag does not read: {0}")]
    Manifest(String),
}

/// A payload as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    pub image: Digest,
    pub annotations: Annotations,
}

#[derive(Serialize)]
struct OutPayload<'a> {
    critical: OutCritical,
    /// Null when there are none, as cosign writes it.
    optional: Option<&'a Annotations>,
}

#[derive(Serialize)]
struct OutCritical {
    identity: OutIdentity,
    image: OutImage,
    #[serde(rename = "type")]
    kind: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct OutIdentity {
    docker_reference: String,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct OutImage {
    docker_manifest_digest: Digest,
}

/// Writes the payload that is signed.
#[must_use]
pub fn payload(repository: &Repository, image: Digest, annotations: &Annotations) -> Vec<u8> {
    let payload = OutPayload {
        critical: OutCritical {
            identity: OutIdentity {
                docker_reference: repository.to_string(),
            },
            image: OutImage {
                docker_manifest_digest: image,
            },
            kind: KIND,
        },
        optional: Some(annotations).filter(|annotations| !annotations.is_empty()),
    };
    // Strings always have a JSON form.
    serde_json::to_vec(&payload).unwrap_or_default()
}

#[derive(Deserialize)]
struct InPayload {
    critical: InCritical,
    #[serde(default)]
    optional: Option<std::collections::BTreeMap<String, serde_json::Value>>,
}

#[derive(Deserialize)]
struct InCritical {
    image: InImage,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct InImage {
    docker_manifest_digest: Digest,
}

/// Reads a payload from outside.
///
/// # Errors
/// If it is not simple signing.
pub fn read_payload(bytes: &[u8]) -> Result<Payload, LegacyError> {
    super::check_json(bytes).map_err(LegacyError::Payload)?;
    let read: InPayload =
        serde_json::from_slice(bytes).map_err(|error| LegacyError::Payload(words(&error.to_string())))?;
    if read.critical.kind != KIND {
        return Err(LegacyError::Kind(words(&read.critical.kind)));
    }
    let annotations = read
        .optional
        .unwrap_or_default()
        .into_iter()
        .map(|(name, value)| (name, text_of(value)));
    Ok(Payload {
        image: read.critical.image.docker_manifest_digest,
        annotations: annotations.collect(),
    })
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TagManifest {
    schema_version: u8,
    media_type: String,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// The layers of a signature tag's manifest.
///
/// # Errors
/// If it does not read as an image manifest.
pub fn layers(manifest: &Manifest) -> Result<Vec<Descriptor>, LegacyError> {
    #[derive(Deserialize)]
    struct Read {
        layers: Vec<Descriptor>,
    }
    if kernel::limits::too_deep(&manifest.bytes) {
        return Err(LegacyError::Manifest("it nests too deep".to_owned()));
    }
    let read: Read = serde_json::from_slice(&manifest.bytes)
        .map_err(|error| LegacyError::Manifest(words(&error.to_string())))?;
    if read.layers.len() > LAYERS_MAX {
        return Err(LegacyError::Manifest(format!(
            "it has more than {LAYERS_MAX} signatures"
        )));
    }
    Ok(read.layers)
}

/// The manifest of the tag with our signature added, or `None` if this key's signature over this payload is in
/// it already. Other layers stay as they are.
///
/// # Errors
/// If what the tag holds does not read; it is then left alone.
pub fn add(
    current: Option<&Manifest>,
    key: &PublicKey,
    payload: &[u8],
    signature: &[u8],
) -> Result<Option<NewManifest>, LegacyError> {
    let digest = Digest::of(payload);
    let mut layers = current.map_or(Ok(Vec::new()), self::layers)?;
    let ours = |layer: &Descriptor| {
        let signature = layer
            .annotations
            .get(SIGNATURE)
            .and_then(|text| BASE64.decode(text).ok());
        layer.digest == digest && signature.is_some_and(|signature| key.verifies(payload, &signature))
    };
    if layers.iter().any(ours) {
        return Ok(None);
    }
    layers.push(Descriptor {
        media_type: LAYER.to_owned(),
        digest,
        size: payload.len() as u64,
        artifact_type: None,
        annotations: Annotations::from([(SIGNATURE.to_owned(), BASE64.encode(signature))]),
    });
    if layers.len() > LAYERS_MAX {
        return Err(LegacyError::Manifest(format!(
            "it would have more than {LAYERS_MAX} signatures"
        )));
    }
    let config = config(&layers);
    let manifest = TagManifest {
        schema_version: 2,
        media_type: IMAGE_MANIFEST.to_owned(),
        config: Descriptor {
            media_type: CONFIG.to_owned(),
            digest: Digest::of(&config),
            size: config.len() as u64,
            artifact_type: None,
            annotations: Annotations::new(),
        },
        layers,
    };
    let bytes = serde_json::to_vec(&manifest).map_err(|error| LegacyError::Manifest(error.to_string()))?;
    Ok(Some(NewManifest {
        media_type: IMAGE_MANIFEST.to_owned(),
        bytes,
        blobs: vec![Bytes::from(config)],
    }))
}

/// The image config that goes with the layers: what makes the tag a valid image for any registry.
fn config(layers: &[Descriptor]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| layer.digest.to_string()).collect();
    let history: Vec<_> = layers
        .iter()
        .map(|_| serde_json::json!({ "created": NO_TIME }))
        .collect();
    serde_json::json!({
        "architecture": "", "os": "", "created": NO_TIME, "config": {}, "history": history,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
    .to_string()
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{LocalSigner, Signer as _};

    fn manifest(new: NewManifest) -> Manifest {
        Manifest {
            media_type: new.media_type,
            digest: Digest::of(&new.bytes),
            bytes: new.bytes.into(),
        }
    }

    #[test]
    fn a_signature_is_added_once_and_others_stay() {
        let repository: Repository = "r.example/app".parse().unwrap();
        let image = Digest::of(b"image");
        let (a, _) = LocalSigner::generate().unwrap();
        let (b, _) = LocalSigner::generate().unwrap();
        let payload = payload(&repository, image, &Annotations::new());
        assert_eq!(read_payload(&payload).unwrap().image, image);
        let sign = |signer: &LocalSigner| signer.sign_now(Digest::of(&payload)).unwrap();
        let first = manifest(add(None, a.public_key(), &payload, &sign(&a)).unwrap().unwrap());
        // ECDSA signatures differ each time; the same key over the same payload still counts as there.
        assert_eq!(
            add(Some(&first), a.public_key(), &payload, &sign(&a)).unwrap(),
            None
        );
        let both = manifest(
            add(Some(&first), b.public_key(), &payload, &sign(&b))
                .unwrap()
                .unwrap(),
        );
        assert_eq!(layers(&both).unwrap().len(), 2);
        assert_eq!(
            add(Some(&both), a.public_key(), &payload, &sign(&a)).unwrap(),
            None
        );
    }

    #[test]
    fn t07_a_truncated_payload_is_an_error_at_every_byte() {
        let payload = payload(
            &"r.example/app".parse().unwrap(),
            Digest::of(b"image"),
            &Annotations::new(),
        );
        for end in 0..payload.len() {
            assert!(read_payload(&payload[..end]).is_err(), "cut at {end}");
        }
        let other = String::from_utf8(payload)
            .unwrap()
            .replace("container image", "something");
        assert!(matches!(
            read_payload(other.as_bytes()),
            Err(LegacyError::Kind(_))
        ));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let _ = read_payload(&bytes);
            let _ = layers(&Manifest { media_type: String::new(), digest: Digest::of(&bytes), bytes: bytes.into() });
        }
    }
}
