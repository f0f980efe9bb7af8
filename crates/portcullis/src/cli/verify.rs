//! `portcullis verify`.

use std::process::ExitCode;

use futures::StreamExt as _;
use kernel::{Clock as _, Reference, SystemClock};
use serde_json::{Value, json};
use signing::api::ReportBody;
use signing::{Verdict, verify};

use crate::args::{Globals, Output, Verify};
use crate::cli::{NOT_VERIFIED, input};
use crate::client::Client;
use crate::explain::codes;
use crate::failure::Failure;
use crate::output::{pretty, println};

/// Images that are asked about at once.
const CONCURRENT_MAX: usize = 16;

pub async fn run(globals: &Globals, own: Verify) -> Result<ExitCode, Failure> {
    let images = input::images(&own.images)?;
    let own = &own;
    let local = match own.local {
        true => Some((
            input::registry(&own.registry)?,
            input::policy(&own.authority, &own.images.annotations)?,
        )),
        false => None,
    };
    let (local, client) = (&local, &Client::new(globals)?);
    let ask = |image: Reference| async move {
        let outcome = match local {
            Some((registry, policy)) => {
                let now = SystemClock::new().now();
                let reports = verify::verify(registry, "", &image, policy, own.images.recursive, now).await;
                reports.map_err(Failure::from).and_then(|reports| {
                    let fresh = |report| Verdict {
                        report: std::sync::Arc::new(report),
                        age: std::time::Duration::ZERO,
                    };
                    let body = ReportBody::of(reports.into_iter().map(fresh).collect());
                    body.ok_or_else(|| Failure::plain(1, "there is no report", ""))
                })
            }
            None => server(client, own, &image).await,
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

async fn server(client: &Client, own: &Verify, image: &Reference) -> Result<ReportBody, Failure> {
    let authority = &own.authority;
    if authority.certificate_identity.is_some() || authority.trusted_root.is_some() {
        let hint = "add --local: the server verifies with keys and its own log";
        return Err(Failure::usage(
            "identities and trusted roots are checked here, not by the server",
            hint,
        ));
    }
    let mut keys = Vec::with_capacity(authority.key.len());
    for path in &authority.key {
        keys.push(input::read_text(path)?);
    }
    let annotations: serde_json::Map<String, Value> = own
        .images
        .annotations
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    let body = json!({
        "image": image, "keys": keys, "annotations": annotations,
        "log_required": !authority.insecure_ignore_log, "recursive": own.images.recursive,
    });
    client.post("api/v1/verifications", &body).await
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
                    Output::Json => lines.push(serde_json::to_value(&report).unwrap_or_default()),
                    Output::Name if report.verified => println(&report.image),
                    Output::Name => {}
                    Output::Table => table(&report),
                }
            }
            Err(failure) => {
                if globals.output == Output::Json {
                    lines.push(json!({ "image": image, "error": failure.line() }));
                } else if !single {
                    eprintln!("unknown   {image}: {}", failure.line());
                }
                failed = Some(failure);
            }
        }
    }
    if globals.output == Output::Json {
        println(&pretty(&if single {
            lines.pop().unwrap_or_default()
        } else {
            Value::Array(lines)
        }));
    }
    match (refused, failed) {
        (0, None) => Ok(ExitCode::SUCCESS),
        (0, Some(failure)) if globals.output == Output::Json => Ok(ExitCode::from(failure.exit())),
        (0, Some(failure)) => Err(failure),
        _ if globals.output == Output::Json => Ok(ExitCode::from(NOT_VERIFIED)),
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
                _ => String::new(),
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
