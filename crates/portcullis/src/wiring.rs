//! Where siblings meet: the parts of a server, put together.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use access::audit::Trail;
use access::{Access, Context, NewToken, ProjectName, Role};
use kernel::{Clock, Fault, Kind, Random, SystemClock, SystemRandom};
use probing::{LogMark, Watch};
use signing::image_policy::ImagePolicies;
use signing::trust::{self, LogIdentity, TrustRoot};
use signing::{Keyring, Signing, SigningError, Verifying};
use store::{Db, FolderLock, Learner};
use tlog::{LogKey, Name, Owner, Settings, Tlog};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::codes;
use crate::config::Config;
use crate::embedded_log::EmbeddedLog;
use crate::external_log::External;
use crate::failure::Failure;
use crate::metrics::Metrics;
use crate::place::{blobs, database_url, holder, migrations, owner, server_name};
use crate::probes::Parts;
use crate::seal::{Place, Seal};
use crate::{probes, secrets, traces, workloads};

/// How long the log's lease lasts when its holder does not renew it, in seconds. On a shared database another server
/// waits that long, and should append within five seconds; alone there is nobody, and each renewal is a synced write.
const LEASE_SECONDS: u64 = 5;
const SHARED_LEASE_SECONDS: u64 = 2;
/// How the origin of a log ends; a random part before it makes it one of a kind.
const ORIGIN: &str = "log.portcullis";
/// Days that the first token lives; the longest that there is.
const FIRST_TOKEN_DAYS: i64 = 90;

/// Everything a handler may ask for.
#[derive(Clone)]
pub struct App {
    pub access: Access,
    pub signing: Signing,
    pub verifying: Verifying,
    pub policies: ImagePolicies,
    pub tlog: Tlog,
    pub trail: Trail,
    seal: Arc<Seal>,
    pub metrics: Metrics,
    pub watch: Watch,
    /// What was seen last of the external log, if there is one.
    pub external_mark: Option<LogMark>,
    pub db: Db,
    pub identity: Arc<LogIdentity>,
    pub public_url: Arc<str>,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    /// Whether requests have spans.
    pub traced: bool,
    /// Ends what runs beside the requests.
    stop: CancellationToken,
    /// What is waited for before the database is closed.
    background: TaskTracker,
    /// Released when the last clone goes.
    _lock: Arc<FolderLock>,
}

/// What a start came to.
pub struct Started {
    pub app: App,
    /// The administrator's token, on the first start of all.
    pub first_token: Option<String>,
}

