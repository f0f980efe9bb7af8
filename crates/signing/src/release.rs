//! Many images, one signature.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use access::Context;
use flow::Class;
use futures::stream::{self, StreamExt};
use kernel::limits::RELEASE_SUBJECTS_MAX;
use kernel::{Digest, Reference};
use tracing::Instrument as _;

use crate::draft::Draft;
use crate::format::Annotations;
use crate::ports::{Descriptor, LoggedEntry};
use crate::tables::{self, SignatureRow, Wish};
use crate::{Formats, SignRequest, Signed, Signing, SigningError, resolve};

/// Registry calls of one release that run at once.
const CONCURRENT_MAX: usize = 16;

/// What each image of a release came to, in the order asked.
pub type ReleaseOutcome = Vec<Result<Signed, SigningError>>;

impl Signing {
    /// Signs all `images` by one statement, one signature and one log entry, in the bundle format. Those that carry
    /// this key's signature already are answered with it, and the statement is over the others.
    ///
    /// The work is a task of its own and goes on when the caller hangs up.
    ///
    /// # Errors
    /// If any image cannot be resolved or the release is too large, nothing is signed. A later failure concerns one
    /// image alone, and stands in its place of the answer: also that its tag names another image by now
    /// ([`SigningError::TagMoved`]), though the one that it named is signed.
    pub async fn release(
        &self,
        context: &Context,
        images: Vec<Reference>,
        key: Option<String>,
        annotations: Annotations,
    ) -> Result<ReleaseOutcome, SigningError> {
        let (signing, context) = (self.clone(), context.clone());
        let work = async move { signing.release_now(&context, images, key, annotations).await };
        let task = self.parts.runtime.spawn(work.in_current_span());
        task.await.map_err(|_| SigningError::Lost)?
    }

    #[tracing::instrument(name = "sign release", skip_all)]
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
        let by = self.admit(context, &images, key.as_deref(), &annotations).await?;
        let draft_of = |image: &Reference| Draft {
            parts: self.parts.clone(),
            context: context.clone(),
            key: by.key.clone(),
            quota: by.quota,
            formats: Formats::BUNDLE,
            request: SignRequest {
                image: image.clone(),
                key: key.clone(),
                annotations: annotations.clone(),
                recursive: false,
                repair: false,
                formats: Some(Formats::BUNDLE),
                class: Class::Batch,
            },
        };
        let drafts: Vec<Draft> = images.iter().map(draft_of).collect();
        // A release is of one registry nearly always; where it is not, the first one's turn stands for all.
        let _turn = drafts[0].turn(drafts.len()).await?;
        let subjects = resolve_all(&drafts).await?;
        let tagged = drafts.clone();
        let wishes: Vec<Wish> = drafts
            .iter()
            .zip(&subjects)
            .map(|(draft, subject)| draft.wish(subject.digest))
            .collect();
        let items = wishes
            .iter()
            .cloned()
            .zip(drafts.into_iter().zip(subjects))
            .collect();
        let outcomes = sign_all(items).await?;
        let outcome_of = |wish| {
            outcomes
                .get(wish)
                .cloned()
                .ok_or(SigningError::Lost)?
                .map_err(SigningError::Shared)
        };
        let outcomes: ReleaseOutcome = wishes.iter().map(outcome_of).collect();
        Ok(tags_stayed(tagged, outcomes).await)
    }
}

/// Looks again at every image that was named by tag, once all are published: until then each tag had time to move. A
/// release that found everything signed took none.
async fn tags_stayed(drafts: Vec<Draft>, outcomes: ReleaseOutcome) -> ReleaseOutcome {
    let signed_some = outcomes.iter().flatten().any(|signed| !signed.deduplicated);
    let look = |(draft, outcome): (Draft, Result<Signed, SigningError>)| async move {
        let signed = outcome?;
        if signed_some && draft.request.image.digest().is_none() {
            draft.tag_stayed(signed.digest).await?;
        }
        Ok(signed)
    };
    stream::iter(drafts.into_iter().zip(outcomes))
        .map(look)
        .buffered(CONCURRENT_MAX)
        .collect()
        .await
}

