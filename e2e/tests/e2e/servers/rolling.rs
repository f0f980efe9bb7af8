//! A new version comes to one server after the other, and no caller notices.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use e2e::{Api, Fleet};
use testkit::Postgres;

use super::{Done, Images, entries};
use crate::ledger::Ledger;

/// How often the balancer asks who is ready, in milliseconds; the servers say for two seconds that they leave.
const LOOK_MS: u64 = 100;
/// How many callers there are of each kind.
const CALLERS: usize = 4;

/// What a load balancer does: sends each call to one of those that said they are ready.
struct Balancer {
    apis: Vec<Api>,
    ready: Vec<AtomicBool>,
    next: AtomicUsize,
}

impl Balancer {
    async fn look(&self) {
        for (api, ready) in self.apis.iter().zip(&self.ready) {
            let answer = api.get("/readyz").await;
            ready.store(answer.is_ok_and(|answer| answer.status == 200), Ordering::SeqCst);
        }
    }

    fn pick(&self) -> &Api {
        for _ in 0..self.apis.len() {
            let at = self.next.fetch_add(1, Ordering::SeqCst) % self.apis.len();
            if self.ready[at].load(Ordering::SeqCst) {
                return &self.apis[at];
            }
        }
        panic!("no server is ready");
    }
}

/// Shown to fail with `lame_duck_seconds = 0`: calls then meet a closed door.
#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_of_three_servers_under_load_fails_no_call() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let mut fleet = Fleet::start(&postgres, 3, "[server]\nlame_duck_seconds = 2\n").unwrap();
    let (apis, mut images) = (fleet.apis().unwrap(), Images::new().await);
    let (mut ledger, done) = (Ledger::new(&apis[0]).await, Arc::new(Done::default()));
    let known = images.next().await;
    done.sign(&apis[0], &known).await.unwrap();
    let balancer = Arc::new(Balancer {
        ready: apis.iter().map(|_| AtomicBool::new(true)).collect(),
        apis,
        next: AtomicUsize::new(0),
    });
    let (over, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let failed = Arc::new(Mutex::new(Vec::new()));
    let ledger_of_callers = Arc::new(Ledger::new(&balancer.apis[0]).await);
    let (images, requests) = (
        Arc::new(Mutex::new(images.many(3_000).await)),
        Arc::new(Mutex::new(entries(3_000))),
    );
    let mut callers = Vec::new();
    for caller in 0..3 * CALLERS {
        let (balancer, done, over, calls) = (balancer.clone(), done.clone(), over.clone(), calls.clone());
        let (images, requests, failed) = (images.clone(), requests.clone(), failed.clone());
        let (known, ledger) = (known.clone(), ledger_of_callers.clone());
        callers.push(tokio::spawn(async move {
            while !over.load(Ordering::SeqCst) {
                let api = balancer.pick();
                let outcome = match caller % 3 {
                    0 => {
                        let image = images.lock().unwrap().pop();
                        done.sign(api, &image.expect("images for the whole test"))
                            .await
                            .map(|_| ())
                    }
                    1 => {
                        let request = requests.lock().unwrap().pop();
                        done.log(api, &ledger, &request.expect("entries for the whole test"))
                            .await
                    }
                    _ => match api.post("/api/v1/verifications", &known).await {
                        Ok(answer) if answer.body["verified"] == true => Ok(()),
                        other => Err(format!("verify: {other:?}")),
                    },
                };
                calls.fetch_add(1, Ordering::SeqCst);
                if let Err(why) = outcome {
                    failed.lock().unwrap().push(why);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }));
    }
    let looks = {
        let (balancer, over) = (balancer.clone(), over.clone());
        tokio::spawn(async move {
            while !over.load(Ordering::SeqCst) {
                balancer.look().await;
                tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
            }
        })
    };
    for at in 0..3 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let server = fleet.server(at);
        let stopped = tokio::task::block_in_place(|| server.stop().unwrap());
        assert_eq!(stopped, Some(0), "{}", server.log());
        let started = tokio::task::block_in_place(|| server.launch(None).unwrap());
        assert!(started, "{}", server.log());
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    over.store(true, Ordering::SeqCst);
    looks.await.unwrap();
    for caller in callers {
        caller.await.unwrap();
    }
    let (calls, failed) = (calls.load(Ordering::SeqCst), failed.lock().unwrap().clone());
    println!("{calls} calls, {} failed", failed.len());
    assert!(
        failed.is_empty(),
        "{} of {calls} failed: {:?}",
        failed.len(),
        &failed[..failed.len().min(5)]
    );
    assert!(calls > 300, "only {calls} calls: no load");
    Arc::into_inner(done).unwrap().check(&fleet, &mut ledger).await;
}
