//! Many images, one signature.

use access::Context;
use futures::stream::{self, StreamExt};
use kernel::limits::RELEASE_SUBJECTS_MAX;
use kernel::{Digest, Reference};

use crate::format::Annotations;
use crate::ports::{Descriptor, LoggedEntry};
use crate::sign::Draft;
use crate::tables::{SignatureRow, Wish};
use crate::{Formats, SignRequest, Signed, Signing, SigningError, resolve};

/// Registry calls of one release that run at once.
const CONCURRENT_MAX: usize = 16;

/// What each image of a release came to, in the order asked.
pub type ReleaseOutcome = Vec<Result<Signed, SigningError>>;

impl Signing {
    /// Signs all `images` by one statement, one signature and one log entry, in the bundle format. If all of them
    /// carry this key's signature already, nothing is made.
    ///
    /// The work is a task of its own and goes on when the caller hangs up.
    ///
    /// # Errors
    /// If any image cannot be resolved or the release is too large, nothing is signed. A later failure concerns one
    /// image alone, and stands in its place of the answer.
    pub async fn release(
        &self,
        context: &Context,
        images: Vec<Reference>,
        key: Option<String>,
        annotations: Annotations,
    ) -> Result<ReleaseOutcome, SigningError> {
        let (signing, context) = (self.clone(), context.clone());
        let work = async move { signing.release_now(&context, images, key, annotations).await };
        tokio::spawn(work).await.map_err(|_| SigningError::Lost)?
    }

    async fn release_now(
        &self,
        context: &Context,
        images: Vec<Reference>,
        key: Option<String>,
        annotations: Annotations,
    ) -> Result<ReleaseOutcome, SigningError> {
        if images.is_empty() || images.len() > RELEASE_SUBJECTS_MAX {
            let count = images.len();
            return Err(SigningError::Request(format!(
                "a release has 1 to {RELEASE_SUBJECTS_MAX} images, not {count}"
            )));
        }
        let draft_of = async |image: Reference| {
            let (key, annotations) = (key.clone(), annotations.clone());
            let request = SignRequest {
                image,
                key,
                annotations,
                recursive: false,
                formats: Some(Formats::BUNDLE),
            };
            let key = self.admit(context, &request).await?;
            let parts = self.parts.clone();
            Ok::<_, SigningError>(Draft {
                parts,
                context: context.clone(),
                key,
                formats: Formats::BUNDLE,
                request,
            })
        };
        let mut drafts = Vec::with_capacity(images.len());
        for image in images {
            drafts.push(draft_of(image).await?);
        }
        let subjects = self.resolve_all(&drafts).await?;
        if let Some(hits) = all_known(&drafts, &subjects).await? {
            return Ok(hits);
        }
        let digests: Vec<Digest> = subjects.iter().map(|subject| subject.digest).collect();
        let rows = stage(&drafts, &digests).await?;
        kernel::crash_point("signing.staged");
        let entry = drafts[0].log(&rows[0]).await?;
        kernel::crash_point("signing.logged");
        publish_all(&drafts, &subjects, rows, &entry).await
    }

    async fn resolve_all(&self, drafts: &[Draft]) -> Result<Vec<Descriptor>, SigningError> {
        let resolve_one = async |draft: &Draft| {
            let project = draft.context.project.as_str();
            let found =
                resolve::subjects(&*self.parts.registry, project, &draft.request.image, false).await?;
            Ok::<_, SigningError>(found[0].clone())
        };
        let mut subjects = Vec::with_capacity(drafts.len());
        for chunk in drafts.chunks(CONCURRENT_MAX) {
            subjects.extend(futures::future::try_join_all(chunk.iter().map(resolve_one)).await?);
        }
        Ok(subjects)
    }
}

async fn all_known(
    drafts: &[Draft],
    subjects: &[Descriptor],
) -> Result<Option<ReleaseOutcome>, SigningError> {
    let mut hits = Vec::with_capacity(drafts.len());
    for (draft, subject) in drafts.iter().zip(subjects) {
        match draft.lookup(subject.digest).await? {
            Some(hit) => hits.push(Ok(hit)),
            None => return Ok(None),
        }
    }
    Ok(Some(hits))
}

/// One statement over all digests, with a row for each image; images may lie in different repositories.
async fn stage(drafts: &[Draft], digests: &[Digest]) -> Result<Vec<SignatureRow>, SigningError> {
    let first = &drafts[0];
    let mut rows = Vec::with_capacity(drafts.len());
    let signature = first.sign_statement(digests).await?;
    let mut images: Vec<(Wish, Option<Vec<u8>>)> = Vec::with_capacity(drafts.len());
    for (draft, digest) in drafts.iter().zip(digests) {
        images.push((draft.wish(*digest), None));
        rows.push(SignatureRow {
            repository: draft.repository().to_string(),
            digest: *digest,
            ..signature.clone()
        });
    }
    first.store_stage(&signature, &images).await?;
    Ok(rows)
}

/// Pushes the one bundle to every image, then marks those that worked, in one transaction.
async fn publish_all(
    drafts: &[Draft],
    subjects: &[Descriptor],
    rows: Vec<SignatureRow>,
    entry: &LoggedEntry,
) -> Result<ReleaseOutcome, SigningError> {
    let publish_one = |((draft, subject), row): ((Draft, Descriptor), SignatureRow)| {
        let entry = entry.clone();
        async move {
            let outcome = draft.publish(&subject, &row, &entry).await;
            outcome.map(|()| {
                draft.signed(
                    &SignatureRow {
                        log_index: Some(entry.index),
                        ..row
                    },
                    false,
                )
            })
        }
    };
    // The stream owns its items: borrowed ones would tie its future to lifetimes that a task cannot have.
    let items: Vec<_> = drafts
        .iter()
        .cloned()
        .zip(subjects.iter().cloned())
        .zip(rows)
        .collect();
    let outcomes: ReleaseOutcome = stream::iter(items)
        .map(publish_one)
        .buffered(CONCURRENT_MAX)
        .collect()
        .await;
    kernel::crash_point("signing.published");
    let done = drafts.iter().zip(&outcomes).filter_map(|(draft, outcome)| {
        outcome
            .as_ref()
            .ok()
            .map(|signed| (draft.wish(signed.digest), signed.id.clone()))
    });
    drafts[0].finish(&done.collect::<Vec<_>>(), entry.index).await?;
    kernel::crash_point("signing.finished");
    Ok(outcomes)
}
