//! Is the external log there, is it the right one, and did it only grow?

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use kernel::Clock;
use probing::log::{Seen, Step, compare};
use probing::{Finding, Kind, Known, LogMark, MarkError, Marks, Probe, Read, References, State, expiry};
use tlog::Checkpoint;

use super::{Client, Observed, RekorReason};
use crate::oci::is_loopback;

/// How long is waited for what the servers share, each time: a database that hangs must not make the log look ill.
const SHARED_MS_MAX: u64 = 500;
/// For how long the log is asked again in one look, while other servers move the mark on: a log that grows has another
/// checkpoint for each of them.
const TURNS_MS_MAX: u64 = 1_000;

/// Looks at the external log, and holds it against what this server and all others saw there last.
pub struct LogProbe {
    client: Arc<Client>,
    mark: LogMark,
    clock: Arc<dyn Clock>,
    references: References,
    own: Mutex<Own>,
}

/// What this server saw last.
#[derive(Clone, Default)]
struct Own {
    known: Known,
    /// Whether the others know of it too; else it counts only for as long as the database is away.
    is_shared: bool,
}

impl LogProbe {
    /// `mark` is what all servers share, as [`LogProbe::mark`] makes it.
    #[must_use]
    pub fn new(client: Arc<Client>, mark: LogMark, clock: Arc<dyn Clock>, references: References) -> Self {
        Self {
            client,
            mark,
            clock,
            references,
            own: Mutex::default(),
        }
    }

    /// The mark of the log that `client` expects.
    #[must_use]
    pub fn mark(client: &Client, marks: &Marks) -> LogMark {
        LogMark::new(marks, &hex::encode(client.trusted().verifier.log_id()))
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What all servers saw, unless the database does not say.
    ///
    /// # Errors
    /// If the mark is damaged: then nobody knows what the log was.
    async fn shared(&self) -> Result<Option<Read>, MarkError> {
        let read = match within(self.mark.read()).await {
            Err(error @ MarkError::Damaged(_)) => return Err(error),
            other => other.ok(),
        };
        if let Some(read) = &read {
            let mut own = self.own();
            if read.known.taken > own.known.taken {
                *own = Own::default();
            }
        }
        Ok(read)
    }

    /// Holds a checkpoint of the right log against those that were seen before it was asked for. `None`: another server moved
    /// the mark on meanwhile, perhaps by a newer checkpoint.
    async fn held(&self, observed: &Observed, shared: Result<Option<Read>, MarkError>) -> Option<Finding> {
        let now = seen(&observed.checkpoint);
        let shared = match shared {
            Ok(shared) => shared,
            Err(error) => {
                let found = format!("{}, and {error}", now.described());
                self.mark.found(Some(now));
                return Some(Finding::new(State::Forked, self.expected(), found));
            }
        };
        let Own {
            known: own,
            is_shared,
        } = self.own().clone();
        let own_seen = own.seen.filter(|_| is_shared || shared.is_none());
        let shared_seen = shared.as_ref().and_then(|read| read.known.seen.clone());
        let mut before: Vec<Seen> = own_seen.into_iter().chain(shared_seen).collect();
        before.dedup();
        let newest = before.iter().max_by_key(|seen| seen.size);
        let expected = newest.map_or_else(
            || self.expected(),
            |last| format!("{}, that follows {}", self.expected(), last.described()),
        );
        for last in &before {
            if let Some(wrong) = self.contradicts(last, &now, observed, &expected).await {
                // What could not be asked contradicts nothing.
                let contradicts = [State::RolledBack, State::Forked, State::WrongLog].contains(&wrong.state);
                self.mark.found(contradicts.then_some(now));
                return Some(wrong);
            }
        }
        self.mark.found(None);
        let finding = Finding::new(State::Ok, expected, now.described());
        let taken = own.taken.max(shared.as_ref().map_or(0, |read| read.known.taken));
        let known = Known {
            seen: Some(now),
            taken,
        };
        let is_shared = match &shared {
            Some(read) => self.share(read, &known).await,
            None => Some(false),
        }?;
        if is_shared {
            // Only what all servers agree on is what answers are proven by.
            self.client.found_well(observed.clone(), taken);
        }
        *self.own() = Own { known, is_shared };
        Some(finding)
    }

    /// Moves the shared mark on from what was `read`; whether it says now what is `known`, as far as the database tells.
    /// `None`: another server was faster with something else.
    async fn share(&self, read: &Read, known: &Known) -> Option<bool> {
        match within(self.mark.replace(read, known, self.clock.now())).await {
            Ok(true) => Some(true),
            Ok(false) => match within(self.mark.read()).await {
                Ok(read) if read.known == *known => Some(true),
                Ok(_) => None,
                Err(_) => Some(false),
            },
            Err(_) => Some(false),
        }
    }

    /// What is wrong with a log that is `now` so and was `last` so before.
    async fn contradicts(
        &self,
        last: &Seen,
        now: &Seen,
        observed: &Observed,
        expected: &str,
    ) -> Option<Finding> {
        let of = |state| Some(Finding::new(state, expected, now.described()));
        match compare(Some(last), now) {
            Step::Good => None,
            Step::RolledBack => of(State::RolledBack),
            Step::Forked => of(State::Forked),
            Step::Renamed => of(State::WrongLog),
            Step::Prove => {
                let Ok(old) = Checkpoint::parse(&last.note) else {
                    let found = format!("{}, and the one before it does not read", now.described());
                    return Some(Finding::new(State::Forked, expected, found));
                };
                let error = self.client.follows(&old, observed).await.err()?;
                Some(self.failed(&error.reason))
            }
        }
    }

    /// What a failure to read or to prove means.
    fn failed(&self, reason: &RekorReason) -> Finding {
        let of = |state, found: &str| Finding::new(state, self.expected(), found);
        match reason {
            RekorReason::Unreachable(why) => of(State::Unreachable, why),
            RekorReason::Throttled { .. } | RekorReason::Refused(_) => {
                of(State::Unreachable, &reason.to_string())
            }
            RekorReason::NotALog(why) => of(State::NotALog, why),
            RekorReason::WrongLog { found, .. } => of(State::WrongLog, found),
            RekorReason::Impostor(why) => of(State::WrongLog, why),
            RekorReason::Expired(why) => of(State::Expired, why),
            RekorReason::Forked { old, new } => Finding::new(
                State::Forked,
                format!("{}, that follows {old}", self.expected()),
                new.as_str(),
            ),
            RekorReason::Unproven(_) => of(State::Forked, &reason.to_string()),
        }
    }
}

#[async_trait]
impl Probe for LogProbe {
    fn name(&self) -> &str {
        "external-log"
    }

