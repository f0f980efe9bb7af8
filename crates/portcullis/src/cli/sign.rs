//! `portcullis sign`.

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
use crate::failure::Failure;
use crate::output::{Progress, document, println};

pub async fn run(globals: &Globals, own: Sign) -> Result<ExitCode, Failure> {
    let images = input::images(&own.images)?;
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
    let formats: Option<Vec<&str>> = own
        .formats
        .as_ref()
        .map(|words| words.split(',').map(str::trim).collect());
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
    for chunk in images.chunks(BATCH_ITEMS_MAX) {
        let body = json!({ "items": chunk.iter().map(item).collect::<Vec<_>>(), "release": own.release });
        let response = client.stream("api/v1/signatures:batch", &body).await?;
        let mut lines = Lines::default();
        let mut stream = response.bytes_stream();
        let mut answered = 0;
        while let Some(bytes) = stream.next().await {
            for line in lines.push(&bytes.map_err(|error| client.unreachable(&error))?) {
                answered += 1;
                tally.add(&line);
            }
        }
        if answered != chunk.len() {
            let what = format!(
                "the server answered for {answered} of {} images and went away",
                chunk.len()
            );
            return Err(Failure::plain(
                6,
                what,
                "run the same command again: what is signed already is only looked up",
            ));
        }
    }
    tally.finish()
}

async fn local(globals: &Globals, own: &Sign, images: &[Reference]) -> Result<ExitCode, Failure> {
    let path = own.key.clone().unwrap_or_default();
    let file = input::read_text(path.as_ref())?;
    let signer = LocalSigner::from_file(&file, &input::password()).map_err(|error| match error {
        signing::key::SignerError::File(source) => Failure::from(signing::SigningError::from(source)),
        other => Failure::local("opening the key", &other),
    })?;
    let registry = input::registry(&own.registry)?;
    let formats = own.formats.as_deref().map_or(Ok(Formats::BOTH), str::parse)?;
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
    lines: Vec<Value>,
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
            lines: Vec::new(),
            signed: 0,
            known: 0,
            repaired: 0,
            failed: None,
            failures: 0,
        }
    }

    fn add(&mut self, line: &Value) {
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
                eprintln!(
                    "failed   {}: {}",
                    line["image"].as_str().unwrap_or_default(),
                    failure.line()
                );
            }
            self.failures += 1;
            // The gravest decides the exit code: "may not" over "could not ask".
            if self.failed.as_ref().is_none_or(|known| known.exit() == 6) {
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

    fn finish(self) -> Result<ExitCode, Failure> {
        drop(self.progress);
        if self.globals.output.is_document() {
            document(self.globals, &Value::Array(self.lines));
        }
        let said_already = self.single && self.failures > 0;
        if !self.globals.quiet && !said_already {
            let repaired = match self.repaired {
                0 => String::new(),
                count => format!("{count} repaired, "),
            };
            eprintln!(
                "{} signed, {repaired}{} already signed, {} failed",
                self.signed, self.known, self.failures
            );
        }
        match self.failed {
            None => Ok(ExitCode::SUCCESS),
            // With JSON the problems are in the list already.
            Some(failure) if self.globals.output.is_document() => Ok(ExitCode::from(failure.exit())),
            Some(failure) => Err(failure),
        }
    }
}
