//! One issuer: its keys as they were last heard, and when it is asked again.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kernel::{Clock, Monotonic, Random, words};
use tracing::Instrument as _;

use super::discovery::{self, DESCRIPTION_BYTES_MAX};
use super::keys::{KEY_SET_BYTES_MAX, KeySet};
use super::shelf::Shelf;
use super::token::Algorithm;
use super::{Fetch, FetchError, Heard, OidcError};

/// Seconds between two questions to an issuer, however many tokens with unknown keys come. Issuers publish a key hours
/// before they sign with it.
pub const ASK_SECONDS_MIN: u64 = 30;
/// Seconds for one answer with both of its documents: a token with an unknown key waits that long.
const ANSWER_SECONDS_MAX: u64 = 5;
/// Seconds between two answers in the background: how long a key still counts that its issuer has withdrawn.
const FRESH_SECONDS: u64 = 600;
/// Days that keys count though the issuer was not heard: longer than its outages, and an end for whoever stole a key
/// and cuts us off from the news of it.
pub const UNHEARD_DAYS_MAX: i64 = 7;

/// An issuer and what is known of it.
pub(super) struct Issuer {
    name: String,
    fetch: Arc<dyn Fetch>,
    shelf: Shelf,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    state: Mutex<State>,
    /// One question at a time.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    keys: Option<(Arc<KeySet>, Timestamp)>,
    asked: Option<Monotonic>,
    /// Why the last question has no answer.
    failure: Option<String>,
}

impl Issuer {
    pub fn open(
        name: &str,
        fetch: &Arc<dyn Fetch>,
        folder: &Path,
        clock: &Arc<dyn Clock>,
        random: &Arc<dyn Random>,
    ) -> Arc<Self> {
        let shelf = Shelf::of(folder, name);
        let keys = match shelf.read() {
            Ok(kept) => kept.map(|kept| (Arc::new(kept.keys), kept.heard_at)),
            Err(why) => {
                tracing::warn!(issuer = name, why, "kept keys are not used");
                None
            }
        };
        Arc::new(Self {
            name: name.to_owned(),
            fetch: fetch.clone(),
            shelf,
            clock: clock.clone(),
            random: random.clone(),
            state: Mutex::new(State {
                keys,
                ..State::default()
            }),
            turn: tokio::sync::Mutex::default(),
        })
    }

    /// The keys, if they have this one and are not too old.
    pub fn known(&self, kid: &str, algorithm: Algorithm) -> Option<Arc<KeySet>> {
        let state = self.state();
        let (keys, heard_at) = state.keys.as_ref()?;
        let age = self.clock.now().duration_since(*heard_at);
        let counts = age <= SignedDuration::from_hours(24 * UNHEARD_DAYS_MAX);
        (counts && keys.has(kid, algorithm)).then(|| keys.clone())
    }

    /// The same, after the issuer was asked if its turn has come.
    pub async fn asked(self: &Arc<Self>, kid: &str, algorithm: Algorithm) -> Result<Arc<KeySet>, OidcError> {
        let own = self.clone();
        // A task of its own: whoever goes away does not take the answer from the others.
        let _ = tokio::spawn(async move { own.ask().await }.in_current_span()).await;
        if let Some(keys) = self.known(kid, algorithm) {
            return Ok(keys);
        }
        let (issuer, kid) = (words(&self.name), words(kid));
        match self.state().failure.clone() {
            Some(why) => Err(OidcError::Unheard { issuer, kid, why }),
            None => Err(OidcError::Key { issuer, kid }),
        }
    }

    pub fn heard(&self) -> Heard {
        let state = self.state();
        Heard {
            at: state.keys.as_ref().map(|(_, at)| *at),
            failure: state.failure.clone(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the issuer, unless that was done a moment ago.
    async fn ask(&self) {
        let _turn = self.turn.lock().await;
        {
            let mut state = self.state();
            let now = self.clock.monotonic();
            let again = |asked: Monotonic| now.since(asked) >= Duration::from_secs(ASK_SECONDS_MIN);
            if !state.asked.is_none_or(again) {
                return;
            }
            state.asked = Some(now);
        }
        let patience = Duration::from_secs(ANSWER_SECONDS_MAX);
        let late = |_| Err(format!("no whole answer within {ANSWER_SECONDS_MAX} s"));
        let answer = tokio::time::timeout(patience, self.answer()).await;
        match answer.unwrap_or_else(late) {
            Ok((keys, bytes)) => {
                let now = self.clock.now();
                self.learn(keys, now);
                let shelf = self.shelf.clone();
                // An error is a panic of the write, which has none.
                let _ = tokio::task::spawn_blocking(move || keep(&shelf, &bytes, now)).await;
            }
            Err(why) => {
                tracing::warn!(
                    issuer = self.name,
                    why,
                    "the keys of an issuer could not be fetched"
                );
                self.state().failure = Some(why);
            }
        }
    }

    fn learn(&self, keys: KeySet, now: Timestamp) {
        let mut state = self.state();
        state.keys = Some((Arc::new(keys), now));
        state.failure = None;
    }

    /// Both documents. What does not read as keys is no answer: the keys that are known stay.
    async fn answer(&self) -> Result<(KeySet, Vec<u8>), String> {
        let text = |FetchError(why)| why;
        let issuer = discovery::issuer(&self.name)?;
        let at = discovery::description(&issuer);
        let description = self.fetch.get(&self.name, &at, DESCRIPTION_BYTES_MAX).await;
        let at = discovery::keys_address(&description.map_err(text)?, &self.name, &issuer)?;
        let bytes = self
            .fetch
            .get(&self.name, &at, KEY_SET_BYTES_MAX)
            .await
            .map_err(text)?;
        let keys = KeySet::parse(&bytes).map_err(|why| format!("its key set is of no use: {why}"))?;
        Ok((keys, bytes))
    }

    /// How long to wait before the next question in the background; servers that started together drift apart.
    fn pause(&self) -> Duration {
        let seconds = match self.state().failure {
            Some(_) => 2 * ASK_SECONDS_MIN,
            None => FRESH_SECONDS,
        };
        let mut chance = [0];
        self.random.fill(&mut chance);
        Duration::from_millis(seconds * (900 + u64::from(chance[0]) * 200 / 255))
    }
}

fn keep(shelf: &Shelf, bytes: &[u8], heard_at: Timestamp) {
    if let Err(error) = shelf.write(bytes, heard_at) {
        tracing::warn!(
            error = kernel::chain(&error),
            "the keys of an issuer could not be kept"
        );
    }
}

/// Asks again and again, for as long as there is somebody who needs the keys.
pub(super) fn keep_fresh(issuer: &Arc<Issuer>) {
    let weak = Arc::downgrade(issuer);
    tokio::spawn(async move {
        while let Some(issuer) = weak.upgrade() {
            issuer.ask().await;
            let pause = issuer.pause();
            drop(issuer);
            tokio::time::sleep(pause).await;
        }
    });
}
