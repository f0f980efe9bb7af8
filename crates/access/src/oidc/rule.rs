//! Trust rules: whose tokens are taken, and what they may.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kernel::words;
use serde::Deserialize;
use serde_json::Value;

use super::discovery;
use super::token::Claims;
use crate::{ProjectName, Role};

/// Claims that name a workload's home by a number that is never given out again. A name can be: whoever takes over a
/// name that became free would be taken for who had it. That of a person (GitHub `actor_id`, GitLab `user_id`) is not
/// among them, because a person is found in other people's pipelines too.
pub const IMMUTABLE: &[&str] = &[
    "repository_id",
    "repository_owner_id",
    "enterprise_id",
    "project_id",
    "namespace_id",
];
/// Claims that have a rule of their own.
const OWN: &[&str] = &["iss", "aud", "exp", "nbf", "iat"];
/// Rules of one server; each request may look at all of its issuer.
pub const RULES_MAX: usize = 1_000;
/// Claims of one rule: the tokens of GitHub and GitLab have some thirty.
const CLAIMS_MAX: usize = 32;
/// Characters of a rule's name, which stands in audit records.
const NAME_CHARS_MAX: usize = 63;

/// One trust rule.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RuleFile")]
pub struct Rule {
    pub name: String,
    /// The token's `iss`, to the letter.
    pub issuer: String,
    /// One of the token's `aud`, to the letter.
    pub audience: String,
    /// What the token has to say, to the letter.
    pub claims: BTreeMap<String, String>,
    pub project: ProjectName,
    pub role: Role,
    /// Certificates (PEM) that are trusted for this issuer besides the system's.
    pub ca_file: Option<PathBuf>,
}

/// Why a rule cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    #[error("a rule's name is 1 to 63 small letters, digits, dots and dashes")]
    Name,
    #[error("rule {rule}: {why}")]
    Value { rule: String, why: String },
    #[error("two rules are called {0}")]
    Twice(String),
    #[error("rules {first} and {second} give one issuer two values of ca_file")]
    Certificates { first: String, second: String },
    #[error("there are more than {RULES_MAX} rules")]
    Many,
}

/// A rule as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    name: String,
    issuer: String,
    audience: String,
    claims: BTreeMap<String, Scalar>,
    project: String,
    role: String,
    ca_file: Option<PathBuf>,
}

/// Issuers write ids as texts; people write them as numbers.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Text(String),
    Number(i64),
    Truth(bool),
}

impl TryFrom<RuleFile> for Rule {
    type Error = RuleError;

    fn try_from(file: RuleFile) -> Result<Self, RuleError> {
        let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c);
        if file.name.is_empty() || file.name.len() > NAME_CHARS_MAX || !file.name.chars().all(letters) {
            return Err(RuleError::Name);
        }
        let wrong = |why: String| RuleError::Value {
            rule: file.name.clone(),
            why,
        };
        discovery::issuer(&file.issuer).map_err(|why| wrong(why.to_owned()))?;
        if file.audience.is_empty() {
            return Err(wrong("audience is empty".to_owned()));
        }
        let role: Role = file.role.parse().map_err(|_| wrong("role is none".to_owned()))?;
        if role == Role::Admin {
            let why =
                "a workload is never admin: it could make itself a token that outlives its own by months";
            return Err(wrong(why.to_owned()));
        }
        let project = file
            .project
            .parse()
            .map_err(|_| wrong("project is not a project's name".to_owned()))?;
        let claims: BTreeMap<String, String> = file
            .claims
            .into_iter()
            .map(|(name, value)| (name, value.text()))
            .collect();
        check_claims(&claims).map_err(wrong)?;
        Ok(Self {
            name: file.name,
            issuer: file.issuer,
            audience: file.audience,
            claims,
            project,
            role,
            ca_file: file.ca_file,
        })
    }
}

impl Scalar {
    fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string(),
            Self::Truth(truth) => truth.to_string(),
        }
    }
}

fn check_claims(claims: &BTreeMap<String, String>) -> Result<(), String> {
    if let Some(own) = claims.keys().find(|name| OWN.contains(&name.as_str())) {
        return Err(format!("{own} is no claim to compare: it is checked always"));
    }
    if claims.len() > CLAIMS_MAX {
        return Err(format!("it has more than {CLAIMS_MAX} claims"));
    }
    for (name, value) in claims {
        if value.is_empty() || value.contains('*') {
            return Err(format!(
                "claim {name} is compared to the letter, and is neither empty nor a pattern"
            ));
        }
    }
    if !claims.keys().any(|name| IMMUTABLE.contains(&name.as_str())) {
        return Err(format!(
            "at least one claim has to be an id that is never given out again: {}",
            IMMUTABLE.join(", ")
        ));
    }
    Ok(())
}

/// What one rule alone cannot say.
///
/// # Errors
/// If two rules contradict each other.
pub fn check_rules(rules: &[Rule]) -> Result<(), RuleError> {
    if rules.len() > RULES_MAX {
        return Err(RuleError::Many);
    }
    let mut names = BTreeMap::new();
    let mut issuers: BTreeMap<&str, &Rule> = BTreeMap::new();
    for rule in rules {
        if names.insert(&rule.name, ()).is_some() {
            return Err(RuleError::Twice(rule.name.clone()));
        }
        let first = issuers.entry(&rule.issuer).or_insert(rule);
        if first.ca_file != rule.ca_file {
            return Err(RuleError::Certificates {
                first: first.name.clone(),
                second: rule.name.clone(),
            });
        }
    }
    Ok(())
}

/// Where a token does not fit a rule.
#[derive(Debug)]
pub(super) struct Mismatch {
    /// Another home altogether: what else does not fit is nobody's business there.
    stranger: bool,
    claims: Vec<String>,
}

impl Mismatch {
    /// What to say of a token that fits no rule: how the nearest one differs, in the token's own values.
    pub fn nearest(all: &[Self]) -> String {
        let nearest = all.iter().min_by_key(|one| (one.stranger, one.claims.len()));
        nearest.map_or_else(String::new, |one| words(&one.claims.join(", ")))
    }
}

impl Rule {
    /// Where the token's claims are not those of the rule.
    pub(super) fn mismatch(&self, claims: &Claims) -> Option<Mismatch> {
        let differs = |name: &str, wanted: &str| {
            let found = claims.members.get(name).and_then(scalar);
            (found.as_deref() != Some(wanted)).then(|| match found {
                Some(found) => format!("its {name} is \"{found}\""),
                None => format!("it has no {name}"),
            })
        };
        let differing = |ids: bool| {
            let of_kind = self
                .claims
                .iter()
                .filter(move |(name, _)| IMMUTABLE.contains(&name.as_str()) == ids);
            of_kind
                .filter_map(|(name, wanted)| differs(name, wanted))
                .collect()
        };
        let ids: Vec<String> = differing(true);
        let stranger = !ids.is_empty();
        let claims = if stranger { ids } else { differing(false) };
        (!claims.is_empty()).then_some(Mismatch { stranger, claims })
    }
}

/// A claim as text; lists and objects are never equal to anything.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Number(number) => number.as_i64().map(|number| number.to_string()),
        _ => None,
    }
}
