//! An installation whose log is damaged is not backed up: what came of it could never be restored.

use std::path::Path;

use store::Db;

use super::{World, restore, sign, target, text};

/// The logs, as their tables and blobs begin, with what a person calls them.
const LOGS: [(&str, &str); 2] = [("tlog", "the log"), ("audit", "the audit log")];

/// Changes one byte in the middle of a file.
fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

async fn change(database: &Path, sql: String) {
    let db = Db::open(&format!("sqlite:{}", database.display())).await.unwrap();
    let mut tx = db.begin().await.unwrap();
    let sql: &'static str = sql.leak();
    assert_eq!(tx.execute(sql, Vec::new()).await.unwrap(), 1, "{sql}");
    tx.commit().await.unwrap();
    db.close().await;
}

/// Each damage is told by its name, and the good backup that stands under the name stays. Shown to fail: without
/// `whole::damage` in `make`.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_is_not_backed_up_and_the_last_good_backup_stays() {
    let mut world = World::new(None).await;
    // Each is a record of the audit trail: its log gets a tile too.
    let api = world.server.api().unwrap();
    for number in 0..260 {
        let image = world.image(&format!("i{number}")).await;
        assert_eq!(sign(&api, &image).await.0, 201);
    }
    let good = super::faults::backup_with_tiles(&world, 2);
    assert_eq!(world.server.stop().unwrap(), Some(0));
    let data = world.server.data();
    let args = ["backup", &text(&good), "--force", "--data", &text(&data)];
    world.server.run(&args).unwrap().expect_ok();
    let (before, database) = (std::fs::read(&good).unwrap(), data.join("portcullis.db"));
    let refused = |log: &str, named: &str| {
        let refused = world.server.run(&args).unwrap().expect_refused("PC1906");
        assert_eq!(refused.code, Some(1), "{refused:?}");
        for part in [&format!("cause: {log}: {named}"), "last good backup", "log fsck"] {
            assert!(refused.stderr.contains(part), "{part}: {refused:?}");
        }
        assert!(
            std::fs::read(&good).unwrap() == before,
            "{named}: the good backup was replaced"
        );
        let partial = good.with_file_name(format!(".{}.partial", good.file_name().unwrap().display()));
        assert!(!partial.exists(), "{named}: something was left");
    };
    for (prefix, log) in LOGS {
        for blob in ["tile/entries/000", "tile/0/000"] {
            let path = data.join("blobs").join(prefix).join(blob);
            let whole = std::fs::read(&path).unwrap();
            flip(&path);
            refused(log, blob);
            // Cut short, it is told as well.
            std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
            refused(log, blob);
            std::fs::write(&path, whole).unwrap();
        }
        let rows = std::fs::read(&database).unwrap();
        for (sql, named) in [
            (
                "UPDATE LOG_tail SET body = x'00' WHERE entry_index = (SELECT MAX(entry_index) FROM LOG_tail)",
                "row ",
            ),
            (
                "DELETE FROM LOG_tail WHERE entry_index = (SELECT MIN(entry_index) FROM LOG_tail)",
                "row ",
            ),
            (
                "UPDATE LOG_leaf SET entry_index = entry_index + 100000 WHERE entry_index = 3",
                "table LOG_leaf: ",
            ),
            ("DELETE FROM LOG_leaf WHERE entry_index = 4", "table LOG_leaf: "),
        ] {
            change(&database, sql.replace("LOG", prefix)).await;
            refused(log, &named.replace("LOG", prefix));
            std::fs::write(&database, &rows).unwrap();
        }
    }
    world.server.run(&args).unwrap().expect_ok();
    restore(&target(None, ""), &good, &[]).expect_ok();
}
