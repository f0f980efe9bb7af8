//! `portcullis audit`: who did what, and the proof that nothing is missing.

mod export;
mod file;
mod server;

use std::process::ExitCode;

use access::audit::Finding;
use access::codes::TAMPERED;
use kernel::{Clock as _, SystemClock};
use serde_json::json;
use tlog::{Checkpoint, CheckpointError, Damage, LogVerifier, TlogError};
use url::form_urlencoded::Serializer;

use crate::args::{Audit, AuditFilter, Globals};
use crate::cli::NOT_VERIFIED;
use crate::cli::admin::{Columns, pages, show};
use crate::cli::input::moment;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{document, println, say};

const RECORDS: Columns = &[
    ("ID", "id"),
    ("AT", "at"),
    ("ACTOR", "actor"),
    ("PROJECT", "project"),
    ("ACTION", "action"),
    ("RESOURCE", "resource"),
    ("OUTCOME", "outcome"),
    ("CODE", "code"),
    ("TIMES", "times"),
    ("SEQUENCE", "sequence"),
];

pub async fn run(globals: &Globals, own: Audit) -> Result<ExitCode, Failure> {
    match own {
        Audit::List { filter, limit } => {
            let client = Client::new(globals)?;
            let page = limit.clamp(1, kernel::limits::PAGE_ROWS_MAX);
            let path = format!("api/v1/audit?limit={page}{}", query(globals, &filter)?);
            show(globals, &pages(&client, &path, limit as usize).await?, RECORDS);
            Ok(ExitCode::SUCCESS)
        }
        Audit::Export { format, file, filter } => {
            export::run(globals, format, file.as_deref(), &query(globals, &filter)?).await
        }
        Audit::Verify {
            file,
            partial,
            audit_key,
            checkpoint,
        } => {
            let verified = match file {
                Some(file) => file::verify(&file, partial, audit_key.as_deref(), checkpoint.as_deref())?,
                None => server::verify(globals, audit_key.as_deref(), checkpoint.as_deref()).await?,
            };
            report(globals, &verified)
        }
    }
}

/// The filters as a query that goes on with `&`.
fn query(globals: &Globals, filter: &AuditFilter) -> Result<String, Failure> {
    let now = SystemClock::new().now();
    let time =
        |name: &str, text: &Option<String>| text.as_deref().map(|text| moment(name, text, now)).transpose();
    let (since, until) = (time("--since", &filter.since)?, time("--until", &filter.until)?);
    let mut query = Serializer::new(String::new());
    for (name, value) in [
        ("project", &globals.project),
        ("actor", &filter.actor),
        ("action", &filter.action),
        ("resource", &filter.resource),
        ("outcome", &filter.outcome),
        ("since", &since),
        ("until", &until),
    ] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            query.append_pair(name, value);
        }
    }
    let query = query.finish();
    Ok(if query.is_empty() {
        query
    } else {
        format!("&{query}")
    })
}

/// What verifying came to.
struct Verified {
    origin: String,
    /// Records under the seal, and its root (hex).
    size: u64,
    root: String,
    /// Records that were held against it.
    checked: u64,
    /// Records that are too new for it.
    unsealed: u64,
    findings: Vec<Finding>,
    /// What is wrong with the seal itself.
    damage: Vec<Damage>,
}

fn report(globals: &Globals, own: &Verified) -> Result<ExitCode, Failure> {
    let wrong = own.findings.len() + own.damage.len();
    if globals.output.is_document() {
        let verdict = json!({
            "verified": wrong == 0, "origin": own.origin, "size": own.size, "root": own.root,
            "records_checked": own.checked, "unsealed": own.unsealed,
            "findings": own.findings, "damage": own.damage,
        });
        document(globals, &verdict);
        return Ok(ExitCode::from(if wrong == 0 { 0 } else { NOT_VERIFIED }));
    }
    println(&format!(
        "{} records checked against the seal of {} under {} with root {}; {} wait for it",
        own.checked, own.size, own.origin, own.root, own.unsealed
    ));
    if wrong == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    own.findings.iter().for_each(|finding| say(&finding.to_string()));
    own.damage
        .iter()
        .for_each(|damage| say(&format!("damaged: {damage}")));
    let places = match wrong {
        1 => "in one place, named above".to_owned(),
        count => format!("in {count} places, named above"),
    };
    Err(tampered(places))
}

fn tampered(what: String) -> Failure {
    Failure::coded(NOT_VERIFIED, &TAMPERED, what)
}

/// The seal with this public key (PEM), under the name in the note: the name is signed with the rest.
fn verifier(key: &str, note: &str) -> Result<LogVerifier, Failure> {
    let origin = Checkpoint::parse(note).map_err(unsigned)?.origin;
    LogVerifier::from_pem(&origin, key).map_err(|error| Failure::log(TlogError::Key(error)))
}

/// A checkpoint that the key of the seal did not sign proves nothing, and is no reason to try later.
fn unsigned(error: CheckpointError) -> Failure {
    tampered(format!("the checkpoint of the seal: {}", kernel::chain(&error)))
}

/// A failure of the seal: damage is what was looked for, anything else could not be asked.
fn failed(error: TlogError) -> Failure {
    if error.is_damage() {
        return tampered(kernel::chain(&error));
    }
    Failure::log(error)
}