    fn kind(&self) -> Kind {
        Kind::ExternalLog
    }

    fn expected(&self) -> String {
        self.client.trusted().described()
    }

    async fn look(&self) -> Finding {
        // What is found counts for what is sent from now on, so that has to go where the name leads now.
        self.client.let_go();
        let began = self.clock.monotonic();
        let may_ask_again = || self.clock.monotonic().since(began) < Duration::from_millis(TURNS_MS_MAX);
        let (observed, mut finding) = loop {
            // Before the log is asked, so that what is found is no older than what it is held against.
            let shared = self.shared().await;
            let observed = match self.client.checkpoint().await {
                Ok(observed) => observed,
                Err(error) => {
                    self.mark.found(None);
                    return self.failed(&error.reason);
                }
            };
            match self.held(&observed, shared).await {
                Some(finding) => break (observed, finding),
                None if may_ask_again() => {}
                // It is well, and what is proven by it is what was proven before.
                None => {
                    let found = seen(&observed.checkpoint).described();
                    break (observed, Finding::new(State::Ok, self.expected(), found));
                }
            }
        };
        let here = reqwest::Url::parse(self.client.url()).is_ok_and(|url| is_loopback(&url));
        if let Some(date) = observed.date.filter(|_| !here) {
            self.references.note("the external log", date, &*self.clock);
        }
        if finding.state == State::Ok
            && let Some(reason) = self.client.contradiction()
        {
            // This look met the log, and an entry since the last one a fork of it.
            finding = self.failed(&reason);
        }
        let now = self.clock.now();
        if finding.state == State::Ok
            && let Some(end) = self.client.trusted().ends
        {
            let key = expiry::judge(&[("its key in the trusted root".to_owned(), end)], now);
            if key.state != State::Ok {
                finding.state = key.state;
                finding.found = format!("{}; {}", finding.found, key.found);
            }
        }
        let shown = observed.certificate.map(|shown| shown.not_after);
        finding.with_certificate_days(shown.map(|end| expiry::days_left(end, now)))
    }
}

fn seen(checkpoint: &Checkpoint) -> Seen {
    Seen {
        origin: checkpoint.origin.clone(),
        size: checkpoint.size,
        root: hex::encode(checkpoint.root),
        note: checkpoint.note.clone(),
    }
}

/// What the database answers to a question of the probe, in time.
async fn within<T, E>(asked: impl Future<Output = Result<T, E>>) -> Result<T, MarkError>
where
    MarkError: From<E>,
{
    let most = Duration::from_millis(SHARED_MS_MAX);
    let answer = match tokio::time::timeout(most, asked).await {
        Ok(answer) => answer.map_err(MarkError::from),
        Err(_) => Err(MarkError::Late),
    };
    answer.inspect_err(|error| {
        tracing::debug!(
            error = kernel::chain(error),
            "the external log's checkpoint is not shared"
        );
    })
}
