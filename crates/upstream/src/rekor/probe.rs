//! Is the external log there, is it the right one, and did it only grow?

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use kernel::Clock;
use probing::log::{Seen, Step, compare};
use probing::{Finding, Kind, Marks, Probe, References, State, expiry};
use tlog::Checkpoint;
use tokio::sync::Semaphore;

use super::{Client, Observed, RekorReason};
use crate::oci::is_loopback;

/// Looks at the external log, and remembers the last good checkpoint over a restart.
pub struct LogProbe {
    client: Arc<Client>,
    marks: Marks,
    clock: Arc<dyn Clock>,
    references: References,
    last: Mutex<Option<Seen>>,
    /// One write of the mark at a time; a database that hangs must not make the log look ill.
    writing: Arc<Semaphore>,
}

impl LogProbe {
    /// `mark` is what `marks` has under [`LogProbe::mark`]: what the last run saw.
    #[must_use]
    pub fn new(
        client: Arc<Client>,
        marks: Marks,
        mark: Option<&str>,
        clock: Arc<dyn Clock>,
        references: References,
    ) -> Self {
        Self {
            client,
            marks,
            clock,
            references,
            last: Mutex::new(mark.and_then(|text| serde_json::from_str(text).ok())),
            writing: Arc::new(Semaphore::new(1)),
        }
    }

    /// The name under which the last good checkpoint is kept. It has the log's id in it: of another log nothing is
    /// remembered.
    #[must_use]
    pub fn mark(client: &Client) -> String {
        format!("external-log {}", hex::encode(client.trusted().verifier.log_id()))
    }

    fn last(&self) -> Option<Seen> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Holds a checkpoint of the right log against the last good one.
    async fn held(&self, observed: &Observed) -> Finding {
        let now = seen(&observed.checkpoint);
        let last = self.last();
        let expected = last.as_ref().map_or_else(
            || self.expected(),
            |last| format!("{}, that follows {}", self.expected(), last.described()),
        );
        let of = |state| Finding::new(state, expected.clone(), now.described());
        match (compare(last.as_ref(), &now), &last) {
            (Step::RolledBack, _) => return of(State::RolledBack),
            (Step::Forked, _) => return of(State::Forked),
            (Step::Renamed, _) => return of(State::WrongLog),
            (Step::Prove, Some(last)) => {
                // It was read when it was good.
                if let Ok(old) = Checkpoint::parse(&last.note)
                    && let Err(error) = self.client.follows(&old, observed).await
                {
                    return self.failed(&error.reason);
                }
            }
            _ => {}
        }
        let finding = of(State::Ok);
        self.client.found_well(observed.clone());
        if last.as_ref() != Some(&now) {
            self.remember(now);
        }
        finding
    }

    fn remember(&self, now: Seen) {
        let mark = serde_json::to_string(&now).unwrap_or_default();
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        let Ok(turn) = Arc::clone(&self.writing).try_acquire_owned() else {
            return;
        };
        let (marks, name, at) = (self.marks.clone(), Self::mark(&self.client), self.clock.now());
        tokio::spawn(async move {
            if let Err(error) = marks.keep(&name, &mark, at).await {
                tracing::warn!(
                    error = kernel::chain(&error),
                    "the external log's checkpoint was not written down"
                );
            }
            drop(turn);
        });
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
        let observed = match self.client.checkpoint().await {
            Ok(observed) => observed,
            Err(error) => return self.failed(&error.reason),
        };
        let here = reqwest::Url::parse(self.client.url()).is_ok_and(|url| is_loopback(&url));
        if let Some(date) = observed.date.filter(|_| !here) {
            self.references.note("the external log", date, &*self.clock);
        }
        let contradiction = self.client.contradiction();
        let mut finding = self.held(&observed).await;
        if finding.state == State::Ok
            && let Some(reason) = contradiction
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
