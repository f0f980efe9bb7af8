//! The tiles of a Rekor v2, for proofs.

use bytes::Bytes;
use tlog::tile::TilePath;
use tlog::{Files, TlogError};

use super::error::RekorReason;
use super::transport::{Connections, Transport};

/// Hash tiles alone; entries are not read.
pub(super) struct Tiles<'a>(pub &'a Transport, pub Connections);

impl Tiles<'_> {
    async fn read(&self, path: TilePath) -> Result<Option<Bytes>, TlogError> {
        let fetch = |source: RekorReason| TlogError::Fetch {
            what: path.to_string(),
            source: Box::new(source),
        };
        let address = format!("api/v2/{path}");
        let answer = self.0.get(self.1, &address).await.map_err(fetch)?;
        if answer.status == reqwest::StatusCode::NOT_FOUND {
            return Ok(None);
        }
        Ok(Some(answer.found().map_err(fetch)?.body))
    }
}

impl Files for Tiles<'_> {
    /// A partial tile may be gone when the full one is there (C2SP tlog-tiles, "Partial tiles"): the same bytes begin it.
    async fn file(&self, path: TilePath) -> Result<Option<Bytes>, TlogError> {
        if let Some(bytes) = self.read(path).await? {
            return Ok(Some(bytes));
        }
        let full = TilePath::full(0, 0).width;
        if path.width == full {
            return Ok(None);
        }
        let bytes = self.read(path.with_width(full)).await?;
        let some = usize::from(path.width) * HASH_BYTES;
        Ok(bytes
            .filter(|bytes| bytes.len() >= some)
            .map(|bytes| bytes.slice(..some)))
    }
}

const HASH_BYTES: usize = 32;
