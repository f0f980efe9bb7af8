//! Patterns of repositories.

use std::fmt;
use std::str::FromStr;

use kernel::Repository;

use crate::AccessError;

/// Which repositories: `registry.example/team/*`. `*` stands for any characters but a slash, `**` for any
/// characters. The whole name has to match; tags and digests play no part, so that an image does not leave
/// a pattern by being named differently. One that no repository can meet is refused: it would be a right that is
/// silently not given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

/// Longer than any repository name, short enough to match quickly.
const PATTERN_CHARS_MAX: usize = 300;
/// Docker Hub as references name it here, and as people do.
const DOCKER_HUB: &str = "index.docker.io/";
const DOCKER_HUB_SHORT: &str = "docker.io/";

impl Pattern {
    #[must_use]
    pub fn matches(&self, repository: &Repository) -> bool {
        glob(&self.0, &repository.to_string())
    }

    /// One from the database, whatever is let in today: a project stays readable.
    pub(crate) fn stored(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// Completes a pattern as references are completed, `docker.io` to `index.docker.io`. Unlike in a reference, a
/// registry has to be named: whether `team/*` means Docker Hub or a forgotten registry is not guessed.
///
/// # Errors
/// Why no reference can meet it.
pub fn completed(pattern: &str) -> Result<String, &'static str> {
    let on_hub = [DOCKER_HUB, DOCKER_HUB_SHORT]
        .iter()
        .find_map(|hub| pattern.strip_prefix(hub));
    let text = match on_hub {
        // Without a team it is one of Docker Hub's own.
        Some(path) if !path.contains('/') && !path.contains("**") => format!("{DOCKER_HUB}library/{path}"),
        Some(path) => format!("{DOCKER_HUB}{path}"),
        None => pattern.to_owned(),
    };
    let registry = text.split('/').next().unwrap_or_default();
    if registry != "localhost" && !registry.contains(['.', ':', '*']) {
        return Err("it has to begin with a registry, as in registry.example/team/*");
    }
    if !text.contains('/') && !text.contains("**") {
        return Err("it names a registry and no repository; registry.example/** is all of one");
    }
    if text.split('/').any(str::is_empty) {
        return Err("a part of it between slashes is empty");
    }
    Ok(text)
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Pattern {
    type Err = AccessError;

    fn from_str(text: &str) -> Result<Self, AccessError> {
        let invalid = |why| AccessError::Invalid {
            what: "pattern",
            text: text.chars().take(100).collect(),
            why,
        };
        // A host may have a port and, for IPv6, brackets; a path may not, nor capitals.
        let (host, path) = text.split_once('/').unwrap_or((text, ""));
        let in_host = |b: u8| b.is_ascii_alphanumeric() || b"._-:*[]".contains(&b);
        let in_path = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-/*".contains(&b);
        let harmless = host.bytes().all(in_host) && path.bytes().all(in_path);
        if text.is_empty() || !harmless {
            return Err(invalid(
                "a pattern is a repository name without tag or digest, in which * and ** may stand for parts",
            ));
        }
        let completed = completed(text).map_err(invalid)?;
        // What is written has to read back, so that the completed name counts.
        if completed.len() > PATTERN_CHARS_MAX {
            return Err(invalid("a pattern has at most 300 characters"));
        }
        Ok(Self(completed))
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
            ("*/*", "r.example/any", true),
            ("docker.io/team/*", "team/app", true),
            ("docker.io/team/*", "docker.io/team/app", true),
            ("index.docker.io/library/*", "alpine", true),
            ("docker.io/alpine", "alpine", true),
            ("docker.io/*", "docker.io/alpine", true),
            ("index.docker.io/*", "team/app", false),
            ("docker.io/**", "team/app", true),
            ("docker.io/**", "alpine", true),
            ("localhost/*", "localhost/app", true),
            ("[::1]:5000/*", "[::1]:5000/app", true),
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
    }

    #[test]
    fn a_pattern_that_nothing_can_meet_is_refused_but_stays_readable() {
        for text in [
            "",
            "a b",
            "[",
            "*",
            "team/*",
            "team/app",
            "app",
            "r.example",
            "docker.io",
            "docker.io/",
            "r.example//app",
            "r.example/app:v1",
            "r.example/app@sha256:0",
            "r.example/Team/*",
        ] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
        let error = "team/*".parse::<Pattern>().unwrap_err();
        assert!(error.to_string().contains("begin with a registry"), "{error}");
        assert_eq!(
            "docker.io/a/*".parse::<Pattern>().unwrap().to_string(),
            "index.docker.io/a/*"
        );
        let long = format!(
            "docker.io/a/{}",
            "a".repeat(PATTERN_CHARS_MAX - DOCKER_HUB.len() - 2)
        );
        let read: Pattern = long.parse().unwrap();
        assert_eq!(read.to_string().parse::<Pattern>().unwrap(), read);
        assert!(format!("{long}a").parse::<Pattern>().is_err());
        assert_eq!(Pattern::stored("team/*").to_string(), "team/*");
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
