//! Patterns of repositories.

use std::fmt;
use std::str::FromStr;

use kernel::Repository;

use crate::AccessError;

/// Which repositories: `registry.example/team/*`. `*` stands for any characters but a slash, `**` for any
/// characters. The whole name has to match; tags and digests play no part, so that an image does not leave
/// a pattern by being named differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

/// Longer than any repository name, short enough to match quickly.
const PATTERN_CHARS_MAX: usize = 300;

impl Pattern {
    #[must_use]
    pub fn matches(&self, repository: &Repository) -> bool {
        glob(&self.0, &repository.to_string())
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Pattern {
    type Err = AccessError;

    fn from_str(text: &str) -> Result<Self, AccessError> {
        let harmless = |b: u8| b.is_ascii_alphanumeric() || b"._-/:*[]".contains(&b);
        if text.is_empty() || text.len() > PATTERN_CHARS_MAX || !text.bytes().all(harmless) {
            let why = "a pattern is a repository name, in which * and ** may stand for parts";
            return Err(AccessError::Invalid {
                what: "pattern",
                text: text.chars().take(100).collect(),
                why,
            });
        }
        Ok(Self(text.to_owned()))
    }
}

/// Whether the whole of `text` meets `pattern`, where `*` stands for any characters but a slash and `**` for any.
#[must_use]
pub fn glob(pattern: &str, text: &str) -> bool {
    matches(pattern.as_bytes(), text.as_bytes())
}

/// Iterative: for each kind of star the last one is remembered, and a mismatch goes back to it with one more
/// character. A later star makes earlier ones irrelevant for what follows, except that `*` may not pass a
/// slash; then the last `**` is tried.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where the pattern goes on after the star, and where in the text the star's part ends so far.
    let mut star: Option<(usize, usize)> = None;
    let mut deep: Option<(usize, usize)> = None;
    loop {
        if pattern[p..].starts_with(b"**") {
            p += 2;
            (star, deep) = (None, Some((p, t)));
        } else if pattern.get(p) == Some(&b'*') {
            p += 1;
            star = Some((p, t));
        } else if p < pattern.len() && pattern.get(p) == text.get(t) {
            (p, t) = (p + 1, t + 1);
        } else if p == pattern.len() && t == text.len() {
            return true;
        } else if let Some((after, from)) =
            star.filter(|(_, from)| text.get(*from).is_some_and(|b| *b != b'/'))
        {
            (p, t) = (after, from + 1);
            star = Some((after, from + 1));
        } else if let Some((after, from)) = deep.filter(|(_, from)| *from < text.len()) {
            (p, t) = (after, from + 1);
            (star, deep) = (None, Some((after, from + 1)));
        } else {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t34_patterns_match_repositories_whatever_the_tag_or_digest() {
        let table = [
            ("r.example/team/*", "r.example/team/app", true),
            ("r.example/team/*", "r.example/team/app/sub", false),
            ("r.example/team/*", "r.example/team", false),
            ("r.example/team/**", "r.example/team/app/sub", true),
            ("r.example/**/app", "r.example/a/b/app", true),
            ("r.example/**/app", "r.example/a/b/apple", false),
            ("r.example/*-svc/app", "r.example/pay-svc/app", true),
            ("r.example/*-svc/app", "r.example/a/pay-svc/app", false),
            ("**", "r.example/any/thing", true),
            ("*", "r.example/any", false),
            ("r.example/app", "r.example/app", true),
            ("r.example/app", "r.example/app2", false),
            ("r.example/**a*b", "r.example/a/aab", true),
            ("r.example/**a*b", "r.example/ab/x", false),
            ("evil.example/r.example/*", "r.example/team", false),
            ("r.example:5000/*", "r.example:5000/app", true),
            ("r.example:5000/*", "r.example/app", false),
            ("r.example/*/*", "r.example/a/b", true),
            ("r.example/*/*", "r.example/a/b/c", false),
            ("r.example/a**z", "r.example/a/b/z", true),
        ];
        for (pattern, repository, want) in table {
            let pattern: Pattern = pattern.parse().unwrap();
            let hex = "0".repeat(64);
            for suffix in [
                String::new(),
                ":v1".to_owned(),
                format!("@sha256:{hex}"),
                format!(":v1@sha256:{hex}"),
            ] {
                let reference: kernel::Reference = format!("{repository}{suffix}").parse().unwrap();
                assert_eq!(
                    pattern.matches(reference.repository()),
                    want,
                    "{pattern} on {reference}"
                );
            }
        }
        assert!("a b".parse::<Pattern>().is_err());
        assert!("".parse::<Pattern>().is_err());
    }

    /// The plain recursive meaning, exponential but obvious.
    fn oracle(pattern: &[u8], text: &[u8]) -> bool {
        match pattern {
            [] => text.is_empty(),
            [b'*', b'*', rest @ ..] => (0..=text.len()).any(|skip| oracle(rest, &text[skip..])),
            [b'*', rest @ ..] => {
                let most = text.iter().position(|b| *b == b'/').unwrap_or(text.len());
                (0..=most).any(|skip| oracle(rest, &text[skip..]))
            }
            [first, rest @ ..] => text.first() == Some(first) && oracle(rest, &text[1..]),
        }
    }

    proptest::proptest! {
        #[test]
        fn the_quick_match_means_the_same_as_the_obvious_one(pattern in "[ab/*]{0,9}", text in "[ab/]{0,9}") {
            proptest::prop_assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), oracle(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
