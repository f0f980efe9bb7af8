//! The alarm that does not run on what it watches: somebody outside hears nothing any more.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::routing::post;
use e2e::{Server, Setup};
use kernel::{Clock as _, SystemClock};
use serde_json::Value;

/// How often the server posts, in seconds, and after how long a receiver outside raises the alarm.
const EVERY: u64 = 5;
const ALARM: Duration = Duration::from_secs(8);

/// Somebody elsewhere who listens.
#[derive(Clone, Default)]
struct Receiver {
    heard: Arc<Mutex<Vec<Value>>>,
    failures: Arc<Mutex<Vec<Value>>>,
}

impl Receiver {
    async fn start() -> (Self, String) {
        let own = Self::default();
        let keep = |list: Arc<Mutex<Vec<Value>>>| {
            move |Json(body): Json<Value>| {
                list.lock().unwrap().push(body);
                async {}
            }
        };
        let router = axum::Router::new()
            .route("/ping", post(keep(own.heard.clone())))
            .route("/fail", post(keep(own.failures.clone())));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (own, url)
    }

    /// Waits for one more sign of life; `None`: the alarm is raised.
    async fn next(&self) -> Option<Value> {
        let (clock, before) = (SystemClock::new(), self.heard.lock().unwrap().len());
        let began = clock.monotonic();
        while clock.monotonic().since(began) < ALARM {
            if self.heard.lock().unwrap().len() > before {
                return self.heard.lock().unwrap().last().cloned();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        None
    }

    /// Waits until the alarm is raised; within a minute it has to be.
    async fn alarm(&self, why: &str) {
        let clock = SystemClock::new();
        let began = clock.monotonic();
        while self.next().await.is_some() {
            let waited = clock.monotonic().since(began);
            assert!(
                waited < Duration::from_secs(60),
                "{why}: no alarm after {waited:?}"
            );
        }
        println!(
            "{why}: the alarm is raised after {:?}",
            clock.monotonic().since(began)
        );
    }
}

/// Shown to fail when the sign of life is posted whatever the board says: without its database the server then still
/// looks alive from outside.
#[tokio::test(flavor = "multi_thread")]
async fn p15_the_alarm_is_raised_outside_when_the_process_the_database_or_the_network_is_gone() {
    let (receiver, url) = Receiver::start().await;
    let switch =
        |fail: &str| format!("[dead_mans_switch]\nurl = \"{url}/ping\"\n{fail}every_seconds = {EVERY}\n");
    let mut server = Server::start(Setup {
        config: switch(""),
        ..Setup::default()
    })
    .unwrap();
    let alive = receiver.next().await.expect("a sign of life");
    assert_eq!(alive["can_deploy"], "yes", "{alive}");
    assert!(
        alive["checkpoint"]
            .as_str()
            .unwrap()
            .contains(".log.portcullis\n"),
        "{alive}"
    );

    let process = server.take_process().unwrap();
    process.signal("STOP").unwrap();
    receiver.alarm("a frozen process").await;
    process.signal("CONT").unwrap();
    assert!(receiver.next().await.is_some(), "it lives again");
    drop(process);
    receiver.alarm("a killed process").await;

    // The network between: the server does not mind, and says that nobody hears it.
    std::fs::write(
        server.folder().join("portcullis.toml"),
        switch("").replace(&url, "http://127.0.0.1:1"),
    )
    .unwrap();
    server.restart().unwrap();
    receiver.alarm("no way to the receiver").await;
    let dependencies = server.api().unwrap().get("/api/v1/dependencies").await.unwrap();
    let own = dependencies.body["dependencies"].as_array().unwrap().iter();
    let own = own
        .filter(|one| one["kind"] == "dead-mans-switch")
        .collect::<Vec<_>>();
    assert_eq!(own[0]["state"], "UNREACHABLE", "{own:?}");
    assert_eq!(dependencies.body["can_deploy"], "degraded", "{dependencies:?}");

    // Without its database it is up, and cannot sign.
    std::fs::write(
        server.folder().join("portcullis.toml"),
        switch(&format!("fail_url = \"{url}/fail\"\n")),
    )
    .unwrap();
    server.restart().unwrap();
    assert!(receiver.next().await.is_some(), "it lives again");
    assert!(receiver.failures.lock().unwrap().is_empty());
    let database = server.data().join("portcullis.db");
    std::fs::rename(&database, server.folder().join("elsewhere.db")).unwrap();
    receiver.alarm("no database").await;
    assert!(server.is_running());
    let told = receiver
        .failures
        .lock()
        .unwrap()
        .last()
        .cloned()
        .expect("told of it");
    assert_eq!(told["can_deploy"], "no", "{told}");
}
