//! Writing: blobs, referrers, and tags that others write too.
//!
//! Registries have no compare-and-swap. A writer of a shared tag reads, merges, writes, and reads back; what
//! another writer replaced in between is written again. The danger that is left is a writer who read before
//! us and writes after we looked: so we look once more after a time that is a multiple of what such a
//! read-modify-write takes here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use kernel::limits::REFERRERS_MAX;
use kernel::{Digest, Repository};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use signing::ports::{Descriptor, Merge, NewManifest, RegistryReason};

use super::document::{INDEX, fallback_entries};
use super::read::fallback_tag;
use super::session::{MANIFEST_CAP, Session, found, hash_to, location, refusal};
use super::transport::{Answer, Ask, Retry, Route};
use super::wait::{ATTEMPTS_MAX, THROTTLE_SECONDS_MAX, backoff, up_to};

/// Reads and writes of one tag: with the waits between them about ten seconds, in which dozens of writers
/// take their turn.
const TAG_ATTEMPTS_MAX: u32 = 64;
/// How many times the slowest recent read-modify-write we wait before the last look: other writers may be
/// on slower machines or further away.
const SETTLE_MULTIPLE: u32 = 8;
/// Bounds of that wait, in milliseconds: over the jitter of a busy scheduler, under what a caller notices
/// as a stall.
const SETTLE_MS_MIN: u64 = 50;
const SETTLE_MS_MAX: u64 = 1_000;
/// Looks for a referrer that the registry confirmed: some list it a little later.
const LISTING_LOOKS_MAX: u32 = 5;

/// Blobs from this size on are asked for before they are sent, and are sent in a call of their own, in bytes. A
/// signature's blobs are smaller and nearly always new: to ask first, and to ask where to, would be two calls more
/// for each.
const LOOK_FIRST_BYTES_MIN: usize = 16 << 10;

/// The media type of a blob on its way.
const BLOB: &str = "application/octet-stream";

/// What the answer to a manifest's `PUT` said about its subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    /// `OCI-Subject` was there: the registry lists the manifest itself.
    Confirmed,
    /// It was not: the fallback tag is ours to keep.
    Unconfirmed,
    /// The manifest is stored, but its answer was lost.
    Unknown,
}

