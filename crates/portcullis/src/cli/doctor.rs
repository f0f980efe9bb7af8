//! `portcullis doctor`: every check once, from the user's side, all at the same time; one that fails stops no other.

use std::process::ExitCode;
use std::time::Duration;

use access::Pattern;
use flow::Caller;
use futures::FutureExt as _;
use futures::future::{BoxFuture, join_all};
use jiff::Timestamp;
use kernel::{Clock as _, Reference, SystemClock};
use serde_json::{Value, json};
use signing::ports::Registry as _;
use tlog::{Checkpoint, TlogError};
use upstream::oci::header::http_date;

use crate::args::{Doctor, Globals, Output};
use crate::cli::{input, log, status};
use crate::client::{self, Client};
use crate::config::Loaded;
use crate::failure::Failure;
use crate::output::{document, println, table};

/// The exit code of "there are problems".
const PROBLEMS: u8 = 9;
/// Seconds that the two clocks may be apart: tokens and certificates are never judged to the minute.
const CLOCK_SECONDS_MAX: i64 = 60;
/// Days before its end from which on a token's end is a problem.
const TOKEN_DAYS_MIN: i64 = 7;
const DAY_SECONDS: i64 = 86_400;

/// What one check came to.
enum Outcome {
    Fine(String),
    /// What is wrong, and what to do.
    Problem(String, String),
    /// Why it was not made.
    Skipped(String),
}

use Outcome::{Fine, Problem, Skipped};

struct Check {
    name: &'static str,
    outcome: Outcome,
}

struct Patient<'a> {
    own: &'a Doctor,
    globals: &'a Globals,
    client: Client,
}

pub async fn run(globals: &Globals, own: &Doctor) -> Result<ExitCode, Failure> {
    let client = Client::new(globals)?;
    let patient = Patient { own, globals, client };
    let checks: Vec<(&'static str, BoxFuture<'_, Outcome>)> = vec![
        ("configuration", async { patient.configuration() }.boxed()),
        ("server", patient.server().boxed()),
        ("token", patient.token().boxed()),
        ("may sign", patient.may_sign().boxed()),
        ("image, from here", patient.image_here().boxed()),
        ("image, from the server", patient.image_there().boxed()),
        ("clock", patient.clock().boxed()),
        ("trusted root", patient.trusted_root().boxed()),
        ("log", patient.log().boxed()),
        ("logs go on", patient.logs_go_on().boxed()),
        ("dependencies", patient.dependencies().boxed()),
    ];
    let made = checks.into_iter().map(async |(name, check)| Check {
        name,
        outcome: check.await,
    });
    let made = join_all(made).await;
    let problems = made
        .iter()
        .filter(|check| matches!(check.outcome, Problem(..)))
        .count();
    print(globals, &made, problems);
    Ok(if problems == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(PROBLEMS)
    })
}

fn print(globals: &Globals, checks: &[Check], problems: usize) {
    let parts = |check: &Check| match &check.outcome {
        Fine(detail) => ("ok", detail.clone(), String::new()),
        Problem(detail, hint) => ("problem", detail.clone(), hint.clone()),
        Skipped(why) => ("skipped", why.clone(), String::new()),
    };
    if globals.output.is_document() {
        let one = |check: &Check| {
            let (outcome, detail, hint) = parts(check);
            json!({ "name": check.name, "outcome": outcome, "detail": detail, "hint": hint })
        };
        let all: Vec<Value> = checks.iter().map(one).collect();
        return document(globals, &json!({ "problems": problems, "checks": all }));
    }
    if globals.output == Output::Name {
        let ill = checks.iter().filter(|check| matches!(check.outcome, Problem(..)));
        return ill.for_each(|check| println(check.name));
    }
    let row = |check: &Check| {
        let (outcome, detail, _) = parts(check);
        vec![outcome.to_owned(), check.name.to_owned(), detail]
    };
    table(
        &["", "CHECK", "FOUND"],
        &checks.iter().map(row).collect::<Vec<_>>(),
    );
    for check in checks {
        if let Problem(_, hint) = &check.outcome {
            println(&format!("\n{}\n  hint: {hint}", check.name));
        }
    }
}

fn failed(failure: &Failure) -> Outcome {
    Problem(failure.line(), failure.hint().to_owned())
}

