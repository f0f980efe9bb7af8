//! A real API server of Kubernetes with its store and no nodes: it takes, defaults, checks and refuses what it is sent.

use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::{Process, wait_for};

/// Who may everything; the token of nobody else, on loopback, for as long as a test runs.
const TOKEN: &str = "test-administrator";

/// A running API server. It ends, with its store, when it is dropped.
#[derive(Debug)]
pub struct ApiServer {
    kubectl: PathBuf,
    folder: TempDir,
    // Ended in this order.
    _server: Process,
    _store: Process,
}

impl ApiServer {
    /// Starts one; `None`, written down, if a part of it is not on this machine.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn start() -> Option<Self> {
        let etcd = crate::peer!("etcd-3.6.12");
        let kubectl = crate::peer!("kubectl-1.36.3");
        let server = crate::peer!("kube-apiserver-1.36.3");
        let openssl = crate::peer!("openssl");
        let started = Self::start_with(&etcd, kubectl, &server, &openssl);
        assert!(started.is_ok(), "starting the API server: {:?}", started.err());
        started.ok()
    }

    fn start_with(etcd: &Path, kubectl: PathBuf, server: &Path, openssl: &Path) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("kubernetes").tempdir()?;
        let at = |name: &str| folder.path().join(name);
        let (client, peers, port) = (free_port()?, free_port()?, free_port()?);
        let mut store = Command::new(etcd);
        let (client, peers) = (
            format!("http://127.0.0.1:{client}"),
            format!("http://127.0.0.1:{peers}"),
        );
        store.arg("--data-dir").arg(at("etcd")).args([
            "--unsafe-no-fsync".to_owned(),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peers}"),
            format!("--initial-advertise-peer-urls={peers}"),
            format!("--initial-cluster=default={peers}"),
        ]);
        let store = Process::start(&mut store, &at("etcd.log"))?;

        let key = at("sa.key");
        let made = Command::new(openssl)
            .args(["genrsa", "-out"])
            .arg(&key)
            .arg("2048")
            .output()?;
        if !made.status.success() {
            return Err(io::Error::other(
                String::from_utf8_lossy(&made.stderr).into_owned(),
            ));
        }
        std::fs::write(at("tokens.csv"), format!("{TOKEN},admin,admin,system:masters\n"))?;
        let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let mut command = Command::new(server);
        command.args([
            format!("--etcd-servers={client}"),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            flag("cert-dir", &at("certificates")),
            "--authorization-mode=Node,RBAC".to_owned(),
            flag("token-auth-file", &at("tokens.csv")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            flag("service-account-key-file", &key),
            flag("service-account-signing-key-file", &key),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
        ]);
        let server = Process::start(&mut command, &at("server.log"))?;
        let authority = at("certificates/apiserver.crt");
        let config = kubeconfig(&format!("https://127.0.0.1:{port}"), &authority);
        std::fs::write(at("kubeconfig"), config)?;
        let own = Self {
            kubectl,
            folder,
            _server: server,
            _store: store,
        };
        let ready = wait_for(|| {
            let asked = own.kubectl(&["get", "--raw", "/readyz"]).ok()?;
            asked.status.success().then_some(())
        });
        ready.ok_or_else(|| {
            let log = std::fs::read_to_string(own.folder.path().join("server.log")).unwrap_or_default();
            io::Error::other(log)
        })?;
        Ok(own)
    }

    /// Runs `kubectl` as the administrator.
    ///
    /// # Errors
    /// If it does not start.
    pub fn kubectl(&self, args: &[&str]) -> io::Result<Output> {
        Command::new(&self.kubectl)
            .arg("--kubeconfig")
            .arg(self.folder.path().join("kubeconfig"))
            .args(args)
            .env("HOME", self.folder.path())
            .stdin(Stdio::null())
            .output()
    }

    /// A folder for files of the test.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// A kubeconfig (JSON is YAML).
fn kubeconfig(server: &str, authority: &Path) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"Config","current-context":"t",
"clusters":[{{"name":"t","cluster":{{"server":{server:?},"certificate-authority":{authority:?}}}}}],
"users":[{{"name":"t","user":{{"token":{TOKEN:?}}}}}],
"contexts":[{{"name":"t","context":{{"cluster":"t","user":"t"}}}}]}}"#
    )
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
