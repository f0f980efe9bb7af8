//! Small real images: a configuration and one layer, a compressed tar archive with one file.

use bytes::Bytes;
use kernel::Digest;
use serde_json::{Value, json};

use crate::{Registry, RegistryError};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

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
        let archive = tar("content", content.as_bytes());
        // A layer is named by its uncompressed bytes in the configuration (OCI image specification, "Layer DiffID").
        let diff_id = Digest::of(&archive);
        let layer = Bytes::from(gzip(&archive));
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

/// A gzip member (RFC 1952) of stored deflate blocks (RFC 1951, section 3.2.4): clients expect gzip, and
/// nothing here is large enough to be worth a compressor.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    let mut blocks = bytes.chunks(usize::from(u16::MAX)).peekable();
    while let Some(block) = blocks.next() {
        let len = block.len() as u16;
        out.push(u8::from(blocks.peek().is_none()));
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&(!len).to_le_bytes());
        out.extend_from_slice(block);
    }
    out.extend_from_slice(&crc32(bytes).to_le_bytes());
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out
}

/// CRC-32 (RFC 1952, section 8), bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| {
        if crc & 1 == 1 {
            0xedb8_8320 ^ (crc >> 1)
        } else {
            crc >> 1
        }
    };
    !bytes
        .iter()
        .fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_the_standard() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
    }

    #[test]
    fn an_archive_is_whole_blocks_with_a_right_checksum() {
        let archive = tar("content", b"hello");
        assert_eq!((archive.len() % 512, archive.len()), (0, 2048));
        let mut header = archive[..512].to_vec();
        let sum = u32::from_str_radix(std::str::from_utf8(&header[148..154]).unwrap(), 8).unwrap();
        header[148..156].fill(b' ');
        assert_eq!(header.iter().map(|&byte| u32::from(byte)).sum::<u32>(), sum);
    }
}
