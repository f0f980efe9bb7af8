//! The configuration: one TOML file, checked whole; a flag wins over the environment, the environment over the
//! file, the file over the default.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use signing::trust::TrustRoot;
use signing::{Formats, FormatsOf};
use upstream::oci::RegistryConfig;

mod sections;
mod watching;

pub use self::sections::{
    AuditSection, BlobPlace, BlobsSection, DataFolder, DatabaseSection, KeysSection, LogSection,
    QuotaSection, ServerSection, SigningSection,
};
pub use self::watching::{CanarySection, DeadMansSwitchSection, TracingSection, check_endpoint};
use crate::args::{ConfigFile, Serve};
use crate::codes;
use crate::config_error::{describe, without_password};
use crate::failure::Failure;
use crate::lifecycle::LAME_DUCK_SECONDS_MAX;
use crate::output::say;

/// The file that is read when none is named and it is there.
pub const FILE: &str = "portcullis.toml";

/// Everything that can be configured.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub data: DataFolder,
    pub server: ServerSection,
    pub database: DatabaseSection,
    pub blobs: BlobsSection,
    pub log: LogSection,
    pub audit: AuditSection,
    pub keys: KeysSection,
    pub signing: SigningSection,
    pub quota: QuotaSection,
    pub tracing: TracingSection,
    /// Trusted roots that image policies name with `trustRootRef`: name and file.
    pub trusted_roots: BTreeMap<String, PathBuf>,
    /// A Rekor of somebody else's that is watched, and owed each signature.
    pub external_log: Option<upstream::rekor::Settings>,
    pub canary: Option<CanarySection>,
    pub dead_mans_switch: Option<DeadMansSwitchSection>,
    /// By host and port, as references name them.
    pub registries: BTreeMap<String, RegistryConfig>,
    /// Trust rules for the tokens of build systems.
    pub oidc: Vec<access::oidc::Rule>,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Default,
    File(PathBuf),
    Environment(String),
    Flag(&'static str),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// The scalar keys: section, key, and whether the value may be shown.
const KEYS: &[(&str, &str, Shown)] = &[
    ("data", "folder", Shown::Whole),
    ("server", "listen", Shown::Whole),
    ("server", "public_url", Shown::Whole),
    ("server", "insecure_http", Shown::Whole),
    ("server", "lame_duck_seconds", Shown::Whole),
    ("database", "url", Shown::WithoutPassword),
    ("database", "connections_max", Shown::Whole),
    ("blobs", "url", Shown::Whole),
    ("log", "key_file", Shown::Whole),
    ("audit", "key_file", Shown::Whole),
    ("keys", "password_file", Shown::Whole),
    ("signing", "formats", Shown::Whole),
    ("quota", "signatures_per_minute", Shown::Whole),
    ("quota", "burst", Shown::Whole),
    ("tracing", "otlp_endpoint", Shown::Whole),
    ("tracing", "sample_ratio", Shown::Whole),
];

/// How variables would begin for the sections that have no scalar keys in the environment. What an orchestrator sets by
/// itself for a service (`PORTCULLIS_SERVER_PORT`) must not look like one.
const FILE_ONLY: &[&str] = &[
    "EXTERNAL_LOG_",
    "CANARY_",
    "DEAD_MANS_SWITCH_",
    "OIDC_",
    "REGISTRIES_",
    "TRUSTED_ROOTS_",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    Whole,
    WithoutPassword,
}

/// The configuration with the origin of each scalar value.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    table: toml::Table,
    origins: BTreeMap<(&'static str, &'static str), Origin>,
}

impl Loaded {
    /// Reads file and environment.
    pub fn read(file: &ConfigFile) -> Result<Self, Failure> {
        Self::read_with(file, &[])
    }

    /// The same, with another data folder if one is named.
    pub fn with_data(file: &ConfigFile, data: Option<&Path>) -> Result<Self, Failure> {
        Self::read_with(file, &[data_flag(data)])
    }

