//! Projects.

use std::fmt;
use std::str::FromStr;

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
    pub created_at: Timestamp,
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
