//! The client against the small registry, fault by fault.

#![expect(clippy::unwrap_used, reason = "a helper of a test may end the test")]

mod auth;
mod docker;
mod faults;
mod hostile;
mod issuer;
mod probes;
mod race;
mod rekor;
mod round_trip;
mod tls;

use flow::Caller;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use kernel::{Digest, Reference, Repository, SystemClock, SystemRandom};
use registry::{Auth, Options, Registry as Fake, Running};
use serde_json::json;
use signing::ports::{Descriptor, Registry as _, RegistryError, RegistryReason};
use upstream::oci::{Client, Config, Credentials, RegistryConfig};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

pub fn client(config: Config) -> Client {
    Client::new(config, Arc::new(SystemClock::new()), Arc::new(SystemRandom)).unwrap()
}

/// A registry that is served, and an image in it.
pub struct World {
    pub fake: Fake,
    pub running: Running,
    pub repository: Repository,
    pub image: Digest,
}

impl World {
    pub async fn new(options: Options) -> Self {
        let fake = Fake::memory(options);
        let running = fake.serve_on_loopback().await.unwrap();
        let image = fake.put_image("team/app", "v1", "hello").await.unwrap();
        let repository = format!("{}/team/app", running.host()).parse().unwrap();
        Self {
            fake,
            running,
            repository,
            image,
        }
    }

    pub async fn without_referrers() -> Self {
        Self::new(Options {
            referrers: false,
            ..Options::default()
        })
        .await
    }

    pub fn tag(&self, tag: &str) -> Reference {
        self.repository.tagged(tag)
    }

    /// A configuration of this registry for one project.
    pub fn config(&self, project: &str, username: &str, password: &str) -> Config {
        let credentials = Credentials {
            username: username.to_owned(),
            password: kernel::Secret::new(password.to_owned()),
        };
        let registry = RegistryConfig {
            credentials: BTreeMap::from([(project.to_owned(), credentials)]),
            ..RegistryConfig::default()
        };
        self.with(registry)
    }

    pub fn with(&self, registry: RegistryConfig) -> Config {
        Config {
            registries: BTreeMap::from([(self.running.host(), registry)]),
            ..Config::default()
        }
    }

    /// Attaches a small artifact that is told apart by `name`.
    pub async fn attach(&self, client: &Client, name: &str) -> Result<Descriptor, RegistryError> {
        client
            .push_blob(Caller::LOCAL, &self.repository, Bytes::from_static(b"{}"))
            .await?;
        client
            .push_blob(Caller::LOCAL, &self.repository, Bytes::from(name.to_owned()))
            .await?;
        let (descriptor, bytes) = referrer(self.image, name);
        client
            .attach(Caller::LOCAL, &self.repository, self.image, &descriptor, bytes)
            .await?;
        Ok(descriptor)
    }
}

/// A manifest that refers to `subject`, and its descriptor.
pub fn referrer(subject: Digest, name: &str) -> (Descriptor, Bytes) {
    let empty =
        json!({ "mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}"), "size": 2 });
    let layer = json!({ "mediaType": BUNDLE, "digest": Digest::of(name.as_bytes()), "size": name.len() });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": BUNDLE, "config": empty, "layers": [layer],
        "subject": { "mediaType": MANIFEST, "digest": subject, "size": 1 },
    });
    let bytes = Bytes::from(manifest.to_string());
    let descriptor = Descriptor {
        media_type: MANIFEST.to_owned(),
        digest: Digest::of(&bytes),
        size: bytes.len() as u64,
        artifact_type: Some(BUNDLE.to_owned()),
        annotations: BTreeMap::new(),
    };
    (descriptor, bytes)
}

pub fn bearer() -> Options {
    let auth = Auth::Bearer {
        username: "robot".to_owned(),
        password: "hunter2".to_owned(),
        token_seconds: 300,
    };
    Options {
        auth,
        ..Options::default()
    }
}

pub fn basic() -> Options {
    let auth = Auth::Basic {
        username: "robot".to_owned(),
        password: "hunter2".to_owned(),
    };
    Options {
        auth,
        ..Options::default()
    }
}

/// The reason of an error, which must be one.
pub fn reason<T: std::fmt::Debug>(answer: Result<T, RegistryError>) -> RegistryReason {
    answer.unwrap_err().reason
}