    /// The same, with the flags of `serve` on top.
    pub fn for_serve(args: &Serve) -> Result<Self, Failure> {
        let listen = args.listen.clone().map(toml::Value::String);
        let insecure = args.insecure_http.then_some(toml::Value::Boolean(true));
        let flags = [
            data_flag(args.data.as_deref()),
            ("server", "listen", "--listen", listen),
            ("server", "insecure_http", "--insecure-http", insecure),
        ];
        Self::read_with(&args.file, &flags)
    }

    fn read_with(file: &ConfigFile, flags: &[Flag]) -> Result<Self, Failure> {
        let path = file
            .config
            .clone()
            .or_else(|| Path::new(FILE).exists().then(|| PathBuf::from(FILE)));
        let (mut table, mut origins) = (toml::Table::new(), BTreeMap::new());
        if let Some(path) = &path {
            let invalid =
                |why: String| Failure::coded(1, &codes::CONFIG, format!("{}: {why}", path.display()));
            let text = std::fs::read_to_string(path).map_err(|error| invalid(error.to_string()))?;
            // Read once as what it has to be, so that an error names its line.
            let unreadable = |error: toml::de::Error| invalid(describe(&error, &text));
            toml::from_str::<Config>(&text).map_err(unreadable)?;
            table = text.parse().map_err(unreadable)?;
        }
        for &(section, key, _) in KEYS {
            let mut origin = Origin::Default;
            if table.get(section).and_then(|section| section.get(key)).is_some() {
                origin = Origin::File(path.clone().unwrap_or_default());
            }
            let name = format!("PORTCULLIS_{}_{}", section.to_uppercase(), key.to_uppercase());
            if let Ok(text) = std::env::var(&name) {
                let (value, mut alone) = (value_of(key, &text), toml::Table::new());
                set(&mut alone, section, key, value.clone());
                // By itself, so that an error names its variable.
                alone.try_into::<Config>().map_err(|error| {
                    let cause = format!("the variable {name}: {}", describe(&error, ""));
                    Failure::coded(1, &codes::CONFIG, cause)
                })?;
                set(&mut table, section, key, value);
                origin = Origin::Environment(name);
            }
            let flag = flags.iter().find(|flag| (flag.0, flag.1) == (section, key));
            if let Some((_, _, name, Some(value))) = flag {
                set(&mut table, section, key, value.clone());
                origin = Origin::Flag(name);
            }
            origins.insert((section, key), origin);
        }
        for name in unused(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok())) {
            say(&format!(
                "warning: the variable {name} sets nothing: its section is configured in {FILE} alone"
            ));
        }
        let config: Config = table.clone().try_into().map_err(|error: toml::de::Error| {
            // File and variables were read; what is wrong now came from a flag.
            let cause = format!("a flag: {}", describe(&error, ""));
            Failure::coded(1, &codes::CONFIG, cause)
        })?;
        let loaded = Self {
            config,
            table,
            origins,
        };
        loaded.check()?;
        Ok(loaded)
    }

    /// What types cannot say.
    fn check(&self) -> Result<(), Failure> {
        self.config.listen()?;
        let _valid = self.config.formats()?;
        self.config.database.check(&self.config.blobs)?;
        if let Some(url) = &self.config.server.public_url
            && !url::Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
        {
            let cause = format!("server.public_url {url:?} is not an http or https address");
            return Err(Failure::coded(1, &codes::CONFIG, cause));
        }
        if self.config.server.lame_duck_seconds > LAME_DUCK_SECONDS_MAX {
            let cause = format!("server.lame_duck_seconds is above {LAME_DUCK_SECONDS_MAX}");
            return Err(Failure::coded(1, &codes::CONFIG, cause));
        }
        self.config.tracing.check()?;
        let _read = self.config.trusted_roots()?;
        if let Some(settings) = &self.config.external_log {
            // Whether the log answers is not asked: a server starts without it.
            let _usable = upstream::rekor::Client::new(settings)?;
        }
        self.config.canary.as_ref().map_or(Ok(()), CanarySection::check)?;
        let switch = self.config.dead_mans_switch.as_ref();
        switch.map_or(Ok(()), DeadMansSwitchSection::check)?;
        let _issuers = crate::workloads::check(&self.config.oidc)?;
        self.config.oci()?.checked().map(|_| ()).map_err(Failure::from)
    }

    /// Key, value and origin of every scalar, secrets left out.
    pub fn rows(&self) -> Vec<[String; 3]> {
        let mut rows = Vec::with_capacity(KEYS.len());
        for &(section, key, shown) in KEYS {
            let text = match self.table.get(section).and_then(|section| section.get(key)) {
                Some(toml::Value::String(text)) if shown == Shown::WithoutPassword => without_password(text),
                Some(value) => value.to_string(),
                None => self.config.default_of(section, key),
            };
            rows.push([
                format!("{section}.{key}"),
                text,
                self.origins[&(section, key)].to_string(),
            ]);
        }
        for (name, file) in &self.config.trusted_roots {
            let text = format!("{:?}", file.display().to_string());
            rows.push([format!("trusted_roots.{name}"), text, "file".to_owned()]);
        }
        if let Some(log) = &self.config.external_log {
            let text = format!("{:?}", log.url);
            rows.push(["external_log.url".to_owned(), text, "file".to_owned()]);
        }
        if let Some(canary) = &self.config.canary {
            let text = format!("{:?}", canary.image);
            rows.push(["canary.image".to_owned(), text, "file".to_owned()]);
        }
        if let Some(switch) = &self.config.dead_mans_switch {
            let text = switch.every_seconds.to_string();
            rows.push([
                "dead_mans_switch.every_seconds".to_owned(),
                text,
                "file".to_owned(),
            ]);
        }
        for (host, registry) in &self.config.registries {
            let projects: Vec<&str> = registry.credentials.keys().map(String::as_str).collect();
            let text = format!("credentials for [{}]", projects.join(", "));
            rows.push([format!("registries.{host:?}"), text, "file".to_owned()]);
        }
        for rule in &self.config.oidc {
            let text = crate::workloads::line(rule);
            rows.push([format!("oidc.{}", rule.name), text, "file".to_owned()]);
        }
        rows
    }
}

