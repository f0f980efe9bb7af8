//! Every durable part of the log, damaged: the log does not start, and says which part it is.

use kernel::{Fault, chain};

use super::*;
use crate::Folder;

/// 600 entries: two full bundles with tiles, 88 rows in the tail.
async fn closed_log() -> Data {
    let data = Data::new();
    let tlog = data.open().await;
    fill(&tlog, 0, 600).await;
    tiled(&tlog).await;
    tlog.close().await;
    tlog.core.tables.db.close().await;
    data
}

async fn refused(data: &Data, code: &str, name: &str) {
    let Err(error) = data.try_open().await else {
        panic!("it started, despite {name}")
    };
    let text = chain(&error);
    assert_eq!(error.code().id, code, "{text}");
    assert!(text.contains(name), "{text} does not name {name}");
    assert!(!error.hint().is_empty());
}

#[tokio::test]
async fn a_damaged_tile_or_bundle_is_named() {
    type Edit = fn(&mut Vec<u8>);
    let cut: Edit = |bytes| bytes.truncate(bytes.len() - 1);
    let flip: Edit = |bytes| bytes[300] ^= 1;
    let empty: Edit = |bytes| bytes.clear();
    for (file, edit) in [
        ("tile/0/000", cut),
        ("tile/0/000", flip),
        ("tile/0/001", empty),
        ("tile/entries/000", cut),
        ("tile/entries/001", flip),
        ("tile/entries/001", empty),
    ] {
        let data = closed_log().await;
        change(&data.blobs().join("tlog").join(file), edit);
        refused(&data, "PC1401", file).await;
    }
    for file in ["tile/0/001", "tile/entries/000"] {
        let data = closed_log().await;
        std::fs::remove_file(data.blobs().join("tlog").join(file)).unwrap();
        refused(&data, "PC1401", file).await;
    }
}

#[tokio::test]
async fn a_damaged_row_is_named() {
    for (sql, code, name) in [
        (
            "UPDATE tlog_tail SET body = X'00' WHERE entry_index = 530",
            "PC1401",
            "row 530 of table tlog_tail",
        ),
        (
            "DELETE FROM tlog_tail WHERE entry_index = 599",
            "PC1401",
            "rows 512 to 599 of table tlog_tail",
        ),
        (
            "DELETE FROM tlog_tail WHERE entry_index = 512",
            "PC1401",
            "table tlog_tail",
        ),
        (
            "UPDATE tlog_tiles SET entries = 256",
            "PC1401",
            "table tlog_tiles",
        ),
        ("DELETE FROM tlog_tiles", "PC1401", "tlog_tiles"),
        (
            "UPDATE tlog_checkpoint SET note = replace(note, '600', '601')",
            "PC1402",
            "checkpoint",
        ),
        (
            "UPDATE tlog_checkpoint SET note = substr(note, 1, 40)",
            "PC1402",
            "checkpoint",
        ),
        (
            "UPDATE tlog_checkpoint SET size = 599",
            "PC1401",
            "tlog_checkpoint",
        ),
        ("DELETE FROM tlog_checkpoint", "PC1405", "tlog/tile/entries/000"),
    ] {
        let data = closed_log().await;
        data.execute(sql).await;
        refused(&data, code, name).await;
    }
}

#[tokio::test]
async fn another_key_or_an_older_database_is_refused() {
    let data = closed_log().await;
    let mut settings = data.settings(data.db().await, "server-1");
    settings.key = key(2);
    assert_eq!(
        Tlog::open(settings).await.map(|_| ()).unwrap_err().code().id,
        "PC1403"
    );

    // The database from before the tiles were written.
    let data = Data::new();
    let tlog = data.open().await;
    fill(&tlog, 0, 200).await;
    tlog.close().await;
    tlog.core.tables.db.close().await;
    let (db, old) = (data.folder.path().join("db"), data.folder.path().join("old"));
    std::fs::copy(&db, &old).unwrap();
    let tlog = data.open().await;
    fill(&tlog, 200, 300).await;
    tiled(&tlog).await;
    tlog.close().await;
    tlog.core.tables.db.close().await;
    std::fs::copy(&old, &db).unwrap();
    refused(&data, "PC1405", "tlog/tile/entries/000").await;

    // An older checkpoint, put into the newer database.
    let data = closed_log().await;
    let db = data.db().await;
    let mut tx = db.begin().await.unwrap();
    let note = key(1).sign(590, [0; 32]).note;
    tx.execute(
        "UPDATE tlog_checkpoint SET size = 590, note = $1",
        store::args![note],
    )
    .await
    .unwrap();
    tx.commit().await.unwrap();
    db.close().await;
    refused(&data, "PC1405", "row 599 of table tlog_tail").await;
}