impl Patient<'_> {
    fn configuration(&self) -> Outcome {
        let there = self.own.file.config.is_some() || std::path::Path::new(crate::config::FILE).exists();
        match Loaded::read(&self.own.file) {
            Err(failure) => failed(&failure),
            Ok(_) if there => Fine("it is valid".to_owned()),
            Ok(_) => {
                Skipped("there is no portcullis.toml here; a server has one, a user needs none".to_owned())
            }
        }
    }

    async fn server(&self) -> Outcome {
        let clock = SystemClock::new();
        let began = clock.monotonic();
        match self.client.text("readyz").await {
            Ok(_) => {
                let took = clock.monotonic().since(began).as_millis();
                Fine(format!("{} is ready, {took} ms", self.globals.server))
            }
            Err(failure) => failed(&failure),
        }
    }

    async fn token(&self) -> Outcome {
        let who: Value = match self.client.get("api/v1/auth/whoami").await {
            Ok(who) => who,
            Err(failure) => return failed(&failure),
        };
        let text = |name: &str| who[name].as_str().unwrap_or("-").to_owned();
        let told = format!("{}, {}, project {}", text("actor"), text("role"), text("project"));
        let ends = text("expires_at").parse::<Timestamp>();
        // A build system's token lives for minutes, and the next job gets another.
        let Some(ends) = ends.ok().filter(|_| !who["rule"].is_string()) else {
            return Fine(told);
        };
        let days = ends.duration_since(SystemClock::new().now()).as_secs() / DAY_SECONDS;
        let told = format!("{told}, {days} days left");
        if days < TOKEN_DAYS_MIN {
            let hint = "an administrator makes another: portcullis token create NAME --role ROLE";
            return Problem(told, hint.to_owned());
        }
        Fine(told)
    }

    async fn may_sign(&self) -> Outcome {
        let may = "api/v1/auth/can-i?action=sign-images";
        let can: Value = match self.client.get(may).await {
            Ok(can) => can,
            Err(failure) => return failed(&failure),
        };
        if can["allowed"] != true {
            let hint = "sign with a token of the role signer: portcullis token create NAME --role signer";
            return Problem("this token may not sign images".to_owned(), hint.to_owned());
        }
        let Some(image) = &self.own.image else {
            return Fine("this token may sign; which images, a reference would tell".to_owned());
        };
        match self.covered(image).await {
            Ok(Ok(pattern)) => Fine(format!("this token may sign {image}, by {pattern}")),
            Ok(Err((project, patterns))) => Problem(
                format!("project {project} does not cover {image}; it covers {patterns}"),
                "name a project that does with --project, or have an administrator make one: portcullis project create"
                    .to_owned(),
            ),
            Err(failure) => failed(&failure),
        }
    }

    /// The pattern of the project that covers the image, or the project and all its patterns.
    async fn covered(&self, image: &Reference) -> Result<Result<String, (String, String)>, Failure> {
        let who: Value = self.client.get("api/v1/auth/whoami").await?;
        let project = who["project"].as_str().unwrap_or_default();
        let found: Value = self.client.get(&format!("api/v1/projects/{project}")).await?;
        let patterns: Vec<&str> = found["images"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let covers = |text: &&&str| {
            let pattern: Result<Pattern, _> = text.parse();
            pattern.is_ok_and(|pattern| pattern.matches(image.repository()))
        };
        let own = patterns.iter().find(covers);
        Ok(own
            .map(|own| (*own).to_owned())
            .ok_or_else(|| (project.to_owned(), patterns.join(" "))))
    }

    async fn image_here(&self) -> Outcome {
        let Some(image) = &self.own.image else {
            return Skipped("no image is named".to_owned());
        };
        let registry = match input::registry(&self.own.registry) {
            Ok(registry) => registry,
            Err(failure) => return failed(&failure),
        };
        match registry.manifest(Caller::LOCAL, image).await {
            Ok(manifest) => Fine(format!("{image} is {}", manifest.digest)),
            Err(error) => failed(&error.into()),
        }
    }

    /// The server reads the image and all that is attached, with its own credentials; what it concludes does not matter.
    async fn image_there(&self) -> Outcome {
        let Some(image) = &self.own.image else {
            return Skipped("no image is named".to_owned());
        };
        let body = json!({ "image": image.to_string() });
        let found: Result<Value, Failure> = self.client.post("api/v1/verifications", &body).await;
        match found {
            Ok(report) => {
                let known = if report["verified"] == true {
                    "signed"
                } else {
                    "not signed yet"
                };
                Fine(format!("the server reads it; it is {known}"))
            }
            Err(failure) => failed(&failure),
        }
    }

    async fn clock(&self) -> Outcome {
        let http = match client::http(Duration::from_secs(self.globals.timeout)) {
            Ok(http) => http,
            Err(failure) => return failed(&failure),
        };
        let address = format!("{}/livez", self.globals.server.trim_end_matches('/'));
        let response = match http.get(address).send().await {
            Ok(response) => response,
            Err(error) => return failed(&self.client.unreachable(&error)),
        };
        let date = response.headers().get("date").and_then(|date| date.to_str().ok());
        let Some(theirs) = date.and_then(http_date) else {
            return Skipped("the server's answer has no date".to_owned());
        };
        let off = SystemClock::new().now().duration_since(theirs).as_secs();
        let told = format!("this machine and the server are {} s apart", off.abs());
        if off.abs() > CLOCK_SECONDS_MAX {
            let hint = "set both clocks and keep them set (NTP); `portcullis status` says what the server's is held against";
            return Problem(told, hint.to_owned());
        }
        Fine(told)
    }

    async fn trusted_root(&self) -> Outcome {
        let served: Value = match self.client.get("api/v1/trust/trusted_root.json").await {
            Ok(served) => served,
            Err(failure) => return failed(&failure),
        };
        let key = |root: &Value| {
            let log = &root["tlogs"][0];
            (log["baseUrl"].clone(), log["publicKey"]["rawBytes"].clone())
        };
        let Some(file) = &self.own.trusted_root else {
            let name = served["tlogs"][0]["baseUrl"].as_str().unwrap_or("-").to_owned();
            return Fine(format!(
                "the server's is of {name}; --trusted-root FILE compares yours"
            ));
        };
        let yours: Value = match input::read_text(file) {
            Ok(text) => serde_json::from_str(&text).unwrap_or_default(),
            Err(failure) => return failed(&failure),
        };
        if yours["tlogs"].as_array().is_some_and(|logs| {
            let same = |log: &Value| key(&json!({ "tlogs": [log] })) == key(&served);
            logs.iter().any(same)
        }) {
            return Fine(format!("{} has the server's log", file.display()));
        }
        let hint = "if this is the right server, fetch its root again: curl $PORTCULLIS_SERVER/api/v1/trust/trusted_root.json";
        Problem(
            format!("{} does not have the server's log", file.display()),
            hint.to_owned(),
        )
    }

    async fn log(&self) -> Outcome {
        let checked = async {
            let note = self.client.text("api/v2/checkpoint").await?;
            let verifier = log::identity(&self.client).await?;
            let checked = verifier.verify(&note);
            checked.map_err(|error| Failure::log(TlogError::Checkpoint(error)))
        };
        match checked.await {
            Ok(Checkpoint { size, .. }) => Fine(format!("its checkpoint of {size} entries is by its key")),
            Err(failure) => failed(&failure),
        }
    }

    /// Whether nobody has seen more of a log than the database has, which stops it, and the audit trail is sealed.
    async fn logs_go_on(&self) -> Outcome {
        let seen: Value = match self.client.get("api/v1/log/seen").await {
            Ok(seen) => seen,
            Err(failure) => return failed(&failure),
        };
        let items = seen["items"].as_array().into_iter().flatten();
        let mut told: Vec<String> = items
            .filter(|item| item["stops"] == true)
            .map(status::stops)
            .collect();
        let mut hints = Vec::from_iter((!told.is_empty()).then_some(status::STOPPED_HINT));
        let seal: Value = match self.client.get("api/v1/audit/seal").await {
            Ok(seal) => seal,
            Err(failure) => return failed(&failure),
        };
        if let Some(unsealed) = status::unsealed(&seal) {
            told.push(format!("audit trail: {unsealed}"));
            hints.push(status::UNSEALED_HINT);
        }
        match told.is_empty() {
            true => {
                Fine("no server has seen more than the database has, and audit records are sealed".to_owned())
            }
            false => Problem(told.join("; "), hints.join("; ")),
        }
    }

    async fn dependencies(&self) -> Outcome {
        let found: Value = match self.client.get("api/v1/dependencies").await {
            Ok(found) => found,
            Err(failure) => return failed(&failure),
        };
        let all = found["dependencies"].as_array().cloned().unwrap_or_default();
        let text = |one: &Value, name: &str| one[name].as_str().unwrap_or_default().to_owned();
        let ill: Vec<&Value> = all.iter().filter(|one| !text(one, "hint").is_empty()).collect();
        if ill.is_empty() {
            return Fine(format!("{} as they have to be", all.len()));
        }
        let told: Vec<String> = ill
            .iter()
            .map(|one| {
                let (name, state) = (text(one, "name"), text(one, "state"));
                format!(
                    "{name} is {state}: expected {}, found {}",
                    text(one, "expected"),
                    text(one, "found")
                )
            })
            .collect();
        let own = ill.iter().map(|one| (text(one, "name"), text(one, "hint")));
        Problem(told.join("; "), hints(own))
    }
}

/// Each hint once, behind the names of all that it is for.
fn hints(own: impl Iterator<Item = (String, String)>) -> String {
    let mut hints: Vec<(Vec<String>, String)> = Vec::new();
    for (name, hint) in own {
        match hints.iter_mut().find(|(_, known)| *known == hint) {
            Some((names, _)) => names.push(name),
            None => hints.push((vec![name], hint)),
        }
    }
    let lines = hints
        .iter()
        .map(|(names, hint)| format!("{}: {hint}", names.join(", ")));
    lines.collect::<Vec<String>>().join("; ")
}

#[cfg(test)]
mod tests {
    /// Shown to fail: with the hints of all dependencies joined as they come, the first one is there twice.
    #[test]
    fn a_hint_of_several_dependencies_is_given_once_with_their_names() {
        let own = [("a", "start it"), ("b", "ask"), ("c", "start it")]
            .map(|(name, hint)| (name.to_owned(), hint.to_owned()));
        assert_eq!(super::hints(own.into_iter()), "a, c: start it; b: ask");
    }
}