/// Opens everything; on the first start of all, makes the default project and key, and the administrator's token.
/// `address` is what is listened on, for those who configured no public address.
pub async fn start(config: &Config, address: SocketAddr) -> Result<Started, Failure> {
    let (clock, random): (Arc<dyn Clock>, Arc<dyn Random>) =
        (Arc::new(SystemClock::new()), Arc::new(SystemRandom));
    let lock = FolderLock::take(&config.data.folder)?;
    let db = open_database(config).await?;
    let oidc = workloads::open(&config.oidc, &config.data.folder, clock.clone(), &random)?;
    let access = Access::new(db.clone(), clock.clone(), random.clone()).with_oidc(oidc.clone());
    let fresh = !access.has_tokens().await?;

    let holder = holder(&config.data.folder, &db, &*random)?;
    let (tlog, identity) = open_log(config, db.clone(), holder.clone(), fresh, &*clock, &*random).await?;
    let place = Place {
        db: db.clone(),
        blobs: blobs(config)?,
        holder: holder.clone(),
        lease_ttl: lease_ttl(&db),
        owner: owner(&db, &*clock, &*random).await?,
    };
    let seal = Arc::new(Seal::open(config, place, &*clock, &*random).await?);
    let trail = Trail::new(db.clone(), clock.clone(), random.clone(), seal.clone());

    let password_file = config.secret_file(config.keys.password_file.as_ref(), "keys.password");
    let password = secrets::password(&password_file, fresh, &*random)?;
    let keyring = Keyring::new(db.clone(), password, clock.clone(), random.clone());
    // A server with the wrong password would start well, sign nothing, and close new keys so that nobody opens them.
    keyring.check().await.map_err(|error| match error {
        SigningError::KeyClosed { .. } => {
            let cause = format!("{}: {}", password_file.display(), kernel::chain(&error));
            Failure::coded(1, &codes::SECRETS, cause)
        }
        other => other.into(),
    })?;
    let client = Arc::new(upstream::oci::Client::new(
        config.oci()?,
        clock.clone(),
        random.clone(),
    )?);
    let trust = Arc::new(TrustRoot::from_json(&trust::trusted_root(&identity))?);
    let log = Arc::new(EmbeddedLog {
        tlog: tlog.clone(),
        trust: trust.clone(),
    });
    let external = config.external_log.as_ref().map(External::open).transpose()?;
    let signing = Signing::new(signing::Settings {
        db: db.clone(),
        access: access.clone(),
        keyring,
        registry: client.clone(),
        log,
        external_log: external.is_some(),
        formats: config.formats()?,
        quota: flow::Rate {
            per_minute: config.quota.signatures_per_minute,
            burst: config.quota.burst,
        },
        clock: clock.clone(),
        random: random.clone(),
    });
    let policies = ImagePolicies::new(
        db.clone(),
        clock.clone(),
        random.clone(),
        trust,
        config.trusted_roots()?,
    )
    .with_external(external.as_ref().map(|external| external.trust.clone()));
    let verifying = Verifying::new(signing.clone(), policies.clone());
    let first_token = if fresh {
        Some(first_start(&access, &signing).await?)
    } else {
        None
    };
    let metrics =
        Metrics::new(clock.clone()).map_err(|error| Failure::local("making the metrics", &error))?;
    let public_url = config
        .server
        .public_url
        .clone()
        .unwrap_or_else(|| format!("http://{address}"));
    let public_url: Arc<str> = public_url.trim_end_matches('/').into();
    let external_mark = external.as_ref().map(|external| external.mark(&db));
    let watch = probes::start(Parts {
        config,
        db: db.clone(),
        blobs: blobs(config)?,
        tlog: tlog.clone(),
        registries: client,
        external: external.as_ref().zip(external_mark.clone()),
        oidc: &oidc,
        metrics: metrics.clone(),
        holder: holder.clone(),
        public_url: &public_url,
        clock: clock.clone(),
        random: random.clone(),
    })
    .await?;
    let (identity, lock) = (Arc::new(identity), Arc::new(lock));
    trail.start();
    workloads::warn_of_projects(&access, &config.oidc).await;
    oidc.start();
    let app = App {
        trail,
        seal,
        access,
        signing,
        verifying,
        policies,
        tlog,
        metrics,
        watch,
        external_mark,
        db,
        identity,
        public_url,
        clock,
        random,
        traced: traces::are_made(),
        stop: CancellationToken::new(),
        background: TaskTracker::new(),
        _lock: lock,
    };
    tokio::spawn(app.signing.clone().take_over_operations(app.stop.clone()));
    app.learn();
    if let Some(external) = external {
        let (board, ttl) = (app.watch.board().clone(), Duration::from_secs(LEASE_SECONDS));
        let pay = external.pay(app.signing.clone(), board, holder, ttl, app.stop.clone())?;
        app.background.spawn(pay);
    }
    Ok(Started { app, first_token })
}

impl App {
    /// Learns what other servers change of the rows that this one keeps in memory.
    fn learn(&self) {
        if !self.db.is_shared() {
            return;
        }
        let [tokens, projects] = self.access.kept();
        let kept = vec![
            tokens,
            projects,
            self.signing.keyring().kept(),
            self.policies.kept(),
        ];
        let learner = Learner::new(self.db.clone(), kept);
        self.background
            .spawn(self.stop.clone().run_until_cancelled_owned(learner.run()));
    }

