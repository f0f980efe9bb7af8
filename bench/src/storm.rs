//! One project that asks for too much, and the others.
//!
//! The server has one core to itself. On the other core run the registry, the clients of the other projects, and, as a
//! process of the lowest priority, the storm's clients: on other machines in the field, they must not be what the
//! others wait for here.

use std::collections::HashSet;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::apart::Apart;
use crate::figures::{Figure, Target};
use crate::load::{Times, now};
use crate::place::Place;
use crate::server::Server;

/// Projects beside the one that storms.
const OTHERS: usize = 20;
/// Images of the storm, of which so many changed, each asked for so many times at once.
const IMAGES: usize = 400;
const CHANGED: usize = 3;
const TIMES: usize = 3;
/// Storms, each after a quiet time. The times of the others in all of them are taken together: in one, its p99 would be
/// that of the three worst.
const STORMS: usize = 5;
/// What the registry takes for each call: a registry in the same data centre, on an object store.
pub const LATENCY: Duration = Duration::from_millis(15);
/// New images that each other project signs while it is measured, and its pause between them.
const SIGNED_EACH: usize = 12;
const PAUSE: Duration = Duration::from_millis(100);

/// The other projects: a token and its images.
struct Other {
    token: String,
    images: Vec<String>,
}

/// Against the demo's registry, made slow, and against the registry that most people run, as it is.
pub async fn storm() -> Result<Vec<Figure>> {
    let apart = Apart::new()?;
    let mut figures = on(Place::demo().await?, "the demo's registry, 15 ms a call").await?;
    figures.extend(on(Place::distribution()?, "distribution 3.1.2").await?);
    drop(apart);
    Ok(figures)
}

async fn on(place: Place, name: &str) -> Result<Vec<Figure>> {
    // Without the legacy tag, whose lost updates are looked for after a while: nothing hides what waits in a queue.
    let server = Arc::new(Server::start_on_one_core("bundle").await?);
    let tags = tagged(&place, "fleet", IMAGES, "first").await?;
    server.sign(&tags).await?;
    let others = others(&server, &place).await?;
    place.slow_down(LATENCY);

    let (mut quiet, mut busy, mut slowest, mut new, mut logged) =
        (Vec::new(), Vec::new(), 0.0_f64, 0, 0.0_f64);
    for storm in 0..STORMS {
        // Idle: each of the others alone with the other others.
        quiet.extend(all_sign(&server, &others, 2 * storm).await?);
        tagged(&place, "fleet", CHANGED, &format!("changed {storm}")).await?;
        let before = log_size(&server).await?;
        let storming = {
            let (server, tags) = (server.clone(), tags.clone());
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(300)).await;
                rush_elsewhere(&server, &tags).await
            })
        };
        busy.extend(all_sign(&server, &others, 2 * storm + 1).await?);
        let own = storming.await??;
        let grown = log_size(&server).await? - before - (OTHERS * SIGNED_EACH) as f64;
        (slowest, new) = (slowest.max(own.slowest), new.max(own.new));
        logged = logged.max(grown);
    }
    let (quiet, busy) = (Times::of(quiet), Times::of(busy));
    let figure = |what: String, unit, portcullis, peer, peer_value, target| Figure {
        bench: "storm",
        what: format!("{what}; {name}"),
        unit,
        portcullis,
        peer,
        peer_value,
        target,
    };
    let count = IMAGES * TIMES;
    Ok(vec![
        figure(
            format!(
                "new signatures of {count} requests at once, {CHANGED} images changed, most of {STORMS} storms"
            ),
            "",
            new as f64,
            "changed images",
            Some(CHANGED as f64),
            Target::AtMostTimes(1.0),
        ),
        figure(
            "log entries of a storm, most".to_owned(),
            "",
            logged,
            "changed images",
            Some(CHANGED as f64),
            Target::AtMostTimes(1.0),
        ),
        figure(
            "until the last answer of a storm, longest".to_owned(),
            "ms",
            slowest,
            "",
            None,
            Target::AtMost(2_000.0),
        ),
        figure(
            format!("p99 of {OTHERS} other projects in a storm"),
            "ms",
            busy.quantile(0.99),
            "the same, idle",
            Some(quiet.quantile(0.99)),
            Target::AtMostTimes(1.5),
        ),
        figure(
            "peak memory of the server".to_owned(),
            "MB",
            server.peak_memory()?,
            "",
            None,
            Target::AtMost(1_024.0),
        ),
    ])
}

struct Storm {
    /// Signatures that were made for it.
    new: usize,
    /// Until the last answer, in milliseconds.
    slowest: f64,
}

