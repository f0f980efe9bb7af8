//! Kills at any moment, and memory that does not grow with what is backed up.

use std::process::Command;
use std::time::Duration;

use e2e::Server;
use kernel::{Random as _, SeededRandom};
use store::Db;
use testkit::{Postgres, Process};

use super::{World, sign, target, text};

/// Restores that are killed, each a little later than the one before at the most.
const KILLS: u32 = 12;
/// A restore of the world takes about as long on a machine that is busy, in milliseconds.
const RESTORE_MS: u64 = 200;
/// Rows of a kilobyte each: 200 MB.
const ROWS: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000) \
     INSERT INTO operation (id, project, asker, request, created_at, claimed_until, finished_at, answer) \
     SELECT 'op_' || i, 'default', 'a', hex(randomblob(500)), 1, 1, 1, 'x' FROM n";
/// What a process may hold, in KiB; opening a key, to try the password, takes 65,536 of them.
const MEMORY_KIB: u32 = 150_000;

/// Whatever the moment, what stands then is one of three: a server that was restored whole, nothing at all, or something
/// that does not start.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_killed_at_any_moment_is_whole_or_does_not_start() {
    let mut world = World::new(None).await;
    let (file, _) = world.backup("b.tar");
    world.server.kill();
    let (random, mut refused) = (SeededRandom::new(11), 0);
    for kill in 0..KILLS {
        let mut server = target(None, world.server.token());
        let mut command = server.command();
        command.args(["restore", &text(&file), "--data", &text(&server.data())]);
        let mut byte = [0];
        random.fill(&mut byte);
        let mut process = Process::start(&mut command, &server.folder().join("restore.log")).unwrap();
        tokio::time::sleep(Duration::from_millis(RESTORE_MS * u64::from(byte[0]) / 255)).await;
        process.kill();
        if !server.launch(None).unwrap() {
            assert!(server.log().contains("PC1109"), "kill {kill}: {}", server.log());
            refused += 1;
            continue;
        }
        let api = server.api().unwrap();
        let (status, _) = sign(&api, &world.image("old").await).await;
        if status != 200 {
            // The restore had not begun, so this is a new server, which knows nobody's token and has its own log.
            assert_eq!(status, 401, "kill {kill}");
            assert!(server.log().contains("PORTCULLIS_TOKEN="), "kill {kill}");
            let secret = |server: &Server| std::fs::read(server.data().join("secrets/log.json")).unwrap();
            assert!(
                secret(&server) != secret(&world.server),
                "kill {kill}: a second log under one key"
            );
        }
    }
    assert!(refused > 0, "no kill came in the middle");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_and_its_restore_take_less_memory_than_they_have_rows() {
    let mut world = World::new(None).await;
    assert_eq!(world.server.stop().unwrap(), Some(0));
    let data = text(&world.server.data());
    let db = Db::open(&format!("sqlite:{data}/portcullis.db")).await.unwrap();
    let mut tx = db.begin().await.unwrap();
    assert_eq!(tx.execute(ROWS, Vec::new()).await.unwrap(), 200_000);
    tx.commit().await.unwrap();
    db.close().await;
    let file = text(&world.server.folder().join("b.tar"));
    bounded(world.server.command(), &["backup", &file, "--data", &data]);
    // Into SQLite, and into PostgreSQL, out of which it comes again.
    let sqlite = target(None, "");
    bounded(
        sqlite.command(),
        &["restore", &file, "--data", &text(&sqlite.data())],
    );
    if let Some(postgres) = Postgres::shared() {
        let shared = target(Some(&postgres.database()), "");
        let to = text(&shared.data());
        bounded(shared.command(), &["restore", &file, "--data", &to]);
        bounded(shared.command(), &["backup", &file, "--force", "--data", &to]);
    }
    assert!(std::fs::metadata(&file).unwrap().len() > u64::from(MEMORY_KIB) * 1_024);
}

/// Runs the program as `server` would, and looks at the most memory that it ever held.
fn bounded(mut command: Command, args: &[&str]) {
    let mut child = command.args(args).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    let ended = loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let held = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let held = held.and_then(|held| held.trim().strip_suffix(" kB"));
        most = held.map_or(most, |held| held.parse().unwrap());
        match child.try_wait().unwrap() {
            Some(ended) => break ended,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    assert!(ended.success(), "{args:?} ended with {ended}");
    println!("{} held {most} KiB at most", args[0]);
    assert!((1..=MEMORY_KIB).contains(&most), "{args:?} held {most} KiB");
}
