//! `portcullis external-log`: what is owed to somebody else's log. How it stands is in `portcullis status`.

use std::process::ExitCode;

use kernel::{Clock as _, SystemClock};
use serde_json::{Value, json};

use super::input::moment;
use crate::args::{ExternalLog, Globals, Output};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{document, println, say, table};

pub async fn run(globals: &Globals, own: &ExternalLog) -> Result<ExitCode, Failure> {
    let client = Client::new(globals)?;
    match own {
        ExternalLog::List => list(globals, &client).await?,
        ExternalLog::Retry { paid_since, dry_run } => {
            retry(globals, &client, paid_since.as_deref(), *dry_run).await?;
        }
        ExternalLog::GiveUp { registry, reason } => give_up(globals, &client, registry, reason).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(globals: &Globals, client: &Client) -> Result<(), Failure> {
    let debt: Value = client.get("api/v1/external-log").await?;
    if debt["configured"] != true && !globals.quiet {
        say("no external log is configured; what is listed was owed to one before");
    }
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let of = |stage: &str, name: &str| -> Vec<Vec<String>> {
        let entries = debt[name].as_array().into_iter().flatten();
        entries
            .map(|entry| vec![text(&entry["signature"]), stage.to_owned(), text(&entry["why"])])
            .collect()
    };
    let rows = [
        of("refused", "refused_entries"),
        of("not published", "unpublished_entries"),
    ]
    .concat();
    match globals.output {
        Output::Json | Output::Yaml => document(globals, &debt),
        Output::Name => rows.iter().for_each(|row| println(&row[0])),
        Output::Table => table(&["SIGNATURE", "STAGE", "WHY"], &rows),
    }
    Ok(())
}

async fn retry(
    globals: &Globals,
    client: &Client,
    paid_since: Option<&str>,
    dry_run: bool,
) -> Result<(), Failure> {
    let since = paid_since.map(|text| moment("--paid-since", text, SystemClock::new().now()));
    let (entries, path) = match since.transpose()? {
        // A time in RFC 3339 with Z has nothing that a query escapes.
        Some(since) => (
            "paid",
            format!("api/v1/external-log/paid:retry?since={since}&dry_run={dry_run}"),
        ),
        None => (
            "refused",
            format!("api/v1/external-log/refused:retry?dry_run={dry_run}"),
        ),
    };
    let done: Value = client.post(&path, &json!({})).await?;
    if done["configured"] != true && !globals.quiet {
        say("no external log is configured, so nobody pays");
    }
    match globals.output {
        Output::Json | Output::Yaml => document(globals, &done),
        Output::Name => println(&done["owed_again"].to_string()),
        Output::Table if dry_run => println(&format!(
            "{} {entries} entries would be owed again; nothing was changed",
            done["owed_again"]
        )),
        Output::Table => println(&format!(
            "{} {entries} entries are owed again; portcullis status shows how they go",
            done["owed_again"]
        )),
    }
    Ok(())
}

async fn give_up(globals: &Globals, client: &Client, registry: &str, reason: &str) -> Result<(), Failure> {
    let body = json!({ "registry": registry, "reason": reason });
    let done: Value = client.post("api/v1/external-log/registry:give-up", &body).await?;
    match globals.output {
        Output::Json | Output::Yaml => document(globals, &done),
        Output::Name => println(registry),
        Output::Table => println(&format!(
            "{registry}: the evidence of {} entries is given up; they are settled within minutes",
            done["given_up"]
        )),
    }
    Ok(())
}