#[tokio::test]
async fn damage_that_happens_while_it_runs_gives_no_proof_and_fsck_finds_all_of_it() {
    let data = Data::new();
    let tlog = data.open().await;
    fill(&tlog, 0, 1_000).await;
    tiled(&tlog).await;
    change(&data.blobs().join("tlog/tile/entries/000"), |bytes| {
        bytes[100] ^= 1;
    });
    change(&data.blobs().join("tlog/tile/0/001"), |bytes| bytes[0] ^= 1);
    data.execute("DELETE FROM tlog_leaf WHERE entry_index = 700")
        .await;
    data.execute("UPDATE tlog_tail SET body = X'01' WHERE entry_index = 999")
        .await;
    tlog.core.shelf.forget();
    for index in [0, 256, 999] {
        let error = tlog.proof(index, None).await.unwrap_err();
        assert_eq!(error.code().id, "PC1404", "{}", chain(&error));
    }
    let report = tlog.fsck(&mut |_| {}).await.unwrap();
    let found: Vec<String> = report.damage.iter().map(|damage| damage.what.clone()).collect();
    let expected = [
        "tile/entries/000",
        "tile/0/001",
        "entry 700 in table tlog_leaf",
        "row 999 of table tlog_tail",
    ];
    assert_eq!(found, expected);
}

#[tokio::test]
async fn an_exported_folder_checks_and_proves_on_its_own_and_grows_with_the_log() {
    let data = Data::new();
    let tlog = data.open().await;
    let target = tempfile::tempdir().unwrap();
    for size in [300, 700] {
        let from = tlog.checkpoint().await.unwrap().size;
        fill(&tlog, from, size).await;
        let checkpoint = tlog.export(target.path(), &mut |_| {}).await.unwrap();
        assert_eq!(checkpoint.size, size);
        let folder = Folder::open(target.path(), Some(tlog.verifier().clone()))
            .await
            .unwrap();
        let report = folder.fsck(&mut |_| {}).await.unwrap();
        assert_eq!(
            (report.damage.as_slice(), report.entries_checked),
            (&[][..], size)
        );
        assert_eq!(
            folder.proof(17, None).await.unwrap(),
            tlog.proof(17, None).await.unwrap()
        );
        assert_eq!(
            folder.proof(17, Some(99)).await.unwrap(),
            tlog.proof(17, Some(99)).await.unwrap()
        );
        assert_eq!(
            folder.consistency(100, size).await.unwrap(),
            tlog.consistency(100, size).await.unwrap()
        );
        assert_eq!(folder.entry(size - 1).await.unwrap(), accepted(size - 1).body);
    }
    let own = Folder::open(target.path(), None).await.unwrap();
    assert_eq!(own.verifier(), tlog.verifier());
    let other = Folder::open(target.path(), Some(key(2).verifier().clone()))
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!(other.code().id, "PC1403");

    change(&target.path().join("tile/entries/001"), |bytes| bytes[9] ^= 1);
    std::fs::remove_file(target.path().join("tile/1/000.p/2")).unwrap();
    let report = own.fsck(&mut |_| {}).await.unwrap();
    let found: Vec<String> = report.damage.iter().map(ToString::to_string).collect();
    assert!(
        found[0].contains("tile/entries/001") && found[1].contains("tile/1/000.p/2"),
        "{found:?}"
    );
    assert!(own.proof(300, None).await.is_err());

    std::fs::write(target.path().join("checkpoint"), b"\xff").unwrap();
    assert_eq!(opened(target.path()).await.code().id, "PC1402");
}

async fn opened(folder: &std::path::Path) -> TlogError {
    Folder::open(folder, None).await.map(|_| ()).unwrap_err()
}

