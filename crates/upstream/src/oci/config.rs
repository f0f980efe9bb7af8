//! What the configuration says of registries.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kernel::{Code, Fault, Kind, Secret};

use crate::tls::TlsError;

/// The most calls that are ever under way at one registry unless configured. How many really are follows what the
/// registry does: it begins with fewer, and slow or refused calls lower it.
pub const CONCURRENT_CALLS_MAX_DEFAULT: usize = 64;
/// Seconds that one call of the port may take with all its retries, unless configured: under the 60 s at
/// which proxies and CI steps give up, over the longest wait that a registry may ask for.
pub const CALL_SECONDS_MAX_DEFAULT: u64 = 30;

/// All registries. A registry that is not named works with the defaults and without credentials.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// By host and port as references name them; `docker.io` is Docker Hub.
    pub registries: BTreeMap<String, RegistryConfig>,
    /// The `config.json` of a Docker client, used only for the project with the empty name.
    pub docker_config: Option<PathBuf>,
    /// A folder in which credential helpers are looked for before `PATH`.
    pub docker_helpers: Option<PathBuf>,
}

/// One registry.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// Plain HTTP instead of TLS. When absent: only for loopback, and not if `ca_pem` is given.
    pub plain_http: Option<bool>,
    /// Certificates (PEM) that are trusted for this registry besides the system's.
    pub ca_pem: Option<String>,
    pub concurrent_calls_max: usize,
    pub call_seconds_max: u64,
    /// Credentials by project. Those of one project are never used for another.
    pub credentials: BTreeMap<String, Credentials>,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            plain_http: None,
            ca_pem: None,
            concurrent_calls_max: CONCURRENT_CALLS_MAX_DEFAULT,
            call_seconds_max: CALL_SECONDS_MAX_DEFAULT,
            credentials: BTreeMap::new(),
        }
    }
}

/// A user of a registry.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    pub username: String,
    pub password: Secret,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the registry name {name:?} is not a host with an optional port")]
    Name { name: String },
    #[error("{field} of registry {name} must be at least 1")]
    Zero { name: String, field: &'static str },
    #[error("ca_pem of registry {name} holds no certificate that can be used: {why}")]
    Certificates { name: String, why: String },
    #[error("setting up TLS")]
    Tls(#[source] rustls::Error),
}

impl ConfigError {
    /// What went wrong with a registry's TLS.
    pub(super) fn tls(name: &str, error: TlsError) -> Self {
        match error {
            TlsError::Certificates(why) => Self::Certificates {
                name: name.to_owned(),
                why,
            },
            TlsError::Setup(source) => Self::Tls(source),
        }
    }
}

impl Fault for ConfigError {
    fn kind(&self) -> Kind {
        match self {
            Self::Tls(_) => Kind::Bug,
            Self::Name { .. } | Self::Zero { .. } | Self::Certificates { .. } => Kind::Invalid,
        }
    }

    fn code(&self) -> &'static Code {
        &codes::CONFIG
    }
}

/// The codes of the configuration of registries.
pub mod codes {
    use kernel::Code;

    pub const CONFIG: Code = Code {
        id: "PC1551",
        title: "the configuration of registries cannot be used",
        explanation: "A registry is named by host and optional port, as in references. ca_pem holds one or \
more certificates in PEM. Limits are at least 1.",
        hint: "run `portcullis config check`",
    };
    pub const ALL: &[&Code] = &[&CONFIG];
}

impl Config {
    /// Checks what types cannot say, and writes Docker Hub's name as references do.
    ///
    /// # Errors
    /// At the first name or limit that cannot be used.
    pub fn checked(mut self) -> Result<Self, ConfigError> {
        if let Some(hub) = self.registries.remove("docker.io") {
            self.registries.insert("index.docker.io".to_owned(), hub);
        }
        for (name, registry) in &self.registries {
            let parsed = format!("{name}/x").parse::<kernel::Repository>();
            if !parsed.is_ok_and(|repository| repository.registry() == name) {
                return Err(ConfigError::Name { name: name.clone() });
            }
            let zero = |field| ConfigError::Zero {
                name: name.clone(),
                field,
            };
            if registry.concurrent_calls_max == 0 {
                return Err(zero("concurrent_calls_max"));
            }
            if registry.call_seconds_max == 0 {
                return Err(zero("call_seconds_max"));
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_errors_and_secrets_stay_hidden() {
        let text = r#"
            [registries."r.example:5000"]
            plain_http = true
            [registries."r.example:5000".credentials.team]
            username = "robot"
            password = "hunter2"
        "#;
        let config: Config = toml::from_str(text).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
        let registry = &config.checked().unwrap().registries["r.example:5000"];
        assert_eq!(registry.concurrent_calls_max, CONCURRENT_CALLS_MAX_DEFAULT);
        assert_eq!(registry.credentials["team"].password.expose(), "hunter2");
        assert!(toml::from_str::<Config>("[registries.\"r.example\"]\nplain = true").is_err());
    }

    #[test]
    fn names_and_limits_are_checked() {
        let with = |name: &str, registry: RegistryConfig| {
            Config {
                registries: [(name.to_owned(), registry)].into(),
                ..Config::default()
            }
            .checked()
        };
        assert!(with("r.example", RegistryConfig::default()).is_ok());
        assert!(
            with("docker.io", RegistryConfig::default())
                .unwrap()
                .registries
                .contains_key("index.docker.io")
        );
        assert!(with("https://r.example", RegistryConfig::default()).is_err());
        assert!(with("team", RegistryConfig::default()).is_err());
        assert!(
            with(
                "r.example",
                RegistryConfig {
                    concurrent_calls_max: 0,
                    ..RegistryConfig::default()
                }
            )
            .is_err()
        );
    }
}
