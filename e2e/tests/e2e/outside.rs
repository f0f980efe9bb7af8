//! Things outside of the server that are not what they should be: logs with real tiles and real signatures, a web
//! server, a silent socket, and a name that leads to one and later to another.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kernel::SeededRandom;
use store::{Blobs, Db};
use tlog::merkle::leaf_hash;
use tlog::{Accepted, LogKey, Settings, Tlog};
use tokio::net::{TcpListener, TcpStream};

/// A log that is not the server's.
pub struct OutsideLog {
    pub tlog: Tlog,
    pub address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl OutsideLog {
    /// The log with the key of `seed`, and these entries.
    pub async fn start(origin: &str, seed: u64, entries: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("log.db").display());
        let db = Db::open(&url).await.unwrap();
        let migrations = [store::MIGRATIONS, tlog::MIGRATIONS].concat();
        db.migrate(&migrations).await.unwrap();
        let pkcs8 = LogKey::generate(&SeededRandom::new(seed)).unwrap();
        let settings = Settings {
            db,
            blobs: Blobs::folder(&folder.path().join("blobs")).unwrap(),
            key: LogKey::new(origin, &pkcs8).unwrap(),
            name: tlog::Name::Signatures,
            holder: "test".to_owned(),
            server: "test".to_owned(),
            lease_ttl: Duration::from_secs(60),
            shared: false,
            mark: None,
            owner: None,
        };
        let tlog = Tlog::open(settings).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = tlog::router(tlog.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let log = Self {
            tlog,
            address,
            _folder: folder,
        };
        log.grow(entries).await;
        log
    }

    pub async fn grow(&self, entries: &[String]) {
        for entry in entries {
            let body = entry.clone().into_bytes();
            let leaf = leaf_hash(&body);
            // The sequencer takes a moment to get its lease.
            let mut included = self
                .tlog
                .include(Accepted {
                    body: body.clone(),
                    leaf,
                })
                .await;
            for _ in 0..200 {
                if included.is_ok() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
                included = self
                    .tlog
                    .include(Accepted {
                        body: body.clone(),
                        leaf,
                    })
                    .await;
            }
            included.unwrap();
        }
    }

    pub fn pem(&self) -> String {
        self.tlog.verifier().pem()
    }
}

/// Entries that can be told apart.
pub fn entries(what: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{what} {number}")).collect()
}

/// Something that answers every request as web servers do.
pub async fn web_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let page = || async {
        (
            [("server", "a-web-server/1.0")],
            axum::response::Html("<h1>It works!</h1>"),
        )
    };
    let router = axum::Router::new().fallback(page);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

/// Where a name leads.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    To(SocketAddr),
    /// Takes connections and says nothing.
    Silent,
    /// Closes each connection at once.
    Closed,
}

/// A name, as far as a client sees one: an address that leads now here, then there. Connections that were opened stay
/// where they led, as they do when a real name changes.
pub struct Name {
    pub address: SocketAddr,
    target: Arc<Mutex<Target>>,
}

impl Name {
    pub async fn leads(target: Target) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let target = Arc::new(Mutex::new(target));
        let own = target.clone();
        tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let target = *own.lock().unwrap();
                tokio::spawn(async move {
                    match target {
                        Target::To(backend) => {
                            if let Ok(mut backend) = TcpStream::connect(backend).await {
                                let _ = tokio::io::copy_bidirectional(&mut client, &mut backend).await;
                            }
                        }
                        Target::Silent => {
                            tokio::time::sleep(Duration::from_secs(600)).await;
                            drop(client);
                        }
                        Target::Closed => drop(client),
                    }
                });
            }
        });
        Self { address, target }
    }

    pub fn now_leads(&self, target: Target) {
        *self.target.lock().unwrap() = target;
    }
}