#[tokio::test]
async fn a_folder_that_is_no_export_is_told_from_a_damaged_one() {
    let data = Data::new();
    let tlog = data.open().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let file = path.join("file");
    let missing = path.join("missing");
    assert!(
        opened(&missing)
            .await
            .to_string()
            .ends_with("there is no such folder")
    );
    assert!(!missing.exists(), "looking made the folder");
    assert!(opened(path).await.to_string().ends_with("it is empty"));
    std::fs::write(&file, "text").unwrap();
    assert!(
        opened(&file)
            .await
            .to_string()
            .ends_with("it is a file, not a folder")
    );
    assert!(
        opened(path)
            .await
            .to_string()
            .ends_with("there is no file `checkpoint` in it")
    );
    std::fs::create_dir(path.join("checkpoint")).unwrap();
    let error = opened(path).await;
    assert!(error.to_string().ends_with("there is no file `checkpoint` in it"));
    assert_eq!(
        (error.code().id, error.kind()),
        ("PC1417", kernel::Kind::NotFound)
    );
    assert!(
        error
            .hint()
            .ends_with(&format!("portcullis log export {}", path.display()))
    );

    std::fs::remove_dir(path.join("checkpoint")).unwrap();
    tlog.export(path, &mut |_| {}).await.unwrap();
    std::fs::remove_file(path.join("log.pub")).unwrap();
    assert!(
        opened(path)
            .await
            .to_string()
            .ends_with("there is no file `log.pub` in it")
    );
    let known = Some(tlog.verifier().clone());
    assert!(
        Folder::open(path, known).await.is_ok(),
        "whoever knows the key needs no file"
    );
}

#[tokio::test]
async fn a_row_that_changed_by_itself_never_becomes_a_tile() {
    let data = Data::new();
    let tlog = data.open().await;
    fill(&tlog, 0, 200).await;
    data.execute("UPDATE tlog_tail SET body = X'00' WHERE entry_index = 100")
        .await;
    fill(&tlog, 200, 300).await;
    let error = crate::tiler::tile_all(&tlog.core).await.unwrap_err();
    assert_eq!(error.code().id, "PC1401");
    assert!(
        error.to_string().contains("row 100 of table tlog_tail"),
        "{error}"
    );
    assert_eq!(tlog.info().await.unwrap().tiled, 0);
    assert!(!data.blobs().join("tlog/tile/entries/000").exists());
}

#[tokio::test]
async fn a_row_beyond_the_checkpoint_is_named_and_stays_as_it_is() {
    let data = Data::new();
    let tlog = data.open().await;
    fill(&tlog, 0, 5).await;
    data.execute("INSERT INTO tlog_tail (entry_index, body) VALUES (5, X'00')")
        .await;
    let Err(error) = tlog.place(accepted(5)).await else {
        panic!("an entry was written over a row");
    };
    assert_eq!(error.code().id, "PC1401");
    assert!(kernel::chain(&error).contains("table tlog_tail"), "{error}");
    assert_eq!(tlog.checkpoint().await.unwrap().size, 5);
    data.execute("DELETE FROM tlog_tail WHERE entry_index = 5").await;
    fill(&tlog, 5, 300).await;
    fsck_is_clean(&tlog).await;
}

#[tokio::test]
async fn entries_that_fit_together_but_not_the_checkpoint_are_refused() {
    let data = closed_log().await;
    let db = data.db().await;
    let mut tx = db.begin().await.unwrap();
    let note = key(1).sign(600, [0; 32]).note;
    let sql = "UPDATE tlog_checkpoint SET note = $1";
    tx.execute(sql, store::args![note]).await.unwrap();
    tx.commit().await.unwrap();
    db.close().await;
    refused(&data, "PC1404", "fsck").await;

    let (data, other) = (Data::new(), Data::new());
    let (tlog, changed) = (data.open().await, other.open().await);
    fill(&tlog, 0, 300).await;
    changed.place(accepted(300)).await.unwrap();
    for number in 1..300 {
        changed.place(accepted(number)).await.unwrap();
    }
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tlog.export(a.path(), &mut |_| {}).await.unwrap();
    changed.export(b.path(), &mut |_| {}).await.unwrap();
    std::fs::copy(a.path().join("checkpoint"), b.path().join("checkpoint")).unwrap();
    let folder = Folder::open(b.path(), None).await.unwrap();
    let report = folder.fsck(&mut |_| {}).await.unwrap();
    assert_eq!(report.damage[0].what, "the checkpoint");
    assert!(folder.proof(5, None).await.is_err());
}
