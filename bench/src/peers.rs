//! The peers' programs, where `cargo xtask peers` puts them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// The program of a peer, such as `cosign-3.1.3/cosign`.
pub fn program(name: &str) -> Result<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(home);
    let folder = std::env::var_os("PORTCULLIS_PEERS").map(PathBuf::from);
    let folder = folder
        .or_else(|| cache.map(|cache| cache.join("portcullis/peers")))
        .context("no cache folder")?;
    let path = folder.join(name);
    if path.exists() {
        Ok(path)
    } else {
        bail!("{name} is missing: cargo xtask peers")
    }
}

/// cosign 3.1, with keys and files of its own in a folder.
pub struct Cosign {
    program: PathBuf,
    folder: PathBuf,
}

impl Cosign {
    /// Makes a key pair, and takes the server's two files.
    pub fn new(folder: &Path, trusted_root: &str, signing_config: &str) -> Result<Self> {
        let cosign = Self {
            program: program("cosign-3.1.3/cosign")?,
            folder: folder.to_owned(),
        };
        std::fs::write(folder.join("trusted_root.json"), trusted_root)?;
        std::fs::write(folder.join("signing_config.json"), signing_config)?;
        cosign.run(&["generate-key-pair"])?;
        Ok(cosign)
    }

    pub fn sign(&self, image: &str) -> Result<()> {
        let files = [
            "--signing-config",
            "signing_config.json",
            "--trusted-root",
            "trusted_root.json",
        ];
        self.run(&[&["sign", "--yes", "--key", "cosign.key"], &files[..], &[image]].concat())
    }

    pub fn verify(&self, image: &str) -> Result<()> {
        self.run(&[
            "verify",
            "--key",
            "cosign.pub",
            "--trusted-root",
            "trusted_root.json",
            image,
        ])
    }

    pub fn public_key(&self) -> Result<String> {
        std::fs::read_to_string(self.folder.join("cosign.pub")).context("reading cosign.pub")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .current_dir(&self.folder)
            .env("COSIGN_PASSWORD", "bench")
            .env("HOME", &self.folder);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Result<()> {
        let output = self
            .command(args)
            .stderr(Stdio::piped())
            .output()
            .context("running cosign")?;
        if output.status.success() {
            return Ok(());
        }
        bail!(
            "cosign {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr)
        )
    }
}
