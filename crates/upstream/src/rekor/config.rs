//! What the configuration says of an external log.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use kernel::{Code, Fault, Kind};
use reqwest::Url;
use tlog::{CheckpointError, LogVerifier};

use super::document;
use super::error::codes;
use crate::oci::is_loopback;

/// Seconds that one call may take unless configured: writing to a Rekor with its defaults takes up to eleven.
const CALL_SECONDS_MAX_DEFAULT: u64 = 20;
/// Entries in a second unless configured: a log that others use too, tuned, takes some hundreds.
const ENTRIES_PER_SECOND_MAX_DEFAULT: u32 = 50;

/// Which interface the log has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// Whichever answers first as a log does; v2 is asked first.
    #[default]
    Auto,
    V1,
    V2,
}

/// The section `[external_log]`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The address of the log, without `/api/…`.
    pub url: String,
    /// The name in its checkpoints; the host of `url` if left out.
    pub origin: Option<String>,
    /// The log's public key: a PEM file, Ed25519 or ECDSA P-256.
    pub public_key: Option<PathBuf>,
    /// Instead of `public_key`, a trusted_root.json that has the log.
    pub trusted_root: Option<PathBuf>,
    #[serde(default)]
    pub api: Api,
    /// Certificates (PEM) that are trusted for this address besides the system's.
    pub ca_pem: Option<String>,
    #[serde(default = "call_seconds_max")]
    pub call_seconds_max: u64,
    /// How fast whoever writes debt to it may be; the client itself keeps no rate.
    #[serde(default = "entries_per_second_max")]
    pub entries_per_second_max: u32,
}

fn entries_per_second_max() -> u32 {
    ENTRIES_PER_SECOND_MAX_DEFAULT
}

fn call_seconds_max() -> u64 {
    CALL_SECONDS_MAX_DEFAULT
}

/// A log that is believed, and since and until when.
#[derive(Debug, Clone)]
pub struct TrustedLog {
    pub verifier: LogVerifier,
    /// From a trusted root whose entry ends.
    pub ends: Option<Timestamp>,
}

impl TrustedLog {
    /// Who is expected, for a person.
    #[must_use]
    pub fn described(&self) -> String {
        let id = hex::encode(&self.verifier.log_id()[..4]);
        format!("{} signed by key {id}", self.verifier.origin())
    }
}

/// Settings that can be used.
pub(super) struct Checked {
    pub url: Url,
    pub trusted: TrustedLog,
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("external_log.url {0:?} is not an https address, or http on loopback, without a query")]
    Url(String),
    #[error("external_log needs either public_key or trusted_root, and not both")]
    Key,
    #[error("external_log: reading {}", .0.display())]
    File(PathBuf, #[source] std::io::Error),
    #[error("external_log: the key in {}", .0.display())]
    PublicKey(PathBuf, #[source] CheckpointError),
    #[error("external_log: {} {why}", .file.display())]
    TrustedRoot { file: PathBuf, why: String },
    #[error("external_log.ca_pem: {0}")]
    Certificates(String),
    #[error("external_log.call_seconds_max and entries_per_second_max must be at least 1")]
    Zero,
    #[error("external_log: setting up the HTTP client")]
    Http(#[source] reqwest::Error),
}

impl Fault for ConfigError {
    fn kind(&self) -> Kind {
        match self {
            Self::Http(_) => Kind::Bug,
            _ => Kind::Invalid,
        }
    }

    fn code(&self) -> &'static Code {
        &codes::CONFIG
    }
}

impl Settings {
    /// Checks everything that can be checked without the log; reads the files.
    pub(super) fn checked(&self) -> Result<Checked, ConfigError> {
        let wrong = || ConfigError::Url(self.url.chars().take(200).collect());
        let text = format!("{}/", self.url.trim_end_matches('/'));
        let url = Url::parse(&text).map_err(|_| wrong())?;
        let allowed = match url.scheme() {
            "https" => true,
            "http" => is_loopback(&url),
            _ => false,
        };
        let bare = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        let host = url.host_str().filter(|_| allowed && bare).ok_or_else(wrong)?;
        if self.call_seconds_max == 0 || self.entries_per_second_max == 0 {
            return Err(ConfigError::Zero);
        }
        let origin = self.origin.clone().unwrap_or_else(|| host.to_owned());
        let trusted = match (&self.public_key, &self.trusted_root) {
            (Some(file), None) => TrustedLog {
                verifier: LogVerifier::from_pem(&origin, &read(file)?)
                    .map_err(|error| ConfigError::PublicKey(file.clone(), error))?,
                ends: None,
            },
            (None, Some(file)) => self.in_root(file, &origin, &url)?,
            _ => return Err(ConfigError::Key),
        };
        Ok(Checked { url, trusted })
    }

    /// The log's own entry of a trusted root: the one whose `baseUrl` has the name in the checkpoints, or this address.
    fn in_root(&self, file: &Path, origin: &str, url: &Url) -> Result<TrustedLog, ConfigError> {
        let bad = |why: String| ConfigError::TrustedRoot {
            file: file.to_owned(),
            why,
        };
        let logs = document::trusted_logs(read(file)?.as_bytes()).map_err(bad)?;
        let hosts = [Some(origin), url.host_str()];
        let own = logs.into_iter().filter(|log| {
            let base = Url::parse(&log.base_url).ok();
            let host = base.as_ref().and_then(Url::host_str);
            hosts.contains(&host) && host.is_some()
        });
        // The newest of a log that changed its key.
        let own = own.max_by_key(|log| (log.ends.is_none(), log.ends));
        let own = own.ok_or_else(|| bad(format!("has no log whose baseUrl is https://{origin}")))?;
        let key = STANDARD.decode(&own.raw_bytes);
        let key = key.map_err(|_| bad("has a key that is not base64".to_owned()))?;
        let verifier = LogVerifier::from_spki(origin, &key);
        Ok(TrustedLog {
            verifier: verifier.map_err(|error| ConfigError::PublicKey(file.to_owned(), error))?,
            ends: own.ends,
        })
    }
}

fn read(file: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(file).map_err(|error| ConfigError::File(file.to_owned(), error))
}
