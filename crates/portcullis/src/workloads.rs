//! The trust rules of the configuration, and the issuers that they name.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use access::oidc::{Fetch, Oidc, Rule, check_rules};
use access::{Access, AccessError};
use async_trait::async_trait;
use kernel::{Clock, Random};
use probing::{Finding, Kind, Probe, State};
use upstream::issuer::Client;

use crate::codes;
use crate::failure::Failure;

/// The folder of the data folder in which the keys of issuers are kept.
const KEYS_FOLDER: &str = "oidc";

/// Checks all rules and their certificates; no issuer is called.
pub fn check(rules: &[Rule]) -> Result<Client, Failure> {
    let invalid = |why: String| Failure::coded(1, &codes::CONFIG, format!("[[oidc]]: {why}"));
    check_rules(rules).map_err(|error| invalid(error.to_string()))?;
    let mut issuers = BTreeMap::new();
    for rule in rules {
        let read = |file: &Path| {
            std::fs::read_to_string(file)
                .map_err(|error| invalid(format!("rule {}: {}: {error}", rule.name, file.display())))
        };
        issuers.insert(
            rule.issuer.clone(),
            rule.ca_file.as_deref().map(read).transpose()?,
        );
    }
    let issuers: Vec<_> = issuers.into_iter().collect();
    Client::new(&issuers).map_err(|error| invalid(kernel::chain(&error)))
}

/// The rules with the keys that were kept. Call [`Oidc::start`] when the server serves.
pub fn open(
    rules: &[Rule],
    data: &Path,
    clock: Arc<dyn Clock>,
    random: &Arc<dyn Random>,
) -> Result<Oidc, Failure> {
    let fetch: Arc<dyn Fetch> = Arc::new(check(rules)?);
    let folder = data.join(KEYS_FOLDER);
    Ok(Oidc::new(rules.to_vec(), &fetch, &folder, clock, random))
}

/// Says which rules name a project that there is not: it may be made later, and nobody is in until then.
pub async fn warn_of_projects(access: &Access, rules: &[Rule]) {
    for rule in rules {
        if let Err(AccessError::NotFound { .. }) = access.project(&rule.project).await {
            tracing::warn!(rule = rule.name, project = %rule.project, "a trust rule names a project that does not exist");
        }
    }
}

/// A rule in one line, for `config view`.
pub fn line(rule: &Rule) -> String {
    let claims: Vec<String> = rule
        .claims
        .iter()
        .map(|(name, value)| format!("{name}={value:?}"))
        .collect();
    format!(
        "{} of {} for {:?} is {} in {}",
        claims.join(" "),
        rule.issuer,
        rule.audience,
        rule.role,
        rule.project
    )
}

/// Whether an issuer was heard when it was last asked. Its keys are fetched by `access::oidc`; nothing is asked here.
struct IssuerProbe {
    oidc: Oidc,
    issuer: String,
}

/// A probe for each issuer of the rules.
pub fn probes(oidc: &Oidc) -> impl Iterator<Item = Arc<dyn Probe>> {
    oidc.issuers().map(|issuer| {
        let probe: Arc<dyn Probe> = Arc::new(IssuerProbe {
            oidc: oidc.clone(),
            issuer: issuer.to_owned(),
        });
        probe
    })
}

#[async_trait]
impl Probe for IssuerProbe {
    fn name(&self) -> &str {
        &self.issuer
    }

    fn kind(&self) -> Kind {
        Kind::TokenIssuer
    }

    fn expected(&self) -> String {
        "it describes itself and publishes its keys".to_owned()
    }

    async fn look(&self) -> Finding {
        let heard = self.oidc.heard(&self.issuer);
        let since = match heard.at {
            Some(at) => format!("its keys are of {at}"),
            None => "none of its keys is known".to_owned(),
        };
        let (state, found) = match (heard.failure, heard.at) {
            (Some(why), _) => (State::Unreachable, format!("{why}; {since}")),
            (None, Some(_)) => (State::Ok, since),
            (None, None) => (State::Unknown, "it is asked for the first time".to_owned()),
        };
        Finding::new(state, self.expected(), found)
    }
}
