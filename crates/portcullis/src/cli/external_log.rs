//! `portcullis external-log`: what is owed to somebody else's log. How it stands is in `portcullis status`.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::args::{ExternalLog, Globals, Output};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{document, println};

pub async fn run(globals: &Globals, own: &ExternalLog) -> Result<ExitCode, Failure> {
    let ExternalLog::Retry = own;
    let client = Client::new(globals)?;
    let path = "api/v1/external-log/refused:retry";
    let done: Value = client.post(path, &json!({})).await?;
    match globals.output {
        Output::Json | Output::Yaml => document(globals, &done),
        Output::Name => println(&done["owed_again"].to_string()),
        Output::Table => println(&format!(
            "{} refused entries are owed again; portcullis status shows how they go",
            done["owed_again"]
        )),
    }
    Ok(ExitCode::SUCCESS)
}
