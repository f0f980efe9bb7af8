//! A backup is whole, whatever is written meanwhile, and what is restored from it goes on as the same log.

mod damage;
mod faults;
mod fork;
mod limits;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use e2e::{Api, Server, Setup};
use registry::{Options, Registry, Running};
use serde_json::{Value, json};
use testkit::Postgres;

use crate::ledger::{Ledger, Signatures, send};

/// Entries beside those of signatures: more than a full tile of the log has.
const ENTRIES: usize = 300;

/// The configuration of a server that keeps its rows in PostgreSQL, or in SQLite's file if there is no address.
fn setup(database: Option<&str>) -> Setup {
    Setup {
        config: database.map_or_else(String::new, |url| {
            format!("[database]\nurl = {url:?}\n[blobs]\nurl = \"FOLDER/data/blobs\"\n")
        }),
        ..Setup::default()
    }
}

/// A registry, and a server that has a log of more than a tile and signed one image.
struct World {
    registry: Registry,
    running: Running,
    server: Server,
    ledger: Ledger,
}

impl World {
    async fn new(database: Option<&str>) -> Self {
        let registry = Registry::memory(Options::default());
        let running = registry.serve_on_loopback().await.unwrap();
        let server = Server::start(setup(database)).unwrap();
        let api = server.api().unwrap();
        let ledger = Ledger::new(&api).await;
        let world = Self {
            registry,
            running,
            server,
            ledger,
        };
        assert_eq!(sign(&api, &world.image("old").await).await.0, 201);
        let mut signatures = Signatures::new();
        let requests: Vec<Value> = (0..ENTRIES).map(|_| signatures.request()).collect();
        assert_eq!(send(&api, &world.ledger, &requests).await.len(), ENTRIES);
        world
    }

    /// An image of its own, which is put into the registry.
    async fn image(&self, tag: &str) -> Value {
        self.registry.put_image("team/app", tag, tag).await.unwrap();
        json!({ "image": format!("{}/team/app:{tag}", self.running.host()) })
    }

