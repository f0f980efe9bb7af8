//! A server as a process.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;
use testkit::{Process, wait_for};

use crate::{Api, Ran, run};

/// The variable that arms a point at which the server dies.
const CRASH_VARIABLE: &str = "PORTCULLIS_TEST_CRASH_AT";
/// How long an answer to "are you ready" may take, in milliseconds.
const READY_MS: u64 = 2_000;
/// Other processes take ports too: a port that was free a moment ago may be gone.
const PORTS_MAX: u32 = 5;

/// The program: `$PORTCULLIS_BIN`, or the one beside this test, which is built if it is not there.
///
/// # Errors
/// If it is not there and cannot be built.
pub fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("PORTCULLIS_BIN") {
        return Ok(path.into());
    }
    let test = std::env::current_exe().context("finding this test")?;
    let beside = test
        .parent()
        .and_then(Path::parent)
        .context("this test lies in no folder")?;
    let path = beside.join("portcullis");
    if !path.is_file() {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let built = run(cargo.args(["build", "--package", "portcullis"]).current_dir(root))?;
        if !built.ok() || !path.is_file() {
            bail!("building {}: {}", path.display(), built.stderr);
        }
    }
    Ok(path)
}

/// What a server is started with.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// `portcullis.toml`; the defaults if empty. `FOLDER` in it stands for the server's own.
    pub config: String,
    /// Further variables of its environment.
    pub environment: Vec<(String, String)>,
    /// Its limit of open files, soft and hard; this process's if not set.
    pub descriptors: Option<u32>,
}

/// A server on a free port, with its data in a temporary folder. Dropped, it is killed and its data removed.
#[derive(Debug)]
pub struct Server {
    program: PathBuf,
    setup: Setup,
    folder: TempDir,
    listen: String,
    token: String,
    process: Option<Process>,
}

impl Server {
    /// Starts a server for the first time.
    ///
    /// # Errors
    /// If it does not come up; the error holds what it wrote.
    pub fn start(setup: Setup) -> Result<Self> {
        let mut server = Self::join(setup, "")?;
        let log = server.log();
        let (_, rest) = log
            .split_once("PORTCULLIS_TOKEN=")
            .context("the first start printed no token")?;
        server.token = rest.split_whitespace().next().unwrap_or_default().to_owned();
        Ok(server)
    }

    /// Starts one more server on a database that has been used, and so has an administrator's token.
    ///
    /// # Errors
    /// If it does not come up; the error holds what it wrote.
    pub fn join(setup: Setup, token: &str) -> Result<Self> {
        let mut server = Self::prepare(setup, token)?;
        for _ in 0..PORTS_MAX {
            server.listen = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
            if server.launch(None)? {
                return Ok(server);
            }
            if !server.log().contains("PC1702") {
                break;
            }
        }
        bail!("the server did not come up; it wrote:\n{}", server.log());
    }

    /// A server that does not run yet, with nothing but its configuration: [`Server::restart`] starts it.
    ///
    /// # Errors
    /// If its folder cannot be made.
    pub fn prepare(setup: Setup, token: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("portcullis-e2e-").tempdir()?;
        let config = setup
            .config
            .replace("FOLDER", &folder.path().display().to_string());
        std::fs::write(folder.path().join("portcullis.toml"), config)?;
        Ok(Self {
            program: program()?,
            setup,
            folder,
            listen: TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string(),
            token: token.to_owned(),
            process: None,
        })
    }

    /// Starts it again on the same data and port, if need be with a point armed at which it dies. `false`: it
    /// ended before it was ready.
    ///
    /// # Errors
    /// If the process cannot be started, or neither ends nor becomes ready.
    pub fn launch(&mut self, crash_at: Option<&str>) -> Result<bool> {
        let mut command = self.bare();
        if let Some(most) = self.setup.descriptors {
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("ulimit -n {most} && exec \"$0\" \"$@\"")]);
            shell.arg(&self.program);
            command = self.clean(shell);
        }
        command
            .args(["serve", "--listen", &self.listen, "--data"])
            .arg(self.data());
        command.envs(self.setup.environment.iter().map(|(name, value)| (name, value)));
        if let Some(point) = crash_at {
            command.env(CRASH_VARIABLE, point);
        }
        let mut process = Process::start(&mut command, &self.folder.path().join("server.log"))?;
        let ready = wait_for(|| {
            // Asked first: a server that died a moment ago still counts as one that was ready.
            let running = process.is_running();
            (is_ready(&self.listen) || !running).then_some(running)
        });
        let ready = ready.with_context(|| format!("the server hangs; it wrote:\n{}", self.log()))?;
        self.process = Some(process);
        Ok(ready)
    }

    /// Starts it again and expects it to serve.
    ///
    /// # Errors
    /// If it does not come up; the error holds what it wrote.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        if !self.launch(None)? {
            bail!("the server did not come up again; it wrote:\n{}", self.log());
        }
        Ok(())
    }

    /// `kill -9`, at whatever it was doing.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Hands the process over to whoever will end it.
    pub fn take_process(&mut self) -> Option<Process> {
        self.process.take()
    }

    /// SIGTERM, and waits for its end; the exit code.
    ///
    /// # Errors
    /// If it does not end.
    pub fn stop(&mut self) -> Result<Option<i32>> {
        let mut process = self.process.take().context("the server does not run")?;
        process.signal("TERM")?;
        Ok(process.wait()?.code())
    }

    /// Whether the process is there.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    /// The data folder.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A folder for files of the test; it goes with the server.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Everything that it wrote, over all its starts.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default()
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// The administrator's token.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The HTTP interface with the administrator's token.
    ///
    /// # Errors
    /// If the HTTP client cannot be made.
    pub fn api(&self) -> Result<Api> {
        Api::new(&self.url(), &self.token)
    }

    /// The command line `portcullis` with the server's address and the administrator's token.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = self.bare();
        command
            .env("PORTCULLIS_SERVER", self.url())
            .env("PORTCULLIS_TOKEN", &self.token);
        command
    }

    /// Runs `portcullis ARGS`.
    ///
    /// # Errors
    /// If it does not start.
    pub fn run(&self, args: &[&str]) -> Result<Ran> {
        run(self.command().args(args))
    }

    /// The program with nothing of this machine's settings.
    fn bare(&self) -> Command {
        self.clean(Command::new(&self.program))
    }

    /// The command without what this machine has set.
    fn clean(&self, mut command: Command) -> Command {
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PORTCULLIS_") {
                command.env_remove(name);
            }
        }
        command
            .current_dir(self.folder.path())
            .env("HOME", self.folder.path())
            .env_remove("DOCKER_CONFIG");
        command
    }
}

fn is_ready(address: &str) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_millis(READY_MS)))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}
