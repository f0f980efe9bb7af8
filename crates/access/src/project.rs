//! Projects.

use std::fmt;
use std::str::FromStr;

use flow::Rate;
use jiff::Timestamp;
use kernel::Repository;

use crate::{AccessError, Pattern};

/// The name of a project: 1 to 63 lower-case letters, digits and dashes (RFC 1123 label).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(transparent)]
pub struct ProjectName(String);

/// The unit of separation: tokens, keys and signatures belong to one.
#[derive(Debug, Clone)]
pub struct Project {
    pub name: ProjectName,
    /// Which images it may sign; none means none.
    pub images: Vec<Pattern>,
    /// New signatures that it may make; the server's default where it has none of its own.
    pub quota: Option<Rate>,
    pub created_at: Timestamp,
}

/// What of a project changes; what is `None` stays.
#[derive(Debug, Clone, Default)]
pub struct ProjectChange {
    pub images: Option<Vec<Pattern>>,
    /// `Some(None)`: the server's default again.
    pub quota: Option<Option<Rate>>,
}

/// New signatures a minute, or at once, that a quota may allow: what no server reaches.
pub const QUOTA_MAX: u32 = 1_000_000;

impl ProjectChange {
    /// # Errors
    /// [`AccessError::Invalid`] if the quota is out of bounds, or nothing is to change.
    pub(crate) fn require_valid(&self) -> Result<(), AccessError> {
        let invalid = |what, text: String, why| AccessError::Invalid { what, text, why };
        if self.images.is_none() && self.quota.is_none() {
            let why = "give images or quota";
            return Err(invalid("change of a project", "nothing".to_owned(), why));
        }
        let Some(Some(rate)) = self.quota else {
            return Ok(());
        };
        if rate.per_minute > QUOTA_MAX || !(1..=QUOTA_MAX).contains(&rate.burst) {
            let why = "signatures_per_minute is at most 1000000, and burst between 1 and that";
            return Err(invalid(
                "quota",
                format!("{} {}", rate.per_minute, rate.burst),
                why,
            ));
        }
        Ok(())
    }
}

impl ProjectName {
    /// The project that a fresh server has.
    #[must_use]
    pub fn default_project() -> Self {
        Self("default".to_owned())
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Project {
    /// # Errors
    /// [`AccessError::Image`] if no pattern matches.
    pub fn require_image(&self, repository: &Repository) -> Result<(), AccessError> {
        if self.images.iter().any(|pattern| pattern.matches(repository)) {
            return Ok(());
        }
        let patterns = self
            .images
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" ");
        Err(AccessError::Image {
            project: self.name.to_string(),
            image: repository.to_string(),
            patterns,
        })
    }
}

impl fmt::Display for ProjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ProjectName {
    type Err = AccessError;

    fn from_str(text: &str) -> Result<Self, AccessError> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let valid = (1..=63).contains(&text.len())
            && text.bytes().all(inner)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if valid {
            return Ok(Self(text.to_owned()));
        }
        let why = "a project name is 1 to 63 lower-case letters, digits and inner dashes";
        Err(AccessError::Invalid {
            what: "project name",
            text: text.chars().take(100).collect(),
            why,
        })
    }
}
