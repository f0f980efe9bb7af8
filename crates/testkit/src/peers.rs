//! The peers, pinned, and where each is found.

use std::io::Write as _;
use std::path::{Path, PathBuf};

/// A program that the tests run against.
#[derive(Debug)]
pub struct Peer {
    /// Its name in tests and, for those that we build, the name of its folder in the cache.
    pub name: &'static str,
    /// What the tests use it for.
    pub purpose: &'static str,
    pub source: Source,
}

/// Where a peer comes from.
#[derive(Debug)]
pub enum Source {
    /// `go install MODULE`, which makes `program`.
    Go {
        module: &'static str,
        program: &'static str,
    },
    /// A Go main package of this repository, with its own `go.sum`.
    Own {
        folder: &'static str,
        program: &'static str,
    },
    /// A package of a module that `go install` does not take, because that module replaces others: it is built in a
    /// module of this repository, which pins what it needs. `variables` are set in the program, `PATH=VALUE`.
    Pinned {
        folder: &'static str,
        package: &'static str,
        program: &'static str,
        variables: &'static [&'static str],
    },
    /// A package of Debian, which puts the program into one of the folders.
    Debian {
        package: &'static str,
        program: &'static str,
    },
}

/// By these kube-apiserver and kubectl say their version, and decide which features they have.
const KUBERNETES: &[&str] = &[
    "k8s.io/component-base/version.gitVersion=v1.36.3",
    "k8s.io/component-base/version.gitMajor=1",
    "k8s.io/component-base/version.gitMinor=36",
];

/// Every peer. The order is that of getting them: those that others build on come first.
pub const PEERS: &[Peer] = &[
    Peer {
        name: "distribution-2.8",
        purpose: "the registry that most people run, without the referrers API",
        source: Source::Debian {
            package: "docker-registry",
            program: "docker-registry",
        },
    },
    Peer {
        name: "postgresql",
        purpose: "the other database",
        source: Source::Debian {
            package: "postgresql",
            program: "postgres",
        },
    },
    Peer {
        name: "prometheus",
        purpose: "scrapes the server and evaluates the alerts",
        source: Source::Debian {
            package: "prometheus",
            program: "prometheus",
        },
    },
    Peer {
        name: "promtool",
        purpose: "checks and tests the alerts",
        source: Source::Debian {
            package: "prometheus",
            program: "promtool",
        },
    },
    Peer {
        name: "openssl",
        purpose: "a timestamp authority (RFC 3161)",
        source: Source::Debian {
            package: "openssl",
            program: "openssl",
        },
    },
    Peer {
        name: "systemd-analyze",
        purpose: "checks the unit",
        source: Source::Debian {
            package: "systemd",
            program: "systemd-analyze",
        },
    },
    Peer {
        name: "crane-0.22.1",
        purpose: "pushes and looks at images",
        source: Source::Go {
            module: "github.com/google/go-containerregistry/cmd/crane@v0.22.1",
            program: "crane",
        },
    },
    Peer {
        name: "referrers-registry-0.22.1",
        purpose: "a registry with the referrers API",
        source: Source::Own {
            folder: "e2e/peers/referrers-registry",
            program: "referrers-registry",
        },
    },
    Peer {
        name: "oras-1.3.6",
        purpose: "referrers and artifacts",
        source: Source::Go {
            module: "oras.land/oras/cmd/oras@v1.3.6",
            program: "oras",
        },
    },
    Peer {
        name: "rekor-tiles-2.3.0",
        purpose: "a Rekor v2 that is not ours, to compare with",
        source: Source::Go {
            module: "github.com/sigstore/rekor-tiles/v2/cmd/rekor-server/posix@v2.3.0",
            program: "posix",
        },
    },
    Peer {
        name: "distribution-3.1.2",
        purpose: "the newest registry without the referrers API",
        source: Source::Go {
            module: "github.com/distribution/distribution/v3/cmd/registry@v3.1.2",
            program: "registry",
        },
    },
    Peer {
        name: "cosign-3.1.3",
        purpose: "the newest cosign; the baseline of the measurements",
        source: Source::Go {
            module: "github.com/sigstore/cosign/v3/cmd/cosign@v3.1.3",
            program: "cosign",
        },
    },
    Peer {
        name: "cosign-2.6.5",
        purpose: "the older generation of cosign",
        source: Source::Go {
            module: "github.com/sigstore/cosign/v2/cmd/cosign@v2.6.5",
            program: "cosign",
        },
    },
    Peer {
        name: "helm-3.22.0",
        purpose: "checks and renders the chart",
        source: Source::Go {
            module: "helm.sh/helm/v3/cmd/helm@v3.22.0",
            program: "helm",
        },
    },
    Peer {
        name: "etcd-3.6.12",
        purpose: "the store of the API server",
        source: Source::Pinned {
            folder: "e2e/peers/etcd",
            package: "go.etcd.io/etcd/server/v3",
            program: "etcd",
            variables: &[],
        },
    },
    Peer {
        name: "kubectl-1.36.3",
        purpose: "sends manifests to the API server",
        source: Source::Pinned {
            folder: "e2e/peers/kubernetes",
            package: "k8s.io/kubernetes/cmd/kubectl",
            program: "kubectl",
            variables: KUBERNETES,
        },
    },
    Peer {
        name: "kube-apiserver-1.36.3",
        purpose: "takes or refuses the manifests",
        source: Source::Pinned {
            folder: "e2e/peers/kubernetes",
            package: "k8s.io/kubernetes/cmd/kube-apiserver",
            program: "kube-apiserver",
            variables: KUBERNETES,
        },
    },
];

