//! Attaching the external log's evidence to the images: a second bundle around the same signed statement, for whoever
//! believes that log and not ours.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flow::{Caller, Class};
use futures::stream::{self, StreamExt as _};
use kernel::{Digest, Repository};
use tokio::time::sleep;

use super::pay::later;
use super::tables::{self, Unpublished};
use super::{LEASE, Stopped, rules};
use crate::parts::Parts;
use crate::{SigningError, format, publish, resolve};

/// Signatures that are read at once, and of these published at once: a few, since nobody waits.
const READ_MAX: i64 = 32;
const AT_ONCE: usize = 4;
/// How often is looked for new evidence.
const LOOK_AFTER: Duration = Duration::from_millis(500);
/// Characters of an error that are kept.
const ERROR_CHARS_MAX: usize = 300;

/// Publishes for as long as the fence holds.
pub(super) struct Publisher {
    parts: Arc<Parts>,
    fence: i64,
}

/// The images of one signature.
struct Work {
    item: Unpublished,
    images: Vec<(Repository, Digest)>,
}

impl Publisher {
    pub(super) fn new(parts: Arc<Parts>, fence: i64) -> Self {
        Self { parts, fence }
    }

    pub(super) async fn run(&self) -> Result<Infallible, Stopped> {
        loop {
            if !self.round().await? {
                sleep(LOOK_AFTER).await;
            }
        }
    }

    /// Publishes what is to be published; whether there was anything. Registries do not wait for each other beyond
    /// a round: of one that failed, the rest is put off without a call.
    pub(super) async fn round(&self) -> Result<bool, Stopped> {
        let (db, now) = (&self.parts.db, self.parts.clock.now_us());
        let items = tables::unpublished(db, now, READ_MAX).await?;
        let some = !items.is_empty();
        let mut by_registry: HashMap<String, Vec<Work>> = HashMap::new();
        for item in items {
            match self.work(item).await? {
                Ok(work) => {
                    let host = work
                        .images
                        .first()
                        .map(|(repository, _)| repository.registry().to_owned());
                    by_registry
                        .entry(host.unwrap_or_default())
                        .or_default()
                        .push(work);
                }
                Err((item, why)) => self.settle(&item, Err(why)).await?,
            }
        }
        let registries = by_registry.into_values().map(|works| self.registry(works));
        for outcome in futures::future::join_all(registries).await {
            outcome?;
        }
        Ok(some)
    }

    async fn work(&self, item: Unpublished) -> Result<Result<Work, (Unpublished, String)>, Stopped> {
        let mut images = Vec::new();
        for (repository, digest) in tables::images(&self.parts.db, &item.id).await? {
            match repository.parse() {
                Ok(repository) => images.push((repository, digest)),
                Err(_) => {
                    return Ok(Err((
                        item,
                        format!("the repository {repository:?} does not read"),
                    )));
                }
            }
        }
        Ok(Ok(Work { item, images }))
    }

    async fn registry(&self, works: Vec<Work>) -> Result<(), Stopped> {
        let mut outcomes = Box::pin(
            stream::iter(works)
                .map(|work| async move {
                    let outcome = self.publish(&work).await;
                    (work.item, outcome)
                })
                .buffered(AT_ONCE),
        );
        let mut failed = None;
        while let Some((item, outcome)) = outcomes.next().await {
            let outcome = outcome.map_err(|error| kernel::words(&kernel::chain(&error)));
            if let Err(why) = &outcome {
                failed = Some(why.clone());
            }
            self.settle(&item, outcome).await?;
        }
        if let Some(why) = failed {
            tracing::warn!(
                why,
                "evidence of the external log was not published; it is tried again"
            );
        }
        Ok(())
    }

    #[tracing::instrument(name = "publish evidence", skip_all)]
    async fn publish(&self, work: &Work) -> Result<(), SigningError> {
        let Unpublished {
            statement,
            signature,
            material,
            project,
            ..
        } = &work.item;
        let (key, evidence) = material.as_ref().map_err(|why| SigningError::Row(why.clone()))?;
        let bundle = format::bundle::write(key, statement, signature, Some(evidence));
        let bundle = Bytes::from(bundle);
        let (registry, caller) = (&*self.parts.registry, Caller::new(project, Class::Batch));
        for (repository, digest) in &work.images {
            let _turn = self.parts.door.work(caller, repository.registry(), 1).await?;
            let image = repository.at(*digest);
            let subjects = resolve::subjects(registry, caller, &image, false).await?;
            publish::bundle(registry, caller, repository, &subjects[0], bundle.clone()).await?;
        }
        Ok(())
    }

    async fn settle(&self, item: &Unpublished, outcome: Result<(), String>) -> Result<(), Stopped> {
        kernel::crash_point("debt.published");
        // Not synced: what a power cut undoes is published again, and the registry has it already.
        let mut tx = self.parts.db.begin_unsynced().await?;
        if !store::lease::check(&mut tx, LEASE, self.fence).await? {
            return Err(Stopped::Lost);
        }
        let now = self.parts.clock.now_us();
        match outcome {
            Ok(()) => {
                tables::published(&mut tx, &item.id, item.images, now).await?;
            }
            Err(why) => {
                let wait = rules::retry(item.attempts, rules::chance(&*self.parts.random));
                let why: String = why.chars().take(ERROR_CHARS_MAX).collect();
                tables::put_off(&mut tx, &item.id, &why, later(now, wait)).await?;
            }
        }
        Ok(tx.commit().await?)
    }
}
