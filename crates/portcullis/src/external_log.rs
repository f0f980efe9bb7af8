//! The external log of the configuration: who it is, how the debt to it is paid, and when nothing is sent there.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use probing::{Board, Kind, LogMark, Marks, State, Status};
use signing::Signing;
use signing::debt;
use signing::ports::{
    Answered, Contained, ExternalLog, ExternalLogError, LoggedEntry, Looks, NewEntry, TreeHead,
};
use signing::trust::{self, LogIdentity, TrustRoot};
use store::Db;
use tlog::{HashedRekord, Verifier};
use tokio_util::sync::CancellationToken;
use upstream::rekor::{Client, LogProbe, RekorReason, Settings};
use web::threads::{self, Threads};

use crate::failure::Failure;

/// Where entries are sent and answers proven: a debt of thousands takes a fifth of a core, and whoever signs meanwhile
/// does not wait for it.
const THREADS: threads::Settings = threads::Settings {
    name: "external-log",
    count: Some(1),
    nice: 10,
    otherwise: "while a debt to the external log is paid signatures take longer",
};

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

    /// What all servers on one database saw of it last.
    pub fn mark(&self, db: &Db) -> LogMark {
        LogProbe::mark(&self.client, &Marks::new(db.clone()))
    }

    /// Begins to pay what is owed, when it is this server's turn; until `stop`.
    pub fn pay(
        self,
        signing: Signing,
        board: Board,
        holder: String,
        lease_ttl: Duration,
        stop: CancellationToken,
    ) -> Result<impl Future<Output = ()> + Send + 'static, Failure> {
        let threads = Threads::start(THREADS).map_err(|error| Failure::local("the external log", &error))?;
        let log = Watched {
            client: self.client,
            board,
            threads,
        };
        let settings = debt::Settings {
            log: Arc::new(log),
            entries_per_second_max: self.entries_per_second_max,
            holder,
            lease_ttl,
        };
        Ok(debt::run(signing, settings, stop))
    }
}

/// The log behind the signing domain's port, with what the probes know of it.
struct Watched {
    client: Arc<Client>,
    board: Board,
    threads: Threads,
}

impl Watched {
    /// What the probe knows of the log.
    fn status(&self) -> Option<Status> {
        let mut all = self.board.all().into_iter();
        all.find(|status| status.kind == Kind::ExternalLog)
    }
}

#[async_trait]
impl ExternalLog for Watched {
    async fn append(&self, entry: NewEntry, last_index: Option<u64>) -> Result<Answered, ExternalLogError> {
        let entry = HashedRekord {
            digest: entry.digest.as_bytes().to_vec(),
            signature: entry.signature,
            verifier: Verifier::PublicKey(entry.public_key),
        };
        let client = self.client.clone();
        let answer = self
            .threads
            .run(async move { client.append(&entry, last_index).await });
        let answer = answer
            .await
            .map_err(|error| ExternalLogError::Unproven(error.to_string()))?;
        match answer {
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
        let (client, asked) = (self.client.clone(), heads.to_vec());
        let found = self.threads.run(async move { client.contains(&asked).await });
        let found = match found.await {
            Ok(found) => found,
            Err(error) => return vec![Contained::Unknown(error.to_string()); heads.len()],
        };
        let found = found.into_iter().map(|one| match one {
            None => Contained::NotYet,
            Some(Ok(())) => Contained::Yes,
            Some(Err(reason @ RekorReason::Forked { .. })) => Contained::No(reason.to_string()),
            Some(Err(reason)) => Contained::Unknown(reason.to_string()),
        });
        found.collect()
    }

    fn barred(&self) -> Option<String> {
        let state = self.status().map_or(State::Unknown, |status| status.state);
        bars(state).then(|| format!("it is {state}"))
    }

    fn looks(&self) -> Looks {
        self.status().map_or_else(Looks::default, |status| Looks {
            well: status.well,
            ill: status.ill,
            wrong: status.wrong,
            taken: self.client.taken(),
        })
    }

    fn contradicts(&self, why: &str) {
        self.client.contradicts(RekorReason::Unproven(why.to_owned()));
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
        // What a proxy answers in its place is nobody's proof of anything.
        RekorReason::Unreachable(_) | RekorReason::Expired(_) | RekorReason::NotALog(_) => {
            ExternalLogError::Away(words)
        }
        RekorReason::Throttled { after_seconds } => ExternalLogError::Throttled {
            after: after_seconds.map(Duration::from_secs),
        },
        RekorReason::WrongLog { .. } | RekorReason::Impostor(_) | RekorReason::Forked { .. } => {
            ExternalLogError::Wrong(words)
        }
        RekorReason::Unproven(_) => ExternalLogError::Unproven(words),
        RekorReason::Refused(_) => ExternalLogError::Refused(words),
    }
}