/// A flag of the command line: section, key, the flag's name, and its value if it was given.
type Flag = (&'static str, &'static str, &'static str, Option<toml::Value>);

fn data_flag(folder: Option<&Path>) -> Flag {
    let folder = folder.map(|folder| toml::Value::String(folder.display().to_string()));
    ("data", "folder", "--data", folder)
}

fn set(table: &mut toml::Table, section: &str, key: &str, value: toml::Value) {
    let section = table
        .entry(section)
        .or_insert_with(|| toml::Value::Table(toml::Table::new()));
    if let toml::Value::Table(section) = section {
        section.insert(key.to_owned(), value);
    }
}

/// Variables that look like keys of the sections that are not read from the environment.
fn unused(names: impl Iterator<Item = String>) -> impl Iterator<Item = String> {
    names.filter(|name| {
        let rest = name.strip_prefix("PORTCULLIS_").unwrap_or_default();
        FILE_ONLY.iter().any(|section| rest.starts_with(section))
    })
}

/// A value from the environment, in the type of its key.
fn value_of(key: &str, text: &str) -> toml::Value {
    match (key, text) {
        ("insecure_http", "true" | "1") => toml::Value::Boolean(true),
        ("insecure_http", "false" | "0") => toml::Value::Boolean(false),
        ("lame_duck_seconds" | "signatures_per_minute" | "burst" | "connections_max", number) => number
            .parse()
            .map_or_else(|_| toml::Value::String(text.to_owned()), toml::Value::Integer),
        ("sample_ratio", number) => number
            .parse()
            .map_or_else(|_| toml::Value::String(text.to_owned()), toml::Value::Float),
        ("formats", text) => toml::Value::Array(
            text.split(',')
                .map(|word| toml::Value::String(word.trim().to_owned()))
                .collect(),
        ),
        _ => toml::Value::String(text.to_owned()),
    }
}

impl Config {
    /// The address to listen on; plain HTTP on an address that others reach has to be asked for.
    pub fn listen(&self) -> Result<SocketAddr, Failure> {
        let address: SocketAddr = self.server.listen.parse().map_err(|_| {
            let cause = format!("server.listen {:?} is not ADDRESS:PORT", self.server.listen);
            Failure::coded(1, &codes::CONFIG, cause)
        })?;
        if !address.ip().is_loopback() && !self.server.insecure_http {
            return Err(Failure::coded(
                1,
                &codes::INSECURE,
                format!("server.listen is {address}"),
            ));
        }
        Ok(address)
    }

    /// What to write, by the registry's host.
    pub fn formats(&self) -> Result<FormatsOf, Failure> {
        let parse = |words: &Vec<String>| words.join(",").parse::<Formats>().map_err(Failure::from);
        let default = parse(&self.signing.formats)?;
        let mut own = BTreeMap::new();
        for (host, words) in &self.signing.registry_formats {
            own.insert(host.clone(), parse(words)?);
        }
        Ok(Box::new(move |host| own.get(host).copied().unwrap_or(default)))
    }

    /// The trusted roots that image policies may name.
    pub fn trusted_roots(&self) -> Result<BTreeMap<String, Arc<TrustRoot>>, Failure> {
        let read = |(name, file): (&String, &PathBuf)| {
            let failed = |why: String| {
                let cause = format!("trusted_roots.{name}: {}: {why}", file.display());
                Failure::coded(1, &codes::CONFIG, cause)
            };
            let text = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
            let root = TrustRoot::from_json(&text).map_err(|error| failed(kernel::chain(&error)))?;
            Ok((name.clone(), Arc::new(root)))
        };
        self.trusted_roots.iter().map(read).collect()
    }

    /// The registries' client. The server never uses a person's Docker configuration.
    pub fn oci(&self) -> Result<upstream::oci::Config, Failure> {
        let registries = self.registries.clone();
        Ok(upstream::oci::Config {
            registries,
            ..upstream::oci::Config::default()
        })
    }

    /// A file of the data folder, unless configured elsewhere.
    pub fn secret_file(&self, configured: Option<&PathBuf>, name: &str) -> PathBuf {
        configured
            .cloned()
            .unwrap_or_else(|| self.data.folder.join("secrets").join(name))
    }

    fn default_of(&self, section: &str, key: &str) -> String {
        match (section, key) {
            ("data", "folder") => format!("{:?}", self.data.folder.display().to_string()),
            ("server", "listen") => format!("{:?}", self.server.listen),
            ("server", "public_url") => format!("\"http://{}\"", self.server.listen),
            ("server", "insecure_http") => self.server.insecure_http.to_string(),
            ("server", "lame_duck_seconds") => self.server.lame_duck_seconds.to_string(),
            ("quota", "signatures_per_minute") => self.quota.signatures_per_minute.to_string(),
            ("quota", "burst") => self.quota.burst.to_string(),
            ("database", "url") => format!("\"sqlite:{}\"", self.data.folder.join("portcullis.db").display()),
            ("database", "connections_max") => self.database.connections_max.to_string(),
            ("blobs", "url") => format!("\"{}\"", self.data.folder.join("blobs").display()),
            ("log", "key_file") => format!("\"{}\"", self.secret_file(None, "log.json").display()),
            ("audit", "key_file") => format!("\"{}\"", self.secret_file(None, "audit.json").display()),
            ("keys", "password_file") => format!("\"{}\"", self.secret_file(None, "keys.password").display()),
            ("tracing", "otlp_endpoint") => "none".to_owned(),
            ("tracing", "sample_ratio") => "1.0".to_owned(),
            _ => format!("{:?}", self.signing.formats),
        }
    }
}

/// What `portcullis init` writes.
pub const EXAMPLE: &str = include_str!("portcullis.example.toml");

#[cfg(test)]
mod tests;
