//! Small real images: a configuration and one layer that is a tar archive with one file.

use bytes::Bytes;
use kernel::Digest;
use serde_json::{Value, json};

use crate::{Registry, RegistryError};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

impl Registry {
    /// Puts an image for linux/amd64 whose one file, `content`, holds `content`, and tags it. The same
    /// content makes the same digest, which is the answer.
    ///
    /// # Errors
    /// When the storage fails.
    pub async fn put_image(
        &self,
        repository: &str,
        tag: &str,
        content: &str,
    ) -> Result<Digest, RegistryError> {
        let (digest, _) = self.put_platform(repository, "amd64", content).await?;
        self.0.shelf.put_tag(repository, tag, digest).await?;
        Ok(digest)
    }

    /// Puts an index with one image for each architecture (`amd64`, `arm64`, …) and tags it. The answer is
    /// the digest of the index, then those of the images in the order given.
    ///
    /// # Errors
    /// When the storage fails.
    pub async fn put_index(
        &self,
        repository: &str,
        tag: &str,
        architectures: &[&str],
        content: &str,
    ) -> Result<(Digest, Vec<Digest>), RegistryError> {
        let (mut entries, mut digests) = (Vec::new(), Vec::new());
        for architecture in architectures {
            let (digest, size) = self.put_platform(repository, architecture, content).await?;
            let platform = json!({ "architecture": architecture, "os": "linux" });
            entries
                .push(json!({ "mediaType": MANIFEST, "digest": digest, "size": size, "platform": platform }));
            digests.push(digest);
        }
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries }).to_string();
        let digest = self
            .put_manifest(repository, Some(tag), INDEX, index.as_bytes())
            .await?;
        Ok((digest, digests))
    }

    async fn put_platform(
        &self,
        repository: &str,
        architecture: &str,
        content: &str,
    ) -> Result<(Digest, usize), RegistryError> {
        let layer = Bytes::from(tar("content", content.as_bytes()));
        let diff_id = Digest::of(&layer);
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        });
        let config = Bytes::from(config.to_string());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config),
            "layers": [descriptor(LAYER, &layer)],
        })
        .to_string();
        self.0.shelf.put_blob(repository, layer).await?;
        self.0.shelf.put_blob(repository, config).await?;
        let size = manifest.len();
        let digest = self
            .0
            .shelf
            .put_manifest(repository, MANIFEST, manifest.into())
            .await?;
        Ok((digest, size))
    }
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len() })
}

/// A tar archive (POSIX.1-1988 ustar) with one file, mode 0644, owner root, time 0.
fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 512;
    let mut header = [0_u8; BLOCK];
    let mut field = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    field(0, name.as_bytes());
    field(100, b"0000644\0");
    field(108, b"0000000\0");
    field(116, b"0000000\0");
    field(124, format!("{:011o}\0", content.len()).as_bytes());
    field(136, b"00000000000\0");
    field(148, b"        ");
    field(156, b"0");
    field(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut archive = header.to_vec();
    archive.extend_from_slice(content);
    // The file is padded to a block, and two empty blocks end the archive.
    archive.resize(archive.len().next_multiple_of(BLOCK) + 2 * BLOCK, 0);
    archive
}
