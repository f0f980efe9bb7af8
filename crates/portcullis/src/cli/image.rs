//! `portcullis image tree`.

use std::process::ExitCode;

use kernel::{Digest, Reference};
use serde_json::{Value, json};
use signing::format::legacy;
use signing::ports::{Registry, RegistryError, RegistryReason};

use crate::args::{Globals, Image, Output};
use crate::cli::input;
use crate::failure::Failure;
use crate::output::{document, println};

/// Levels that are drawn: what is attached to what is attached.
const DEPTH_MAX: usize = 4;
/// The tags that cosign's older formats put beside an image.
const TAGS: [&str; 3] = ["sig", "att", "sbom"];

pub async fn run(globals: &Globals, own: Image) -> Result<ExitCode, Failure> {
    let Image::Tree { image, registry } = own;
    let client = input::registry(&registry)?;
    let manifest = client.manifest("", &image).await?;
    let tree = Tree {
        registry: &client,
        image: &image,
    };
    let root = tree.node(manifest.digest, manifest.media_type, 0).await?;
    match globals.output {
        Output::Json | Output::Yaml => document(globals, &root),
        Output::Name => println(root["digest"].as_str().unwrap_or_default()),
        Output::Table => {
            println(&format!(
                "{image}  {}",
                root["digest"].as_str().unwrap_or_default()
            ));
            draw(&root, "");
        }
    }
    Ok(ExitCode::SUCCESS)
}

struct Tree<'a> {
    registry: &'a dyn Registry,
    image: &'a Reference,
}

impl Tree<'_> {
    /// One manifest and what is attached to it.
    async fn node(&self, digest: Digest, kind: String, depth: usize) -> Result<Value, Failure> {
        let mut attached = Vec::new();
        if depth < DEPTH_MAX {
            for referrer in self
                .registry
                .referrers("", self.image.repository(), digest)
                .await?
            {
                let kind = self.kind(referrer.digest).await?;
                attached.push(Box::pin(self.node(referrer.digest, kind, depth + 1)).await?);
            }
            if depth == 0 {
                attached.extend(self.tags(digest).await?);
            }
        }
        Ok(json!({ "digest": digest, "kind": kind, "attached": attached }))
    }

    /// What a referrer says that it is: its own manifest knows, the list may not.
    async fn kind(&self, digest: Digest) -> Result<String, Failure> {
        let manifest = match self
            .registry
            .manifest("", &self.image.repository().at(digest))
            .await
        {
            Ok(manifest) => manifest,
            Err(RegistryError {
                reason: RegistryReason::NotFound,
                ..
            }) => return Ok("listed, but gone".to_owned()),
            Err(error) if is_unreadable(&error) => return Ok(format!("unreadable: {}", error.reason)),
            Err(error) => return Err(error.into()),
        };
        let read: Value = serde_json::from_slice(&manifest.bytes).unwrap_or_default();
        let predicate = read["annotations"]["dev.sigstore.bundle.predicateType"].as_str();
        let kind = read["artifactType"]
            .as_str()
            .or(read["config"]["mediaType"].as_str())
            .unwrap_or("unknown");
        Ok(predicate.map_or_else(|| kind.to_owned(), |predicate| format!("{kind}  {predicate}")))
    }

    async fn tags(&self, digest: Digest) -> Result<Vec<Value>, Failure> {
        let mut found = Vec::new();
        for suffix in TAGS {
            let tag = legacy::tag(digest).replace(".sig", &format!(".{suffix}"));
            match self
                .registry
                .manifest("", &self.image.repository().tagged(&tag))
                .await
            {
                Ok(manifest) => {
                    let kind = match legacy::layers(&manifest) {
                        Ok(layers) => format!("tag {tag}  {} layers", layers.len()),
                        Err(error) => format!("tag {tag}  unreadable: {error}"),
                    };
                    found.push(json!({ "digest": manifest.digest, "kind": kind, "attached": [] }));
                }
                Err(RegistryError {
                    reason: RegistryReason::NotFound,
                    ..
                }) => {}
                Err(error) if is_unreadable(&error) => {
                    let digest = match &error.reason {
                        RegistryReason::Unreadable { digest, .. } => Some(digest),
                        _ => None,
                    };
                    let kind = format!("tag {tag}  unreadable: {}", error.reason);
                    found.push(json!({ "digest": digest, "kind": kind, "attached": [] }));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(found)
    }
}

/// Whether the registry has answered with something that is no manifest: it is attached all the same.
fn is_unreadable(error: &RegistryError) -> bool {
    matches!(
        error.reason,
        RegistryReason::Unreadable { .. } | RegistryReason::TooLarge { .. }
    )
}

fn draw(node: &Value, indent: &str) {
    let attached = node["attached"].as_array().map(Vec::as_slice).unwrap_or_default();
    if attached.is_empty() && indent.is_empty() {
        println("└── nothing is attached to it");
    }
    for (at, child) in attached.iter().enumerate() {
        let last = at + 1 == attached.len();
        let (branch, below) = if last {
            ("└── ", "    ")
        } else {
            ("├── ", "│   ")
        };
        let digest = child["digest"].as_str().unwrap_or_default();
        println(&format!(
            "{indent}{branch}{digest}  {}",
            child["kind"].as_str().unwrap_or_default()
        ));
        draw(child, &format!("{indent}{below}"));
    }
}