    fn backup(&self, name: &str) -> (PathBuf, Value) {
        let file = self.server.folder().join(name);
        let made = self
            .server
            .run(&[
                "backup",
                &text(&file),
                "--data",
                &text(&self.server.data()),
                "-o",
                "json",
            ])
            .unwrap()
            .expect_ok();
        (file, serde_json::from_str(&made.stdout).unwrap())
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Signs; the status and the signature's id.
async fn sign(api: &Api, image: &Value) -> (u16, String) {
    let answer = api.post("/api/v1/signatures", image).await.unwrap();
    (
        answer.status,
        answer.body["id"].as_str().unwrap_or_default().to_owned(),
    )
}

/// A server that does not run, to restore into.
fn target(database: Option<&str>, token: &str) -> Server {
    Server::prepare(setup(database), token).unwrap()
}

fn restore(server: &Server, file: &Path, more: &[&str]) -> e2e::Ran {
    let (file, data) = (text(file), text(&server.data()));
    let args = ["restore", &file, "--data", &data, "-o", "json"];
    server.run(&[&args, more].concat()).unwrap()
}

/// A backup while images are signed, restored elsewhere: nothing that was answered before it began is missing, the log is
/// whole and goes on from the checkpoint in the backup, and so does the audit trail.
async fn moves(from: Option<&str>, to: Option<&str>) {
    let mut world = World::new(from).await;
    let (api, old) = (world.server.api().unwrap(), world.image("old").await);
    let (_, id) = sign(&api, &old).await;
    let before = world.ledger.look(&api).await;

    // Others go on signing while the backup is made.
    let stop = Arc::new(AtomicBool::new(false));
    let signing = {
        let (api, stop) = (api.clone(), stop.clone());
        let (registry, host) = (world.registry.clone(), world.running.host());
        tokio::spawn(async move {
            let mut signed = 0;
            while !stop.load(Ordering::Relaxed) {
                let tag = format!("m{signed}");
                registry.put_image("team/app", &tag, &tag).await.unwrap();
                let image = json!({ "image": format!("{host}/team/app:{tag}") });
                assert_eq!(sign(&api, &image).await.0, 201);
                signed += 1;
            }
            signed
        })
    };
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let (file, made) = tokio::task::block_in_place(|| world.backup("one.tar"));
    stop.store(true, Ordering::Relaxed);
    assert!(signing.await.unwrap() > 0, "nobody signed meanwhile");
    let held = made["logs"][0]["size"].as_u64().unwrap();
    assert!(
        held >= before,
        "{held} entries in the backup of a log of {before}"
    );
    // Of its rows, none speaks of an entry that is not in it.
    let rows = |table: &str| made["rows"][table].as_u64().unwrap();
    assert_eq!(rows("tlog_leaf"), held);
    assert_eq!(rows("tlog_tail"), held % 256);
    world.server.kill();

    let mut restored = target(to, world.server.token());
    let done = restore(&restored, &file, &[]).expect_ok();
    assert!(done.stderr.contains("warning: no checkpoint"), "{done:?}");
    if to.is_none() {
        let data = text(&restored.data());
        restored.run(&["log", "fsck", &data]).unwrap().expect_ok();
    }
    restored.restart().unwrap();
    let api = restored.api().unwrap();
    let mut ledger = Ledger::new(&api).await;
    ledger.remember(made["logs"][0]["checkpoint"].as_str().unwrap());
    assert_eq!(ledger.look(&api).await, held);
    assert_eq!(
        sign(&api, &old).await,
        (200, id),
        "the old image is signed already"
    );
    let verified = api.post("/api/v1/verifications", &old).await.unwrap();
    assert_eq!(verified.body["verified"], true, "{verified:?}");
    assert_eq!(sign(&api, &world.image("new").await).await.0, 201);
    let new = world.image("new").await;
    let verified = api.post("/api/v1/verifications", &new).await.unwrap();
    assert_eq!(verified.body["verified"], true, "{verified:?}");
    // All of the log, and that it goes on from the checkpoint in the backup.
    ledger.audit(&restored, &[]).await;
    assert!(ledger.look(&api).await > held);
    restored.run(&["audit", "verify"]).unwrap().expect_ok();
    assert_eq!(restored.stop().unwrap(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_while_images_are_signed_restores_from_sqlite_to_sqlite() {
    moves(None, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_while_images_are_signed_restores_from_postgresql_to_postgresql() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    moves(Some(&postgres.database()), Some(&postgres.database())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_moves_an_installation_from_sqlite_to_postgresql_and_back() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    moves(None, Some(&postgres.database())).await;
    moves(Some(&postgres.database()), None).await;
}

/// The same rows come out of what was restored as went in: nothing is lost or changed on the way through either database.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_what_was_restored_is_the_same_but_for_what_restoring_changes() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let mut world = World::new(None).await;
    assert_eq!(world.server.stop().unwrap(), Some(0));
    let (first, _) = world.backup("first.tar");
    let through = target(Some(&postgres.database()), "");
    restore(&through, &first, &[]).expect_ok();
    let second = through.folder().join("second.tar");
    through
        .run(&["backup", &text(&second), "--data", &text(&through.data())])
        .unwrap()
        .expect_ok();
    let lines = |file: &Path| {
        let mut reader = store::archive::Reader::new(std::fs::File::open(file).unwrap()).unwrap();
        let mut lines = std::collections::BTreeSet::new();
        while let Some(member) = reader.member().unwrap() {
            let text = String::from_utf8_lossy(&member.bytes).into_owned();
            // Who leads the log is new; the manifest has the time.
            let skipped = ["tables/lease/", "manifest.json"]
                .iter()
                .any(|name| member.name.starts_with(name));
            if !skipped {
                let table = member
                    .name
                    .rsplit_once('/')
                    .map_or("", |(table, _)| table)
                    .to_owned();
                lines.extend(text.lines().map(|line| (table.clone(), line.to_owned())));
            }
        }
        lines
    };
    let (before, after) = (lines(&first), lines(&second));
    assert!(before.len() > ENTRIES, "{}", before.len());
    let changed: Vec<_> = before.symmetric_difference(&after).collect();
    assert!(changed.is_empty(), "{changed:?}");
}
