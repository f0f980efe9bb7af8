//! A real PostgreSQL in a temporary folder, on a socket in it and nowhere else.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tempfile::TempDir;

use crate::{Process, wait_for};

/// The user as whom Debian's package runs the server, which refuses to run as root.
const SERVER_USER: &str = "postgres";

static SHARED: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());

/// A running server. It ends when the last test that uses it does.
#[derive(Debug)]
pub struct Postgres {
    process: Mutex<Process>,
    programs: PathBuf,
    settings: Vec<String>,
    folder: TempDir,
    databases: AtomicU32,
}

impl Postgres {
    /// The server that the tests of this process share at the moment; `None`, written down, if there is no
    /// PostgreSQL on this machine.
    ///
    /// # Panics
    /// If there is one that does not come up.
    #[must_use]
    pub fn shared() -> Option<Arc<Self>> {
        let program = crate::peer!("postgresql");
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = shared.upgrade() {
            return Some(running);
        }
        let started = Self::start(&program).map(Arc::new);
        assert!(started.is_ok(), "starting PostgreSQL: {:?}", started.err());
        let started = started.ok()?;
        *shared = Arc::downgrade(&started);
        Some(started)
    }

    /// Starts `program` over a new, empty cluster.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start(program: &Path) -> io::Result<Self> {
        // What tests prove is our dialect, not PostgreSQL's durability; without syncing it is quick.
        Self::start_with(program, &["fsync=off"])
    }

    /// Starts `program` with settings of one's own, each as `name=value`.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_with(program: &Path, settings: &[&str]) -> io::Result<Self> {
        let programs = program.parent().unwrap_or(Path::new("/")).to_owned();
        let folder = tempfile::Builder::new().prefix("pg").tempdir()?;
        let data = folder.path().join("data");
        if is_root()? {
            run(Command::new("chown").arg(SERVER_USER).arg(folder.path()))?;
        }
        run(as_server_user(&programs.join("initdb"))?
            .arg("-D")
            .arg(&data)
            .args([
                "--no-sync",
                "--auth=trust",
                "--username=postgres",
                "--encoding=UTF8",
                "--locale=C",
            ]))?;
        let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
        let process = Mutex::new(launch(&programs, folder.path(), &settings)?);
        let server = Self {
            process,
            programs,
            settings,
            folder,
            databases: AtomicU32::new(0),
        };
        server.wait_until_up()?;
        Ok(server)
    }

    /// A server of one's own, to be taken away; `None`, written down, if there is no PostgreSQL on this machine.
    ///
    /// # Panics
    /// If there is one that does not come up.
    #[must_use]
    pub fn own() -> Option<Self> {
        let program = crate::peer!("postgresql");
        let started = Self::start(&program);
        assert!(started.is_ok(), "starting PostgreSQL: {:?}", started.err());
        started.ok()
    }

    fn wait_until_up(&self) -> io::Result<()> {
        let is_up = || {
            self.client("pg_isready")
                .status()
                .is_ok_and(|status| status.success())
        };
        wait_for(|| is_up().then_some(())).ok_or_else(|| io::Error::other(self.process().log().text()))
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it at once, with all its connections and without writing anything more, as a power cut would (SIGQUIT,
    /// "immediate shutdown").
    ///
    /// # Errors
    /// If it does not end.
    pub fn crash(&self) -> io::Result<()> {
        self.end("QUIT")
    }

    /// Ends it in order (SIGINT, "fast shutdown").
    ///
    /// # Errors
    /// If it does not end.
    pub fn stop(&self) -> io::Result<()> {
        self.end("INT")
    }

    fn end(&self, signal: &str) -> io::Result<()> {
        let mut process = self.process();
        process.signal(signal)?;
        process.wait().map(|_| ())
    }

    /// Starts it again over the same data.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_again(&self) -> io::Result<()> {
        *self.process() = launch(&self.programs, self.folder.path(), &self.settings)?;
        self.wait_until_up()
    }

    /// Freezes the server and all its connections: it is there, and says nothing. [`Self::thaw`] lets it go on.
    ///
    /// # Errors
    /// If a signal cannot be sent.
    pub fn freeze(&self) -> io::Result<()> {
        self.signal_all("STOP")
    }

    /// # Errors
    /// If a signal cannot be sent.
    pub fn thaw(&self) -> io::Result<()> {
        self.signal_all("CONT")
    }

    fn signal_all(&self, name: &str) -> io::Result<()> {
        let parent = self.process().id().to_string();
        let signal = format!("-{name}");
        // The parent first: one that is frozen makes no further children.
        run(Command::new("kill").args([&signal, &parent]))?;
        let children = Command::new("pgrep").args(["-P", &parent]).output()?;
        let children = String::from_utf8_lossy(&children.stdout).into_owned();
        // Some may have ended meanwhile; `kill` says so and signals the others.
        Command::new("kill")
            .arg(&signal)
            .args(children.split_whitespace())
            .output()
            .map(drop)
    }

    /// Copies the data of a server that was stopped, as a replica would hold them.
    ///
    /// # Errors
    /// If it cannot be copied.
    pub fn copy(&self) -> io::Result<()> {
        run(Command::new("cp")
            .args(["-a", "data", "copy"])
            .current_dir(self.folder.path()))
    }

    /// Puts the copy in the place of the data of a server that ended.
    ///
    /// # Errors
    /// If there is none.
    pub fn fail_over(&self) -> io::Result<()> {
        let at = |name: &str| self.folder.path().join(name);
        std::fs::rename(at("data"), at("lost"))?;
        std::fs::rename(at("copy"), at("data"))
    }

    /// Makes an empty database and gives its address.
    ///
    /// # Panics
    /// If the server does not make it.
    #[must_use]
    pub fn database(&self) -> String {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::SeqCst));
        let made = run(self.client("createdb").args(["--username=postgres", &name]));
        assert!(made.is_ok(), "making a database: {:?}", made.err());
        format!(
            "postgres://postgres@localhost/{name}?host={}",
            self.folder.path().display()
        )
    }

    /// The folder with its socket, which stands in the address of each database.
    #[must_use]
    pub fn socket_folder(&self) -> &Path {
        self.folder.path()
    }

    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command
            .arg("--host")
            .arg(self.folder.path())
            .stdout(std::process::Stdio::null());
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // SIGINT is its fast shutdown; killed, it would leave its helpers to find out by themselves.
        let _ = self.thaw();
        let _ = self.stop();
    }
}

fn launch(programs: &Path, folder: &Path, settings: &[String]) -> io::Result<Process> {
    let mut command = as_server_user(&programs.join("postgres"))?;
    command.arg("-D").arg(folder.join("data"));
    let socket = format!("unix_socket_directories={}", folder.display());
    for setting in ["listen_addresses=", &socket]
        .into_iter()
        .chain(settings.iter().map(String::as_str))
    {
        command.args(["-c", setting]);
    }
    Process::start(&mut command, &folder.join("log"))
}

fn is_root() -> io::Result<bool> {
    Ok(Command::new("id").arg("-u").output()?.stdout.starts_with(b"0\n"))
}

/// `program` as a user that PostgreSQL accepts. `setpriv` becomes the program, so the process id is its own.
fn as_server_user(program: &Path) -> io::Result<Command> {
    if !is_root()? {
        return Ok(Command::new(program));
    }
    let mut command = Command::new("setpriv");
    command
        .args([
            format!("--reuid={SERVER_USER}"),
            format!("--regid={SERVER_USER}"),
            "--init-groups".to_owned(),
        ])
        .arg(program)
        .current_dir("/");
    Ok(command)
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(format!(
        "{:?}: {}: {said}",
        command.get_program(),
        output.status
    )))
}
