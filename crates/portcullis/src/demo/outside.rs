//! Logs of somebody else's for the story, and the name under which one of them is known: it can be led astray.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kernel::SystemRandom;
use store::{Blobs, Db};
use tlog::{LogKey, Name, Settings, Tlog};
use tokio::net::{TcpListener, TcpStream};

use crate::failure::Failure;

/// How the demo's external log calls itself.
pub const ORIGIN: &str = "rekor.example";
/// The lease of a log that nobody else sequences, in seconds.
const LEASE_SECONDS: u64 = 60;

/// A log in this process, with a key of its own.
pub struct OutsideLog {
    tlog: Tlog,
    pub address: SocketAddr,
}

impl OutsideLog {
    pub async fn start(folder: &Path) -> Result<Self, Failure> {
        let failed = |error: &dyn std::error::Error| Failure::local("starting another log", error);
        std::fs::create_dir_all(folder).map_err(|error| Failure::file("making", folder, &error))?;
        let db = Db::open(&format!("sqlite:{}", folder.join("log.db").display())).await?;
        db.migrate(&[store::MIGRATIONS, tlog::MIGRATIONS].concat())
            .await?;
        let pkcs8 = LogKey::generate(&SystemRandom).map_err(|error| failed(&error))?;
        let settings = Settings {
            name: Name::Signatures,
            db,
            blobs: Blobs::folder(&folder.join("blobs"))?,
            key: LogKey::new(ORIGIN, &pkcs8).map_err(|error| failed(&error))?,
            holder: "demo".to_owned(),
            server: "demo".to_owned(),
            lease_ttl: Duration::from_secs(LEASE_SECONDS),
            mark: None,
            owner: None,
            shared: false,
        };
        let tlog = Tlog::open(settings).await.map_err(Failure::log)?;
        let (listener, address) = listen().await?;
        let router = tlog::router(tlog.clone());
        // It lives as long as the demo.
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { tlog, address })
    }

    pub fn public_key(&self) -> String {
        self.tlog.verifier().pem()
    }

    pub async fn size(&self) -> Result<u64, Failure> {
        Ok(self.tlog.checkpoint().await.map_err(Failure::log)?.size)
    }
}

/// A name, as far as a client sees one: an address that leads to a log, to another, or nowhere.
pub struct OutsideName {
    pub address: SocketAddr,
    leads_to: Arc<Mutex<Option<SocketAddr>>>,
}

impl OutsideName {
    pub async fn new(log: &OutsideLog) -> Result<Self, Failure> {
        let (listener, address) = listen().await?;
        let leads_to = Arc::new(Mutex::new(Some(log.address)));
        let own = leads_to.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let target = *own.lock().unwrap_or_else(PoisonError::into_inner);
                tokio::spawn(async move {
                    if let Some(target) = target
                        && let Ok(mut backend) = TcpStream::connect(target).await
                    {
                        // Whoever breaks off has no use for an error here.
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut backend).await;
                    }
                });
            }
        });
        Ok(Self { address, leads_to })
    }

    pub fn now_leads(&self, to: Option<&OutsideLog>) {
        *self.leads_to.lock().unwrap_or_else(PoisonError::into_inner) = to.map(|log| log.address);
    }
}

async fn listen() -> Result<(TcpListener, SocketAddr), Failure> {
    let failed = |error: std::io::Error| Failure::local("finding a free port", &error);
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}
