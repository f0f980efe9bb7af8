//! Damaged files: the server does not start, names what is damaged, and makes nothing worse.

use std::path::{Path, PathBuf};

use e2e::{Server, Setup};
use kernel::Code;
use serde_json::Value;
use store::{Db, args};

use crate::ledger::{Ledger, Signatures, send};

/// A stopped server with a log of one full tile and a few entries more.
async fn stopped() -> Server {
    let mut server = Server::start(Setup::default()).unwrap();
    let api = server.api().unwrap();
    let ledger = Ledger::new(&api).await;
    let mut signatures = Signatures::new();
    let requests: Vec<Value> = (0..260).map(|_| signatures.request()).collect();
    assert_eq!(send(&api, &ledger, &requests).await.len(), requests.len());
    let tile = server.data().join("blobs/tlog/tile/0/000");
    assert!(
        testkit::wait_for(|| tile.is_file().then_some(())).is_some(),
        "no tile was written"
    );
    assert_eq!(server.stop().unwrap(), Some(0));
    // What waits in the write-ahead log goes into the database file, where the damage is done.
    database(&server).await.close().await;
    server
}

async fn database(server: &Server) -> Db {
    Db::open(&format!("sqlite:{}", database_file(server).display()))
        .await
        .unwrap()
}

fn database_file(server: &Server) -> PathBuf {
    server.data().join("portcullis.db")
}

