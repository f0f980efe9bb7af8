//! Several servers on one PostgreSQL, as an operator would start them: one database, one place for blobs, the same
//! secrets, and a data folder for each.

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use testkit::Postgres;

use crate::{Api, Server, Setup};

/// The secrets that servers of one database share: section, key, and the file that the first server made.
const SECRETS: [(&str, &str, &str); 3] = [
    ("log", "key_file", "log.json"),
    ("audit", "key_file", "audit.json"),
    ("keys", "password_file", "keys.password"),
];

/// The servers. Dropped, all are killed.
pub struct Fleet {
    servers: Vec<Server>,
    common: String,
    _blobs: TempDir,
}

impl Fleet {
    /// Starts `count` servers on a new database; `config` is added to everybody's configuration.
    ///
    /// # Errors
    /// If one of them does not come up.
    pub fn start(postgres: &Postgres, count: usize, config: &str) -> Result<Self> {
        let blobs = tempfile::tempdir()?;
        let common = format!(
            "[database]\nurl = {:?}\n[blobs]\nurl = {:?}\n{config}",
            postgres.database(),
            blobs.path()
        );
        let first = Server::start(Setup {
            config: common.clone(),
            ..Setup::default()
        })?;
        let secrets = first.data().join("secrets");
        let shared: String = SECRETS
            .iter()
            .map(|(section, key, file)| format!("[{section}]\n{key} = {:?}\n", secrets.join(file)))
            .collect();
        let token = first.token().to_owned();
        let mut servers = vec![first];
        for _ in 1..count {
            let setup = Setup {
                config: format!("{common}{shared}"),
                ..Setup::default()
            };
            servers.push(Server::join(setup, &token)?);
        }
        let _blobs = blobs;
        Ok(Self {
            servers,
            common,
            _blobs,
        })
    }

    #[must_use]
    pub fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// The configuration that all have, without the secrets.
    #[must_use]
    pub fn config(&self) -> &str {
        &self.common
    }

    /// One of them, to stop, kill or restart it.
    pub fn server(&mut self, at: usize) -> &mut Server {
        &mut self.servers[at]
    }

    /// The HTTP interface of each.
    ///
    /// # Errors
    /// If an HTTP client cannot be made.
    pub fn apis(&self) -> Result<Vec<Api>> {
        self.servers.iter().map(Server::api).collect()
    }

    /// Which of them appends to the log.
    ///
    /// # Errors
    /// If none says so within a lease's life, or one does not answer.
    pub async fn leader(&self) -> Result<usize> {
        for _ in 0..200 {
            for (at, api) in self.apis()?.iter().enumerate() {
                let metrics = api.bytes("/metrics").await?;
                if String::from_utf8_lossy(&metrics).contains("portcullis_tlog_leads 1\n") {
                    return Ok(at);
                }
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        None.context("no server appends to the log")
    }
}
