//! Emptying SQLite's write-ahead log beside those who write.
//!
//! SQLite does it by itself within a commit, each time that the log has grown by a thousand pages: that one waits for two
//! more syncs and a thousand writes, and everybody else for their turn, which under load is more than one call in a
//! hundred. So a connection of its own does it, and takes nobody's turn (a passive checkpoint,
//! <https://www.sqlite.org/wal.html#ckpt>). While others write without a pause it never reaches the end of the log, which
//! has to be reached once for it to begin anew; so the writer still does it too, at [`WRITER_PAGES`], and finds little
//! left to do. Should this task be gone, that alone is enough.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Pages of the log, of 4 KiB, at which the writer empties it: the file stays under 32 MiB but for what one transaction
/// adds.
pub(crate) const WRITER_PAGES: u32 = 8_000;
/// Commits between two rounds: a server that does next to nothing is left alone.
const COMMITS: u64 = 64;
/// Between two rounds, in milliseconds: what was written twice meanwhile is moved once.
const PAUSE_MS: u64 = 1_000;

/// The task, which ends with this.
pub(crate) struct Emptying {
    told: watch::Sender<Told>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// What the task is told.
#[derive(Default)]
struct Told {
    commits: u64,
    closed: bool,
}

impl Emptying {
    /// Begins, on the runtime of the caller.
    pub(crate) fn start(options: SqliteConnectOptions) -> Self {
        let (told, telling) = watch::channel(Told::default());
        Self {
            told,
            task: Mutex::new(Some(tokio::spawn(run(options, telling)))),
        }
    }

    /// Tells of a commit.
    pub(crate) fn wrote(&self) {
        self.told.send_modify(|told| told.commits += 1);
    }

    /// Ends, and waits for that.
    pub(crate) async fn close(&self) {
        self.told.send_modify(|told| told.closed = true);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            // One that panicked has ended too.
            let _ = task.await;
        }
    }
}

async fn run(options: SqliteConnectOptions, mut telling: watch::Receiver<Told>) {
    let (mut connection, mut next) = (None, COMMITS);
    loop {
        // An error: whoever told of commits is gone.
        match telling.wait_for(|told| told.closed || told.commits >= next).await {
            Ok(told) if !told.closed => next = told.commits + COMMITS,
            _ => break,
        }
        let mut own = match connection.take() {
            Some(own) => own,
            None => match options.connect().await {
                Ok(own) => own,
                Err(error) => {
                    tracing::debug!(%error, "the write-ahead log of SQLite is left to those who write");
                    continue;
                }
            },
        };
        match sqlx::query("PRAGMA wal_checkpoint(PASSIVE)")
            .execute(&mut own)
            .await
        {
            Ok(_) => connection = Some(own),
            // A disk that fails or is full is told of by those who write.
            Err(error) => tracing::debug!(%error, "emptying the write-ahead log of SQLite"),
        }
        let pause = Duration::from_millis(PAUSE_MS);
        let _ = tokio::time::timeout(pause, telling.wait_for(|told| told.closed)).await;
    }
    if let Some(own) = connection {
        let _ = own.close().await;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::WRITER_PAGES;
    use crate::{Db, args};

    /// So many commits with so many bytes each. They are not synced, which the log does not mind.
    async fn write(db: &Db, commits: i64, bytes: usize) {
        for number in 0..commits {
            let mut tx = db.begin_unsynced().await.unwrap();
            tx.execute(
                "INSERT INTO thing (id, content) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET content = excluded.content",
                args![number, vec![7_u8; bytes]],
            )
            .await
            .unwrap();
            tx.commit().await.unwrap();
        }
    }

    async fn open(file: &Path) -> Db {
        let db = Db::open(&format!("sqlite:{}", file.display())).await.unwrap();
        let mut tx = db.begin().await.unwrap();
        tx.script("CREATE TABLE thing (id INTEGER PRIMARY KEY, content BLOB NOT NULL)".to_owned())
            .await
            .unwrap();
        tx.commit().await.unwrap();
        db
    }

    fn size(file: &Path) -> u64 {
        std::fs::metadata(file).unwrap().len()
    }

    /// Shown to fail: without `wrote` in `SqliteTx::commit` the file of the database stays as small as it was.
    #[tokio::test]
    async fn what_is_written_gets_into_the_database_before_the_writer_has_to_do_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("test.db");
        let db = open(&file).await;
        let (commits, bytes) = (200, 8_000);
        write(&db, commits, bytes).await;
        let written = 200 * 8_000;
        for _ in 0..200 {
            if size(&file) >= written {
                break;
            }
            write(&db, 1, bytes).await;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert!(size(&file) >= written, "{} bytes", size(&file));
        db.close().await;
        assert!(
            !folder.path().join("test.db-wal").exists(),
            "it was not closed in order"
        );
    }

    /// Shown to fail: with `wal_autocheckpoint` at 0 it has 112 MB.
    #[tokio::test]
    async fn the_log_stays_bounded_while_somebody_writes_without_a_pause() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("test.db");
        let db = open(&file).await;
        // Three times as much as the log may hold.
        write(&db, i64::from(WRITER_PAGES) * 3 / 16, 16 * 4_096).await;
        let log = size(&folder.path().join("test.db-wal"));
        assert!(log < u64::from(WRITER_PAGES) * 4_096 * 5 / 4, "{log} bytes");
    }
}