impl Session<'_> {
    fn write(&self, method: Method, url: reqwest::Url, retry: Retry, body: Option<(String, Bytes)>) -> Ask {
        Ask {
            method,
            url,
            route: Route::Home,
            retry,
            cap: MANIFEST_CAP,
            accept: None,
            body,
        }
    }

    pub async fn push_blob(&self, bytes: Bytes) -> Result<(), RegistryReason> {
        let digest = Digest::of(&bytes);
        let small = bytes.len() < LOOK_FIRST_BYTES_MIN;
        let mut failures = 0;
        // A round after a failure looks first: the one before may have stored the blob and lost the answer.
        while (failures == 0 && small) || !self.has_blob(digest).await? {
            // What failed may have been the short way: the rounds after it take the long one.
            let at_once = failures == 0 && small && self.scope.host.takes_blobs_at_once();
            let done = match at_once {
                true => self.upload_at_once(digest, bytes.clone()).await,
                false => self.upload(digest, bytes.clone()).await,
            };
            let Err(reason) = done else {
                return Ok(());
            };
            failures += 1;
            self.pause(reason, failures).await?;
        }
        Ok(())
    }

    async fn has_blob(&self, digest: Digest) -> Result<bool, RegistryReason> {
        let ask = self.write(
            Method::HEAD,
            self.url(&format!("blobs/{digest}")),
            Retry::Again,
            None,
        );
        let answer = self.send(&ask).await?;
        match answer.status.as_u16() {
            200 => Ok(true),
            404 => Ok(false),
            _ => Err(refusal(&answer)),
        }
    }

    /// One `POST` with the blob in it (distribution specification, "Single POST"). A registry may answer that it
    /// opened an upload instead, and some know only the long way and refuse: then the blob goes that way, and so do
    /// all later ones to this registry.
    async fn upload_at_once(&self, digest: Digest, bytes: Bytes) -> Result<(), RegistryReason> {
        let mut url = self.url("blobs/uploads/");
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let body = Some((BLOB.to_owned(), bytes.clone()));
        let answer = self
            .send(&self.write(Method::POST, url, Retry::Never, body))
            .await?;
        match answer.status.as_u16() {
            201 => Ok(()),
            202 => {
                self.scope.host.takes_no_blobs_at_once();
                self.put_blob(&answer, digest, bytes).await
            }
            // These are about who asks, for what and how often; or they may pass.
            401 | 403 | 404 | 429 | 500 | 502..=599 => Err(refusal(&answer)),
            _ => {
                self.scope.host.takes_no_blobs_at_once();
                self.upload(digest, bytes).await
            }
        }
    }

    /// `POST`, then `PUT` to the address in its answer (distribution specification, "Pushing a blob
    /// monolithically").
    async fn upload(&self, digest: Digest, bytes: Bytes) -> Result<(), RegistryReason> {
        let start = self
            .send(&self.write(Method::POST, self.url("blobs/uploads/"), Retry::Never, None))
            .await?;
        if start.status != StatusCode::ACCEPTED {
            return Err(refusal(&start));
        }
        self.put_blob(&start, digest, bytes).await
    }

    /// Sends a blob to the upload that was opened. If that is on another host, it gets no credentials.
    async fn put_blob(&self, opened: &Answer, digest: Digest, bytes: Bytes) -> Result<(), RegistryReason> {
        let mut url = location(opened)?;
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let own = url.origin() == self.scope.host.origin.origin();
        let body = Some((BLOB.to_owned(), bytes));
        let mut put = self.write(Method::PUT, url, Retry::Never, body);
        put.route = if own { Route::Home } else { Route::Away };
        stored(&self.send(&put).await?)
    }

    /// Waits after a failure that may pass; any other, or one too many, is the answer.
    async fn pause(&self, reason: RegistryReason, failures: u32) -> Result<(), RegistryReason> {
        let asked = match &reason {
            RegistryReason::Unavailable(_) => Duration::ZERO,
            RegistryReason::Throttled { retry_after } => retry_after.unwrap_or_default(),
            _ => return Err(reason),
        };
        if failures >= ATTEMPTS_MAX || asked > Duration::from_secs(THROTTLE_SECONDS_MAX) {
            return Err(reason);
        }
        tokio::time::sleep(asked.max(backoff(failures, self.scope.random))).await;
        Ok(())
    }

    /// Stores the manifest; the truth about it when the answer was lost.
    async fn put_manifest(&self, manifest: &Descriptor, bytes: Bytes) -> Result<Subject, RegistryReason> {
        let digest = manifest.digest;
        let url = self.url(&format!("manifests/{digest}"));
        let ask = self.write(
            Method::PUT,
            url,
            Retry::Again,
            Some((manifest.media_type.clone(), bytes)),
        );
        let lost = match self.send(&ask).await {
            Ok(answer) if answer.status.is_server_error() => refusal(&answer),
            Ok(answer) => {
                stored(&answer)?;
                let confirmed = answer.headers.contains_key("oci-subject");
                return Ok(if confirmed {
                    Subject::Confirmed
                } else {
                    Subject::Unconfirmed
                });
            }
            Err(reason @ RegistryReason::Unavailable(_)) => reason,
            Err(reason) => return Err(reason),
        };
        let held = self
            .send(&self.get_manifest(&digest.to_string()))
            .await
            .and_then(found);
        match held {
            Ok(answer) if Digest::of(&answer.body) == digest => Ok(Subject::Unknown),
            _ => Err(lost),
        }
    }

    pub async fn attach(
        &self,
        turns: &Turns,
        repository: &Repository,
        subject: Digest,
        manifest: &Descriptor,
        bytes: Bytes,
    ) -> Result<(), RegistryReason> {
        hash_to(&bytes, manifest.digest)?;
        {
            let _in_turn = self.turn().await?;
            let answer = self.put_manifest(manifest, bytes).await?;
            if answer != Subject::Unconfirmed && self.comes_up(subject, manifest.digest, answer).await? {
                return Ok(());
            }
        }
        let seen = Mutex::new(BTreeMap::new());
        let entry =
            serde_json::to_value(manifest).map_err(|error| RegistryReason::Malformed(error.to_string()))?;
        let merge = |current: Option<&signing::ports::Manifest>| {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            merge_entry(current.map(|current| current.bytes.as_ref()), &entry, &mut seen)
                .map_err(|reason| super::failed("merging the fallback index", repository, reason))
        };
        self.update_tag(turns, &fallback_tag(subject), &merge).await
    }

    /// Whether the referrers API lists the manifest. `false` means that there is no such API.
    async fn comes_up(
        &self,
        subject: Digest,
        digest: Digest,
        answer: Subject,
    ) -> Result<bool, RegistryReason> {
        for look in 1..=LISTING_LOOKS_MAX {
            match self.listed(subject).await? {
                None => return Ok(false),
                Some(listed) if listed.iter().any(|entry| entry.digest == digest) => return Ok(true),
                Some(_) => tokio::time::sleep(backoff(look, self.scope.random)).await,
            }
        }
        let what = if answer == Subject::Confirmed {
            "confirmed"
        } else {
            "stored"
        };
        Err(RegistryReason::Unavailable(format!(
            "the registry {what} the referrer and does not list it"
        )))
    }

    /// See the module's introduction. One round is one read, and a write if the merge asks for one.
    pub async fn update_tag(
        &self,
        turns: &Turns,
        tag: &str,
        merge: &Merge<'_>,
    ) -> Result<(), RegistryReason> {
        let turn = turns.of(&format!(
            "{}/{}:{tag}",
            self.scope.host.name, self.scope.repository
        ));
        let (mut stage, mut losses, mut failures) = (Stage::First, 0, 0);
        for _ in 0..TAG_ATTEMPTS_MAX {
            match self.round(&turn, tag, merge, stage != Stage::Wrote).await {
                Ok(Round::Nothing) if matches!(stage, Stage::First | Stage::Settled) => return Ok(()),
                Ok(Round::Nothing) => {
                    (stage, losses) = (Stage::Settled, 0);
                    self.settle().await;
                }
                Ok(Round::Wrote) => stage = Stage::Wrote,
                Ok(Round::Lost) => {
                    (stage, losses) = (Stage::Again, losses + 1);
                    self.stand_back(losses).await;
                }
                Ok(Round::Moved) => {
                    losses += 1;
                    self.stand_back(losses).await;
                }
                Err(Failed::Write(reason)) => {
                    (stage, failures) = (Stage::Again, failures + 1);
                    self.pause(reason, failures).await?;
                }
                Err(Failed::Other(reason)) => return Err(reason),
            }
        }
        Err(RegistryReason::Contended {
            attempts: TAG_ATTEMPTS_MAX,
        })
    }

    async fn round(
        &self,
        turn: &tokio::sync::Mutex<()>,
        tag: &str,
        merge: &Merge<'_>,
        may_write: bool,
    ) -> Result<Round, Failed> {
        let _turn = turn.lock().await;
        // Waiting for a free call comes before the read, so that it does not widen the race.
        let _in_turn = self.turn().await.map_err(Failed::Other)?;
        let mut start = self.scope.clock.monotonic();
        let current = self.tagged(tag).await.map_err(Failed::Other)?;
        let merged = merge(current.as_ref()).map_err(|error| Failed::Other(error.reason))?;
        let Some(NewManifest {
            media_type,
            bytes,
            blobs,
        }) = merged
        else {
            return Ok(Round::Nothing);
        };
        if !may_write {
            return Ok(Round::Lost);
        }
        if !blobs.is_empty() {
            for blob in blobs {
                self.push_blob(blob).await.map_err(Failed::Other)?;
            }
            // That took time in which others may have written.
            start = self.scope.clock.monotonic();
            let now = self.tagged(tag).await.map_err(Failed::Other)?;
            if now.map(|now| now.digest) != current.map(|current| current.digest) {
                return Ok(Round::Moved);
            }
        }
        let url = self.url(&format!("manifests/{tag}"));
        // Sent once: a repeat after a wait would write what was read long ago.
        let ask = self.write(Method::PUT, url, Retry::Never, Some((media_type, bytes.into())));
        let written = self.send(&ask).await.and_then(|answer| stored(&answer));
        self.scope
            .host
            .note_write(self.scope.clock.monotonic().since(start));
        written.map(|()| Round::Wrote).map_err(Failed::Write)
    }

    /// Waits until writers who read before our write must have written.
    async fn settle(&self) {
        let settle = settle_time(self.scope.host.slowest_write());
        tokio::time::sleep(settle + up_to(settle / 2, self.scope.random)).await;
    }

    /// Waits after losing the `losses`-th time in a row: a window that doubles, in which the writers spread
    /// by chance.
    async fn stand_back(&self, losses: u32) {
        let window = settle_time(self.scope.host.slowest_write()).saturating_mul(1 << losses.min(5));
        let window = window.min(Duration::from_millis(SETTLE_MS_MAX));
        tokio::time::sleep(up_to(window, self.scope.random)).await;
    }
}

