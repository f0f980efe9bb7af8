//! A server's parts, put together around a registry and a log that can be broken.

use flow::{Caller, Class};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use access::{Access, Context, ProjectName};
use async_trait::async_trait;
use bytes::Bytes;
use kernel::{
    Clock, Code, Digest, Fault, Kind, Reference, Repository, Secret, SystemClock, SystemRandom, TestClock,
};
use registry::{Options, Registry as Fake, Running};
use serde_json::Value;
use signing::format::{Annotations, legacy, referrer};
use signing::image_policy::ImagePolicies;
use signing::ports::{self, Descriptor, Log, LoggedEntry, NewEntry, Registry};
use signing::trust::{LogIdentity, TrustRoot, trusted_root};
use signing::verify::{Policy, Report};
use signing::{
    Asked, Formats, Keyring, SignRequest, Signed, Signing, SigningError, VerifyRequest, Verifying,
};
use store::{Blobs, Db};
use tlog::{HashedRekord, LogKey, Settings, Tlog};
use upstream::oci::{Client, Config, RegistryConfig};

pub const REPOSITORY: &str = "team/app";
const ORIGIN: &str = "0192.log.example";

/// The embedded log, counted, and dead when a test says so.
pub struct CountedLog {
    tlog: Tlog,
    trust: Arc<TrustRoot>,
    pub appends: AtomicU64,
    pub dead: AtomicBool,
}

#[derive(Debug, thiserror::Error)]
#[error("the log is dead")]
struct Dead;

impl Fault for Dead {
    fn kind(&self) -> Kind {
        Kind::Unavailable
    }
    fn code(&self) -> &'static Code {
        &ports::codes::UNAVAILABLE
    }
}

#[async_trait]
impl Log for CountedLog {
    async fn append(&self, entry: NewEntry) -> Result<LoggedEntry, Box<dyn Fault>> {
        self.appends.fetch_add(1, Ordering::SeqCst);
        if self.dead.load(Ordering::SeqCst) {
            return Err(Box::new(Dead));
        }
        let entry = HashedRekord {
            digest: entry.digest.as_bytes().to_vec(),
            signature: entry.signature,
            verifier: tlog::Verifier::PublicKey(entry.public_key),
        };
        match self.tlog.append(&entry).await {
            Ok(entry) => Ok(LoggedEntry {
                index: entry.index,
                json: entry.json,
            }),
            Err(error) => Err(Box::new(error)),
        }
    }

    fn trust(&self) -> &Arc<TrustRoot> {
        &self.trust
    }
}

/// Everything of a server, a registry, and an image in it.
pub struct World {
    pub fake: Fake,
    pub running: Running,
    pub repository: Repository,
    pub image: Digest,
    pub clock: Arc<TestClock>,
    pub db: Db,
    pub access: Access,
    pub client: Arc<Client>,
    pub log: Arc<CountedLog>,
    pub tlog: Tlog,
    pub trust: Arc<TrustRoot>,
    pub signing: Signing,
    pub verifying: Verifying,
    pub policies: ImagePolicies,
    _folder: tempfile::TempDir,
}

impl World {
    pub async fn new() -> Self {
        Self::with(Options::default(), "**").await
    }

    pub async fn without_referrers() -> Self {
        let options = Options {
            referrers: false,
            ..Options::default()
        };
        Self::with(options, "**").await
    }

