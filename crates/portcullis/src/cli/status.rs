//! `portcullis status`: can we deploy right now? One screen.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use kernel::{Clock as _, SystemClock};
use serde_json::{Value, json};
use tlog::Checkpoint;

use crate::args::{Globals, Output, Status};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{document, println, say, table};

/// The pause of `--watch`, in milliseconds; probes look every few seconds.
const WATCH_MS: u64 = 2_000;
/// The exit code where nothing can be signed.
const NO: u8 = 6;

pub async fn run(globals: &Globals, own: &Status) -> Result<ExitCode, Failure> {
    let client = Client::new(globals)?;
    loop {
        let found = read(&client).await;
        if !own.watch {
            let found = found?;
            print(globals, &found);
            let no = found["can_deploy"] == "no";
            return Ok(if no { ExitCode::from(NO) } else { ExitCode::SUCCESS });
        }
        if std::io::stdout().is_terminal() {
            // Clears the screen (ECMA-48, ED and CUP).
            println("\u{1b}[2J\u{1b}[H");
        }
        match found {
            Ok(found) => print(globals, &found),
            // A server that is away is what is watched for.
            Err(failure) => failure.explain(),
        }
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
            () = tokio::time::sleep(Duration::from_millis(WATCH_MS)) => {}
        }
        if crate::output::closed() {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

async fn read(client: &Client) -> Result<Value, Failure> {
    let mut found: Value = client.get("api/v1/dependencies").await?;
    // The log says itself if it cannot be read; the rest is shown all the same.
    found["log"] = match client
        .text("api/v2/checkpoint")
        .await
        .as_deref()
        .map(Checkpoint::parse)
    {
        Ok(Ok(checkpoint)) => json!({ "origin": checkpoint.origin, "entries": checkpoint.size }),
        Ok(Err(error)) => json!({ "error": error.to_string() }),
        Err(failure) => json!({ "error": failure.line() }),
    };
    Ok(found)
}

fn print(globals: &Globals, found: &Value) {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let dependencies = found["dependencies"].as_array().cloned().unwrap_or_default();
    match globals.output {
        Output::Json | Output::Yaml => return document(globals, found),
        Output::Name => return println(&text(&found["can_deploy"])),
        Output::Table => {}
    }
    println(&format!(
        "can we deploy?  {}",
        text(&found["can_deploy"]).to_uppercase()
    ));
    for reason in found["reasons"].as_array().into_iter().flatten() {
        println(&format!("  - {}", text(reason)));
    }
    let log = &found["log"];
    match log["entries"].as_u64() {
        Some(entries) => println(&format!(
            "log             {entries} entries, {}",
            text(&log["origin"])
        )),
        None => println(&format!("log             {}", text(&log["error"]))),
    }
    println("");
    let now = SystemClock::new().now();
    let ago = |value: &Value| {
        let at = value.as_str().and_then(|text| text.parse::<Timestamp>().ok());
        at.map_or_else(|| "-".to_owned(), |at| age(now.duration_since(at).as_secs()))
    };
    let row = |one: &Value| {
        let took = one["latency_ms"].as_f64();
        vec![
            text(&one["name"]),
            text(&one["state"]),
            ago(&one["since"]),
            ago(&one["last_good"]),
            took.map_or_else(|| "-".to_owned(), |took| format!("{took:.1} ms")),
            text(&one["found"]).chars().take(100).collect(),
        ]
    };
    let rows: Vec<Vec<String>> = dependencies.iter().map(row).collect();
    table(
        &["DEPENDENCY", "STATE", "FOR", "LAST GOOD", "TOOK", "FOUND"],
        &rows,
    );
    for one in &dependencies {
        let (name, hint) = (text(&one["name"]), text(&one["hint"]));
        if !hint.is_empty() && !globals.quiet {
            say(&format!(
                "{name}: expected {}; hint: {hint}",
                text(&one["expected"])
            ));
        }
    }
}

/// A length of time as people say it, in its largest unit.
fn age(seconds: i64) -> String {
    let seconds = seconds.max(0);
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn ages_are_said_in_their_largest_unit() {
        let told: Vec<String> = [-1, 7, 120, 7_200, 172_800].into_iter().map(super::age).collect();
        assert_eq!(told, ["0 s", "7 s", "2 min", "2 h", "2 d"]);
    }
}