/// The server refuses to start: with the code, the name of what is damaged, and the files left as they were.
#[track_caller]
fn assert_refused(server: &mut Server, what: &str, codes: &[&Code], named: &str) {
    let before = server.log().len();
    let started = server.launch(None).unwrap();
    let said = server.log().split_off(before);
    assert!(!started, "{what}: the server started");
    assert!(
        codes.iter().any(|code| said.contains(code.id)),
        "{what}: none of {codes:?} in:\n{said}"
    );
    assert!(said.contains(named), "{what}: {named} is not named in:\n{said}");
    assert!(said.contains("hint:"), "{what}: no hint in:\n{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_database_file_is_refused_by_its_name() {
    let mut server = stopped().await;
    let path = database_file(&server);
    let good = std::fs::read(&path).unwrap();
    let page = |bytes: &mut [u8], number: usize| bytes[(number - 1) * 4096..number * 4096].fill(0x5a);
    let mut pages = good.clone();
    (3..9).for_each(|number| page(&mut pages, number));
    let mut header = good.clone();
    page(&mut header, 1);
    let half = good[..good.len() / 2].to_vec();
    for (what, bytes) in [
        ("pages", pages),
        ("the header", header),
        ("the second half", half),
    ] {
        std::fs::write(&path, &bytes).unwrap();
        let codes = [&store::codes::DAMAGED];
        assert_refused(&mut server, what, &codes, "portcullis.db");
        assert!(
            std::fs::read(&path).unwrap() == bytes,
            "{what}: the damaged file was written to"
        );
    }
    std::fs::write(&path, &good).unwrap();
    server.restart().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_checkpoint_is_refused_by_its_name() {
    let mut server = stopped().await;
    let changes = [
        (
            "a bit of the note",
            "UPDATE tlog_checkpoint SET note = REPLACE(note, '260', '261')",
        ),
        ("the size", "UPDATE tlog_checkpoint SET size = size + 1"),
        ("the row", "DELETE FROM tlog_checkpoint"),
    ];
    let path = database_file(&server);
    let good = std::fs::read(&path).unwrap();
    for (what, change) in changes {
        let db = database(&server).await;
        let mut tx = db.begin().await.unwrap();
        assert_eq!(tx.execute(change, args![]).await.unwrap(), 1, "{what}");
        tx.commit().await.unwrap();
        db.close().await;
        let all: Vec<&Code> = tlog::codes::ALL.to_vec();
        assert_refused(&mut server, what, &all, "");
        std::fs::write(&path, &good).unwrap();
    }
    server.restart().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_tile_is_refused_by_its_name() {
    let mut server = stopped().await;
    for name in ["tile/0/000", "tile/entries/000"] {
        let path = server.data().join("blobs/tlog").join(name);
        let good = std::fs::read(&path).unwrap();
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 1;
        for (what, bytes) in [
            ("a flipped bit", flipped),
            ("cut short", good[..good.len() - 1].to_vec()),
        ] {
            replace(&path, &bytes);
            assert_refused(&mut server, &format!("{name}, {what}"), tlog::codes::ALL, name);
        }
        std::fs::remove_file(&path).unwrap();
        assert_refused(&mut server, &format!("{name}, gone"), tlog::codes::ALL, name);
        replace(&path, &good);
    }
    server.restart().unwrap();
    server.run(&["log", "fsck"]).unwrap().expect_ok();
}

fn replace(path: &Path, bytes: &[u8]) {
    let _ = std::fs::remove_file(path);
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_or_wrong_secret_is_refused_and_never_replaced() {
    let mut server = stopped().await;
    let foreign = Server::start(Setup::default()).unwrap();
    for name in ["secrets/log.json", "secrets/keys.password"] {
        let path = server.data().join(name);
        let good = std::fs::read(&path).unwrap();
        let mut flipped = good.clone();
        // In the key of the one and anywhere in the other.
        flipped[good.len() - 20] ^= 1;
        for (what, bytes) in [
            ("lost", None),
            ("empty", Some(Vec::new())),
            ("flipped", Some(flipped)),
            (
                "another server's",
                Some(std::fs::read(foreign.data().join(name)).unwrap()),
            ),
        ] {
            std::fs::remove_file(&path).unwrap();
            if let Some(bytes) = &bytes {
                std::fs::write(&path, bytes).unwrap();
            }
            let before = server.log().len();
            assert!(
                !server.launch(None).unwrap(),
                "{name} is {what}, and the server started"
            );
            let said = server.log().split_off(before);
            assert!(said.contains("error[PC"), "{name} is {what}: {said}");
            assert!(
                said.contains(name) || said.contains("put back the log key"),
                "{name} is {what}: {said}"
            );
            assert_eq!(
                std::fs::read(&path).ok(),
                bytes,
                "{name} was {what}, and was replaced"
            );
            std::fs::write(&path, &good).unwrap();
        }
    }
    server.restart().unwrap();
}

/// Every way in which a database can be younger or older than what the log has shown to the world.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_lost_emptied_or_old_never_forks_the_log() {
    let mut server = Server::start(Setup::default()).unwrap();
    let path = database_file(&server);
    let beside = |end: &str| PathBuf::from(format!("{}{end}", path.display()));
    let mut signatures = Signatures::new();
    let mut append = async |server: &Server, count: usize| {
        let api = server.api().unwrap();
        let requests: Vec<Value> = (0..count).map(|_| signatures.request()).collect();
        assert_eq!(send(&api, &Ledger::new(&api).await, &requests).await.len(), count);
    };
    append(&server, 3).await;
    assert_eq!(server.stop().unwrap(), Some(0));
    assert!(!beside("-wal").exists(), "a clean stop leaves one file");
    let old = std::fs::read(&path).unwrap();
    server.restart().unwrap();
    append(&server, 4).await;
    assert_eq!(server.stop().unwrap(), Some(0));
    let good = std::fs::read(&path).unwrap();

    let codes = [&tlog::codes::ROLLED_BACK];
    for (what, bytes) in [
        ("lost", None),
        ("emptied", Some(Vec::new())),
        ("an older copy", Some(old)),
    ] {
        for end in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(beside(end));
        }
        if let Some(bytes) = bytes {
            std::fs::write(&path, bytes).unwrap();
        }
        assert_refused(&mut server, what, &codes, "log.checkpoint");
        assert_eq!(
            server.log().matches("pcl_").count(),
            1,
            "{what}: a second first token"
        );
    }
    for end in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(beside(end));
    }
    // Another log under the same key, as long as the first: what it holds is not what was shown.
    let mark = server.data().join("log.checkpoint");
    let shown = std::fs::read(&mark).unwrap();
    std::fs::remove_file(&mark).unwrap();
    // By this alone it would be another installation's database, which takes no changes.
    let installation = server.data().join("database.mark");
    let known = std::fs::read(&installation).unwrap();
    std::fs::remove_file(&installation).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(server.launch(None).unwrap(), "{}", server.log());
    append(&server, 7).await;
    assert_eq!(server.stop().unwrap(), Some(0));
    std::fs::write(&mark, &shown).unwrap();
    assert_refused(&mut server, "a fork", &[&tlog::codes::FORKED], "log.checkpoint");

    for end in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(beside(end));
    }
    std::fs::write(&path, &good).unwrap();
    std::fs::write(&installation, &known).unwrap();
    server.restart().unwrap();
    server.run(&["log", "fsck"]).unwrap().expect_ok();

    // Without the file an older database would not be noticed: that is said, and it is there again at once.
    server.kill();
    std::fs::remove_file(&mark).unwrap();
    let warning = "there is no checkpoint beside the database";
    let said = server.log().matches(warning).count();
    server.restart().unwrap();
    assert_eq!(
        server.log().matches(warning).count(),
        said + 1,
        "{}",
        server.log()
    );
    assert!(mark.is_file());
}