    /// A world whose project may sign what `pattern` matches.
    pub async fn with(options: Options, pattern: &str) -> Self {
        let fake = Fake::memory(options);
        let running = fake.serve_on_loopback().await.unwrap();
        let image = fake.put_image(REPOSITORY, "v1", "hello").await.unwrap();
        let repository: Repository = format!("{}/{REPOSITORY}", running.host()).parse().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(&format!("sqlite:{}", folder.path().join("db").display()))
            .await
            .unwrap();
        let migrations = [
            store::MIGRATIONS,
            access::MIGRATIONS,
            signing::MIGRATIONS,
            tlog::MIGRATIONS,
        ];
        db.migrate(&migrations.concat()).await.unwrap();
        let clock = Arc::new(TestClock::at(SystemClock::new().now()));
        let random = Arc::new(SystemRandom);
        let access = Access::new(db.clone(), clock.clone(), random.clone());
        let context = Context::server(ProjectName::default_project());
        let patterns = vec![pattern.parse().unwrap()];
        access
            .create_project(&context, ProjectName::default_project(), patterns)
            .await
            .unwrap();
        let key = LogKey::new(ORIGIN, &LogKey::generate(&*random).unwrap()).unwrap();
        let identity = LogIdentity {
            origin: ORIGIN.to_owned(),
            public_key: key.verifier().spki(),
            id: key.verifier().log_id().to_vec(),
            since: clock.now(),
        };
        let settings = Settings {
            name: tlog::Name::Signatures,
            db: db.clone(),
            blobs: Blobs::folder(&folder.path().join("blobs")).unwrap(),
            key,
            holder: "server-1".to_owned(),
            server: "server-1".to_owned(),
            lease_ttl: Duration::from_secs(30),
            shared: false,
            mark: None,
            owner: None,
        };
        let tlog = Tlog::open(settings).await.unwrap();
        let trust = Arc::new(TrustRoot::from_json(&trusted_root(&identity)).unwrap());
        let log = Arc::new(CountedLog {
            tlog: tlog.clone(),
            trust: trust.clone(),
            appends: AtomicU64::new(0),
            dead: AtomicBool::new(false),
        });
        let client = Arc::new(Client::new(Config::default(), Arc::new(SystemClock::new()), random).unwrap());
        let signing = server(&db, &access, client.clone(), log.clone(), &clock);
        signing.keyring().create(&context, "default").await.unwrap();
        let policies = ImagePolicies::new(
            db.clone(),
            clock.clone(),
            Arc::new(SystemRandom),
            trust.clone(),
            [].into(),
        );
        let verifying = Verifying::new(signing.clone(), policies.clone());
        Self {
            fake,
            running,
            repository,
            image,
            clock,
            db,
            access,
            client,
            log,
            tlog,
            trust,
            signing,
            verifying,
            policies,
            _folder: folder,
        }
    }

    /// Another server on the same database and log, or the same one after a restart: nothing is kept in memory.
    pub fn another(&self) -> Signing {
        server(
            &self.db,
            &self.access,
            self.client.clone(),
            self.log.clone(),
            &self.clock,
        )
    }

    /// A client that gives a registry one second.
    pub fn impatient(&self) -> Client {
        let registry = RegistryConfig {
            call_seconds_max: 1,
            ..RegistryConfig::default()
        };
        let config = Config {
            registries: [(self.running.host(), registry)].into(),
            ..Config::default()
        };
        Client::new(config, Arc::new(SystemClock::new()), Arc::new(SystemRandom)).unwrap()
    }

    /// A server that reaches registries through `registry`.
    pub fn over(&self, registry: Arc<dyn Registry>) -> Signing {
        server(&self.db, &self.access, registry, self.log.clone(), &self.clock)
    }

    pub fn context(&self) -> Context {
        Context::server(ProjectName::default_project())
    }

    /// The question whether the image is signed by the project's keys and in the log.
    pub fn verify_request(&self) -> VerifyRequest {
        VerifyRequest {
            image: self.reference(),
            asked: Asked::Keys {
                keys: Vec::new(),
                log_required: true,
            },
            annotations: Annotations::new(),
            recursive: false,
        }
    }

    /// The image, named by digest.
    pub fn reference(&self) -> Reference {
        self.repository.at(self.image)
    }

    /// A request with the configured formats.
    pub fn request(&self, image: Reference) -> SignRequest {
        SignRequest {
            image,
            key: None,
            annotations: Annotations::new(),
            recursive: false,
            repair: false,
            formats: None,
            class: Class::Sign,
        }
    }

    pub fn request_in(&self, formats: Formats) -> SignRequest {
        let formats = Some(formats);
        SignRequest {
            formats,
            ..self.request(self.reference())
        }
    }

    pub async fn sign(&self) -> Signed {
        self.sign_as(&self.request(self.reference())).await
    }

    pub async fn sign_as(&self, request: &SignRequest) -> Signed {
        self.signing
            .sign(&self.context(), request)
            .await
            .unwrap()
            .remove(0)
    }

    /// The policy of the project's own key, without a log.
    pub async fn policy(&self) -> Policy {
        Policy::keys("test", self.signing.keyring().verifying("default").await.unwrap())
    }

    pub async fn logged_policy(&self) -> Policy {
        self.policy().await.with_log(self.trust.clone())
    }

    pub async fn verify(&self, policy: &Policy) -> Report {
        self.try_verify(policy).await.unwrap()
    }

    pub async fn try_verify(&self, policy: &Policy) -> Result<Report, SigningError> {
        self.try_verify_digest(self.image, policy).await
    }

    pub async fn try_verify_digest(&self, digest: Digest, policy: &Policy) -> Result<Report, SigningError> {
        let now = self.clock.now();
        signing::verify::verify_digest(
            &*self.client,
            Caller::new("default", Class::Verify),
            &self.repository,
            digest,
            policy,
            now,
        )
        .await
    }

