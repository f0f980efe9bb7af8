//! Tokens: `pcl_` and 30 base62 characters of chance and 6 of CRC-32.
//!
//! The prefix lets secret scanners find a leaked token, the checksum tells a mistyped one from a revoked one
//! without a look-up, and only SHA-256 of the text is stored.

use jiff::Timestamp;
use kernel::{Digest, Id, Random, Secret};

use crate::{AccessError, ProjectName, Role};

const PREFIX: &str = "pcl_";
const RANDOM_CHARS: usize = 30;
const CHECKSUM_CHARS: usize = 6;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// The longest life of a token, in days: a forgotten one ends by itself.
pub const LIFE_DAYS_MAX: i64 = 90;

/// A token's text; shown once, when it is made.
#[derive(Debug, Clone)]
pub struct TokenText(Secret);

/// A token as it is stored and listed.
#[derive(Debug, Clone)]
pub struct Token {
    pub id: Id,
    /// What it is for, in its maker's words.
    pub name: String,
    /// Its one project; `None` is the administrator's, for all of them.
    pub project: Option<ProjectName>,
    pub role: Role,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    pub revoked_at: Option<Timestamp>,
}

/// What a new token should be.
#[derive(Debug, Clone)]
pub struct NewToken {
    pub name: String,
    pub project: Option<ProjectName>,
    pub role: Role,
    /// Days from now, at most [`LIFE_DAYS_MAX`].
    pub days: i64,
}

impl TokenText {
    /// Makes one.
    #[must_use]
    pub fn generate(random: &dyn Random) -> Self {
        let mut text = String::from(PREFIX);
        while text.len() < PREFIX.len() + RANDOM_CHARS {
            let mut chance = [0];
            random.fill(&mut chance);
            // 248 is the largest multiple of 62 in a byte; the rest would favour some letters.
            if chance[0] < 248 {
                text.push(char::from(ALPHABET[usize::from(chance[0] % 62)]));
            }
        }
        let sum = checksum(&text[PREFIX.len()..]);
        text.push_str(&sum);
        Self(Secret::new(text))
    }

    /// Takes a token's text from outside.
    ///
    /// # Errors
    /// If the form or the checksum is wrong.
    pub fn parse(text: &str) -> Result<Self, AccessError> {
        let wrong = Err(AccessError::BadToken("it is not one of ours, or was cut"));
        let Some(rest) = text.strip_prefix(PREFIX) else {
            return wrong;
        };
        let base62 = rest.bytes().all(|b| b.is_ascii_alphanumeric());
        if rest.len() != RANDOM_CHARS + CHECKSUM_CHARS || !base62 {
            return wrong;
        }
        if checksum(&rest[..RANDOM_CHARS]) != rest[RANDOM_CHARS..] {
            return Err(AccessError::BadToken("its checksum is wrong; it was mistyped"));
        }
        Ok(Self(Secret::new(text.to_owned())))
    }

    /// What is stored in its place.
    #[must_use]
    pub fn sha256(&self) -> Digest {
        Digest::of(self.0.expose().as_bytes())
    }

    /// The text itself, for the one time it is shown.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose()
    }
}

fn checksum(text: &str) -> String {
    let mut sum = crc32fast::hash(text.as_bytes());
    let mut out = [b'0'; CHECKSUM_CHARS];
    for place in out.iter_mut().rev() {
        *place = ALPHABET[(sum % 62) as usize];
        sum /= 62;
    }
    out.iter().map(|b| char::from(*b)).collect()
}

impl Token {
    /// # Errors
    /// If it is over or was revoked.
    pub(crate) fn require_valid(&self, now: Timestamp) -> Result<(), AccessError> {
        if self.revoked_at.is_some() {
            return Err(AccessError::BadToken("it was revoked"));
        }
        if self.expires_at <= now {
            return Err(AccessError::BadToken("it has expired"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel::SeededRandom;

    #[test]
    fn a_token_reads_back_and_a_mistyped_one_is_told_apart() {
        let token = TokenText::generate(&SeededRandom::new(1));
        let text = token.expose().to_owned();
        assert_eq!(text.len(), 40);
        assert_eq!(TokenText::parse(&text).unwrap().sha256(), token.sha256());
        let mut typo = text.clone().into_bytes();
        typo[10] = if typo[10] == b'a' { b'b' } else { b'a' };
        let typo = String::from_utf8(typo).unwrap();
        assert!(
            TokenText::parse(&typo)
                .unwrap_err()
                .to_string()
                .contains("mistyped")
        );
        assert!(TokenText::parse(&text[..39]).is_err());
        assert!(TokenText::parse("").is_err());
        assert!(!format!("{token:?}").contains(&text));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,60}") {
            let _ = TokenText::parse(&text);
        }
    }
}