/// Runs [`rush`] in a process of the lowest priority.
async fn rush_elsewhere(server: &Server, tags: &[String]) -> Result<Storm> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), tags.join("\n"))?;
    let mut command = tokio::process::Command::new("nice");
    command
        .args(["-n", "19"])
        .arg(std::env::current_exe()?)
        .args([RUSH, &server.url, &server.token])
        .arg(file.path());
    let output = command.stderr(Stdio::inherit()).output().await?;
    ensure!(output.status.success(), "the storm's clients failed");
    let answers: Vec<(f64, Option<String>)> = serde_json::from_slice(&output.stdout)?;
    let new: HashSet<&String> = answers.iter().filter_map(|(_, new)| new.as_ref()).collect();
    Ok(Storm {
        new: new.len(),
        slowest: answers.iter().map(|(ms, _)| *ms).fold(0.0, f64::max),
    })
}

/// The first argument with which this program is the storm's clients.
pub const RUSH: &str = "rush";

/// Asks for all images in a file, each so many times, all at once; prints for each answer its milliseconds and, if it
/// is new, its signature's id.
pub async fn rush(args: &[String]) -> Result<()> {
    let [url, token, file] = args else {
        anyhow::bail!("rush URL TOKEN FILE");
    };
    let text = std::fs::read_to_string(Path::new(file))?;
    let tags: Vec<&str> = text.lines().collect();
    let http = reqwest::Client::builder()
        .timeout(Duration::from_secs(120))
        .build()?;
    let requests = tags.iter().cycle().take(tags.len() * TIMES).map(|image| {
        let request = http
            .post(format!("{url}/api/v1/signatures"))
            .bearer_auth(token)
            .json(&json!({ "image": image }));
        tokio::spawn(async move {
            let began = now();
            let answer: Value = request.send().await?.error_for_status()?.json().await?;
            let ms = began.elapsed().as_secs_f64() * 1e3;
            let id = answer["id"].to_string();
            anyhow::Ok((ms, (answer["deduplicated"] != true).then_some(id)))
        })
    });
    let mut answers = Vec::new();
    for task in requests.collect::<Vec<_>>() {
        answers.push(task.await??);
    }
    println!("{}", serde_json::to_string(&answers)?);
    Ok(())
}

/// Every other project signs its images, one after the other with a pause; `round` says which of them.
async fn all_sign(server: &Arc<Server>, others: &[Other], round: usize) -> Result<Vec<f64>> {
    let mut tasks = Vec::new();
    for (number, other) in others.iter().enumerate() {
        let images = other.images[round * SIGNED_EACH..(round + 1) * SIGNED_EACH].to_vec();
        let (server, token) = (server.clone(), other.token.clone());
        tasks.push(tokio::spawn(async move {
            // Not all in one moment.
            tokio::time::sleep(PAUSE * u32::try_from(number)? / u32::try_from(OTHERS)?).await;
            let mut times = Vec::new();
            for image in images {
                times.push(server.sign_new(&token, &image).await?);
                tokio::time::sleep(PAUSE).await;
            }
            anyhow::Ok(times)
        }));
    }
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    Ok(times)
}

async fn others(server: &Server, place: &Place) -> Result<Vec<Other>> {
    let mut others = Vec::with_capacity(OTHERS);
    for number in 0..OTHERS {
        let project = format!("other-{number}");
        let body = json!({ "name": project, "images": ["**"] });
        server.post("/api/v1/projects", &body).await?;
        let token = json!({ "name": "ci", "role": "admin", "project": project });
        let token = server.post("/api/v1/tokens", &token).await?;
        let token = token["token"].as_str().context("no token")?.to_owned();
        let key = json!({ "name": "default" });
        server.post_as(&token, "/api/v1/keys", &key).await?;
        // A key that is opened for the first time takes a tenth of a second, which is not what is measured.
        let first = by_digest(place, &format!("{project}-first"), 1).await?.remove(0);
        server
            .post_as(&token, "/api/v1/signatures", &json!({ "image": first }))
            .await?;
        let images = by_digest(place, &project, SIGNED_EACH * 2 * STORMS).await?;
        others.push(Other { token, images });
    }
    Ok(others)
}

/// Images by tag, as pipelines name them; those that there were with other content have changed.
async fn tagged(place: &Place, name: &str, count: usize, content: &str) -> Result<Vec<String>> {
    let mut tags = Vec::with_capacity(count);
    for number in 0..count {
        let repository = format!("{name}/{number}");
        place
            .put(&repository, &format!("{name} {number} {content}"))
            .await?;
        tags.push(format!("{}/{repository}:1", place.host()));
    }
    Ok(tags)
}

async fn by_digest(place: &Place, name: &str, count: usize) -> Result<Vec<String>> {
    let mut images = Vec::with_capacity(count);
    for number in 0..count {
        let repository = format!("{name}/{number}");
        let digest = place.put(&repository, &format!("{name} {number}")).await?;
        images.push(format!("{}/{repository}@{digest}", place.host()));
    }
    Ok(images)
}

async fn log_size(server: &Server) -> Result<f64> {
    let note = server.get("/api/v2/checkpoint").await?;
    let size = note.lines().nth(1).context("no size in the checkpoint")?;
    Ok(size.parse()?)
}
