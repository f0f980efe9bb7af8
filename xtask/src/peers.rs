//! Getting the real peers, each at its pinned version, into a cache outside the tree.
//!
//! A peer that is built goes into a temporary folder beside its place and is moved there when it is whole: a
//! build that is killed leaves nothing that looks like a peer.

use std::fs::File;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use testkit::peers::{PEERS, Peer, Source, cache};

use crate::run::{Watch, root};

/// How often a build that runs says so, in seconds.
const PROGRESS_SECONDS: u64 = 15;
/// How often a build is looked at, in milliseconds.
const LOOK_MS: u64 = 100;
/// Lines of a failed build that are shown.
const LOG_LINES_MAX: usize = 30;

/// Gets what is missing. Goes on after a failure, so that one run says everything that is wrong.
pub fn get() -> Result<ExitCode> {
    println!("peers in {}", cache().display());
    let mut failures = 0;
    for (at, peer) in PEERS.iter().enumerate() {
        let place = format!("[{}/{}] {}", at + 1, PEERS.len(), peer.name);
        if peer.path().is_some() {
            println!("{place}: there");
            continue;
        }
        let watch = Watch::start();
        println!("{place}: getting it");
        match install(peer, &place) {
            Ok(()) => println!("{place}: there after {} s", watch.seconds()),
            Err(error) => {
                failures += 1;
                println!("{place}: failed after {} s: {error:#}", watch.seconds());
            }
        }
    }
    if failures > 0 {
        bail!("{failures} of {} peers could not be had", PEERS.len());
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints what is there.
pub fn list() -> Result<ExitCode> {
    println!("{:<27}{:<66}WHERE", "PEER", "WHAT FOR");
    for peer in PEERS {
        let place = match peer.path() {
            Some(path) => path.display().to_string(),
            None => format!("missing: {}", peer.how()),
        };
        println!("{:<27}{:<66}{place}", peer.name, peer.purpose);
    }
    Ok(ExitCode::SUCCESS)
}

fn install(peer: &Peer, place: &str) -> Result<()> {
    match peer.source {
        Source::Debian { package, .. } => install_package(package, place)?,
        Source::Go { module, .. } => in_cache(peer, |folder| {
            let mut go = go();
            go.args(["install", "-trimpath", "-ldflags=-s -w", module])
                .env("GOBIN", folder);
            watched(&mut go, place)
        })?,
        Source::Own { folder: own, program } => in_cache(peer, |folder| {
            let mut go = go();
            go.current_dir(root().join(own))
                .args(["build", "-trimpath", "-ldflags=-s -w", "-o"]);
            watched(go.arg(folder.join(program)).arg("."), place)
        })?,
        Source::Pinned {
            folder: own,
            package,
            program,
            variables,
        } => in_cache(peer, |folder| {
            let mut flags = "-ldflags=-s -w".to_owned();
            variables
                .iter()
                .for_each(|variable| flags.push_str(&format!(" -X {variable}")));
            let mut go = go();
            go.current_dir(root().join(own))
                .args(["build", "-trimpath", &flags, "-o"]);
            watched(go.arg(folder.join(program)).arg(package), place)
        })?,
    }
    if peer.path().is_none() {
        bail!("it was installed, but the program is not where it was looked for");
    }
    Ok(())
}

fn go() -> Command {
    let mut go = Command::new("go");
    // The checkout may be a copy without history, which `go build` would stumble over.
    go.env("CGO_ENABLED", "0").env("GOFLAGS", "-buildvcs=false");
    go
}

/// Lets `build` fill a temporary folder and moves it to the peer's place.
fn in_cache(peer: &Peer, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let cache = cache();
    std::fs::create_dir_all(&cache).with_context(|| format!("making {}", cache.display()))?;
    let staged = tempfile::Builder::new().prefix(".getting-").tempdir_in(&cache)?;
    build(staged.path())?;
    let place = cache.join(peer.name);
    if place.exists() {
        // Without its program, or `path()` would have found it.
        std::fs::remove_dir_all(&place).with_context(|| format!("removing {}", place.display()))?;
    }
    std::fs::rename(staged.path(), &place).with_context(|| format!("moving to {}", place.display()))?;
    // The folder is no longer under its temporary name, so there is nothing left to remove.
    let _ = staged.keep();
    // A temporary folder is for its owner only; a cache is read by whoever runs the tests.
    Command::new("chmod")
        .arg("755")
        .arg(&place)
        .status()
        .context("running chmod")?;
    Ok(())
}

/// Debian's packages are for root to install; anybody else is told the command.
fn install_package(package: &str, place: &str) -> Result<()> {
    let user = Command::new("id").arg("-u").output().context("running id")?;
    if !user.stdout.starts_with(b"0\n") {
        bail!("only root may: apt-get install {package}");
    }
    let apt = |args: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(args).env("DEBIAN_FRONTEND", "noninteractive");
        watched(&mut apt, place)
    };
    apt(&["update", "--quiet"])?;
    apt(&["install", "--yes", "--quiet", "--no-install-recommends", package])
}

/// Runs a command, says every now and then that it runs, and shows the end of what it wrote if it fails.
fn watched(command: &mut Command, place: &str) -> Result<()> {
    let log = tempfile::NamedTempFile::new()?;
    let out = File::options().append(true).open(log.path())?;
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()
        .with_context(|| format!("{program} does not start; is it installed?"))?;
    let watch = Watch::start();
    let mut told = 0;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if watch.seconds() >= told + PROGRESS_SECONDS {
            told = watch.seconds();
            println!("{place}: {told} s");
        }
        thread::sleep(Duration::from_millis(LOOK_MS));
    };
    if status.success() {
        return Ok(());
    }
    let text = std::fs::read_to_string(log.path()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    bail!(
        "{program}: {status}\n{}",
        lines[lines.len().saturating_sub(LOG_LINES_MAX)..].join("\n")
    );
}
