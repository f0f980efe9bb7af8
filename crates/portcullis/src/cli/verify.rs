//! `portcullis verify`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use flow::Caller;
use futures::StreamExt as _;
use kernel::{Clock as _, Reference, SystemClock};
use serde_json::{Value, json};
use signing::Verdict;
use signing::api::ReportBody;
use signing::format::Annotations;
use signing::image_policy::ImagePolicy;
use signing::verify::{self, Policy};
use upstream::oci;

use crate::args::{Globals, Output, Verify};
use crate::cli::{NOT_VERIFIED, input};
use crate::client::Client;
use crate::codes;
use crate::failure::Failure;
use crate::output::{document, println, say};

/// Images that are asked about at once.
const CONCURRENT_MAX: usize = 16;

pub async fn run(globals: &Globals, own: Verify) -> Result<ExitCode, Failure> {
    let images = input::images(&own.images)?;
    let verifier = &match own.local {
        true => Verifier::Local(Box::new(Local::new(&own)?)),
        false => Verifier::Server(Box::new(Client::new(globals)?), question(&own)?),
    };
    let ask = |image: Reference| async move {
        let outcome = match verifier {
            Verifier::Local(local) => local.verify(&image).await,
            Verifier::Server(client, question) => {
                let mut question = question.clone();
                question["image"] = json!(image);
                client.post("api/v1/verifications", &question).await
            }
        };
        (image, outcome)
    };
    let outcomes: Vec<_> = futures::stream::iter(images)
        .map(ask)
        .buffered(CONCURRENT_MAX)
        .collect()
        .await;
    print(globals, outcomes)
}

/// Who finds out.
enum Verifier {
    Local(Box<Local>),
    /// With what is asked of each image.
    Server(Box<Client>, Value),
}

/// Verifying in this process.
struct Local {
    registry: oci::Client,
    rule: Rule,
    annotations: Annotations,
    recursive: bool,
}

/// What an image is verified by.
enum Rule {
    Options(Policy),
    File(ImagePolicy),
}

impl Local {
    fn new(own: &Verify) -> Result<Self, Failure> {
        let rule = match &own.policy {
            Some(file) => {
                let root = own.authority.trusted_root.as_deref();
                Rule::File(input::image_policy(Path::new(file), root)?)
            }
            None => Rule::Options(input::policy(&own.authority)?),
        };
        Ok(Self {
            registry: input::registry(&own.registry)?,
            rule,
            annotations: own.images.annotations.iter().cloned().collect(),
            recursive: own.images.recursive,
        })
    }

    async fn verify(&self, image: &Reference) -> Result<ReportBody, Failure> {
        let policy = match &self.rule {
            Rule::Options(policy) => policy.clone(),
            Rule::File(policy) => policy.policy_for(image)?,
        };
        let policy = policy.with_annotations(self.annotations.clone());
        let now = SystemClock::new().now();
        let reports =
            verify::verify(&self.registry, Caller::LOCAL, image, &policy, self.recursive, now).await?;
        let fresh = |report| Verdict {
            report: Arc::new(report),
            age: Duration::ZERO,
        };
        let body = ReportBody::of(reports.into_iter().map(fresh).collect());
        body.ok_or_else(|| Failure::coded(1, &codes::MACHINE, "there is no report".to_owned()))
    }
}

/// What the server is asked, but for the image.
fn question(own: &Verify) -> Result<Value, Failure> {
    let authority = &own.authority;
    if authority.certificate_identity.is_some() || authority.trusted_root.is_some() {
        let hint = "add --local, or give the server an image policy: portcullis image-policy apply FILE";
        return Err(Failure::usage(
            "identities and trusted roots of the command line are checked here, not by the server",
            hint,
        ));
    }
    let annotations: Annotations = own.images.annotations.iter().cloned().collect();
    let mut question = json!({ "annotations": annotations, "recursive": own.images.recursive });
    if let Some(policy) = &own.policy {
        question["policy"] = json!(policy);
        return Ok(question);
    }
    let keys = authority.key.iter().map(|path| input::read_text(path));
    question["keys"] = json!(keys.collect::<Result<Vec<_>, _>>()?);
    question["log_required"] = json!(!authority.insecure_ignore_log);
    Ok(question)
}

fn print(
    globals: &Globals,
    outcomes: Vec<(Reference, Result<ReportBody, Failure>)>,
) -> Result<ExitCode, Failure> {
    let (mut refused, mut failed, mut lines) = (0, None, Vec::new());
    let single = outcomes.len() == 1;
    for (image, outcome) in outcomes {
        match outcome {
            Ok(report) => {
                refused += usize::from(!report.verified);
                match globals.output {
                    Output::Json | Output::Yaml => {
                        lines.push(serde_json::to_value(&report).unwrap_or_default());
                    }
                    Output::Name if report.verified => println(&report.image),
                    Output::Name => {}
                    Output::Table => table(&report),
                }
            }
            Err(failure) => {
                if globals.output.is_document() {
                    lines.push(json!({ "image": image, "error": failure.line() }));
                } else if !single {
                    say(&format!("unknown   {image}: {}", failure.line()));
                }
                failed = Some(failure);
            }
        }
    }
    if globals.output.is_document() {
        let document_of_all = match single {
            true => lines.pop().unwrap_or_default(),
            false => Value::Array(lines),
        };
        document(globals, &document_of_all);
    }
    match (refused, failed) {
        (0, None) => Ok(ExitCode::SUCCESS),
        (0, Some(failure)) if globals.output.is_document() => Ok(ExitCode::from(failure.exit())),
        (0, Some(failure)) => Err(failure),
        _ if globals.output.is_document() => Ok(ExitCode::from(NOT_VERIFIED)),
        (count, _) => {
            let cause = if count == 1 {
                "1 image is refused".to_owned()
            } else {
                format!("{count} images are refused")
            };
            Err(Failure::coded(NOT_VERIFIED, &codes::NOT_VERIFIED, cause))
        }
    }
}

fn table(report: &ReportBody) {
    if report.verified {
        println(&format!("verified  {}", report.image));
        for evidence in report.evidence.iter().filter(|evidence| evidence.accepted) {
            let by = match (&evidence.key_id, &evidence.identity) {
                (Some(key), _) => format!("key {key}"),
                (None, Some(identity)) => identity.clone(),
                (None, None) => String::new(),
            };
            let log = match evidence.log_index {
                Some(index) if evidence.logged => format!(", log index {index}"),
                _ => match &evidence.owed_since {
                    Some(since) => format!(", owed to the external log since {since}"),
                    None => String::new(),
                },
            };
            println(&format!("          {} by {by}{log}", evidence.format));
        }
    } else {
        println(&format!("REFUSED   {}", report.image));
        report
            .reasons
            .iter()
            .for_each(|reason| println(&format!("          {reason}")));
    }
    report.manifests.iter().for_each(table);
}
