use std::sync::Arc;
use std::time::Duration;

use access::{Access, AccessError, Context, NewToken, ProjectName, Role, Token, TokenText};
use kernel::{Clock as _, SystemClock, SystemRandom, TestClock};
use store::{Db, STALE_MS_MAX};
use testkit::Postgres;

/// Two servers on one database.
struct Servers {
    one: Access,
    other: Access,
    clock: Arc<TestClock>,
}

impl Servers {
    async fn on(url: &str) -> Self {
        let db = Db::open(url).await.unwrap();
        db.migrate(&[store::MIGRATIONS, access::MIGRATIONS].concat())
            .await
            .unwrap();
        let clock = Arc::new(TestClock::at(SystemClock::new().now()));
        let server = || Access::new(db.clone(), clock.clone(), Arc::new(SystemRandom));
        let servers = Self {
            one: server(),
            other: server(),
            clock,
        };
        let name = ProjectName::default_project();
        let created = servers.one.create_project(&context(), name, Vec::new()).await;
        created.unwrap();
        servers
    }

    async fn token(&self) -> (Token, TokenText) {
        let new = NewToken {
            name: "ci".to_owned(),
            project: Some(ProjectName::default_project()),
            role: Role::Signer,
            days: 1,
        };
        self.one.create_token(&context(), new).await.unwrap()
    }
}

fn context() -> Context {
    Context::server(ProjectName::default_project())
}

fn is_refused<T>(answer: &Result<T, AccessError>, why: &str) -> bool {
    matches!(answer, Err(AccessError::BadToken(found)) if found.contains(why))
}

/// Runs a case on both databases, the second if there is one here.
async fn on_both(case: impl AsyncFn(Servers)) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("test.db").display());
    case(Servers::on(&url).await).await;
    if let Some(postgres) = Postgres::shared() {
        case(Servers::on(&postgres.database()).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_ends_at_once_here_and_within_the_bound_elsewhere() {
    on_both(async |servers| {
        let (token, text) = servers.token().await;
        for server in [&servers.one, &servers.other] {
            assert_eq!(server.authenticate(&text).await.unwrap().id, token.id);
        }
        servers
            .one
            .revoke_token(&context(), token.id.as_str())
            .await
            .unwrap();
        let here = servers.one.authenticate(&text).await;
        assert!(is_refused(&here, "revoked"), "{here:?}");
        // The other one heard of it a moment ago; that moment is over at the bound.
        servers.clock.advance(Duration::from_millis(STALE_MS_MAX));
        let there = servers.other.authenticate(&text).await;
        assert!(is_refused(&there, "revoked"), "{there:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_known_ends_when_its_life_does() {
    on_both(async |servers| {
        let (token, text) = servers.token().await;
        let left = token.expires_at.duration_since(servers.clock.now());
        let almost = Duration::try_from(left).unwrap() - Duration::from_millis(STALE_MS_MAX / 2);
        servers.clock.advance(almost);
        servers.one.authenticate(&text).await.unwrap();
        // What was read is not stale yet, and over all the same.
        servers.clock.advance(Duration::from_millis(STALE_MS_MAX / 2));
        let ended = servers.one.authenticate(&text).await;
        assert!(is_refused(&ended, "expired"), "{ended:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_beside_the_revocation_brings_a_token_back() {
    on_both(async |servers| {
        for _ in 0..20 {
            let (token, text) = servers.token().await;
            let ask = || {
                let (server, text) = (servers.one.clone(), text.clone());
                tokio::spawn(async move { server.authenticate(&text).await.map(|_| ()) })
            };
            let before: Vec<_> = (0..8).map(|_| ask()).collect();
            let context = context();
            let revoked = servers.one.revoke_token(&context, token.id.as_str());
            let beside: Vec<_> = (0..8).map(|_| ask()).collect();
            revoked.await.unwrap();
            // Whatever those read and whenever they end: nothing after the answer is let in.
            for _ in 0..4 {
                let after = servers.one.authenticate(&text).await;
                assert!(is_refused(&after, "revoked"), "{after:?}");
            }
            for task in before.into_iter().chain(beside) {
                let _ = task.await.unwrap();
            }
            let after = servers.one.authenticate(&text).await;
            assert!(is_refused(&after, "revoked"), "{after:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_and_a_project_made_on_one_server_are_good_on_the_other_at_once() {
    on_both(async |servers| {
        let name: ProjectName = "new".parse().unwrap();
        assert!(servers.other.project(&name).await.is_err());
        let created = servers
            .one
            .create_project(&context(), name.clone(), Vec::new())
            .await;
        created.unwrap();
        servers.other.project(&name).await.unwrap();
        let unknown = TokenText::generate(&SystemRandom);
        assert!(servers.other.authenticate(&unknown).await.is_err());
        let (_, text) = servers.token().await;
        servers.other.authenticate(&text).await.unwrap();
    })
    .await;
}
