//! A restored log that would fork is refused by its name.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use testkit::Postgres;
use tlog::LogKey;

use super::{World, restore, sign, target, text};

/// A world with a backup, that went on afterwards.
async fn gone_on(database: Option<&str>) -> (World, PathBuf) {
    let world = World::new(database).await;
    let (file, _) = world.backup("old.tar");
    let api = world.server.api().unwrap();
    assert_eq!(sign(&api, &world.image("later").await).await.0, 201);
    (world, file)
}

/// Where the newest checkpoint lies beside the database, once it has so many entries.
fn kept(world: &World, size: u64) -> PathBuf {
    let path = world.server.data().join("log.checkpoint");
    let found = testkit::wait_for(|| {
        let note = std::fs::read_to_string(&path).ok()?;
        (note.lines().nth(1)? == size.to_string()).then_some(())
    });
    assert!(
        found.is_some(),
        "no checkpoint of {size} entries in {}",
        path.display()
    );
    path
}

/// It fails if `backup::seen::check` lets everything pass.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_holds_less_than_was_seen_is_refused() {
    let (mut world, file) = gone_on(None).await;
    let seen = kept(&world, 302);
    world.server.kill();
    let mut elsewhere = target(None, world.server.token());
    let refused = restore(&elsewhere, &file, &["--checkpoint", &text(&seen)]).expect_refused("PC1905");
    assert_eq!(refused.code, Some(7), "{refused:?}");
    assert!(
        refused.stderr.contains("holds 301 entries, 302 were seen"),
        "{refused:?}"
    );
    assert!(!elsewhere.data().exists(), "something was written");

    // In its own data folder, whose database was lost, nobody has to name it.
    for name in ["portcullis.db", "portcullis.db-wal", "portcullis.db-shm"] {
        let _ = std::fs::remove_file(world.server.data().join(name));
    }
    restore(&world.server, &file, &[]).expect_refused("PC1905");

    // A checkpoint that the backup goes on from, or is at, is no reason to refuse.
    let same = elsewhere.folder().join("same");
    std::fs::write(&same, note(&file)).unwrap();
    let done = restore(&elsewhere, &file, &["--checkpoint", &text(&same)]).expect_ok();
    assert!(!done.stderr.contains("warning"), "{done:?}");
    elsewhere.restart().unwrap();
}

/// The checkpoint of the signatures' log in a backup.
fn note(file: &Path) -> String {
    notes(file).swap_remove(0)
}

/// The checkpoints in a backup: of the signatures' log, of the audit log.
fn notes(file: &Path) -> Vec<String> {
    let mut reader = store::archive::Reader::new(std::fs::File::open(file).unwrap()).unwrap();
    let manifest = store::archive::verify(&mut reader).unwrap();
    manifest.logs.into_iter().map(|log| log.checkpoint).collect()
}

fn size(note: &str) -> u64 {
    note.lines().nth(1).unwrap().parse().unwrap()
}

/// The checkpoint beside an export of the audit trail, once it has more than so many entries.
fn exported(world: &World, entries: u64) -> PathBuf {
    let mut names = (1..).map(|attempt| world.server.folder().join(format!("audit{entries}-{attempt}")));
    let found = testkit::wait_for(|| {
        let file = text(&names.next()?);
        let ran = world.server.run(&["audit", "export", "--file", &file]).unwrap();
        ran.expect_ok();
        let checkpoint = PathBuf::from(format!("{file}.checkpoint"));
        (size(&std::fs::read_to_string(&checkpoint).unwrap()) > entries).then_some(checkpoint)
    });
    found.expect("the server seals no audit record")
}

/// Each checkpoint is held against the log whose it is, and what is said tells which log was held against none. Shown to
/// fail: by taking every given checkpoint for one of the signatures' log.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_whose_audit_log_holds_less_than_was_seen_is_refused() {
    let mut world = World::new(None).await;
    let before = exported(&world, 0);
    let (file, _) = world.backup("old.tar");
    let notes = notes(&file);
    let api = world.server.api().unwrap();
    assert_eq!(sign(&api, &world.image("later").await).await.0, 201);
    let after = exported(&world, size(&notes[1]));
    world.server.kill();
    let elsewhere = target(None, "");
    let same = elsewhere.folder().join("same");
    std::fs::write(&same, &notes[0]).unwrap();
    // That of the signatures' log stands beside it and is no answer for the audit log.
    let (same, before) = (text(&same), text(&before));
    let after = ["--checkpoint", &same, "--checkpoint", &text(&after)];
    let refused = restore(&elsewhere, &file, &after).expect_refused("PC1905");
    assert_eq!(refused.code, Some(7), "{refused:?}");
    let told = format!("the audit log: the backup holds {} entries", size(&notes[1]));
    assert!(refused.stderr.contains(&told), "{refused:?}");
    assert!(!elsewhere.data().exists(), "something was written");

    for (given, told) in [
        (
            vec![&same],
            format!("the log: {same}, the audit log: no checkpoint"),
        ),
        (
            vec![&before],
            format!("the log: no checkpoint, the audit log: {before}"),
        ),
        (
            vec![&before, &same],
            format!("the log: {same}, the audit log: {before}"),
        ),
    ] {
        let server = target(None, "");
        let given: Vec<&str> = given
            .iter()
            .flat_map(|path| ["--checkpoint", path.as_str()])
            .collect();
        let done = restore(&server, &file, &given).expect_ok();
        let printed: Value = serde_json::from_str(&done.stdout).unwrap();
        assert_eq!(printed["held_against"], told, "{done:?}");
    }
}

