//! Blobs, the folder's lock, addresses, damage.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use bytes::Bytes;
use kernel::Fault as _;
use store::{Blobs, Db, FolderLock, Migration, StoreError, args};

async fn puts_gets_and_refuses_to_change(blobs: &Blobs) {
    assert_eq!(blobs.get("tile/0/000").await.unwrap(), None);
    let bytes = Bytes::from_static(b"one");
    blobs.put("tile/0/000", bytes.clone()).await.unwrap();
    blobs.put("tile/0/000", bytes.clone()).await.unwrap();
    let error = blobs
        .put("tile/0/000", Bytes::from_static(b"two"))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::BlobDiffers { .. }), "{error:?}");
    assert_eq!(blobs.get("tile/0/000").await.unwrap(), Some(bytes));
    blobs.put("empty", Bytes::new()).await.unwrap();
    assert_eq!(blobs.get("empty").await.unwrap(), Some(Bytes::new()));
}

#[tokio::test]
async fn a_folder_and_memory_keep_blobs_the_same_way() {
    let folder = tempfile::tempdir().unwrap();
    puts_gets_and_refuses_to_change(&Blobs::folder(&folder.path().join("new/blobs")).unwrap()).await;
    puts_gets_and_refuses_to_change(&Blobs::memory()).await;
    let again = Blobs::folder(&folder.path().join("new/blobs")).unwrap();
    assert_eq!(
        again.get("tile/0/000").await.unwrap(),
        Some(Bytes::from_static(b"one"))
    );
}

#[tokio::test]
async fn of_writers_of_one_name_the_first_wins_and_the_others_know() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = Blobs::folder(folder.path()).unwrap();
    let write = |at: u8| {
        let blobs = blobs.clone();
        tokio::spawn(async move { blobs.put("name", Bytes::from(vec![at; 10_000])).await })
    };
    let writers: Vec<_> = (0..8).map(write).collect();
    let mut won = Vec::new();
    for (at, writer) in (0_u8..).zip(writers) {
        match writer.await.unwrap() {
            Ok(()) => won.push(at),
            Err(error) => assert!(matches!(error, StoreError::BlobDiffers { .. }), "{error:?}"),
        }
    }
    assert_eq!(won.len(), 1);
    assert_eq!(blobs.get("name").await.unwrap().unwrap(), vec![won[0]; 10_000]);
}

#[test]
fn a_folder_is_locked_until_it_is_let_go() {
    let folder = tempfile::tempdir().unwrap();
    let lock = FolderLock::take(folder.path()).unwrap();
    let error = FolderLock::take(folder.path()).unwrap_err();
    assert_eq!((error.code().id, error.kind().exit_code()), ("PC1105", 7));
    drop(lock);
    FolderLock::take(folder.path()).unwrap();
}

#[tokio::test]
async fn an_address_that_is_none_is_refused_without_its_password() {
    let error = Db::open("mysql://user:hunter2@host/db").await.err().unwrap();
    assert_eq!(error.code().id, "PC1102");
    assert!(!kernel::chain(&error).contains("hunter2"), "{error}");
    let away = "postgres://user:hunter2@127.0.0.1:1/db";
    let error = Db::open(away).await.err().unwrap();
    assert_eq!(error.code().id, "PC1101");
    assert!(!kernel::chain(&error).contains("hunter2"), "{error}");
}

async fn filled(path: &Path) {
    let db = Db::open(&format!("sqlite:{}", path.display())).await.unwrap();
    let table = Migration {
        domain: "t",
        version: 1,
        sql: "CREATE TABLE t (id BIGINT PRIMARY KEY, w TEXT);",
    };
    db.migrate(&[table]).await.unwrap();
    let mut tx = db.begin().await.unwrap();
    for id in 0..500_i64 {
        tx.execute(
            "INSERT INTO t (id, w) VALUES ($1, $2)",
            args![id, "w".repeat(100)],
        )
        .await
        .unwrap();
    }
    tx.commit().await.unwrap();
    db.close().await;
}

