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
/// Refused entries that are named; more would not leave one screen.
const NAMED_SHOWN_MAX: usize = 3;
/// From how many seconds on it is told that a record waits for its seal, as by the alert `PortcullisAuditUnsealed`:
/// another server has taken over by then.
const UNSEALED_SECONDS_MAX: f64 = 60.0;
/// The exit code where nothing can be signed.
const NO: u8 = 6;

pub async fn run(globals: &Globals, own: &Status) -> Result<ExitCode, Failure> {
    let client = Client::new(globals)?;
    if let (Some(name), Some(reason)) = (&own.acknowledge, &own.reason) {
        return acknowledge(globals, &client, name, reason).await;
    }
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

async fn acknowledge(
    globals: &Globals,
    client: &Client,
    name: &str,
    reason: &str,
) -> Result<ExitCode, Failure> {
    let path = format!("api/v1/dependencies/{name}:acknowledge");
    let done: Value = client.post(&path, &json!({ "reason": reason })).await?;
    match globals.output {
        Output::Json | Output::Yaml => document(globals, &done),
        Output::Name => println(name),
        Output::Table => println(&format!(
            "acknowledged: {name}: {}; servers stop naming it within 10 s",
            done["told"].as_str().unwrap_or("-")
        )),
    }
    if name == "external-log" && !globals.quiet {
        say(
            "what was paid before may not be in it: portcullis external-log retry --paid-since TIME has it owed again",
        );
    }
    Ok(ExitCode::SUCCESS)
}

async fn read(client: &Client) -> Result<Value, Failure> {
    let mut found: Value = client.get("api/v1/dependencies").await?;
    // A server without a database knows no debt, and shows the rest all the same.
    found["external_log"] = match client.get("api/v1/external-log").await {
        Ok(debt) => debt,
        Err(failure) => json!({ "error": failure.line() }),
    };
    // Of the audit trail's log nothing else tells.
    found["stopped"] = stopped(client).await;
    found["audit"] = match client.get("api/v1/audit/seal").await {
        Ok(seal) => seal,
        Err(failure) => json!({ "error": failure.line() }),
    };
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

/// The checkpoints that stop a log; of a server without a database nothing is known.
async fn stopped(client: &Client) -> Value {
    let seen: Value = client.get("api/v1/log/seen").await.unwrap_or_default();
    let items = seen["items"].as_array().into_iter().flatten();
    items.filter(|item| item["stops"] == true).cloned().collect()
}

/// That nobody appends to a log because of `item`, one that stops it.
pub fn stops(item: &Value) -> String {
    let (log, goes_on) = match item["log"].as_str() {
        Some("audit") => ("audit log", "records are written and not sealed"),
        _ => ("log", "nothing new is signed"),
    };
    let server = item["server"].as_str().unwrap_or("-");
    format!(
        "the {log} is stopped, {goes_on}: the server {server} has seen {} entries, which the database does not have",
        item["size"]
    )
}

/// That records of the audit trail wait for their seal, and why; nothing while it keeps up.
pub fn unsealed(seal: &Value) -> Option<String> {
    let why = seal["error"].as_str();
    let Some(count) = seal["unsealed"].as_u64() else {
        return why.map(str::to_owned);
    };
    let oldest = seal["oldest_age_seconds"].as_f64().unwrap_or_default();
    if why.is_none() && oldest <= UNSEALED_SECONDS_MAX {
        return None;
    }
    let oldest = age(oldest as i64);
    let waits = match count {
        0 => "no record waits for its seal, and a new one would".to_owned(),
        1 => format!("1 record waits for its seal, for {oldest}"),
        _ => format!("{count} records wait for their seal, the oldest for {oldest}"),
    };
    let why = why.unwrap_or("this server does not know why, see the log of the one that leads");
    Some(format!("{waits}: {why}"))
}

/// What to do about records that wait for their seal.
pub const UNSEALED_HINT: &str =
    "portcullis audit verify names what is damaged; docs/runbooks/audit-unsealed.md says what to do";

/// What to do about a log that is stopped.
pub const STOPPED_HINT: &str =
    "portcullis log seen lists who saw what; docs/runbooks/rolled-back.md says when to dismiss it";

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
    let stopped = found["stopped"].as_array();
    for item in stopped.into_iter().flatten() {
        println(&format!("stopped         {}", stops(item)));
    }
    let unsealed = unsealed(&found["audit"]);
    if let Some(line) = &unsealed {
        println(&format!("audit trail     {line}"));
    }
    let outside = dependencies.iter().find(|one| one["name"] == "external-log");
    let state = outside.map_or_else(String::new, |one| text(&one["state"]));
    if let Some(line) = owed(&found["external_log"], &state) {
        println(&format!("external log    {line}"));
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
    if !globals.quiet && stopped.is_some_and(|items| !items.is_empty()) {
        say(&format!("stopped; hint: {STOPPED_HINT}"));
    }
    if unsealed.is_some() && !globals.quiet {
        say(&format!("audit trail; hint: {UNSEALED_HINT}"));
    }
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

/// What is owed to the external log, which is in this state, in one line; nothing where there is none.
fn owed(debt: &Value, state: &str) -> Option<String> {
    if let Some(error) = debt["error"].as_str() {
        return (!state.is_empty()).then(|| error.to_owned());
    }
    let count = |name: &str| debt[name].as_u64().unwrap_or_default();
    let (owed, unpublished, refused) = (count("owed"), count("unpublished"), count("refused"));
    if debt["configured"] != true && owed + unpublished + refused == 0 {
        return None;
    }
    let mut line = format!("{owed} owed");
    if owed > 0 {
        let oldest = debt["oldest_age_seconds"].as_f64().unwrap_or_default();
        let paid = debt["paid_per_second"].as_f64().unwrap_or_default();
        line.push_str(&format!(", the oldest for {}", age(oldest as i64)));
        match debt["last_error"].as_str() {
            _ if debt["configured"] != true => line.push_str("; none is configured now"),
            _ if !matches!(state, "OK" | "EXPIRING") => {
                line.push_str(&format!("; waiting: it is {state}"));
            }
            _ if paid >= 10.0 => line.push_str(&format!(", draining {paid:.0}/s")),
            _ if paid > 0.0 => line.push_str(&format!(", draining {paid:.1}/s")),
            Some(error) if !error.is_empty() => line.push_str(&format!("; waiting: {error}")),
            _ => line.push_str("; waiting"),
        }
    }
    if unpublished > 0 {
        let oldest = debt["oldest_unpublished_age_seconds"].as_f64();
        let oldest = age(oldest.unwrap_or_default() as i64);
        line.push_str(&format!(
            "; {unpublished} paid, to be published, the oldest for {oldest}"
        ));
    }
    if refused > 0 {
        line.push_str(&format!("; {refused} refused"));
    }
    line.push_str(&named("refused", refused, &debt["refused_entries"]));
    let tried = debt["unpublished_entries"].as_array().map_or(0, Vec::len);
    line.push_str(&named(
        "not published",
        tried as u64,
        &debt["unpublished_entries"],
    ));
    Some(line)
}

/// A line for each of the first of `count` entries with a trouble of their own.
fn named(what: &str, count: u64, entries: &Value) -> String {
    let entries = entries.as_array();
    let shown = entries.into_iter().flatten().take(NAMED_SHOWN_MAX);
    let more = count.saturating_sub(shown.clone().count() as u64);
    let mut lines = String::new();
    for entry in shown {
        let words = |name: &str| entry[name].as_str().unwrap_or("-").to_owned();
        lines.push_str(&format!(
            "\n                {what}: {}: {}",
            words("signature"),
            words("why")
        ));
    }
    if more > 0 {
        lines.push_str(&format!(
            "\n                and {more} more; your project's: portcullis status -o json"
        ));
    }
    lines
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
    use serde_json::json;

    #[test]
    fn what_is_owed_is_one_line_and_nothing_where_nothing_can_be() {
        let line = |debt| super::owed(&debt, "OK");
        assert_eq!(line(json!({ "configured": false, "owed": 0 })), None);
        let mut debt =
            json!({ "configured": true, "owed": 312, "oldest_age_seconds": 240.4, "paid_per_second": 50.0 });
        assert_eq!(
            line(debt.clone()).unwrap(),
            "312 owed, the oldest for 4 min, draining 50/s"
        );
        debt["paid_per_second"] = json!(0.0);
        debt["last_error"] = json!("connection refused");
        assert_eq!(
            line(debt.clone()).unwrap(),
            "312 owed, the oldest for 4 min; waiting: connection refused"
        );
        let wrong = super::owed(&debt, "WRONG_LOG").unwrap();
        assert_eq!(wrong, "312 owed, the oldest for 4 min; waiting: it is WRONG_LOG");
        debt["configured"] = json!(false);
        assert_eq!(
            line(debt.clone()).unwrap(),
            "312 owed, the oldest for 4 min; none is configured now"
        );
        debt["configured"] = json!(true);
        let refused = json!({ "signature": "sig_1", "why": "no such key" });
        debt["refused"] = json!(1);
        debt["refused_entries"] = json!([refused]);
        let told = line(debt.clone()).unwrap();
        debt["refused"] = json!(31);
        debt["refused_entries"] = json!(vec![refused; 20]);
        let many = line(debt).unwrap();
        assert_eq!((many.lines().count(), told.lines().count()), (5, 2));
        assert!(
            many.contains("31 refused") && many.contains("and 28 more"),
            "{many}"
        );
        let mut stuck =
            json!({ "configured": true, "unpublished": 2, "oldest_unpublished_age_seconds": 7_300.0 });
        stuck["unpublished_entries"] =
            json!([{ "signature": "sig_2", "why": "reading at r.example: denied" }]);
        let stuck = line(stuck).unwrap();
        assert!(
            stuck.ends_with("not published: sig_2: reading at r.example: denied"),
            "{stuck}"
        );
        let line = told;
        assert!(
            line.starts_with("312 owed, the oldest for 4 min; waiting: connection refused; 1 refused"),
            "{line}"
        );
        assert!(line.ends_with("sig_1: no such key"), "{line}");
    }

    #[test]
    fn a_stopped_log_is_named_with_what_that_means() {
        let of =
            |log: &str| super::stops(&json!({ "log": log, "server": "b:/data", "size": 62, "stops": true }));
        assert_eq!(
            of("audit"),
            "the audit log is stopped, records are written and not sealed: the server b:/data has seen 62 entries, which \
             the database does not have"
        );
        assert!(of("signatures").starts_with("the log is stopped, nothing new is signed: "));
    }

    #[test]
    fn a_seal_that_does_not_keep_up_is_named_with_what_waits() {
        let of = |count: u64, age: f64, why: Option<&str>| {
            super::unsealed(&json!({ "unsealed": count, "oldest_age_seconds": age, "error": why }))
        };
        assert_eq!(of(0, 0.0, None), None);
        assert_eq!(of(7, 60.0, None), None);
        assert_eq!(
            of(1_204, 300.0, Some("tile/0/000 is damaged")).unwrap(),
            "1204 records wait for their seal, the oldest for 5 min: tile/0/000 is damaged"
        );
        assert_eq!(
            of(0, 0.0, Some("damaged")).unwrap(),
            "no record waits for its seal, and a new one would: damaged"
        );
        let unknown = of(1, 61.0, None).unwrap();
        assert!(
            unknown.starts_with("1 record waits for its seal, for 61 s: this server does not know why"),
            "{unknown}"
        );
        let away = super::unsealed(&json!({ "error": "PC0001: away" }));
        assert_eq!(away.as_deref(), Some("PC0001: away"));
    }

    #[test]
    fn ages_are_said_in_their_largest_unit() {
        let told: Vec<String> = [-1, 7, 120, 7_200, 172_800].into_iter().map(super::age).collect();
        assert_eq!(told, ["0 s", "7 s", "2 min", "2 h", "2 d"]);
    }
}
