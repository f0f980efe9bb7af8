//! cosign as its users have it: its own home, its own key, no network but loopback.

use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{Ran, Server, run};
use testkit::{Distribution, ReferrersRegistry, peer};

/// The password of the key file.
pub const PASSWORD: &str = "correct horse";

/// A folder in which cosign is at home, with a key pair that it made.
pub struct Home {
    folder: PathBuf,
    program: PathBuf,
}

impl Home {
    /// Makes the key pair with `program`.
    pub fn new(program: &Path, folder: &Path) -> Self {
        let home = Self {
            folder: folder.to_owned(),
            program: program.to_owned(),
        };
        home.run(&["generate-key-pair"]).expect_ok();
        home
    }

    /// The same home and key with another cosign.
    pub fn with(&self, program: &Path) -> Self {
        Self {
            folder: self.folder.clone(),
            program: program.to_owned(),
        }
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .current_dir(&self.folder)
            .env("HOME", &self.folder)
            .env("COSIGN_PASSWORD", PASSWORD)
            // Whatever would go to the public services fails at once, and loudly.
            .env("HTTPS_PROXY", "http://127.0.0.1:1")
            .env("TUF_ROOT", self.folder.join("no-tuf"));
        run(&mut command).unwrap()
    }
}

/// Writes the two files that the server serves for cosign, and nothing else, into `folder`.
pub fn trust_files(server: &Server, folder: &Path) {
    let api = server.api().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for name in ["trusted_root.json", "signing_config.json"] {
        // Asked for without the token: whoever verifies needs none.
        let got = runtime
            .block_on(api.bytes(&format!("/api/v1/trust/{name}")))
            .unwrap();
        std::fs::write(folder.join(name), got).unwrap();
    }
}

/// A real registry.
pub enum Registry {
    Distribution(Distribution),
    Referrers(ReferrersRegistry),
}

impl Registry {
    pub fn address(&self) -> &str {
        match self {
            Self::Distribution(registry) => registry.address(),
            Self::Referrers(registry) => registry.address(),
        }
    }
}

/// Pushes an image of one small layer that holds `content`; the answer is its reference with the digest.
pub fn push(crane: &Path, registry: &str, tag: &str, content: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("content"), content).unwrap();
    let tar = Command::new("tar")
        .current_dir(&folder)
        .args(["cf", "layer.tar", "content"])
        .status();
    assert!(tar.unwrap().success());
    let mut command = Command::new(crane);
    command.current_dir(&folder).env("HOME", folder.path());
    command.args([
        "append",
        "--insecure",
        "--oci-empty-base",
        "-f",
        "layer.tar",
        "-t",
    ]);
    let pushed = run(command.arg(format!("{registry}/team/app:{tag}")))
        .unwrap()
        .expect_ok();
    pushed.stdout.trim().to_owned()
}

#[test]
fn cosign_3_1_signs_into_our_log_and_verifies_from_it_with_nothing_but_the_two_files() {
    let (cosign, crane) = (peer!("cosign-3.1.3"), peer!("crane-0.22.1"));
    let registry = ReferrersRegistry::start(&peer!("referrers-registry-0.22.1")).unwrap();
    let server = Server::start(e2e::Setup::default()).unwrap();
    let home = Home::new(&cosign, server.folder());
    trust_files(&server, server.folder());
    let image = push(&crane, registry.address(), "one", "one");
    let sign = [
        "sign",
        "--key",
        "cosign.key",
        "--signing-config",
        "signing_config.json",
    ];
    home.run(
        &[
            &sign[..],
            &["--trusted-root", "trusted_root.json", "--yes", &image],
        ]
        .concat(),
    )
    .expect_ok();
    let verify = [
        "verify",
        "--key",
        "cosign.pub",
        "--trusted-root",
        "trusted_root.json",
        &image,
    ];
    home.run(&verify).expect_ok();

    // It is in the log, at index 0, and that is what made it verify.
    let info = server.run(&["log", "info", "-o", "json"]).unwrap().expect_ok();
    let info: serde_json::Value = serde_json::from_str(&info.stdout).unwrap();
    assert_eq!(info["size"], 1, "{info}");
    let other = Server::start(e2e::Setup::default()).unwrap();
    trust_files(&other, other.folder());
    let foreign = other.folder().join("trusted_root.json").display().to_string();
    let refused = home.run(&[
        "verify",
        "--key",
        "cosign.pub",
        "--trusted-root",
        &foreign,
        &image,
    ]);
    assert!(
        !refused.ok(),
        "it verifies with the log of somebody else:\n{}",
        refused.text()
    );
}

#[test]
fn blobs_signed_by_cosign_3_1_into_our_log_verify_by_cosign_and_by_us() {
    let server = Server::start(e2e::Setup::default()).unwrap();
    let home = Home::new(&peer!("cosign-3.1.3"), server.folder());
    trust_files(&server, server.folder());
    for (name, content) in [("blob", "a plain file\n"), ("other", "another\n")] {
        std::fs::write(server.folder().join(name), content).unwrap();
    }
    let sign = [
        "sign-blob",
        "--key",
        "cosign.key",
        "--signing-config",
        "signing_config.json",
        "--trusted-root",
    ];
    home.run(
        &[
            &sign[..],
            &["trusted_root.json", "--bundle", "b.json", "--yes", "blob"],
        ]
        .concat(),
    )
    .expect_ok();
    let theirs = |file: &str| {
        home.run(&[
            "verify-blob",
            "--key",
            "cosign.pub",
            "--bundle",
            "b.json",
            "--trusted-root",
            "trusted_root.json",
            file,
        ])
    };
    let ours = |file: &str, key: &str| {
        let args = [
            "verify-blob",
            "--bundle",
            "b.json",
            "--trusted-root",
            "trusted_root.json",
            "--key",
            key,
            file,
        ];
        server.run(&args).unwrap()
    };
    theirs("blob").expect_ok();
    ours("blob", "cosign.pub").expect_ok();
    assert!(!theirs("other").ok());
    assert_eq!(ours("other", "cosign.pub").code, Some(8), "another file");
    let default = server.run(&["key", "get", "default"]).unwrap().expect_ok();
    std::fs::write(server.folder().join("default.pub"), default.stdout).unwrap();
    assert_eq!(ours("blob", "default.pub").code, Some(8), "another key");
}