/// How far the update of a tag is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing was written: if nothing is missing, it was there before us.
    First,
    /// Just written: the next round only looks, because a writer who replaced it may be at work.
    Wrote,
    /// Written and lost, or perhaps written: the next round may write.
    Again,
    /// Seen to be there, a settle time ago: if it still is, it stays.
    Settled,
}

/// What one round found or did.
enum Round {
    /// The tag holds what the merge wants.
    Nothing,
    Wrote,
    /// Another writer replaced what we wrote; nothing was written.
    Lost,
    /// Another writer was faster; nothing was written.
    Moved,
}

enum Failed {
    /// The write failed or its answer was lost.
    Write(RegistryReason),
    Other(RegistryReason),
}

fn settle_time(slowest: Duration) -> Duration {
    let (min, max) = (
        Duration::from_millis(SETTLE_MS_MIN),
        Duration::from_millis(SETTLE_MS_MAX),
    );
    slowest.saturating_mul(SETTLE_MULTIPLE).clamp(min, max)
}

/// Whether a `PUT` stored what it sent.
fn stored(answer: &Answer) -> Result<(), RegistryReason> {
    match answer.status.as_u16() {
        // 201 is what the specification says; 200 and 204 are what some registries say.
        200 | 201 | 204 => Ok(()),
        _ => Err(refusal(answer)),
    }
}

