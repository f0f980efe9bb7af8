//! Everybody signs, everybody verifies, on every kind of registry.

use std::collections::BTreeSet;
use std::path::Path;

use e2e::{Ran, Server, Setup};
use testkit::{Distribution, ReferrersRegistry, peer};

use crate::cosign::{Home, PASSWORD, Registry, push, trust_files};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    Cosign3,
    Cosign2,
    Portcullis,
}

const TOOLS: [Tool; 3] = [Tool::Cosign3, Tool::Cosign2, Tool::Portcullis];

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Self::Cosign3 => "cosign 3.1.3",
            Self::Cosign2 => "cosign 2.6.5",
            Self::Portcullis => "portcullis",
        }
    }
}

/// What is signed how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    BundleLog,
    BundleNoLog,
    LegacyLog,
    LegacyNoLog,
}

const WAYS: [Way; 4] = [Way::BundleLog, Way::BundleNoLog, Way::LegacyLog, Way::LegacyNoLog];

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::BundleLog => "bundle, our log",
            Self::BundleNoLog => "bundle, no log",
            Self::LegacyLog => "legacy, our log",
            Self::LegacyNoLog => "legacy, no log",
        }
    }

    /// Why no signature of this way can be made by `signer`, whatever the registry.
    fn impossible(self, signer: Tool) -> Option<&'static str> {
        match (self, signer) {
            // The evidence in a legacy tag is a signed entry timestamp, which only Rekor v1 makes; a log of
            // the second generation gives an inclusion proof, which only a bundle can carry.
            (Self::LegacyLog, Tool::Cosign3 | Tool::Cosign2) => {
                Some("cosign writes legacy tags with Rekor v1 only")
            }
            (Self::LegacyLog, Tool::Portcullis) => Some("portcullis has a Rekor v2 log, which has no SET"),
            _ => None,
        }
    }
}

struct Bench {
    server: Server,
    cosign3: Home,
    cosign2: Home,
}

impl Bench {
    fn home(&self, tool: Tool) -> &Home {
        if tool == Tool::Cosign2 {
            &self.cosign2
        } else {
            &self.cosign3
        }
    }

    fn portcullis(&self, args: &[&str]) -> Ran {
        e2e::run(self.server.command().env("COSIGN_PASSWORD", PASSWORD).args(args)).unwrap()
    }

    fn sign(&self, tool: Tool, way: Way, image: &str) -> Ran {
        let with_log = [
            "--signing-config",
            "signing_config.json",
            "--trusted-root",
            "trusted_root.json",
        ];
        let legacy = ["--new-bundle-format=false", "--tlog-upload=false"];
        let options: &[&str] = match (tool, way) {
            (Tool::Portcullis, Way::BundleLog) => {
                return self.portcullis(&["sign", "--key", "shared", "--formats", "bundle", image]);
            }
            (Tool::Portcullis, Way::BundleNoLog) => {
                return self.portcullis(&[
                    "sign",
                    "--local",
                    "--key",
                    "cosign.key",
                    "--formats",
                    "bundle",
                    image,
                ]);
            }
            (Tool::Portcullis, _) => {
                return self.portcullis(&[
                    "sign",
                    "--local",
                    "--key",
                    "cosign.key",
                    "--formats",
                    "legacy",
                    image,
                ]);
            }
            (Tool::Cosign3, Way::BundleLog) => &with_log,
            (Tool::Cosign3, Way::BundleNoLog) => &["--signing-config", "no_log.json"],
            (Tool::Cosign3, _) => &["--use-signing-config=false", legacy[0], legacy[1]],
            (Tool::Cosign2, Way::BundleLog) => &[
                "--new-bundle-format",
                with_log[0],
                with_log[1],
                with_log[2],
                with_log[3],
            ],
            (Tool::Cosign2, Way::BundleNoLog) => &["--new-bundle-format", "--tlog-upload=false"],
            (Tool::Cosign2, _) => &legacy,
        };
        self.home(tool)
            .run(&[&["sign", "--key", "cosign.key", "--yes"], options, &[image]].concat())
    }

    fn verify(&self, tool: Tool, way: Way, key: &str, image: &str) -> Ran {
        let root = ["--trusted-root", "trusted_root.json"];
        let options: &[&str] = match (tool, way) {
            (Tool::Portcullis, Way::BundleLog) => return self.portcullis(&["verify", "--key", key, image]),
            (Tool::Portcullis, _) => {
                return self.portcullis(&["verify", "--local", "--key", key, "--insecure-ignore-log", image]);
            }
            (Tool::Cosign3, Way::BundleLog) => &root,
            (Tool::Cosign3, Way::BundleNoLog) => &["--insecure-ignore-tlog=true"],
            (Tool::Cosign3, _) => &["--insecure-ignore-tlog=true", "--new-bundle-format=false"],
            (Tool::Cosign2, Way::BundleLog) => &["--new-bundle-format", root[0], root[1]],
            // It wants a trusted root for the format, though it looks nothing up in it.
            (Tool::Cosign2, Way::BundleNoLog) => &[
                "--new-bundle-format",
                "--insecure-ignore-tlog=true",
                root[0],
                root[1],
            ],
            (Tool::Cosign2, _) => &["--insecure-ignore-tlog=true"],
        };
        self.home(tool)
            .run(&[&["verify", "--key", key], options, &[image]].concat())
    }

