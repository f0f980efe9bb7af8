//! A commit whose outcome nobody hears of: the connection to PostgreSQL breaks before it, or after it and before its
//! answer.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use e2e::{Server, Setup};
use testkit::Postgres;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use super::{Done, Images};
use crate::ledger::Ledger;

/// The name of PostgreSQL's socket in its folder.
const SOCKET: &str = ".s.PGSQL.5432";
/// What ends a transaction, as a simple query (PostgreSQL's frontend protocol, "Query").
const COMMIT: &[u8] = b"COMMIT\0";

/// What becomes of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// It does not reach the database.
    Before,
    /// It is done, and the answer is lost.
    After,
}

/// Stands between the server and PostgreSQL.
#[derive(Clone)]
struct Between {
    database: PathBuf,
    /// Commits until one is cut, and how.
    armed: Arc<Mutex<Option<(u32, Cut)>>>,
}

impl Between {
    fn start(folder: &Path, database: &Path) -> Self {
        let own = Self {
            database: database.join(SOCKET),
            armed: Arc::default(),
        };
        let listener = UnixListener::bind(folder.join(SOCKET)).unwrap();
        let between = own.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let between = between.clone();
                tokio::spawn(async move { between.carry(client).await });
            }
        });
        own
    }

    /// Whether this commit is the one.
    fn cuts(&self) -> Option<Cut> {
        let mut armed = self.armed.lock().unwrap();
        let (left, cut) = armed.as_mut()?;
        if *left > 0 {
            *left -= 1;
            return None;
        }
        let cut = *cut;
        *armed = None;
        Some(cut)
    }

    async fn carry(&self, client: UnixStream) -> Option<()> {
        let database = UnixStream::connect(&self.database).await.ok()?;
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_database, mut to_database) = database.into_split();
        let (mut asked, mut answered) = (vec![0; 64 << 10], vec![0; 64 << 10]);
        loop {
            tokio::select! {
                read = from_client.read(&mut asked) => {
                    let bytes = &asked[..read.ok().filter(|read| *read > 0)?];
                    let commits = bytes.windows(COMMIT.len()).any(|window| window == COMMIT);
                    let cut = commits.then(|| self.cuts()).flatten();
                    if cut == Some(Cut::Before) {
                        return None;
                    }
                    to_database.write_all(bytes).await.ok()?;
                    if cut == Some(Cut::After) {
                        // Its answer says that it is done.
                        let _heard = from_database.read(&mut answered).await.ok()?;
                        return None;
                    }
                }
                read = from_database.read(&mut answered) => {
                    let bytes = &answered[..read.ok().filter(|read| *read > 0)?];
                    to_client.write_all(bytes).await.ok()?;
                }
            }
        }
    }
}

/// Shown to fail when a staged signature is not found again (`find` skipped before signing): the log then has more
/// entries than there are images.
#[tokio::test(flavor = "multi_thread")]
async fn p12_a_commit_that_fails_or_is_done_unheard_ends_in_one_signature_and_one_entry() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let between = Between::start(folder.path(), postgres.socket_folder());
    let direct = postgres.socket_folder().display().to_string();
    let url = postgres
        .database()
        .replace(&direct, &folder.path().display().to_string());
    let server = Server::start(Setup {
        config: format!("[database]\nurl = {url:?}\n[blobs]\nurl = \"FOLDER/data/blobs\"\n"),
        ..Setup::default()
    })
    .unwrap();
    let (api, mut images) = (server.api().unwrap(), Images::new().await);
    let (mut ledger, done) = (Ledger::new(&api).await, Done::default());
    let all = images.many(48).await;
    let (mut cut, mut failed) = (0, 0);
    for (number, image) in all.iter().enumerate() {
        let how = [Cut::Before, Cut::After][number % 2];
        *between.armed.lock().unwrap() = Some(((number as u32 / 2) % 6, how));
        while let Err(why) = done.sign(&api, image).await {
            failed += 1;
            assert!(why.starts_with("sign: 503"), "{why}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        cut += usize::from(between.armed.lock().unwrap().take().is_none());
    }
    println!("{cut} commits were cut, {failed} calls failed and were made again");
    assert!(cut > all.len() / 2, "only {cut} commits were cut");
    assert_eq!(
        ledger.look(&api).await,
        all.len() as u64,
        "an entry for each image, and no other"
    );
    let signed = done.signed.into_inner().unwrap();
    for image in &signed {
        let again = api.post("/api/v1/signatures", image).await.unwrap();
        assert_eq!(again.status, 200, "{again:?}");
    }
    ledger.audit(&server, &[]).await;
}