/// Somebody kept a checkpoint, signed by the log's key, of other entries: as many as in the backup, and fewer. The first
/// is told from the checkpoints alone, the second by the tiles in the backup; nothing was written for either.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_holds_other_entries_than_were_seen_is_refused() {
    let (mut world, file) = gone_on(None).await;
    world.server.kill();
    let secret = std::fs::read_to_string(world.server.data().join("secrets/log.json")).unwrap();
    let secret: Value = serde_json::from_str(&secret).unwrap();
    let pkcs8 = BASE64.decode(secret["private_key"].as_str().unwrap()).unwrap();
    let key = LogKey::new(secret["origin"].as_str().unwrap(), &pkcs8).unwrap();
    for size in [301, 300] {
        let elsewhere = target(None, world.server.token());
        let seen = elsewhere.folder().join("seen");
        std::fs::write(&seen, key.sign(size, [7; 32]).note).unwrap();
        let refused = restore(&elsewhere, &file, &["--checkpoint", &text(&seen)]).expect_refused("PC1905");
        assert!(
            refused.stderr.contains("other entries than were seen"),
            "{refused:?}"
        );
        assert!(!elsewhere.data().exists(), "{size}: something was written");
    }
    // One of another log says nothing about this one, and is not taken for an answer.
    let other = LogKey::generate(&kernel::SeededRandom::new(1)).unwrap();
    let other = LogKey::new("other.example", &other).unwrap();
    let elsewhere = target(None, "");
    let seen = elsewhere.folder().join("seen");
    std::fs::write(&seen, other.sign(1, [7; 32]).note).unwrap();
    restore(&elsewhere, &file, &["--checkpoint", &text(&seen)]).expect_refused("PC1403");
    assert!(!elsewhere.data().exists(), "something was written");
}

/// Blobs that outlived the database show as well that the log went on.
#[tokio::test(flavor = "multi_thread")]
async fn blobs_that_are_newer_than_the_backup_refuse_it() {
    let (mut world, file) = gone_on(None).await;
    let api = world.server.api().unwrap();
    let mut signatures = crate::ledger::Signatures::new();
    let requests: Vec<Value> = (0..256).map(|_| signatures.request()).collect();
    crate::ledger::send(&api, &world.ledger, &requests).await;
    let tile = world.server.data().join("blobs/tlog/tile/entries/001");
    assert!(testkit::wait_for(|| tile.is_file().then_some(())).is_some());
    world.server.kill();
    let mut elsewhere = target(None, "");
    std::fs::create_dir_all(elsewhere.data()).unwrap();
    std::fs::rename(world.server.data().join("blobs"), elsewhere.data().join("blobs")).unwrap();
    restore(&elsewhere, &file, &[]).expect_refused("PC1905");
    assert!(elsewhere.take_process().is_none());
}

/// PostgreSQL is put back to an older state behind a server's back: no server starts on it whose data folder has seen more.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_has_seen_more_does_not_start_on_an_older_postgresql() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let (database, older) = (postgres.database(), postgres.database());
    let (mut world, file) = gone_on(Some(&database)).await;
    kept(&world, 302);
    world.server.kill();
    // Elsewhere nobody knows of the last entry, and nobody says so.
    let elsewhere = target(Some(&older), "");
    restore(&elsewhere, &file, &[]).expect_ok();
    let blobs = world.server.data().join("blobs");
    let config = format!("[database]\nurl = {older:?}\n[blobs]\nurl = {blobs:?}\n");
    std::fs::write(world.server.folder().join("portcullis.toml"), config).unwrap();
    let before = world.server.log().len();
    assert!(
        !world.server.launch(None).unwrap(),
        "it started on an older database"
    );
    let said = world.server.log().split_off(before);
    assert!(said.contains("PC1405") && said.contains("302 entries"), "{said}");
    assert!(said.contains("hint:"), "{said}");
}
