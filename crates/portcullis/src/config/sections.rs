//! The sections of the configuration that have no domain of their own, and their defaults.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::codes;
use crate::failure::Failure;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataFolder {
    pub folder: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerSection {
    pub listen: String,
    pub public_url: Option<String>,
    pub insecure_http: bool,
    /// How long it serves on after SIGTERM.
    pub lame_duck_seconds: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DatabaseSection {
    pub url: Option<String>,
    /// Connections of this server to PostgreSQL, of [`store::CONNECTIONS_MAX`].
    pub connections_max: u32,
}

impl Default for DatabaseSection {
    fn default() -> Self {
        Self {
            url: None,
            connections_max: store::CONNECTIONS_MAX_DEFAULT,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BlobsSection {
    pub url: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSection {
    pub key_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditSection {
    pub key_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeysSection {
    pub password_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SigningSection {
    pub formats: Vec<String>,
    pub registry_formats: BTreeMap<String, Vec<String>>,
}

/// What a project may do that has no quota of its own.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuotaSection {
    pub signatures_per_minute: u32,
    pub burst: u32,
}

impl Default for QuotaSection {
    fn default() -> Self {
        Self {
            signatures_per_minute: 6_000,
            burst: 3_000,
        }
    }
}

impl Default for DataFolder {
    fn default() -> Self {
        Self {
            folder: PathBuf::from("./portcullis-data"),
        }
    }
}

impl Default for ServerSection {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7480".to_owned(),
            public_url: None,
            insecure_http: false,
            lame_duck_seconds: 0,
        }
    }
}

impl Default for SigningSection {
    fn default() -> Self {
        Self {
            formats: vec!["bundle".to_owned(), "legacy".to_owned()],
            registry_formats: BTreeMap::new(),
        }
    }
}

/// Where the blobs lie.
#[derive(Debug, PartialEq, Eq)]
pub enum BlobPlace<'a> {
    Folder(&'a Path),
    Bucket { name: &'a str, prefix: &'a str },
}

impl BlobsSection {
    /// The place that is configured, if one is; what is no place that is known is never taken for a folder's name.
    pub fn place(&self) -> Result<Option<BlobPlace<'_>>, Failure> {
        let Some(url) = &self.url else { return Ok(None) };
        let wrong = || {
            let hint = "give s3://NAME, s3://NAME/PREFIX, file:///FOLDER or the path of a folder";
            let cause = format!("blobs.url {url:?} is no place for blobs that is known");
            Failure::coded(1, &codes::CONFIG, cause).with_hint(hint)
        };
        if let Some(rest) = url.strip_prefix("s3://") {
            let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let prefix = prefix.trim_matches('/');
            let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            let known = !name.is_empty() && name.chars().all(is_name) && !prefix.contains(['?', '#']);
            return known
                .then_some(Some(BlobPlace::Bucket { name, prefix }))
                .ok_or_else(wrong);
        }
        let path = match url.strip_prefix("file://") {
            Some(path) if !path.starts_with('/') => return Err(wrong()),
            Some(path) => path,
            None if url.trim().is_empty() || (url.contains(':') && !url.starts_with('/')) => {
                return Err(wrong());
            }
            None => url,
        };
        Ok(Some(BlobPlace::Folder(Path::new(path))))
    }
}

impl DatabaseSection {
    /// That the address and the number of connections make sense, and that what other servers may share has a place for
    /// blobs that they share too.
    pub fn check(&self, blobs: &BlobsSection) -> Result<(), Failure> {
        let connections = self.connections_max;
        if !store::CONNECTIONS_MAX.contains(&connections) {
            let (least, most) = (store::CONNECTIONS_MAX.start(), store::CONNECTIONS_MAX.end());
            let cause = format!(
                "database.connections_max is {connections}; it is {least} to {most}: below, the log and the probes wait \
                 for callers; above, it is more than a PostgreSQL has in all"
            );
            return Err(Failure::coded(1, &codes::CONFIG, cause));
        }
        let place = blobs.place()?;
        let Some(url) = &self.url else { return Ok(()) };
        store::Db::check_address(url).map_err(|error| {
            let cause = format!("database.url: {}", kernel::chain(&error));
            Failure::coded(1, &codes::CONFIG, cause)
        })?;
        if !url.starts_with("postgres") {
            return Ok(());
        }
        match place {
            Some(BlobPlace::Folder(path)) if !path.is_absolute() => {
                let cause = "database.url is a PostgreSQL, which other servers may share, and blobs.url is a folder by where \
                             the server was started";
                return Err(Failure::coded(1, &codes::CONFIG, cause.to_owned())
                    .with_hint("give the folder's whole path, from the root"));
            }
            Some(_) => return Ok(()),
            None => {}
        }
        let cause = "database.url is a PostgreSQL, which other servers may share, and blobs.url is not set: each server would \
                     keep its part of the log in a folder of its own";
        Err(Failure::coded(1, &codes::CONFIG, cause.to_owned()).with_hint(
            "set blobs.url to a place that all servers share: a folder, or a bucket s3://NAME/PREFIX",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_lie_in_a_bucket_or_a_folder_and_nowhere_else() {
        let of = |url: &str| BlobsSection {
            url: Some(url.to_owned()),
        };
        for url in ["s3://b/log", "s3://b/log/"] {
            let (name, prefix) = ("b", "log");
            assert_eq!(
                of(url).place().unwrap(),
                Some(BlobPlace::Bucket { name, prefix }),
                "{url}"
            );
        }
        let folders = [
            ("file:///srv/b", "/srv/b"),
            ("/srv/b", "/srv/b"),
            ("blobs", "blobs"),
        ];
        for (url, folder) in folders {
            assert_eq!(
                of(url).place().unwrap(),
                Some(BlobPlace::Folder(Path::new(folder))),
                "{url}"
            );
        }
        for url in [
            "",
            " ",
            "gs://b/x",
            "S3://b/x",
            "http://x",
            "s3://",
            "s3:///x",
            "s3://b?x",
            "file://srv",
            "file:/",
        ] {
            assert!(of(url).place().is_err(), "{url}");
        }
        let shared = DatabaseSection {
            url: Some("postgres://h/d".to_owned()),
            ..DatabaseSection::default()
        };
        assert!(shared.check(&of("blobs")).is_err() && shared.check(&BlobsSection::default()).is_err());
        assert!(shared.check(&of("/srv/blobs")).is_ok() && shared.check(&of("s3://b")).is_ok());
        assert!(DatabaseSection::default().check(&of("gs://b")).is_err());
    }
}
