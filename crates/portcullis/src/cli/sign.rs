//! `portcullis sign`.

use std::collections::HashSet;
use std::process::ExitCode;

use futures::StreamExt as _;
use kernel::limits::{BATCH_ITEMS_MAX, RELEASE_SUBJECTS_MAX};
use kernel::{Clock as _, Reference, SystemClock};
use serde_json::{Value, json};
use signing::Formats;
use signing::key::LocalSigner;

use crate::args::{Globals, Output, Sign};
use crate::cli::input;
use crate::client::Client;
use crate::codes;
use crate::failure::Failure;
use crate::output::{Progress, document, println, say};

/// The exit code of "could not ask".
const NO_ANSWER: u8 = 6;
/// What to do when the server went away.
const AGAIN: &str = "run the same command again: what is signed already is only looked up";

pub async fn run(globals: &Globals, own: Sign) -> Result<ExitCode, Failure> {
    let mut images = input::images(&own.images)?;
    if own.changed_only {
        // A list that a build gathers names an image as often as somebody uses it.
        let mut seen = HashSet::new();
        images.retain(|image| seen.insert(image.clone()));
    }
    if own.local {
        local(globals, &own, &images).await
    } else {
        server(globals, &own, &images).await
    }
}

async fn server(globals: &Globals, own: &Sign, images: &[Reference]) -> Result<ExitCode, Failure> {
    // In batches it would become several releases.
    if own.release && images.len() > RELEASE_SUBJECTS_MAX {
        let what = format!(
            "a release has at most {RELEASE_SUBJECTS_MAX} images, not {}",
            images.len()
        );
        return Err(Failure::usage(
            what,
            "make several releases, or sign without --release",
        ));
    }
    let client = Client::new(globals)?;
    let formats = own.formats.map(|formats| formats.to_string());
    let formats: Option<Vec<&str>> = formats.as_ref().map(|words| words.split(',').collect());
    let annotations: serde_json::Map<String, Value> = own
        .images
        .annotations
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    let item = |image: &Reference| {
        let mut item = json!({ "image": image, "annotations": annotations, "recursive": own.images.recursive, "repair": own.repair });
        if let Some(key) = &own.key {
            item["key"] = json!(key);
        }
        if let Some(formats) = &formats {
            item["formats"] = json!(formats);
        }
        item
    };
    let mut tally = Tally::new(globals, images.len());
    tally.changed_only = own.changed_only;
    for chunk in images.chunks(BATCH_ITEMS_MAX) {
        let body = json!({ "items": chunk.iter().map(item).collect::<Vec<_>>(), "release": own.release });
        let before = tally.answered;
        match client.stream("api/v1/signatures:batch", &body).await {
            Ok(response) => tally.read(response).await,
            // Of what was not begun there is nothing to tell.
            Err(failure) if before == 0 => return Err(failure),
            Err(failure) if failure.exit() == NO_ANSWER => return tally.stop(failure.with_hint(AGAIN)),
            Err(failure) => return tally.stop(failure),
        }
        if tally.answered - before != chunk.len() {
            let what = format!(
                "it answered for {} of {} images and went away",
                tally.answered,
                images.len()
            );
            return tally.stop(Failure::coded(NO_ANSWER, &codes::SERVER, what).with_hint(AGAIN));
        }
    }
    tally.finish()
}

async fn local(globals: &Globals, own: &Sign, images: &[Reference]) -> Result<ExitCode, Failure> {
    let path = own.key.clone().unwrap_or_default();
    let file = input::read_text(path.as_ref())?;
    let signer = LocalSigner::from_file(&file, &input::password()).map_err(|error| match error {
        signing::key::SignerError::File(source) => Failure::from(signing::SigningError::from(source)),
        other => Failure::content("opening the key", &other),
    })?;
    let registry = input::registry(&own.registry)?;
    let formats = own.formats.unwrap_or(Formats::BOTH);
    let annotations = own.images.annotations.iter().cloned().collect();
    let now = SystemClock::new().now();
    let mut tally = Tally::new(globals, images.len());
    for image in images {
        let outcome = signing::local::sign(
            &registry,
            &signer,
            image,
            &annotations,
            own.images.recursive,
            formats,
            now,
        );
        match outcome.await {
            Ok(signed) => {
                let body = |one: &signing::local::LocallySigned| json!({ "image": one.image, "digest": one.digest, "deduplicated": one.deduplicated });
                let mut signature = body(&signed[0]);
                signature["manifests"] = signed[1..].iter().map(body).collect();
                tally.add(&json!({ "image": image, "signature": signature }));
            }
            Err(error) => {
                let problem = web::Problem::new(&error).document().clone();
                tally.add(&json!({ "image": image, "problem": problem }));
            }
        }
    }
    tally.finish()
}

