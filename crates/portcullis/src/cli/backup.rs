//! `portcullis backup` and `portcullis restore`.

use std::process::ExitCode;

use kernel::SystemClock;
use serde_json::json;
use store::archive::Manifest;

use crate::args::{Backup, Globals, Output, Restore};
use crate::backup::{self, Options};
use crate::config::Loaded;
use crate::failure::Failure;
use crate::output::{document, println, say, table};

pub async fn backup(globals: &Globals, own: &Backup) -> Result<ExitCode, Failure> {
    let config = Loaded::with_data(&own.config, own.data.as_deref())?.config;
    let (secrets, clock) = (!own.without_secrets, SystemClock::new());
    let made = backup::make(&config, &own.file, own.force, secrets, &clock).await?;
    print(
        globals,
        &own.file.display().to_string(),
        &made.manifest,
        &[("bytes", made.bytes.to_string())],
    );
    if globals.quiet {
        return Ok(ExitCode::SUCCESS);
    }
    match secrets {
        true => say("whoever reads this file can sign: keep it as you keep keys"),
        false => say(
            "without the log's key, the audit trail's key and the password of the signing keys it cannot be restored: \
             keep the folder secrets/, or the files that the configuration names, elsewhere",
        ),
    }
    say("portcullis.toml is not in it: it is yours, with the registries' passwords");
    Ok(ExitCode::SUCCESS)
}

pub async fn restore(globals: &Globals, own: Restore) -> Result<ExitCode, Failure> {
    let config = Loaded::with_data(&own.config, own.data.as_deref())?.config;
    let options = Options {
        file: own.file,
        checkpoints: own.checkpoints,
    };
    let restored = backup::restore(&config, &options).await?;
    let against = restored.held_against.join(", ");
    let mut more = vec![("root", restored.audit.root)];
    if !against.is_empty() {
        more.push(("held against", against.clone()));
    }
    print(
        globals,
        &options.file.display().to_string(),
        &restored.manifest,
        &more,
    );
    if against.is_empty() {
        say(
            "warning: no checkpoint was given or found, so nobody looked whether the log went on after this backup; if it \
             did, going on from here forks it. Give the newest one that anybody kept with --checkpoint",
        );
    }
    for (name, told) in &restored.stopped {
        say(&format!(
            "warning: {name} is stopped, as it was when the backup was made: the server {} had seen a checkpoint of {} \
             entries that is not in it. See portcullis log seen --help",
            told.server, told.size
        ));
    }
    if !globals.quiet {
        say("next: portcullis serve with the same configuration, then portcullis audit verify");
    }
    Ok(ExitCode::SUCCESS)
}

fn print(globals: &Globals, file: &str, manifest: &Manifest, more: &[(&str, String)]) {
    let rows = |table: &str| manifest.rows.get(table).copied().unwrap_or(0).to_string();
    let entries = |name: &str| {
        let log = manifest.logs.iter().find(|log| log.name == name);
        log.map_or(0, |log| log.size).to_string()
    };
    let mut found = vec![
        ("file", file.to_owned()),
        ("made at", manifest.made_at.clone()),
        ("log entries", entries("tlog")),
        ("audit records", rows("audit")),
        ("signatures", rows("signature")),
        ("keys", rows("signing_key")),
        ("projects", rows("project")),
        ("secrets", if manifest.secrets { "yes" } else { "no" }.to_owned()),
    ];
    found.extend(more.iter().map(|(name, value)| (*name, value.clone())));
    match globals.output {
        Output::Json | Output::Yaml => {
            let logs: Vec<_> = manifest
                .logs
                .iter()
                .map(|log| json!({ "name": log.name, "origin": log.origin, "size": log.size, "checkpoint": log.checkpoint }))
                .collect();
            let mut whole = json!({ "rows": manifest.rows, "schema": manifest.schema, "logs": logs });
            for (name, value) in found {
                whole[name.replace(' ', "_")] = value.into();
            }
            document(globals, &whole);
        }
        Output::Name => println(file),
        Output::Table => {
            let rows: Vec<_> = found
                .into_iter()
                .map(|(name, value)| vec![name.to_owned(), value])
                .collect();
            table(&["FIELD", "VALUE"], &rows);
        }
    }
}
