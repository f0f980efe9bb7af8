//! Where siblings meet: the parts of a server, put together.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use access::audit::{self, Trail};
use access::{Access, Context, NewToken, ProjectName, Role};
use axum::extract::{FromRef, State};
use axum::http::header;
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use kernel::{Clock, Fault, Kind, Random, SystemClock, SystemRandom};
use probing::{Board, Losses, Watch};
use signing::image_policy::ImagePolicies;
use signing::trust::{self, LogIdentity, TrustRoot};
use signing::{Keyring, Signing, SigningError, Verifying};
use store::{Db, FolderLock, Learner};
use tlog::{LogKey, Name, Owner, Settings, Tlog};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utoipa::OpenApi as _;

use crate::codes;
use crate::config::Config;
use crate::embedded_log::EmbeddedLog;
use crate::external_log::External;
use crate::failure::Failure;
use crate::metrics::{self, Metrics};
use crate::place::{blobs, database_url, holder, migrations, owner, server_name};
use crate::probes::Parts;
use crate::seal::{Place, Seal};
use crate::{dependency_metrics, log_seen, probes, readiness, secrets, traces, workloads};

/// How long the log's lease lasts when its holder does not renew it, in seconds. On a shared database another server
/// waits that long, and should append within five seconds; alone there is nobody, and each renewal is a synced write.
const LEASE_SECONDS: u64 = 5;
const SHARED_LEASE_SECONDS: u64 = 2;
/// How the origin of a log ends; a random part before it makes it one of a kind.
const ORIGIN: &str = "log.portcullis";
/// Days that the first token lives; the longest that there is.
const FIRST_TOKEN_DAYS: i64 = 90;

/// The paths by which others learn whether a server lives: a few connections are kept for them.
pub const VITAL: &[&str] = &["/livez", "/readyz", "/metrics"];

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
    watch: Watch,
    pub db: Db,
    identity: Arc<LogIdentity>,
    public_url: Arc<str>,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    /// Whether requests have spans.
    traced: bool,
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
    let watch = probes::start(Parts {
        config,
        db: db.clone(),
        blobs: blobs(config)?,
        tlog: tlog.clone(),
        registries: client,
        external: external.as_ref(),
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
        let pay = external.pay(app.signing.clone(), board, holder, ttl, app.stop.clone());
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

impl FromRef<App> for Access {
    fn from_ref(app: &App) -> Self {
        app.access.clone()
    }
}

impl FromRef<App> for Trail {
    fn from_ref(app: &App) -> Self {
        app.trail.clone()
    }
}

impl FromRef<App> for Board {
    fn from_ref(app: &App) -> Self {
        app.watch.board().clone()
    }
}

impl FromRef<App> for Losses {
    fn from_ref(app: &App) -> Self {
        Self::new(app.db.clone(), app.clock.clone(), app.random.clone())
    }
}

impl FromRef<App> for Signing {
    fn from_ref(app: &App) -> Self {
        app.signing.clone()
    }
}

impl FromRef<App> for ImagePolicies {
    fn from_ref(app: &App) -> Self {
        app.policies.clone()
    }
}

impl FromRef<App> for Verifying {
    fn from_ref(app: &App) -> Self {
        app.verifying.clone()
    }
}

/// Every route of the server, until it is `leaving`.
pub fn router(app: &App, leaving: CancellationToken) -> Router {
    let sources = web::request::Sources {
        clock: app.clock.clone(),
        random: app.random.clone(),
    };
    let api = Router::new()
        .merge(access::api::router::<App>())
        .merge(audit::router::<App>())
        .merge(signing::api::router::<App>())
        .merge(probing::api::router::<App>())
        .merge(log_seen::router())
        .route("/trust/trusted_root.json", get(trusted_root))
        .route("/trust/signing_config.json", get(signing_config))
        .route("/openapi.json", get(|| async { Json(openapi()) }));
    let router = Router::new()
        .nest("/api/v1", api)
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readiness::readyz))
        .route("/metrics", get(render_metrics))
        .with_state(app.clone())
        .method_not_allowed_fallback(web::route::wrong_method)
        // Below, those of Rekor v2: their errors are gRPC's.
        .merge(tlog::router(app.tlog.clone()))
        .fallback(web::route::unknown_path)
        .layer(from_fn_with_state(app.trail.refusals().clone(), audit::layer))
        .layer(from_fn_with_state(app.metrics.clone(), metrics::layer))
        .layer(map_response(no_sniff))
        .layer(from_fn_with_state(leaving, readiness::layer))
        .layer(from_fn_with_state(sources, web::request::layer));
    match app.traced {
        true => router.layer(from_fn(traces::server::layer)),
        false => router,
    }
}

async fn no_sniff(mut response: Response) -> Response {
    let value = axum::http::HeaderValue::from_static("nosniff");
    response
        .headers_mut()
        .insert(header::X_CONTENT_TYPE_OPTIONS, value);
    response
}

async fn render_metrics(State(app): State<App>) -> String {
    if let Ok(checkpoint) = app.tlog.checkpoint().await {
        app.metrics.log_entries(checkpoint.size);
    }
    app.metrics.log_leads(app.tlog.leads());
    if let Ok(status) = app.trail.status().await {
        app.metrics.audit(&status);
    }
    if let Ok(standing) = app.signing.debt().await {
        app.metrics.debt(&standing, &app.signing);
    }
    app.metrics.signing(&app.signing);
    app.metrics.render()
        + &dependency_metrics::render(&app.watch.board().all(), &*app.clock)
        + &traces::metrics()
}

async fn trusted_root(State(app): State<App>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "application/json")],
        trust::trusted_root(&app.identity),
    )
}

async fn signing_config(State(app): State<App>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "application/json")],
        trust::signing_config(&app.identity, &app.public_url),
    )
}

/// The API's description (OpenAPI 3.1).
pub fn openapi() -> utoipa::openapi::OpenApi {
    #[derive(utoipa::OpenApi)]
    #[openapi(info(title = "Portcullis", description = "Signs and verifies container images."))]
    struct Root;
    let mut root = Root::openapi();
    root.merge(access::api::Docs::openapi());
    root.merge(audit::Docs::openapi());
    root.merge(signing::api::Docs::openapi());
    root.merge(probing::api::Docs::openapi());
    root.merge(log_seen::Docs::openapi());
    crate::docs::complete(root)
}

#[cfg(test)]
mod tests {
    /// The API's description is a contract: a change of it is a change of this file, in the same commit.
    #[test]
    fn the_openapi_description_is_the_committed_one() {
        let now = serde_json::to_string_pretty(&super::openapi()).unwrap() + "\n";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        if std::env::var_os("PORTCULLIS_UPDATE_SNAPSHOTS").is_some() {
            std::fs::write(path, &now).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == now,
            "docs/openapi.json is out of date: PORTCULLIS_UPDATE_SNAPSHOTS=1 cargo test -p portcullis"
        );
    }
}
