//! From a reference to the digests that are to be signed.

use flow::Caller;
use kernel::limits::INDEX_MANIFESTS_MAX;
use kernel::{Digest, Reference};
use serde::Deserialize;

use crate::SigningError;
use crate::format::referrer::IMAGE_INDEX;
use crate::ports::{Descriptor, Manifest, Registry, RegistryError, RegistryReason};

const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Child>,
}

#[derive(Deserialize)]
struct Child {
    digest: Digest,
}

/// The image that a reference names, and with `recursive` every manifest under it, each once, the image first.
#[tracing::instrument(name = "resolve image", skip_all)]
pub(crate) async fn subjects(
    registry: &dyn Registry,
    caller: Caller<'_>,
    image: &Reference,
    recursive: bool,
) -> Result<Vec<Descriptor>, SigningError> {
    let top = registry.manifest(caller, image).await?;
    let mut found = vec![descriptor(&top)];
    // Depth first, with the path from the top, so that an index under itself is told from one named twice.
    let mut open: Vec<(Manifest, Vec<Digest>)> = if recursive {
        vec![(top, Vec::new())]
    } else {
        Vec::new()
    };
    while let Some((manifest, mut path)) = open.pop() {
        path.push(manifest.digest);
        for child in children(image, &manifest)? {
            if path.contains(&child) {
                return Err(SigningError::IndexCycle(child));
            }
            if found.iter().any(|known| known.digest == child) {
                continue;
            }
            if found.len() > INDEX_MANIFESTS_MAX {
                return Err(SigningError::IndexTooLarge {
                    image: found[0].digest,
                });
            }
            let manifest = registry.manifest(caller, &image.repository().at(child)).await?;
            found.push(descriptor(&manifest));
            open.push((manifest, path.clone()));
        }
    }
    Ok(found)
}

pub(crate) fn descriptor(manifest: &Manifest) -> Descriptor {
    Descriptor {
        media_type: manifest.media_type.clone(),
        digest: manifest.digest,
        size: manifest.bytes.len() as u64,
        artifact_type: None,
        annotations: std::collections::BTreeMap::new(),
    }
}

/// The manifests that an index names; none for anything else.
pub(crate) fn children(image: &Reference, manifest: &Manifest) -> Result<Vec<Digest>, SigningError> {
    if manifest.media_type != IMAGE_INDEX && manifest.media_type != DOCKER_LIST {
        return Ok(Vec::new());
    }
    let index: Index = serde_json::from_slice(&manifest.bytes).map_err(|error| RegistryError {
        operation: format!("reading the index of {image}"),
        registry: image.repository().registry().to_owned(),
        reason: RegistryReason::Malformed(error.to_string()),
    })?;
    Ok(index.manifests.into_iter().map(|child| child.digest).collect())
}
