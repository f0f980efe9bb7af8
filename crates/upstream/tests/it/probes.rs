//! Registries that are in use are looked at; one that is gone, or is another behind the same name, is named.

use flow::Caller;
use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::response::Html;
use kernel::{Clock, SystemClock};
use probing::{Finding, Probe, Probes, References, State};
use registry::{Options, Registry as Fake};
use signing::ports::Registry as _;
use tokio::net::TcpListener;
use upstream::oci::{Client, Config, RegistryProbe};

use super::{World, bearer, client};

fn in_use(client: &Arc<Client>) -> Arc<dyn Probes> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    RegistryProbe::in_use(client.clone(), clock, References::default())
}

async fn look(probe: &Arc<dyn Probe>) -> Finding {
    probe.look().await
}

#[tokio::test]
async fn only_registries_that_were_called_and_answered_are_looked_at() {
    let world = World::new(Options::default()).await;
    let idle = World::new(Options::default()).await;
    let client = Arc::new(client(Config::default()));
    let probes = in_use(&client);
    assert!(probes.now().is_empty());
    client.manifest(Caller::LOCAL, &world.tag("v1")).await.unwrap();
    // Nobody is there: what a caller made up is not looked at.
    let nobody = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let made_up = format!("{nobody}/team/app:v1").parse().unwrap();
    assert!(client.manifest(Caller::LOCAL, &made_up).await.is_err());
    let names: Vec<String> = probes.now().iter().map(|probe| probe.name().to_owned()).collect();
    assert_eq!(names, [world.running.host()]);
    let found = look(&probes.now()[0]).await;
    assert_eq!(found.state, State::Ok, "{found:?}");
    drop(idle);
}

/// Shown to fail: with what is no registry let through in `judge`, the web server is a WRONG_REGISTRY; without the
/// comparison with the first answer, the impostor is OK.
#[tokio::test]
async fn p14_a_registry_that_is_gone_or_is_another_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = |router: Router, listener: TcpListener| {
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() })
    };
    let again = || async {
        for _ in 0..100 {
            if let Ok(listener) = TcpListener::bind(address).await {
                return listener;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("the port is taken");
    };
    let fake = Fake::memory(bearer());
    fake.put_image("team/app", "v1", "hello").await.unwrap();
    let running = serve(fake.router(), listener);
    let client = Arc::new(client(Config::default()));
    let image = format!("{address}/team/app:v1").parse().unwrap();
    // Refused for want of credentials, which is an answer.
    let _ = client.manifest(Caller::LOCAL, &image).await;
    let probes = in_use(&client);
    let probe = probes.now().remove(0);
    let first = look(&probe).await;
    assert_eq!(first.state, State::Ok, "{first:?}");
    assert!(first.found.contains("asks for tokens of"), "{first:?}");

    running.abort();
    let _ = running.await;
    let gone = look(&probe).await;
    assert_eq!(gone.state, State::Unreachable, "{gone:?}");

    let page = || async { ([("server", "a-web-server")], Html("It works!")) };
    let web = serve(Router::new().fallback(page), again().await);
    let other = look(&probe).await;
    assert_eq!(other.state, State::NotARegistry, "{other:?}");
    assert!(other.found.contains("a-web-server"), "{other:?}");
    web.abort();
    let _ = web.await;

    let asks = || async {
        let realm = r#"Bearer realm="https://elsewhere.example/token",service="x""#;
        (StatusCode::UNAUTHORIZED, [("www-authenticate", realm)])
    };
    let impostor = serve(Router::new().fallback(asks), again().await);
    let named = look(&probe).await;
    assert_eq!(named.state, State::WrongRegistry, "{named:?}");
    assert!(named.found.contains("elsewhere.example"), "{named:?}");
    assert_eq!(named.expected, look(&probe).await.expected);
    impostor.abort();
    let _ = impostor.await;

    let _back = serve(fake.router(), again().await);
    let back = look(&probe).await;
    assert_eq!(back.state, State::Ok, "{back:?}");
}