    /// Whether a signature has the evidence and the format that its way says, and not another that would
    /// verify as well.
    fn assert_is(&self, way: Way, image: &str) {
        let args = [
            "verify",
            "--local",
            "--key",
            "cosign.pub",
            "--insecure-ignore-log",
            "-o",
            "json",
            image,
        ];
        let report: serde_json::Value =
            serde_json::from_str(&self.portcullis(&args).expect_ok().stdout).unwrap();
        let evidence = report["evidence"].as_array().unwrap();
        let format = if way == Way::LegacyNoLog {
            "legacy"
        } else {
            "bundle"
        };
        assert!(
            evidence.iter().all(|one| one["format"] == format),
            "{}: {report}",
            way.name()
        );
        assert_eq!(evidence.len(), 1, "{}: {report}", way.name());
    }
}

fn registries() -> Option<[(&'static str, Registry); 3]> {
    let old = Distribution::start(&peer!("distribution-2.8")).unwrap();
    let new = Distribution::start(&peer!("distribution-3.1.2")).unwrap();
    let referrers = ReferrersRegistry::start(&peer!("referrers-registry-0.22.1")).unwrap();
    Some([
        ("distribution 2.8", Registry::Distribution(old)),
        ("distribution 3.1", Registry::Distribution(new)),
        ("referrers API", Registry::Referrers(referrers)),
    ])
}

fn bench(cosign3: &Path, cosign2: &Path) -> Bench {
    let server = Server::start(Setup::default()).unwrap();
    let cosign3 = Home::new(cosign3, server.folder());
    let cosign2 = cosign3.with(cosign2);
    trust_files(&server, server.folder());
    cosign3
        .run(&["signing-config", "create", "--out", "no_log.json"])
        .expect_ok();
    let bench = Bench {
        server,
        cosign3,
        cosign2,
    };
    let _ = bench
        .portcullis(&["key", "import", "shared", "cosign.key"])
        .expect_ok();
    let other = bench.portcullis(&["key", "get", "default"]).expect_ok();
    std::fs::write(bench.server.folder().join("other.pub"), other.stdout).unwrap();
    bench
}

/// The cells that cannot be, each with the tool that cannot and why. Every other one is green.
fn impossible() -> BTreeSet<String> {
    let mut cells = BTreeSet::new();
    for signer in TOOLS {
        for verifier in TOOLS {
            cells.insert(format!(
                "{} -> {}: {}",
                signer.name(),
                verifier.name(),
                Way::LegacyLog.name()
            ));
        }
    }
    cells
}

#[test]
fn the_interop_matrix_is_green() {
    let (cosign3, cosign2) = (peer!("cosign-3.1.3"), peer!("cosign-2.6.5"));
    let crane = peer!("crane-0.22.1");
    let Some(registries) = registries() else { return };
    let bench = bench(&cosign3, &cosign2);

    let (mut failures, mut missing, mut green) = (Vec::new(), BTreeSet::new(), 0);
    let names = registries.each_ref().map(|(name, _)| *name);
    let mut table = format!(
        "{:<14}{:<14}{:<17}{}\n",
        "SIGNS",
        "VERIFIES",
        "HOW",
        names.map(|name| format!("{name:<18}")).concat()
    );
    for signer in TOOLS {
        for way in WAYS {
            if let Some(why) = way.impossible(signer) {
                for verifier in TOOLS {
                    missing.insert(format!(
                        "{} -> {}: {}",
                        signer.name(),
                        verifier.name(),
                        way.name()
                    ));
                    table += &format!(
                        "{:<14}{:<14}{:<17}n/a: {why}\n",
                        signer.name(),
                        verifier.name(),
                        way.name()
                    );
                }
                continue;
            }
            // An image of its own for every signer and way: nobody verifies the signature of somebody else.
            let images = registries.each_ref().map(|(_, registry)| {
                let tag = format!("{signer:?}-{way:?}").to_lowercase();
                let image = push(&crane, registry.address(), &tag, &tag);
                bench.sign(signer, way, &image).expect_ok();
                bench.assert_is(way, &image);
                image
            });
            for verifier in TOOLS {
                table += &format!("{:<14}{:<14}{:<17}", signer.name(), verifier.name(), way.name());
                for (image, name) in images.iter().zip(names) {
                    let verified = bench.verify(verifier, way, "cosign.pub", image);
                    table += &format!("{:<18}", if verified.ok() { "ok" } else { "FAILED" });
                    green += u32::from(verified.ok());
                    if !verified.ok() {
                        let who = (signer.name(), verifier.name(), way.name(), name);
                        failures.push(format!("{who:?}: {}", verified.text()));
                    }
                }
                table += "\n";
                let refused = bench.verify(verifier, way, "other.pub", &images[0]);
                assert!(
                    !refused.ok(),
                    "{verifier:?} takes {signer:?}'s {way:?} for that of another key"
                );
            }
        }
    }
    println!("{table}");
    assert!(failures.is_empty(), "{table}\n{}", failures.join("\n"));
    assert_eq!(missing, impossible());
    assert_eq!(green, 3 * 3 * 3 * 3, "signers, verifiers, ways, registries");
}