    /// Stops the probes, seals what is left, stops the logs and closes the database; SQLite then moves what waits beside
    /// its file into it.
    pub async fn close(&self) {
        self.stop.cancel();
        self.background.close();
        self.background.wait().await;
        self.watch.close().await;
        self.trail.close().await;
        self.seal.close().await;
        self.tlog.close().await;
        self.db.close().await;
    }
}

/// Opens the database with everybody's tables; whoever opens SQLite holds the data folder's lock.
pub async fn open_database(config: &Config) -> Result<Db, Failure> {
    let db = Db::open_with(&database_url(config), config.database.connections_max).await?;
    db.migrate(&migrations()).await?;
    Ok(db)
}

/// Opens the log that lies in the database and the blobs. A `fresh` one gets its key; that of one that was used is
/// never made again.
pub async fn open_log(
    config: &Config,
    db: Db,
    holder: String,
    fresh: bool,
    clock: &dyn Clock,
    random: &dyn Random,
) -> Result<(Tlog, LogIdentity), Failure> {
    let file = config.secret_file(config.log.key_file.as_ref(), "log.json");
    let secret = secrets::log_key(&file, ORIGIN, fresh, clock, random)?;
    let owner = owner(&db, clock, random).await?;
    let mark = "log.checkpoint";
    let tlog = open_named_log(config, db, holder, Name::Signatures, &secret, mark, owner).await?;
    let identity = LogIdentity {
        origin: secret.origin,
        public_key: tlog.verifier().spki(),
        id: tlog.verifier().log_id().to_vec(),
        since: secret.since,
    };
    Ok((tlog, identity))
}

/// Opens one of the logs with its key; `mark` is the file of the data folder with its newest checkpoint.
pub async fn open_named_log(
    config: &Config,
    db: Db,
    holder: String,
    name: Name,
    secret: &secrets::LogSecret,
    mark: &str,
    owner: Owner,
) -> Result<Tlog, Failure> {
    let key = LogKey::new(&secret.origin, &secret.pkcs8)
        .map_err(|error| Failure::local(format!("the key of {name}"), &error))?;
    let (shared, lease_ttl) = (db.is_shared(), lease_ttl(&db));
    let settings = Settings {
        name,
        db,
        blobs: blobs(config)?,
        key,
        holder,
        server: server_name(&config.data.folder)?,
        lease_ttl,
        shared,
        mark: Some(config.data.folder.join(mark)),
        owner: Some(owner),
    };
    Tlog::open(settings).await.map_err(Failure::log)
}

fn lease_ttl(db: &Db) -> Duration {
    Duration::from_secs(match db.is_shared() {
        true => SHARED_LEASE_SECONDS,
        false => LEASE_SECONDS,
    })
}

/// A server that starts for the first time can be used at once: one project that may sign anything, one key. The
/// token comes last: a start that died before it begins anew.
async fn first_start(access: &Access, signing: &Signing) -> Result<String, Failure> {
    let project = ProjectName::default_project();
    let context = Context::server(project.clone());
    let exists = |error: &dyn Fault| error.kind() == Kind::Conflict;
    match access
        .create_project(&context, project, vec!["**".parse()?])
        .await
    {
        Err(error) if !exists(&error) => return Err(error.into()),
        _ => {}
    }
    match signing.keyring().create(&context, signing::DEFAULT_KEY).await {
        Err(error) if !exists(&error) => return Err(error.into()),
        _ => {}
    }
    let new = NewToken {
        name: "first administrator".to_owned(),
        project: None,
        role: Role::Admin,
        days: FIRST_TOKEN_DAYS,
    };
    let (_, text) = access.create_token(&context, new).await?;
    Ok(text.expose().to_owned())
}