async fn resolve_all(drafts: &[Draft]) -> Result<Vec<Descriptor>, SigningError> {
    let resolve_one = async |draft: &Draft| {
        let (registry, image) = (&*draft.parts.registry, &draft.request.image);
        let found = resolve::subjects(registry, draft.caller(), image, false).await?;
        Ok::<_, SigningError>(found[0].clone())
    };
    let mut subjects = Vec::with_capacity(drafts.len());
    for chunk in drafts.chunks(CONCURRENT_MAX) {
        subjects.extend(futures::future::try_join_all(chunk.iter().map(resolve_one)).await?);
    }
    Ok(subjects)
}

/// The images of a release, each once, sorted.
type Items = BTreeMap<Wish, (Draft, Descriptor)>;
type Outcomes = BTreeMap<Wish, Result<Signed, Arc<SigningError>>>;

/// Signs what is not signed, then logs, publishes and finishes what is not finished: in the usual case one signature,
/// but a release that died may have left others, with which this one goes on.
async fn sign_all(items: Items) -> Result<Outcomes, SigningError> {
    let Some((first, _)) = items.values().next().cloned() else {
        return Ok(Outcomes::new());
    };
    let mut rows = rows_of(&items).await?;
    let unsigned: Vec<&Wish> = items.keys().filter(|wish| !rows.contains_key(wish)).collect();
    if !unsigned.is_empty() {
        first.charge(unsigned.len())?;
        let digests: Vec<Digest> = unsigned.iter().map(|wish| wish.digest).collect();
        let signature = first.sign_statement(&digests).await?;
        let images: Vec<_> = unsigned.into_iter().map(|wish| (wish.clone(), None)).collect();
        first.store_stage(&signature, &images).await?;
        rows = rows_of(&items).await?;
    }
    kernel::crash_point("signing.staged");
    let mut entries: BTreeMap<String, LoggedEntry> = BTreeMap::new();
    for row in rows.values().filter(|row| !row.done) {
        if let Entry::Vacant(place) = entries.entry(row.id.to_string()) {
            place.insert(first.log(row).await?);
        }
    }
    kernel::crash_point("signing.logged");
    let mut outcomes = Outcomes::new();
    let mut open = Vec::new();
    for (wish, (draft, subject)) in items {
        let row = rows.remove(&wish).ok_or(SigningError::Lost)?;
        match entries.get(&row.id.to_string()) {
            Some(entry) if !row.done => open.push((wish, draft, subject, row, entry.clone())),
            _ => drop(outcomes.insert(wish, Ok(draft.signed(&row, true)))),
        }
    }
    let published = publish_all(open).await;
    kernel::crash_point("signing.published");
    let done = published.iter().filter_map(|(wish, outcome)| {
        let signed = outcome.as_ref().ok()?;
        Some((wish.clone(), signed.id.clone(), signed.log_index?))
    });
    first.finish(&done.collect::<Vec<_>>()).await?;
    kernel::crash_point("signing.finished");
    outcomes.extend(published);
    Ok(outcomes)
}

async fn rows_of(items: &Items) -> Result<BTreeMap<Wish, SignatureRow>, SigningError> {
    let mut rows = BTreeMap::new();
    for (wish, (draft, _)) in items {
        if let Some(row) = tables::find(&draft.parts.db, wish).await? {
            rows.insert(wish.clone(), row);
        }
    }
    Ok(rows)
}

/// An image of a release that is logged and has yet to be published.
type Item = (Wish, Draft, Descriptor, SignatureRow, LoggedEntry);

/// Pushes to every image the bundle that speaks for it.
async fn publish_all(open: Vec<Item>) -> Outcomes {
    // No async closure: the compiler fails on this one now and then when it builds incrementally.
    let publish_one = |(wish, draft, subject, row, entry): Item| async move {
        let outcome = draft.publish(&subject, &row, &entry).await;
        let log_index = Some(entry.index);
        let signed = outcome.map(|()| draft.signed(&SignatureRow { log_index, ..row }, false));
        (wish, signed.map_err(Arc::new))
    };
    // The stream owns its items: borrowed ones would tie its future to lifetimes that a task cannot have.
    stream::iter(open)
        .map(publish_one)
        .buffered(CONCURRENT_MAX)
        .collect()
        .await
}
