//! Ids of records.

use std::fmt;
use std::str::FromStr;

use crate::{Clock, Random};

/// The id of a record: a short prefix that says what it is and a UUIDv7 (RFC 9562), as in
/// `sig_0198f2a4c1d27e0c9a3be1f2a4c1d27e`. Ids of one kind sort by the time they were made.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(transparent)]
pub struct Id(String);

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an id is a prefix of 2 to 4 letters, an underscore and 32 hex digits")]
pub struct IdError;

impl Id {
    /// Makes a new id.
    #[must_use]
    pub fn new(prefix: &'static str, clock: &dyn Clock, random: &dyn Random) -> Self {
        let millis = u64::try_from(clock.now().as_millisecond()).unwrap_or(0);
        let mut chance = [0; 10];
        random.fill(&mut chance);
        let uuid = uuid::Builder::from_unix_timestamp_millis(millis, &chance).into_uuid();
        Self(format!("{prefix}_{}", uuid.simple()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Id {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let (prefix, digits) = text.split_once('_').ok_or(IdError)?;
        let prefix_ok = (2..=4).contains(&prefix.len()) && prefix.bytes().all(|b| b.is_ascii_lowercase());
        let digits_ok = digits.len() == 32 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if prefix_ok && digits_ok {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SeededRandom, TestClock};
    use std::time::Duration;

    #[test]
    fn ids_sort_by_time_and_read_back() {
        let clock = TestClock::at(jiff::Timestamp::UNIX_EPOCH);
        let random = SeededRandom::new(1);
        let first = Id::new("sig", &clock, &random);
        clock.advance(Duration::from_millis(1));
        let second = Id::new("sig", &clock, &random);
        assert!(first < second);
        assert_eq!(first.as_str().parse(), Ok(first));
        assert_eq!("sig_1".parse::<Id>(), Err(IdError));
    }
}
