//! The tiles of a Rekor v2, for proofs.

use bytes::Bytes;
use tlog::tile::TilePath;
use tlog::{Files, TlogError};

use super::error::RekorReason;
use super::transport::{Connections, Transport};

pub(super) struct Tiles<'a>(pub &'a Transport);

impl Files for Tiles<'_> {
    async fn file(&self, path: TilePath) -> Result<Option<Bytes>, TlogError> {
        let fetch = |source: RekorReason| TlogError::Fetch {
            what: path.to_string(),
            source: Box::new(source),
        };
        let address = format!("api/v2/{path}");
        let answer = self.0.get(Connections::Fresh, &address).await.map_err(fetch)?;
        if answer.status == reqwest::StatusCode::NOT_FOUND {
            return Ok(None);
        }
        Ok(Some(answer.found().map_err(fetch)?.body))
    }
}
