//! What a request asks for.

use axum::http::{HeaderMap, Method};

use crate::faults::Calls;

/// What a path names (distribution specification, "Endpoints").
#[derive(Debug, PartialEq, Eq)]
pub enum Target<'a> {
    Ping,
    Token,
    Tags {
        repository: &'a str,
    },
    Referrers {
        repository: &'a str,
        digest: &'a str,
    },
    Manifest {
        repository: &'a str,
        reference: &'a str,
    },
    Blob {
        repository: &'a str,
        digest: &'a str,
    },
    Upload {
        repository: &'a str,
        id: Option<&'a str>,
    },
}

impl<'a> Target<'a> {
    pub fn parse(path: &'a str) -> Option<Self> {
        if path == "/token" {
            return Some(Self::Token);
        }
        let rest = path
            .strip_prefix("/v2")?
            .strip_prefix('/')
            .or_else(|| (path == "/v2").then_some(""))?;
        if rest.is_empty() {
            return Some(Self::Ping);
        }
        let target = if let Some(repository) = rest.strip_suffix("/tags/list") {
            Self::Tags { repository }
        } else if let Some((repository, id)) = rest.rsplit_once("/blobs/uploads") {
            Self::Upload {
                repository,
                id: id.strip_prefix('/').filter(|id| !id.is_empty()),
            }
        } else if let Some((repository, digest)) = rest.rsplit_once("/blobs/") {
            Self::Blob { repository, digest }
        } else if let Some((repository, reference)) = rest.rsplit_once("/manifests/") {
            Self::Manifest {
                repository,
                reference,
            }
        } else {
            let (repository, digest) = rest.rsplit_once("/referrers/")?;
            Self::Referrers { repository, digest }
        };
        Some(target)
    }

    pub fn repository(&self) -> &'a str {
        match self {
            Self::Ping | Self::Token => "",
            Self::Tags { repository }
            | Self::Referrers { repository, .. }
            | Self::Manifest { repository, .. }
            | Self::Blob { repository, .. }
            | Self::Upload { repository, .. } => repository,
        }
    }

    pub fn count(&self, write: bool, calls: &mut Calls) {
        *match self {
            Self::Ping => &mut calls.pings,
            Self::Token => &mut calls.tokens,
            Self::Tags { .. } => &mut calls.tag_lists,
            Self::Referrers { .. } => &mut calls.referrer_lists,
            Self::Manifest { .. } if write => &mut calls.manifest_writes,
            Self::Manifest { .. } => &mut calls.manifest_reads,
            Self::Blob { .. } => &mut calls.blob_reads,
            Self::Upload { .. } => &mut calls.blob_writes,
        } += 1;
    }
}

/// A request with its parts named.
pub struct Ask {
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
    pub query: Vec<(String, String)>,
}

impl Ask {
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_what_the_specification_says() {
        let table = [
            ("/v2/", Some(Target::Ping)),
            ("/v2", Some(Target::Ping)),
            ("/token", Some(Target::Token)),
            ("/v2/a/b/tags/list", Some(Target::Tags { repository: "a/b" })),
            (
                "/v2/a/manifests/v1",
                Some(Target::Manifest {
                    repository: "a",
                    reference: "v1",
                }),
            ),
            (
                "/v2/a/manifests/manifests/v1",
                Some(Target::Manifest {
                    repository: "a/manifests",
                    reference: "v1",
                }),
            ),
            (
                "/v2/a/blobs/sha256:00",
                Some(Target::Blob {
                    repository: "a",
                    digest: "sha256:00",
                }),
            ),
            (
                "/v2/a/blobs/uploads/",
                Some(Target::Upload {
                    repository: "a",
                    id: None,
                }),
            ),
            (
                "/v2/a/blobs/uploads/7",
                Some(Target::Upload {
                    repository: "a",
                    id: Some("7"),
                }),
            ),
            (
                "/v2/a/referrers/sha256:00",
                Some(Target::Referrers {
                    repository: "a",
                    digest: "sha256:00",
                }),
            ),
            ("/v2/a", None),
            ("/v2x/", None),
            ("/", None),
        ];
        for (path, want) in table {
            assert_eq!(Target::parse(path), want, "{path}");
        }
    }
}
