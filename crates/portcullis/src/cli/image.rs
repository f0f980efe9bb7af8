//! `portcullis image tree`.

use flow::Caller;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use kernel::{Clock, Digest, Monotonic, Reference, SystemClock};
use serde_json::{Value, json};
use signing::format::legacy;
use signing::ports::{Descriptor, Manifest, Registry, RegistryError, RegistryReason};
use tokio::time::timeout;

use crate::args::{Globals, Image, Output};
use crate::cli::input;
use crate::codes;
use crate::failure::Failure;
use crate::output::{document, println};

/// Levels that are drawn: what is attached to what is attached.
const DEPTH_MAX: usize = 4;
/// What is read at once below one manifest.
const AT_ONCE_MAX: usize = 8;
/// The tags that cosign's older formats put beside an image.
const TAGS: [&str; 3] = ["sig", "att", "sbom"];
/// What stands for what was not read in time.
const LATE: &str = "not read in time";
/// The exit code of "could not ask".
const UNAVAILABLE: u8 = 6;

pub async fn run(globals: &Globals, own: Image) -> Result<ExitCode, Failure> {
    let Image::Tree { image, registry } = own;
    let client = input::registry(&registry)?;
    let clock = SystemClock::new();
    let tree = Tree {
        registry: &client,
        image: &image,
        began: clock.monotonic(),
        clock: &clock,
        time_max: Duration::from_secs(globals.timeout),
        late: AtomicUsize::new(0),
    };
    let Some(manifest) = tree.in_time(client.manifest(Caller::LOCAL, &image)).await else {
        return Err(slow(globals, "its own manifest was not read"));
    };
    let manifest = manifest?;
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
    match tree.late.into_inner() {
        0 => Ok(ExitCode::SUCCESS),
        calls => {
            // The tree is the output, also for programs; this is said beside it.
            slow(globals, &format!("{calls} answers did not come")).explain();
            Ok(ExitCode::from(UNAVAILABLE))
        }
    }
}

fn slow(globals: &Globals, what: &str) -> Failure {
    let cause = format!("{what} within {} s", globals.timeout);
    Failure::coded(UNAVAILABLE, &codes::SLOW_TREE, cause)
}

struct Tree<'a> {
    registry: &'a dyn Registry,
    image: &'a Reference,
    clock: &'a dyn Clock,
    began: Monotonic,
    /// Of all calls together.
    time_max: Duration,
    /// Calls whose answer did not come in time.
    late: AtomicUsize,
}

impl Tree<'_> {
    /// An answer, or nothing when the time is over.
    async fn in_time<T>(&self, call: impl Future<Output = T>) -> Option<T> {
        let spent = self.clock.monotonic().since(self.began);
        let answer = timeout(self.time_max.saturating_sub(spent), call).await.ok();
        if answer.is_none() {
            self.late.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }

    /// One manifest and what is attached to it.
    fn node(&self, digest: Digest, kind: String, depth: usize) -> BoxFuture<'_, Result<Value, Failure>> {
        async move {
            if depth == DEPTH_MAX {
                return Ok(json!({ "digest": digest, "kind": kind, "attached": [] }));
            }
            let listed = self
                .registry
                .referrers(Caller::LOCAL, self.image.repository(), digest);
            let Some(listed) = self.in_time(listed).await else {
                let kind = format!("{kind}  (what is attached to it: {LATE})");
                return Ok(json!({ "digest": digest, "kind": kind, "attached": [] }));
            };
            let mut attached: Vec<Value> = stream::iter(listed?)
                .map(|referrer| self.referrer(referrer, depth + 1))
                .buffered(AT_ONCE_MAX)
                .try_collect()
                .await?;
            if depth == 0 {
                for suffix in TAGS {
                    attached.extend(self.tag(digest, suffix).await?);
                }
            }
            Ok(json!({ "digest": digest, "kind": kind, "attached": attached }))
        }
        .boxed()
    }

    async fn referrer(&self, referrer: Descriptor, depth: usize) -> Result<Value, Failure> {
        let digest = referrer.digest;
        let image = self.image.repository().at(digest);
        let Some(read) = self.in_time(self.registry.manifest(Caller::LOCAL, &image)).await else {
            return Ok(json!({ "digest": digest, "kind": LATE, "attached": [] }));
        };
        self.node(digest, kind(read)?, depth).await
    }

    /// What lies under a tag of cosign's older formats, if there is such a tag.
    async fn tag(&self, digest: Digest, suffix: &str) -> Result<Option<Value>, Failure> {
        let tag = legacy::tag(digest).replace(".sig", &format!(".{suffix}"));
        let image = self.image.repository().tagged(&tag);
        let Some(read) = self.in_time(self.registry.manifest(Caller::LOCAL, &image)).await else {
            let kind = format!("tag {tag}  {LATE}");
            return Ok(Some(json!({ "digest": null, "kind": kind, "attached": [] })));
        };
        let (digest, what) = match read {
            Ok(manifest) => match legacy::layers(&manifest) {
                Ok(layers) => (Some(manifest.digest), format!("{} layers", layers.len())),
                Err(error) => (Some(manifest.digest), format!("unreadable: {error}")),
            },
            Err(error) => match error.reason {
                RegistryReason::NotFound => return Ok(None),
                RegistryReason::Unreadable { digest, .. } => {
                    (Some(digest), format!("unreadable: {}", error.reason))
                }
                RegistryReason::TooLarge { .. } => (None, format!("unreadable: {}", error.reason)),
                _ => return Err(error.into()),
            },
        };
        let kind = format!("tag {tag}  {what}");
        Ok(Some(json!({ "digest": digest, "kind": kind, "attached": [] })))
    }
}

/// What a referrer says that it is: its own manifest knows, the list may not. What is no manifest is attached all the
/// same.
fn kind(read: Result<Manifest, RegistryError>) -> Result<String, Failure> {
    let manifest = match read {
        Ok(manifest) => manifest,
        Err(error) => match error.reason {
            RegistryReason::NotFound => return Ok("listed, but gone".to_owned()),
            RegistryReason::Unreadable { .. } | RegistryReason::TooLarge { .. } => {
                return Ok(format!("unreadable: {}", error.reason));
            }
            _ => return Err(error.into()),
        },
    };
    let read: Value = serde_json::from_slice(&manifest.bytes).unwrap_or_default();
    let predicate = read["annotations"]["dev.sigstore.bundle.predicateType"].as_str();
    let kind = read["artifactType"]
        .as_str()
        .or(read["config"]["mediaType"].as_str())
        .unwrap_or("unknown");
    Ok(predicate.map_or_else(|| kind.to_owned(), |predicate| format!("{kind}  {predicate}")))
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
