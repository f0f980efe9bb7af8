//! Everybody signs, everybody verifies, on every kind of registry.

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
    BundleLogged,
    Bundle,
    LegacyLogged,
    Legacy,
}

const WAYS: [Way; 4] = [Way::BundleLogged, Way::Bundle, Way::LegacyLogged, Way::Legacy];

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::BundleLogged => "bundle, our log",
            Self::Bundle => "bundle, no log",
            Self::LegacyLogged => "legacy, our log",
            Self::Legacy => "legacy, no log",
        }
    }
}

/// The cells that cannot be, with the tool that cannot and why: no tool puts our log's evidence into a legacy
/// tag. What a legacy tag can carry is a signed entry timestamp, which only a Rekor v1 makes; a log of the
/// second generation gives an inclusion proof, which only a bundle can carry.
fn impossible(signer: Tool, way: Way) -> Option<&'static str> {
    match (way, signer) {
        (Way::LegacyLogged, Tool::Cosign3) => {
            Some("cosign 3.1.3 cannot: it writes legacy tags with a Rekor v1 only")
        }
        (Way::LegacyLogged, Tool::Cosign2) => {
            Some("cosign 2.6.5 cannot: it writes legacy tags with a Rekor v1 only")
        }
        (Way::LegacyLogged, Tool::Portcullis) => {
            Some("portcullis cannot: its log is a Rekor v2, which has no SET")
        }
        _ => None,
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
        let log = self.server.url();
        let options: &[&str] = match (tool, way) {
            (Tool::Portcullis, Way::BundleLogged) => {
                return self.portcullis(&["sign", "--key", "shared", "--formats", "bundle", image]);
            }
            (Tool::Portcullis, Way::Bundle) => {
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
            (Tool::Portcullis, Way::LegacyLogged) => {
                return self.portcullis(&["sign", "--key", "shared", "--formats", "legacy", image]);
            }
            (Tool::Portcullis, Way::Legacy) => {
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
            (Tool::Cosign3, Way::BundleLogged) => &with_log,
            (Tool::Cosign3, Way::Bundle) => &["--signing-config", "no_log.json"],
            (Tool::Cosign3, Way::LegacyLogged) => {
                &["--use-signing-config=false", legacy[0], "--rekor-url", &log]
            }
            (Tool::Cosign3, Way::Legacy) => &["--use-signing-config=false", legacy[0], legacy[1]],
            (Tool::Cosign2, Way::BundleLogged) => &[
                "--new-bundle-format",
                with_log[0],
                with_log[1],
                with_log[2],
                with_log[3],
            ],
            (Tool::Cosign2, Way::Bundle) => &["--new-bundle-format", "--tlog-upload=false"],
            (Tool::Cosign2, Way::LegacyLogged) => &[legacy[0], "--rekor-url", &log],
            (Tool::Cosign2, Way::Legacy) => &legacy,
        };
        self.home(tool)
            .run(&[&["sign", "--key", "cosign.key", "--yes"], options, &[image]].concat())
    }

    fn verify(&self, tool: Tool, way: Way, key: &str, image: &str) -> Ran {
        let root = ["--trusted-root", "trusted_root.json"];
        let options: &[&str] = match (tool, way) {
            (Tool::Portcullis, Way::BundleLogged | Way::LegacyLogged) => {
                return self.portcullis(&["verify", "--key", key, image]);
            }
            (Tool::Portcullis, _) => {
                return self.portcullis(&["verify", "--local", "--key", key, "--insecure-ignore-log", image]);
            }
            (Tool::Cosign3, Way::BundleLogged) => &root,
            (Tool::Cosign3, Way::Bundle) => &["--insecure-ignore-tlog=true"],
            (Tool::Cosign3, Way::LegacyLogged) => &["--new-bundle-format=false", root[0], root[1]],
            (Tool::Cosign3, Way::Legacy) => &["--insecure-ignore-tlog=true", "--new-bundle-format=false"],
            (Tool::Cosign2, Way::BundleLogged) => &["--new-bundle-format", root[0], root[1]],
            // It wants a trusted root for the format, though it looks nothing up in it.
            (Tool::Cosign2, Way::Bundle) => &[
                "--new-bundle-format",
                "--insecure-ignore-tlog=true",
                root[0],
                root[1],
            ],
            (Tool::Cosign2, Way::LegacyLogged) => &root,
            (Tool::Cosign2, Way::Legacy) => &["--insecure-ignore-tlog=true"],
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
        let format = if way == Way::Legacy { "legacy" } else { "bundle" };
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

#[test]
fn the_interop_matrix_is_green() {
    let (cosign3, cosign2) = (peer!("cosign-3.1.3"), peer!("cosign-2.6.5"));
    let crane = peer!("crane-0.22.1");
    let Some(registries) = registries() else { return };
    let bench = bench(&cosign3, &cosign2);

    let (mut wrong, mut green) = (Vec::new(), 0);
    let names = registries
        .each_ref()
        .map(|(name, _)| format!("{name:<18}"))
        .concat();
    let mut table = format!("{:<14}{:<14}{:<17}{names}\n", "SIGNS", "VERIFIES", "HOW");
    for signer in TOOLS {
        for way in WAYS {
            let impossible = impossible(signer, way);
            // An image of its own for every signer and way: nobody verifies the signature of somebody else.
            let images = registries.each_ref().map(|(_, registry)| {
                let tag = format!("{signer:?}-{way:?}").to_lowercase();
                let image = push(&crane, registry.address(), &tag, &tag);
                let signed = bench.sign(signer, way, &image);
                if impossible.is_none() {
                    signed.expect_ok();
                    bench.assert_is(way, &image);
                }
                image
            });
            for verifier in TOOLS {
                table += &format!("{:<14}{:<14}{:<17}", signer.name(), verifier.name(), way.name());
                for image in &images {
                    let verified = bench.verify(verifier, way, "cosign.pub", image);
                    let cell = match (verified.ok(), impossible) {
                        (true, None) => "ok",
                        (false, Some(_)) => "n/a",
                        (false, None) => "FAILED",
                        (true, Some(_)) => "POSSIBLE",
                    };
                    table += &format!("{cell:<18}");
                    green += u32::from(verified.ok());
                    if verified.ok() != impossible.is_none() {
                        let who = (signer.name(), verifier.name(), way.name(), image);
                        wrong.push(format!("{who:?} is {cell}: {}", verified.text()));
                    }
                }
                table += impossible.unwrap_or_default();
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
    assert!(wrong.is_empty(), "{table}\n{}", wrong.join("\n"));
    assert_eq!(green, 3 * 3 * 3 * 3, "signers, verifiers, ways, registries");
}
