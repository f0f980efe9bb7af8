//! Names of images as people write them.

use std::fmt;
use std::str::FromStr;

use crate::{Code, Digest, Fault, Kind};

/// A repository of a registry: `registry.example:5000/team/app`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    /// Host and optional port; Docker Hub is `index.docker.io`, its own images are under `library/`.
    registry: String,
    /// Path under the registry, without a leading slash.
    path: String,
}

/// An image reference (distribution/reference grammar): a repository with a tag, a digest or both. With
/// neither, the tag is `latest`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    repository: Repository,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the image reference {text:?} does not parse: {why}")]
pub struct ReferenceError {
    pub text: String,
    pub why: &'static str,
}

pub mod codes {
    use crate::Code;

    pub const REFERENCE: Code = Code {
        id: "PC1001",
        title: "the image reference does not parse",
        explanation: "An image is named by registry, repository, and a tag or a digest, as in \
registry.example/team/app:1.2 or registry.example/team/app@sha256:<64 hex digits>. Repository names are \
lower-case letters, digits and the separators . _ - and /; a tag has at most 128 letters, digits, dots, \
underscores and dashes.",
        hint: "write REGISTRY/REPOSITORY:TAG or REGISTRY/REPOSITORY@sha256:DIGEST",
    };
}

impl Fault for ReferenceError {
    fn kind(&self) -> Kind {
        Kind::Invalid
    }
    fn code(&self) -> &'static Code {
        &codes::REFERENCE
    }
}

impl Repository {
    /// Host and port of the registry, as named in the reference.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path under the registry.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// This repository at a digest.
    #[must_use]
    pub fn at(&self, digest: Digest) -> Reference {
        Reference {
            repository: self.clone(),
            tag: None,
            digest: Some(digest),
        }
    }

    /// This repository at a tag, which must be a valid one.
    #[must_use]
    pub fn tagged(&self, tag: &str) -> Reference {
        Reference {
            repository: self.clone(),
            tag: Some(tag.to_owned()),
            digest: None,
        }
    }
}

impl Reference {
    #[must_use]
    pub fn repository(&self) -> &Repository {
        &self.repository
    }
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.path)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.repository.fmt(f)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Repository {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse_repository(text).map_err(|why| ReferenceError {
            text: shorten(text),
            why,
        })
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse_reference(text).map_err(|why| ReferenceError {
            text: shorten(text),
            why,
        })
    }
}

/// An error shows what was sent, but never a megabyte of it.
fn shorten(text: &str) -> String {
    text.chars().take(300).collect()
}

fn parse_reference(text: &str) -> Result<Reference, &'static str> {
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => {
            let digest = digest
                .parse()
                .map_err(|_| "after @ comes sha256: and 64 lower-case hex digits")?;
            (name, Some(digest))
        }
        None => (text, None),
    };
    let last_slash = name.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match name[last_slash..].rfind(':') {
        Some(colon) => (&name[..last_slash + colon], Some(&name[last_slash + colon + 1..])),
        None => (name, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("a tag is 1 to 128 letters, digits, dots, underscores and dashes");
    }
    let tag = match (tag, digest) {
        (Some(tag), _) => Some(tag.to_owned()),
        (None, Some(_)) => None,
        (None, None) => Some("latest".to_owned()),
    };
    Ok(Reference {
        repository: parse_repository(name)?,
        tag,
        digest,
    })
}

/// Characters of a repository's name with its registry (distribution/reference).
const NAME_CHARS_MAX: usize = 255;

/// Docker Hub as references name it.
const DOCKER_HUB: &str = "index.docker.io";

fn parse_repository(name: &str) -> Result<Repository, &'static str> {
    if name.is_empty() {
        return Err("it is empty");
    }
    let (registry, path) = match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
        _ => (DOCKER_HUB, name),
    };
    let registry = if registry == "docker.io" {
        DOCKER_HUB
    } else {
        registry
    };
    // Docker Hub's own images have no team (distribution/reference).
    let path = if registry == DOCKER_HUB && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    // Counted with the completed name, which is what is written from here on.
    if registry.len() + 1 + path.len() > NAME_CHARS_MAX {
        return Err("a repository name has at most 255 characters, its registry included");
    }
    if !is_host(registry) {
        return Err("the registry is not a host name with an optional port");
    }
    if !path.split('/').all(is_path_component) {
        return Err("a repository is lower-case letters and digits, joined by . _ - and /");
    }
    Ok(Repository {
        registry: registry.to_owned(),
        path,
    })
}

fn is_tag(tag: &str) -> bool {
    let mut bytes = tag.bytes();
    let first = bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    first && tag.len() <= 128 && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, "")) => return v6.parse::<std::net::Ipv6Addr>().is_ok(),
        Some((v6, rest)) => match rest.strip_prefix(':') {
            Some(port) if v6.parse::<std::net::Ipv6Addr>().is_ok() => return port.parse::<u16>().is_ok(),
            _ => return false,
        },
        None => text
            .split_once(':')
            .map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(label) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(text: &str) -> bool {
    let bytes = text.as_bytes();
    let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !letter(first) || !letter(last) {
        return false;
    }
    bytes.split(|&b| letter(b)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&b| b == b'-')
    })
}

impl serde::Serialize for Reference {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Reference {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_completed_as_docker_does() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let table = [
            ("alpine", "index.docker.io/library/alpine:latest".to_owned()),
            ("team/app:1.2", "index.docker.io/team/app:1.2".to_owned()),
            (
                "docker.io/nginx",
                "index.docker.io/library/nginx:latest".to_owned(),
            ),
            (
                "index.docker.io/nginx:1",
                "index.docker.io/library/nginx:1".to_owned(),
            ),
            ("docker.io/team/app", "index.docker.io/team/app:latest".to_owned()),
            ("localhost/app", "localhost/app:latest".to_owned()),
            (
                "127.0.0.1:5000/a/b__c-d.e:v1",
                "127.0.0.1:5000/a/b__c-d.e:v1".to_owned(),
            ),
            ("[::1]:5000/app:x", "[::1]:5000/app:x".to_owned()),
            (
                &format!("r.example/app@{digest}"),
                format!("r.example/app@{digest}"),
            ),
            (
                &format!("r.example/app:t@{digest}"),
                format!("r.example/app:t@{digest}"),
            ),
        ];
        for (text, want) in table {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), want, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_reference_is_refused_with_the_reason() {
        for text in [
            "",
            "/app",
            "r.example/",
            "r.example/App",
            "r.example/app:",
            "r.example/app:-x",
            "r.example/app@sha256:12",
            "r.example/app@md5:00",
            "r.example/a//b",
            "r.example/a..b",
            "r.example/a___b",
            "-r.example/app",
            "r.example:99999/app",
            "r.example:0/app",
            "r.example/app:t@",
            "a b",
            "r.example/é",
            "[::g]:1/app",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?} was accepted");
        }
        // Docker Hub's own name counts too: found by the fuzzer.
        assert!("a".repeat(240).parse::<Reference>().is_err());
        let long = "a".repeat(1 << 20).parse::<Reference>().unwrap_err();
        assert!(long.to_string().len() < 500);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_parsed_without_a_panic_and_reads_back(text in ".{0,80}") {
            if let Ok(reference) = text.parse::<Reference>() {
                proptest::prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
            }
        }
    }
}