/// Every way of damage is found when the file is opened, and the error names the file.
#[tokio::test]
async fn a_damaged_file_is_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.db");
    filled(&path).await;
    let good = std::fs::read(&path).unwrap();
    let header_of_page = |page: usize| (page - 1) * 4096;
    let mut no_database = good.clone();
    no_database[..16].copy_from_slice(b"something else!!");
    let mut torn_page = good.clone();
    torn_page[header_of_page(4)..header_of_page(5)].fill(0xa5);
    let truncated = good[..good.len() / 2].to_vec();
    for (what, bytes) in [
        ("no database", no_database),
        ("torn page", torn_page),
        ("truncated", truncated),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = Db::open(&format!("sqlite:{}", path.display())).await.err();
        let error = error.unwrap_or_else(|| panic!("{what}: it was opened"));
        assert_eq!(error.code().id, "PC1103", "{what}: {error:?}");
        assert!(error.to_string().contains("test.db"), "{what}: {error}");
    }
    std::fs::write(&path, good).unwrap();
    assert!(Db::open(&format!("sqlite:{}", path.display())).await.is_ok());
}

/// SQLite rolls a transaction back by itself when the disk is full. Writing goes on when there is room again.
#[tokio::test]
async fn a_full_disk_is_named_and_the_next_transaction_works() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("full.db");
    filled(&path).await;
    let db = Db::open(&format!("sqlite:{}", path.display())).await.unwrap();
    for _ in 0..3 {
        let mut tx = db.begin().await.unwrap();
        // The limit belongs to the connection, as a disk's size does to the disk.
        tx.read("PRAGMA max_page_count = 1", args![]).await.unwrap();
        let insert = "INSERT INTO t (id, w) VALUES ($1, $2)";
        let error = tx
            .execute(insert, args![1_000_i64, "w".repeat(1 << 20)])
            .await
            .unwrap_err();
        assert_eq!((error.code().id, error.kind()), ("PC1107", kernel::Kind::Full));
        drop(tx);
        assert_eq!(
            db.read("SELECT id FROM t", args![]).await.unwrap().len(),
            500,
            "reading goes on"
        );
    }
    let mut tx = db.begin().await.unwrap();
    tx.execute("INSERT INTO t (id, w) VALUES ($1, $2)", args![1_000_i64, "w"])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(db.read("SELECT id FROM t", args![]).await.unwrap().len(), 501);
}

#[tokio::test]
async fn what_is_made_for_a_server_only_its_user_reads() {
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("a/data");
    let _lock = FolderLock::take(&folder).unwrap();
    assert_eq!(mode(&folder), 0o700);
    let blobs = outer.path().join("blobs");
    Blobs::folder(&blobs).unwrap();
    assert_eq!(mode(&blobs), 0o700);
    let file = outer.path().join("portcullis.db");
    let db = Db::open(&format!("sqlite:{}", file.display())).await.unwrap();
    let mut tx = db.begin().await.unwrap();
    tx.execute("CREATE TABLE t (a BIGINT)", args![]).await.unwrap();
    tx.commit().await.unwrap();
    for name in ["portcullis.db", "portcullis.db-wal", "portcullis.db-shm"] {
        assert_eq!(mode(&outer.path().join(name)), 0o600, "{name}");
    }
    db.close().await;
}

#[test]
fn a_folder_that_cannot_be_made_has_a_code_of_its_own() {
    for error in [
        FolderLock::take("/dev/null/x".as_ref()).map(drop).unwrap_err(),
        Blobs::folder("/dev/null/x".as_ref()).map(drop).unwrap_err(),
    ] {
        assert_eq!(error.code().id, "PC1108");
        let chain = kernel::chain(&error);
        assert!(
            chain.contains("/dev/null/x") && chain.contains("directory"),
            "{chain}"
        );
    }
}
