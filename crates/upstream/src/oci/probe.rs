//! Is a registry that is in use there, and is it the one that it was?
//!
//! `GET /v2/` (OCI distribution specification, end-1) without credentials, over a new connection. Over TLS the name is
//! proven by the certificate. Besides, a registry says where it sends for tokens; another answer than the first one
//! is another registry behind the same name.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use kernel::{Clock, Monotonic};
use probing::{Finding, Kind, Probe, Probes, References, State, expiry};
use reqwest::header::{CONTENT_TYPE, DATE, LOCATION, SERVER, WWW_AUTHENTICATE};

use super::challenge::Challenge;
use super::header::http_date;
use super::identity::{Answered, expected, judge};
use super::transport::Host;
use super::{Client, egress};
use crate::certificate;

/// Registries that are looked at at once: those that were called last.
pub const REGISTRIES_PROBED_MAX: usize = 16;
/// A registry that nobody called for so long is left in peace, in seconds.
const IN_USE_SECONDS_MAX: u64 = 300;
/// Bytes of the answer that are read: the specification's is empty.
const ANSWER_BYTES_MAX: usize = 16 << 10;

impl Client {
    /// The registries that were called a short while ago and have ever answered, those that were called last first.
    fn in_use(&self, now: Monotonic) -> Vec<String> {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let used = hosts
            .values()
            .filter_map(|host| Some((host.last_use()?, host.name.clone())));
        let in_use = Duration::from_secs(IN_USE_SECONDS_MAX);
        let mut used: Vec<_> = used.filter(|(last, _)| now.since(*last) <= in_use).collect();
        used.sort_by(|a, b| b.cmp(a));
        used.truncate(REGISTRIES_PROBED_MAX);
        used.into_iter().map(|(_, name)| name).collect()
    }
}

/// Looks at one registry.
pub struct RegistryProbe {
    host: Arc<Host>,
    /// Whether the configuration names it.
    configured: bool,
    clock: Arc<dyn Clock>,
    references: References,
}

impl RegistryProbe {
    /// The probes of the registries that are in use at any time.
    #[must_use]
    pub fn in_use(client: Arc<Client>, clock: Arc<dyn Clock>, references: References) -> Arc<dyn Probes> {
        Arc::new(InUse {
            client,
            clock,
            references,
        })
    }

    async fn ask(&self) -> Result<(Answered, Option<certificate::Shown>), Finding> {
        let failed = |error: reqwest::Error| {
            let (state, found) = match certificate::refused(&error) {
                Some(refused) if refused.expired => (State::Expired, refused.why),
                Some(refused) => (State::WrongRegistry, refused.why),
                None => (
                    State::Unreachable,
                    kernel::words(&kernel::chain(&error.without_url())),
                ),
            };
            Finding::new(state, self.expected(), found)
        };
        let address = self.host.origin.join("v2/").unwrap_or(self.host.origin.clone());
        let mut response = self.host.fresh.get(address).send().await.map_err(failed)?;
        let shown = certificate::of(&response);
        let headers = response.headers().clone();
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let challenges = headers
            .get_all(WWW_AUTHENTICATE)
            .into_iter()
            .filter_map(|value| value.to_str().ok());
        let challenge = Challenge::choose(challenges);
        if let Some(date) = text(DATE.as_str()).and_then(http_date) {
            // One on this machine has this machine's clock, and one that a caller made up may show any time.
            if self.configured && !egress::is_loopback(&self.host.origin) {
                self.references.note(&self.host.name, date, &*self.clock);
            }
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_BYTES_MAX {
                break;
            }
        }
        let status = response.status().as_u16();
        let mut described = format!("status {status}");
        for (what, header) in [("", CONTENT_TYPE), ("from ", SERVER), ("to ", LOCATION)] {
            if let Some(value) = headers.get(header).and_then(|value| value.to_str().ok()) {
                described.push_str(&format!(", {what}{value}"));
            }
        }
        let is_json = body.is_empty() || serde_json::from_slice::<serde_json::Map<_, _>>(&body).is_ok();
        let answered = Answered {
            status,
            is_v2: text("docker-distribution-api-version") == Some("registry/2.0"),
            challenge,
            is_json,
            described: kernel::words(&described),
        };
        Ok((answered, shown))
    }
}

#[async_trait]
impl Probe for RegistryProbe {
    fn name(&self) -> &str {
        &self.host.name
    }

    fn kind(&self) -> Kind {
        Kind::Registry
    }

    fn expected(&self) -> String {
        let known = self.host.known.lock().unwrap_or_else(PoisonError::into_inner);
        expected(&self.host.name, known.as_ref())
    }

    async fn look(&self) -> Finding {
        let (answered, shown) = match self.ask().await {
            Ok(found) => found,
            Err(finding) => return finding,
        };
        let mut known = self.host.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut finding, who) = judge(&self.host.name, known.as_ref(), &answered);
        if known.is_none() {
            *known = who;
        }
        if let Some(shown) = &shown {
            finding.found = format!("{}; certificate by {}", finding.found, shown.issuer);
        }
        let ends = shown.map(|shown| shown.not_after);
        finding.with_certificate_days(ends.map(|end| expiry::days_left(end, self.clock.now())))
    }
}

struct InUse {
    client: Arc<Client>,
    clock: Arc<dyn Clock>,
    references: References,
}

impl Probes for InUse {
    fn now(&self) -> Vec<Arc<dyn Probe>> {
        let names = self.client.in_use(self.clock.monotonic());
        let hosts = names.iter().filter_map(|name| self.client.host(name).ok());
        let probe = |host: Arc<Host>| -> Arc<dyn Probe> {
            Arc::new(RegistryProbe {
                configured: self.client.config.registries.contains_key(&host.name),
                host,
                clock: self.clock.clone(),
                references: self.references.clone(),
            })
        };
        hosts.map(probe).collect()
    }
}
