//! The dead man's switch: a sign of life that goes out, so that somebody outside notices its absence.
//!
//! Alerts that run on what they watch are silent with it. So the server posts to a receiver elsewhere at an interval
//! as long as it could sign, and the receiver (healthchecks.io, Dead Man's Snitch, an Alertmanager of another site, a
//! cron job that looks at a file's age) raises the alarm when nothing comes: the process stopped or froze, its disk or
//! database went, or the network between. Nothing of it touches the database or the disk. The newest checkpoint goes
//! along: whoever keeps it can prove later that a log was rolled back.

use std::time::Duration;

use async_trait::async_trait;
use probing::{Board, CanDeploy, Finding, Kind, Probe, Rhythm, State, Verdict};
use serde_json::json;
use tlog::Tlog;

use crate::client;
use crate::config::DeadMansSwitchSection;
use crate::failure::Failure;

/// How long the receiver may take, in seconds.
const POST_SECONDS_MAX: u64 = 10;

/// Posts.
pub struct DeadMansSwitch {
    url: String,
    fail_url: Option<String>,
    every: Duration,
    server: String,
    http: reqwest::Client,
    board: Board,
    tlog: Tlog,
}

impl DeadMansSwitch {
    pub fn new(
        settings: &DeadMansSwitchSection,
        server: &str,
        board: Board,
        tlog: Tlog,
    ) -> Result<Self, Failure> {
        Ok(Self {
            url: settings.url.clone(),
            fail_url: settings.fail_url.clone(),
            every: Duration::from_secs(settings.every_seconds),
            server: server.to_owned(),
            http: client::http(Duration::from_secs(POST_SECONDS_MAX))?,
            board,
            tlog,
        })
    }

    async fn post(&self, url: &str, verdict: &Verdict) -> Result<(), String> {
        let body = json!({
            "server": self.server,
            "can_deploy": verdict.can_deploy,
            "reasons": verdict.reasons,
            "checkpoint": self.tlog.seen().map(|checkpoint| checkpoint.note),
        });
        let answer = self.http.post(url).json(&body).send().await;
        // The address is a secret of its own at many receivers: whoever knows it can keep the alarm silent.
        let answer = answer.map_err(|error| kernel::chain(&error.without_url()))?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            status => Err(format!("it answered {status}")),
        }
    }
}

#[async_trait]
impl Probe for DeadMansSwitch {
    fn name(&self) -> &str {
        "dead-mans-switch"
    }

    fn kind(&self) -> Kind {
        Kind::DeadMansSwitch
    }

    fn expected(&self) -> String {
        format!("a sign of life every {} s", self.every.as_secs())
    }

    async fn look(&self) -> Finding {
        let others: Vec<_> = self
            .board
            .all()
            .into_iter()
            .filter(|status| status.kind != self.kind())
            .collect();
        let verdict = Verdict::of(&others);
        let of = |state, found: String| Finding::new(state, self.expected(), kernel::words(&found));
        let unknown = |status: &&probing::Status| {
            status.kind.stops_signing(status.state) && status.state == State::Unknown
        };
        if let Some(first) = others.iter().find(unknown) {
            let why = format!("nothing is posted before anybody has looked at {}", first.name);
            return of(State::Unknown, why);
        }
        let dead = verdict.can_deploy == CanDeploy::No;
        let posted = match (dead, &self.fail_url) {
            (false, _) => self.post(&self.url, &verdict).await,
            (true, Some(url)) => self.post(url, &verdict).await,
            (true, None) => {
                return of(
                    State::Ok,
                    "nothing is posted, because nothing can be signed".to_owned(),
                );
            }
        };
        match posted {
            Ok(()) if dead => of(State::Ok, "it was told that nothing can be signed".to_owned()),
            Ok(()) => of(State::Ok, "it was told that all is well".to_owned()),
            Err(why) => of(State::Unreachable, why),
        }
    }

    fn rhythm(&self) -> Rhythm {
        Rhythm {
            every: self.every,
            look_max: Duration::from_secs(POST_SECONDS_MAX),
        }
    }
}
