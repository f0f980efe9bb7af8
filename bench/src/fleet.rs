//! Several servers on one PostgreSQL, each with a folder of its own.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use testkit::Postgres;

use crate::server::Server;

/// The secrets that servers of one database share: section, key, and the file that the first one makes.
const SECRETS: [(&str, &str, &str); 3] = [
    ("log", "key_file", "log.json"),
    ("audit", "key_file", "audit.json"),
    ("keys", "password_file", "keys.password"),
];

/// How long a stop may take, in seconds: what runs is finished first, for at most 25.
const ENDS_SECONDS_MAX: u64 = 40;

pub struct Fleet {
    servers: Vec<Arc<Server>>,
    folders: Vec<tempfile::TempDir>,
}

impl Fleet {
    pub async fn start(postgres: &Postgres, count: usize) -> Result<Self> {
        let folders = (0..count)
            .map(|_| tempfile::tempdir())
            .collect::<Result<Vec<_>, _>>()?;
        let blobs = folders[0].path().join("blobs");
        let common = format!(
            "[database]\nurl = {:?}\n[blobs]\nurl = {blobs:?}\n[signing]\nformats = [\"bundle\"]\n",
            postgres.database()
        );
        std::fs::write(folders[0].path().join("portcullis.toml"), &common)?;
        let mut servers = vec![Arc::new(Server::open(folders[0].path(), &[]).await?)];
        let secrets = folders[0].path().join("data/secrets");
        let shared: String = SECRETS
            .iter()
            .map(|(section, key, file)| format!("[{section}]\n{key} = {:?}\n", secrets.join(file)))
            .collect();
        for folder in &folders[1..] {
            std::fs::write(folder.path().join("portcullis.toml"), format!("{common}{shared}"))?;
            servers.push(Arc::new(join(folder.path(), &servers[0].token).await?));
        }
        Ok(Self { servers, folders })
    }

    pub fn servers(&self) -> &[Arc<Server>] {
        &self.servers
    }

    /// Which of them appends to the log.
    pub async fn leader(&self) -> Result<usize> {
        for _ in 0..200 {
            for (at, server) in self.servers.iter().enumerate() {
                if server
                    .get("/metrics")
                    .await?
                    .contains("portcullis_tlog_leads 1\n")
                {
                    return Ok(at);
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        None.context("no server appends to the log")
    }

    /// Sends a signal by its name to one of them.
    pub fn signal(&self, at: usize, name: &str) -> Result<()> {
        let pid = self.servers[at].pid().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status()?;
        ensure!(sent.success(), "the signal was not sent");
        Ok(())
    }

    /// Waits until one that was told to end has.
    pub async fn ended(&self, at: usize) -> Result<()> {
        let path = format!("/proc/{}/status", self.servers[at].pid());
        for _ in 0..ENDS_SECONDS_MAX * 10 {
            // Nobody has waited for it yet: what has ended is there as a zombie.
            let status = std::fs::read_to_string(&path).unwrap_or_default();
            if status.is_empty() || status.contains("State:\tZ") {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("a server did not end within {ENDS_SECONDS_MAX} s")
    }

    /// Starts one that ended, on its data; [`Self::put`] puts it in its place.
    pub async fn launch(&self, at: usize) -> Result<Server> {
        join(self.folders[at].path(), &self.servers[at].token).await
    }

    pub fn put(&mut self, at: usize, server: Server) {
        self.servers[at] = Arc::new(server);
    }
}

/// Starts a server on a database that has its administrator already.
async fn join(folder: &Path, token: &str) -> Result<Server> {
    std::fs::create_dir_all(folder.join("data"))?;
    let mut server = Server::open(folder, &[]).await?;
    token.clone_into(&mut server.token);
    Ok(server)
}
