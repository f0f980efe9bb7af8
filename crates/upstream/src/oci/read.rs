//! Reading: manifests, blobs, referrers.

use bytes::Bytes;
use kernel::limits::SIGNATURE_BLOB_BYTES_MAX;
use kernel::{Digest, Reference};
use reqwest::header::{CONTENT_TYPE, LINK};
use signing::ports::{Descriptor, Manifest, RegistryReason};

use super::document::{self, INDEX, collect, essence};
use super::header::next_page;
use super::session::{MANIFEST_CAP, Session, found, hash_to, refusal};
use super::transport::{Answer, Cap};

/// Pages of one listing: each of them may be empty, and the registry decides how many there are. With the
/// cap on referrers an honest registry needs fewer even at ten entries a page.
const PAGES_MAX: usize = 32;

impl Session<'_> {
    pub async fn manifest(&self, image: &Reference) -> Result<Manifest, RegistryReason> {
        let digest = image.digest();
        let reference = match (digest, image.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.to_owned(),
            (None, None) => "latest".to_owned(),
        };
        let answer = found(self.send(&self.get_manifest(&reference)).await?)?;
        if let Some(digest) = digest {
            hash_to(&answer.body, digest)?;
        }
        checked(answer, digest)
    }

    /// The manifest that a tag holds, if it holds one.
    pub async fn tagged(&self, tag: &str) -> Result<Option<Manifest>, RegistryReason> {
        let answer = self.send(&self.get_manifest(tag)).await?;
        match answer.status.as_u16() {
            404 => Ok(None),
            200 => checked(answer, None).map(Some),
            _ => Err(refusal(&answer)),
        }
    }

    pub async fn blob(&self, digest: Digest, bytes_max: usize) -> Result<Bytes, RegistryReason> {
        let name = match bytes_max {
            SIGNATURE_BLOB_BYTES_MAX => "SIGNATURE_BLOB_BYTES_MAX",
            _ => "of the caller",
        };
        let cap = Cap { name, bytes_max };
        let ask = self.get(self.url(&format!("blobs/{digest}")), cap, None);
        let answer = found(self.send(&ask).await?)?;
        hash_to(&answer.body, digest)?;
        Ok(answer.body)
    }

    pub async fn referrers(&self, subject: Digest) -> Result<Vec<Descriptor>, RegistryReason> {
        if let Some(listed) = self.listed(subject).await? {
            return Ok(listed);
        }
        let mut entries = Vec::new();
        let index = self.tagged(&fallback_tag(subject)).await;
        if let Some(index) = index.map_err(of_list)? {
            collect(&index.bytes, &mut entries)?;
        }
        Ok(entries)
    }

    /// What the referrers API lists, or `None` where there is no such API. Only answers that mean "not done
    /// here" mean that; every other failure is an error, since a listing that failed is not an empty one.
    pub async fn listed(&self, subject: Digest) -> Result<Option<Vec<Descriptor>>, RegistryReason> {
        let mut entries = Vec::new();
        let mut page = self.url(&format!("referrers/{subject}"));
        for nth in 0..PAGES_MAX {
            let answer = self.send(&self.get(page, MANIFEST_CAP, Some(INDEX))).await;
            let answer = answer.map_err(of_list)?;
            if nth == 0 && matches!(answer.status.as_u16(), 400 | 404 | 405 | 406 | 501) {
                return Ok(None);
            }
            let answer = found(answer)?;
            let kind = answer
                .header(CONTENT_TYPE.as_str())
                .map(essence)
                .unwrap_or_default();
            if kind != INDEX {
                // Such as the login page of a proxy: the specification requires this one type.
                return Err(RegistryReason::Malformed(format!(
                    "a list of referrers of type {}",
                    kernel::words(&kind)
                )));
            }
            collect(&answer.body, &mut entries)?;
            let links = answer
                .headers
                .get_all(LINK)
                .iter()
                .filter_map(|link| link.to_str().ok());
            match next_page(links, &answer.url)? {
                Some(next) => page = self.on_registry(next)?,
                None => return Ok(Some(entries)),
            }
        }
        Err(RegistryReason::Malformed(format!(
            "a list of referrers of more than {PAGES_MAX} pages"
        )))
    }

    /// The next page is asked for with credentials, so it must lie at the registry itself, not at a place
    /// that it redirected the first page to.
    fn on_registry(&self, url: reqwest::Url) -> Result<reqwest::Url, RegistryReason> {
        if url.origin() == self.scope.host.origin.origin() {
            return Ok(url);
        }
        Err(RegistryReason::Redirect(format!(
            "the next page at {}",
            kernel::words(url.authority())
        )))
    }
}

/// What is over its cap is the list, not the image.
fn of_list(reason: RegistryReason) -> RegistryReason {
    match reason {
        RegistryReason::TooLarge { name, bytes_max } => RegistryReason::ListTooLarge { name, bytes_max },
        other => other,
    }
}

/// The tag under which registries without the referrers API keep the referrers of `subject` (distribution
/// specification, "Referrers Tag Schema").
pub fn fallback_tag(subject: Digest) -> String {
    format!("sha256-{}", subject.hex())
}

/// A manifest whose digest is that of its bytes. A header that names another digest is an error even when
/// the manifest was asked for by tag: registry and client do not agree on what this is.
///
/// A body that is no manifest is the registry's content if its digest was asked for or is named by the header, and
/// otherwise an answer of nobody knows what, such as a login page.
fn checked(answer: Answer, asked: Option<Digest>) -> Result<Manifest, RegistryReason> {
    let digest = Digest::of(&answer.body);
    let named = answer.header("docker-content-digest").map(str::parse::<Digest>);
    let named = named.and_then(Result::ok);
    if let Some(named) = named
        && named != digest
    {
        return Err(RegistryReason::DigestMismatch {
            expected: named,
            found: digest,
        });
    }
    let media_type = document::media_type(answer.header(CONTENT_TYPE.as_str()), &answer.body);
    let media_type = media_type.map_err(|reason| match reason {
        RegistryReason::Malformed(why) if asked.or(named).is_some() => {
            RegistryReason::Unreadable { digest, why }
        }
        other => other,
    })?;
    Ok(Manifest {
        media_type,
        digest,
        bytes: answer.body,
    })
}