/// The fallback index with `entry` in it and every entry in `seen`, which are those that this call has read
/// before: a writer who replaced them had not read them. `None` when nothing is missing.
fn merge_entry(
    current: Option<&[u8]>,
    entry: &Value,
    seen: &mut BTreeMap<String, Value>,
) -> Result<Option<NewManifest>, RegistryReason> {
    let key = |entry: &Value| {
        entry
            .get("digest")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let (mut index, mut entries) = fallback_entries(current)?;
    let held = entries.len();
    for one in &entries {
        seen.entry(key(one)).or_insert_with(|| one.clone());
    }
    seen.entry(key(entry)).or_insert_with(|| entry.clone());
    for (digest, one) in seen.iter() {
        if !entries.iter().any(|held| key(held) == *digest) {
            entries.push(one.clone());
        }
    }
    if entries.len() == held {
        return Ok(None);
    }
    if entries.len() > REFERRERS_MAX {
        return Err(RegistryReason::TooManyReferrers);
    }
    index["manifests"] = Value::Array(entries);
    Ok(Some(NewManifest {
        media_type: INDEX.to_owned(),
        bytes: index.to_string().into_bytes(),
        blobs: Vec::new(),
    }))
}

/// Turns at tags, so that writers in this process do not race each other.
#[derive(Default)]
pub struct Turns(Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Turns {
    fn of(&self, tag: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(tag).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        turns.insert(tag.to_owned(), Arc::downgrade(&turn));
        turn
    }
}