/// Lines out of pieces.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn push(&mut self, bytes: &[u8]) -> Vec<Value> {
        self.0.extend_from_slice(bytes);
        let Some(end) = self.0.iter().rposition(|byte| *byte == b'\n') else {
            return Vec::new();
        };
        let rest = self.0.split_off(end + 1);
        let whole = std::mem::replace(&mut self.0, rest);
        whole
            .split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect()
    }
}

/// What came of each image, printed as it comes.
struct Tally<'a> {
    globals: &'a Globals,
    progress: Progress,
    /// Of one image the failure alone says it all.
    single: bool,
    /// Names alone are for whoever works on with what is new.
    changed_only: bool,
    lines: Vec<Value>,
    /// Images that something came of.
    answered: usize,
    signed: usize,
    known: usize,
    repaired: usize,
    failed: Option<Failure>,
    failures: usize,
}

impl<'a> Tally<'a> {
    fn new(globals: &'a Globals, total: usize) -> Self {
        let progress = Progress::new(globals, total as u64);
        Self {
            globals,
            progress,
            single: total == 1,
            changed_only: false,
            lines: Vec::new(),
            answered: 0,
            signed: 0,
            known: 0,
            repaired: 0,
            failed: None,
            failures: 0,
        }
    }

    /// Counts what an answer holds, up to its end or to where the server went away.
    async fn read(&mut self, response: reqwest::Response) {
        let mut lines = Lines::default();
        let mut stream = response.bytes_stream();
        while let Some(Ok(bytes)) = stream.next().await {
            lines.push(&bytes).iter().for_each(|line| self.add(line));
        }
    }

    fn add(&mut self, line: &Value) {
        self.answered += 1;
        self.progress.step();
        let signature = &line["signature"];
        if signature.is_object() {
            self.one(signature);
            signature["manifests"]
                .as_array()
                .into_iter()
                .flatten()
                .for_each(|own| self.one(own));
        } else {
            let status = line["problem"]["status"]
                .as_u64()
                .and_then(|status| u16::try_from(status).ok())
                .unwrap_or(500);
            let failure = Failure::problem(status, line["problem"].clone());
            if !self.globals.output.is_document() && !self.single {
                say(&format!(
                    "failed   {}: {}",
                    line["image"].as_str().unwrap_or_default(),
                    failure.line()
                ));
            }
            self.failures += 1;
            // The gravest decides the exit code: "may not" over "could not ask".
            if self.failed.as_ref().is_none_or(|known| known.exit() == NO_ANSWER) {
                self.failed = Some(failure);
            }
        }
        if self.globals.output.is_document() {
            self.lines.push(line.clone());
        }
    }

    fn one(&mut self, signature: &Value) {
        let known = signature["deduplicated"].as_bool().unwrap_or(false);
        let repaired = signature["repaired"].as_bool().unwrap_or(false);
        if repaired {
            self.repaired += 1;
        } else if known {
            self.known += 1;
        } else {
            self.signed += 1;
        }
        let image = signature["image"].as_str().unwrap_or_default();
        match self.globals.output {
            Output::Json | Output::Yaml => {}
            Output::Name if known && self.changed_only => {}
            Output::Name => println(image),
            Output::Table if repaired => println(&format!("repaired {image}")),
            Output::Table if known => println(&format!("already  {image}")),
            Output::Table => {
                let place = signature["log_index"]
                    .as_u64()
                    .map(|index| format!("  log index {index}"))
                    .unwrap_or_default();
                println(&format!("signed   {image}{place}"));
            }
        }
    }

    fn finish(mut self) -> Result<ExitCode, Failure> {
        let failed = self.failed.take();
        let said_already = self.single && self.failures > 0;
        let document = self.print(said_already);
        match failed {
            None => Ok(ExitCode::SUCCESS),
            // With JSON the problems are in the list already.
            Some(failure) if document => Ok(ExitCode::from(failure.exit())),
            Some(failure) => Err(failure),
        }
    }

    /// Ends before every image was answered for: what came so far, then why there is no more.
    fn stop(self, failure: Failure) -> Result<ExitCode, Failure> {
        let globals = self.globals;
        if self.print(false) {
            // The list is the one document of standard output.
            let plain = Globals {
                output: Output::Table,
                ..globals.clone()
            };
            return Ok(failure.report(&plain));
        }
        Err(failure)
    }

    /// Prints the list, if it is one document, and the numbers. Says whether it was a document.
    fn print(self, quiet: bool) -> bool {
        drop(self.progress);
        let is_document = self.globals.output.is_document();
        if is_document {
            document(self.globals, &Value::Array(self.lines));
        }
        if !self.globals.quiet && !quiet {
            let repaired = match self.repaired {
                0 => String::new(),
                count => format!("{count} repaired, "),
            };
            say(&format!(
                "{} signed, {repaired}{} already signed, {} failed",
                self.signed, self.known, self.failures
            ));
        }
        is_document
    }
}
