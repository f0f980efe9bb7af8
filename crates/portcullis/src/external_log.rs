//! The external log of the configuration: who it is, how the debt to it is paid, and when nothing is sent there.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use probing::{Board, Kind, State};
use signing::Signing;
use signing::debt;
use signing::ports::{
    Answered, Contained, ExternalLog, ExternalLogError, LoggedEntry, Looks, NewEntry, TreeHead,
};
use signing::trust::{self, LogIdentity, TrustRoot};
use tlog::{HashedRekord, Verifier};
use tokio_util::sync::CancellationToken;
use upstream::rekor::{Client, RekorReason, Settings};

use crate::failure::Failure;

/// The log that the configuration names, once for all who speak to it.
#[derive(Clone)]
pub struct External {
    pub client: Arc<Client>,
    /// By what verifiers believe it, and nothing else.
    pub trust: Arc<TrustRoot>,
    entries_per_second_max: u32,
}

impl External {
    /// The log need not be there.
    pub fn open(settings: &Settings) -> Result<Self, Failure> {
        let client = Arc::new(Client::new(settings)?);
        let verifier = &client.trusted().verifier;
        let identity = LogIdentity {
            origin: verifier.origin().to_owned(),
            public_key: verifier.spki(),
            id: verifier.log_id().to_vec(),
            // A key that is configured has no beginning; of one that ends the probe says so.
            since: Timestamp::UNIX_EPOCH,
        };
        let trust = Arc::new(TrustRoot::from_json(&trust::trusted_root(&identity))?);
        Ok(Self {
            client,
            trust,
            entries_per_second_max: settings.entries_per_second_max,
        })
    }

    /// Begins to pay what is owed, when it is this server's turn; until `stop`.
    pub fn pay(
        self,
        signing: Signing,
        board: Board,
        holder: String,
        lease_ttl: Duration,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static {
        let log = Watched {
            client: self.client,
            board,
        };
        let settings = debt::Settings {
            log: Arc::new(log),
            entries_per_second_max: self.entries_per_second_max,
            holder,
            lease_ttl,
        };
        debt::run(signing, settings, stop)
    }
}

/// The log behind the signing domain's port, with what the probes know of it.
struct Watched {
    client: Arc<Client>,
    board: Board,
}

#[async_trait]
impl ExternalLog for Watched {
    async fn append(&self, entry: NewEntry) -> Result<Answered, ExternalLogError> {
        let entry = HashedRekord {
            digest: entry.digest.as_bytes().to_vec(),
            signature: entry.signature,
            verifier: Verifier::PublicKey(entry.public_key),
        };
        match self.client.append(&entry).await {
            Ok(logged) => Ok(Answered {
                entry: LoggedEntry {
                    index: logged.index,
                    json: logged.entry,
                },
                head: logged.head,
            }),
            Err(error) => Err(meant(error.reason)),
        }
    }

    async fn contains(&self, heads: &[TreeHead]) -> Vec<Contained> {
        let found = self.client.contains(heads).await;
        let found = found.into_iter().map(|one| match one {
            None => Contained::NotYet,
            Some(Ok(())) => Contained::Yes,
            Some(Err(reason @ RekorReason::Forked { .. })) => Contained::No(reason.to_string()),
            Some(Err(reason)) => Contained::Unknown(reason.to_string()),
        });
        found.collect()
    }

    fn barred(&self) -> Option<String> {
        let all = self.board.all();
        let state = all.iter().find(|status| status.kind == Kind::ExternalLog);
        let state = state.map_or(State::Unknown, |status| status.state);
        bars(state).then(|| format!("it is {state}"))
    }

    fn looks(&self) -> Looks {
        let all = self.board.all();
        let status = all.iter().find(|status| status.kind == Kind::ExternalLog);
        status.map_or_else(Looks::default, |status| Looks {
            well: status.well,
            ill: status.ill,
            wrong: status.wrong,
        })
    }
}

/// Whether nothing may be sent to a log in this state: who answers there is not known yet, or is not the right one.
const fn bars(state: State) -> bool {
    matches!(state, State::Unknown) || state.is_somebody_else()
}

/// What a failure of the client means for the debt.
fn meant(reason: RekorReason) -> ExternalLogError {
    let words = reason.to_string();
    match reason {
        RekorReason::Unreachable(_) | RekorReason::Expired(_) => ExternalLogError::Away(words),
        RekorReason::Throttled { after_seconds } => ExternalLogError::Throttled {
            after: after_seconds.map(Duration::from_secs),
        },
        RekorReason::NotALog(_)
        | RekorReason::WrongLog { .. }
        | RekorReason::Impostor(_)
        | RekorReason::Forked { .. } => ExternalLogError::Wrong(words),
        RekorReason::Unproven(_) => ExternalLogError::Unproven(words),
        RekorReason::Refused(_) => ExternalLogError::Refused(words),
    }
}