/// Folders in which Debian puts programs; servers of PostgreSQL lie in one folder for each version.
const SYSTEM_FOLDERS: &[&str] = &["/usr/bin", "/usr/sbin"];
const POSTGRESQL_FOLDER: &str = "/usr/lib/postgresql";

/// The variable that names the cache.
pub const CACHE_VARIABLE: &str = "PORTCULLIS_PEERS";
/// The variable that names the file in which tests write what they did not run.
pub const SKIPPED_VARIABLE: &str = "PORTCULLIS_SKIPPED";

impl Peer {
    /// The program's path, if it is there.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        let path = match self.source {
            Source::Go { program, .. } | Source::Own { program, .. } | Source::Pinned { program, .. } => {
                cache().join(self.name).join(program)
            }
            Source::Debian { program, .. } => system_path(program)?,
        };
        path.is_file().then_some(path)
    }

    /// The command that gets it, for a person.
    #[must_use]
    pub fn how(&self) -> String {
        match self.source {
            Source::Go { .. } | Source::Own { .. } | Source::Pinned { .. } => "cargo xtask peers".to_owned(),
            Source::Debian { package, .. } => format!("apt-get install {package}"),
        }
    }
}

/// The folder in which the peers that we build are kept: `$PORTCULLIS_PEERS`, or `portcullis/peers` in the
/// user's cache.
#[must_use]
pub fn cache() -> PathBuf {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set(CACHE_VARIABLE).unwrap_or_else(|| {
        let user = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
        user.unwrap_or_else(std::env::temp_dir).join("portcullis/peers")
    })
}

/// A peer's program by the peer's name.
///
/// # Panics
/// If there is no peer of that name: the test that asks is wrong.
#[must_use]
pub fn find(name: &str) -> Option<PathBuf> {
    let peer = PEERS.iter().find(|peer| peer.name == name);
    assert!(peer.is_some(), "no peer is called {name}");
    peer.and_then(Peer::path)
}

/// Writes down that the test of this thread did not run, for want of a peer or of a right.
pub fn skip(name: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    eprintln!("{test}: not run, for want of {name}");
    if let Some(path) = std::env::var_os(SKIPPED_VARIABLE) {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        // One write of a short line to a file that is open for appending is not torn by another's.
        let written = file.and_then(|mut file| file.write_all(format!("{name}\t{test}\n").as_bytes()));
        if let Err(error) = written {
            eprintln!("{test}: could not write that down: {error}");
        }
    }
}

/// A program of Debian's, the newest one where there are several versions.
fn system_path(program: &str) -> Option<PathBuf> {
    let plain = SYSTEM_FOLDERS
        .iter()
        .map(|folder| Path::new(folder).join(program));
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir(POSTGRESQL_FOLDER)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin").join(program)))
        })
        .collect();
    versions.sort();
    plain
        .chain(versions.into_iter().rev().map(|(_, path)| path))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_given_once_and_carries_the_version_that_is_built() {
        for (at, peer) in PEERS.iter().enumerate() {
            assert!(
                PEERS[..at].iter().all(|other| other.name != peer.name),
                "{}",
                peer.name
            );
            if let Source::Go { module, .. } = peer.source {
                let (_, version) = module.rsplit_once("@v").unwrap();
                assert!(
                    peer.name.ends_with(&format!("-{version}")),
                    "{}: {module}",
                    peer.name
                );
            }
            if let Source::Pinned { folder, package, .. } = peer.source {
                let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
                let pinned = std::fs::read_to_string(root.join(folder).join("go.mod")).unwrap();
                let (_, version) = peer.name.rsplit_once('-').unwrap();
                let found = pinned.lines().any(|line| {
                    let mut words = line.split_whitespace().skip_while(|word| *word == "require");
                    let module = words.next().unwrap_or("none");
                    package.starts_with(module) && words.next() == Some(&format!("v{version}"))
                });
                assert!(found, "{}: {folder}", peer.name);
            }
        }
    }
}
