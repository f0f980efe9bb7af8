//! Several servers on one PostgreSQL: any of them answers any call, one of them appends, and none of them is missed.

mod database;
mod elsewhere;
mod leader;
mod outcomes;
mod rolling;
mod stop;

use std::sync::Mutex;
use std::time::Duration;

use e2e::{Api, Fleet};
use registry::{Options, Registry, Running};
use serde_json::{Value, json};

use crate::ledger::{Acknowledged, Ledger, Signatures};

/// How soon the log moves on after its leader died or froze, and everything after PostgreSQL came back.
const GAP_MAX: Duration = Duration::from_secs(5);

/// A registry in this process, with images that nobody has signed yet.
struct Images {
    registry: Registry,
    running: Running,
    made: u64,
}

impl Images {
    async fn new() -> Self {
        let registry = Registry::memory(Options::default());
        let running = registry.serve_on_loopback().await.unwrap();
        Self {
            registry,
            running,
            made: 0,
        }
    }

    /// The request to sign or verify one more image.
    async fn next(&mut self) -> Value {
        self.made += 1;
        let content = self.made.to_string();
        let digest = self.registry.put_image("team/app", "x", &content).await.unwrap();
        json!({ "image": format!("{}/team/app@{digest}", self.running.host()) })
    }

    async fn many(&mut self, count: usize) -> Vec<Value> {
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(self.next().await);
        }
        all
    }
}

/// What was answered with success while something was wrong.
#[derive(Default)]
struct Done {
    signed: Mutex<Vec<Value>>,
    logged: Mutex<Vec<Acknowledged>>,
}

impl Done {
    /// Signs an image; the answer's status.
    async fn sign(&self, api: &Api, image: &Value) -> Result<u16, String> {
        let answer = api.post("/api/v1/signatures", image).await;
        let answer = answer.map_err(|error| format!("{error:#}"))?;
        if matches!(answer.status, 200 | 201) {
            self.signed.lock().unwrap().push(image.clone());
            return Ok(answer.status);
        }
        Err(format!("sign: {} {}", answer.status, answer.body))
    }

    /// Appends an entry as another client of the log does.
    async fn log(&self, api: &Api, ledger: &Ledger, request: &Value) -> Result<(), String> {
        let answer = api.post("/api/v2/log/entries", request).await;
        let answer = answer.map_err(|error| format!("{error:#}"))?;
        if answer.status != 201 {
            return Err(format!("log: {} {}", answer.status, answer.body));
        }
        self.logged.lock().unwrap().push(ledger.check(&answer.body));
        Ok(())
    }

    /// Nothing that was answered is lost, and the log is one.
    async fn check(self, fleet: &Fleet, ledger: &mut Ledger) {
        let apis = fleet.apis().unwrap();
        for api in &apis {
            ledger.look(api).await;
        }
        let signed = self.signed.into_inner().unwrap();
        for image in &signed {
            let again = apis[0].post("/api/v1/signatures", image).await.unwrap();
            assert_eq!(again.status, 200, "a signature is lost: {again:?}");
            let verdict = apis[0].post("/api/v1/verifications", image).await.unwrap();
            assert_eq!(verdict.body["verified"], true, "{verdict:?}");
        }
        let logged = self.logged.into_inner().unwrap();
        ledger.audit(&fleet.servers()[0], &logged).await;
    }
}

/// Entries that nobody has logged yet, each used once.
fn entries(count: usize) -> Vec<Value> {
    let mut signatures = Signatures::new();
    (0..count).map(|_| signatures.request()).collect()
}