    /// Attaches bytes as a bundle to `image`, whatever they are.
    pub async fn attach(&self, image: Digest, bundle: &[u8]) -> Descriptor {
        let subject = Descriptor {
            media_type: referrer::IMAGE_MANIFEST.to_owned(),
            digest: image,
            size: 1,
            artifact_type: None,
            annotations: Annotations::new(),
        };
        let (descriptor, manifest) = referrer::write(&subject, bundle);
        let (caller, repository) = (Caller::new("default", Class::Sign), &self.repository);
        for blob in [
            Bytes::from_static(referrer::EMPTY_JSON),
            Bytes::copy_from_slice(bundle),
        ] {
            self.client.push_blob(caller, repository, blob).await.unwrap();
        }
        self.client
            .attach(caller, repository, image, &descriptor, manifest.into())
            .await
            .unwrap();
        descriptor
    }

    /// Makes the signature tag of `image` hold these layers: payload and annotations.
    pub async fn put_legacy(&self, image: Digest, layers: &[(Vec<u8>, Value)]) {
        self.put_layers(&legacy::tag(image), legacy::LAYER, layers).await;
    }

    /// Makes a tag hold an image of these layers, all of the type `kind`.
    pub async fn put_layers(&self, tag: &str, kind: &str, layers: &[(Vec<u8>, Value)]) {
        let mut descriptors = Vec::new();
        for (payload, annotations) in layers {
            let digest = self.fake.put_blob(REPOSITORY, payload).await.unwrap();
            descriptors.push(serde_json::json!({
                "mediaType": kind, "digest": digest, "size": payload.len(), "annotations": annotations,
            }));
        }
        let config = self.fake.put_blob(REPOSITORY, b"{}").await.unwrap();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": referrer::IMAGE_MANIFEST,
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2 },
            "layers": descriptors,
        });
        let bytes = manifest.to_string();
        self.fake
            .put_manifest(REPOSITORY, Some(tag), referrer::IMAGE_MANIFEST, bytes.as_bytes())
            .await
            .unwrap();
    }

    /// The bundle that is attached, which must be one.
    pub async fn only_bundle(&self) -> Vec<u8> {
        let referrers = self
            .client
            .referrers(Caller::new("default", Class::Sign), &self.repository, self.image)
            .await
            .unwrap();
        assert_eq!(referrers.len(), 1);
        let manifest = self
            .client
            .manifest(
                Caller::new("default", Class::Sign),
                &self.repository.at(referrers[0].digest),
            )
            .await
            .unwrap();
        let manifest: Value = serde_json::from_slice(&manifest.bytes).unwrap();
        let layer = manifest["layers"][0]["digest"].as_str().unwrap().parse().unwrap();
        self.client
            .blob(
                Caller::new("default", Class::Sign),
                &self.repository,
                layer,
                1 << 20,
            )
            .await
            .unwrap()
            .to_vec()
    }

    pub async fn log_size(&self) -> u64 {
        self.tlog.checkpoint().await.unwrap().size
    }

    pub async fn count(&self, sql: &'static str) -> i64 {
        self.db
            .read_one(sql, store::args![])
            .await
            .unwrap()
            .unwrap()
            .int("n")
            .unwrap()
    }

    pub async fn signatures(&self) -> i64 {
        self.count("SELECT COUNT(*) AS n FROM signature").await
    }

    pub async fn audited(&self) -> i64 {
        self.count("SELECT COUNT(*) AS n FROM audit WHERE action = 'signature.create'")
            .await
    }
}

pub fn server(
    db: &Db,
    access: &Access,
    registry: Arc<dyn Registry>,
    log: Arc<CountedLog>,
    clock: &Arc<TestClock>,
) -> Signing {
    let random = Arc::new(SystemRandom);
    let password = Secret::new("the server's".to_owned());
    let keyring = Keyring::new(db.clone(), password, clock.clone(), random.clone());
    Signing::new(signing::Settings {
        db: db.clone(),
        access: access.clone(),
        keyring,
        registry,
        log,
        external_log: true,
        formats: Box::new(|_| Formats::BOTH),
        quota: flow::Rate {
            per_minute: 60_000,
            burst: 60_000,
        },
        clock: clock.clone(),
        random,
    })
}

/// The one reason for which the one candidate did not count.
pub fn only_reason(report: &Report) -> &'static str {
    assert!(!report.verified, "{report:?}");
    let mut reasons = report
        .candidates
        .iter()
        .filter_map(|candidate| candidate.outcome.as_ref().err());
    let reason = reasons.next().unwrap().reason;
    assert!(reasons.next().is_none(), "{:?}", report.reasons);
    reason
}
