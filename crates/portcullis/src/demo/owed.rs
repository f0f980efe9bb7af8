//! The scenes of the external log: it is lost and comes back, and its name leads to another log.

use std::path::Path;
use std::time::Duration;

use kernel::{Clock as _, SystemClock};
use serde_json::Value;

use crate::codes;
use crate::demo::images::Images;
use crate::demo::outside::{ORIGIN, OutsideLog, OutsideName};
use crate::demo::server::ServerProcess;
use crate::demo::stage::{Expect, Stage};
use crate::failure::Failure;

/// Images that are signed while the external log is away.
const LOST: usize = 20;
/// The longest wait for what takes a few seconds.
const PATIENCE: Duration = Duration::from_secs(90);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// Gives the server an external log, and takes it away.
pub async fn scenes(
    stage: &mut Stage,
    images: &Images,
    server: &mut ServerProcess,
    folder: &Path,
) -> Result<(), Failure> {
    let log = OutsideLog::start(&folder.join("external-log")).await?;
    let other = OutsideLog::start(&folder.join("another-log")).await?;
    let name = OutsideName::new(&log).await?;
    let key = folder.join("rekor.pub");
    std::fs::write(&key, log.public_key()).map_err(|error| Failure::file("writing", &key, &error))?;
    let config = format!(
        "[external_log]\nurl = \"http://{}\"\norigin = {ORIGIN:?}\npublic_key = {:?}\n",
        name.address,
        key.display().to_string()
    );
    stage.chapter("Every signature is owed to somebody else's log too. It goes away: signing goes on, and the debt is paid later");
    stage.say(&format!(
        "The server starts anew with this in its portcullis.toml:\n{config}"
    ));
    server.reconfigure(&config).await?;
    lost(stage, images, &log, &name).await?;
    wrong(stage, images, &log, &other, &name).await
}

async fn lost(
    stage: &mut Stage,
    images: &Images,
    log: &OutsideLog,
    name: &OutsideName,
) -> Result<(), Failure> {
    let first = images
        .push("ledger/first", "1.0", "signed while all is well")
        .await?;
    stage
        .run(&["sign", &first], Expect::code(0).prints("signed "))
        .await?;
    comes_to(stage, "the debt is paid", |status| owed(status) == 0).await?;
    stage.check("entries of the external log", log.size().await?, 1);

    stage.say("  … the external log goes away");
    name.now_leads(None);
    let part = images.many("ledger/part", LOST).await?;
    let list = stage.write("ledger.txt", &part)?;
    let expect = Expect::code(0).prints_err(&format!("{LOST} signed, 0 already signed, 0 failed"));
    stage.run(&["sign", "--from-file", &list], expect).await?;
    comes_to(stage, "it is named as away", |status| {
        external(status)["state"] == "UNREACHABLE"
    })
    .await?;
    let expect = Expect::code(0)
        .prints(&format!("external log    {LOST} owed"))
        .shows("external");
    stage.run(&["status"], expect).await?;

    stage.say("  … the external log is back");
    name.now_leads(Some(log));
    comes_to(stage, "the debt is paid", |status| owed(status) == 0).await?;
    stage.check("entries of the external log", log.size().await?, 1 + LOST as u64);
    let expect = Expect::code(0).prints("external log    0 owed").shows("external");
    stage.run(&["status"], expect).await
}

async fn wrong(
    stage: &mut Stage,
    images: &Images,
    log: &OutsideLog,
    other: &OutsideLog,
    name: &OutsideName,
) -> Result<(), Failure> {
    stage.chapter("The external log's name leads to another log: it is named within seconds, gets nothing, and signing goes on");
    name.now_leads(Some(other));
    comes_to(stage, "the wrong log is named", |status| {
        external(status)["state"] == "WRONG_LOG"
    })
    .await?;
    let status = stage.document(&["status"]).await?;
    let wrong = external(&status);
    for word in ["expected", "found"] {
        stage.say(&format!("  {word}: {}", wrong[word].as_str().unwrap_or("-")));
    }
    let image = images
        .push("ledger/second", "1.0", "signed beside a wrong log")
        .await?;
    stage
        .run(&["sign", &image], Expect::code(0).prints("signed "))
        .await?;
    let expect = Expect::code(0)
        .prints("DEGRADED")
        .prints("external log    1 owed");
    stage
        .run(&["status"], expect.shows("can we deploy?").shows("external"))
        .await?;
    stage.check("entries of the wrong log", other.size().await?, 0);
    stage.say("  … the name is put right");
    name.now_leads(Some(log));
    comes_to(stage, "the debt is paid", |status| owed(status) == 0).await?;
    stage.check("entries of the external log", log.size().await?, 2 + LOST as u64);
    Ok(())
}

/// Looks until the status is as told, and says how long that took.
async fn comes_to(stage: &Stage, what: &str, told: impl Fn(&Value) -> bool) -> Result<(), Failure> {
    let clock = SystemClock::new();
    let began = clock.monotonic();
    loop {
        let status = stage.document(&["status"]).await?;
        let took = clock.monotonic().since(began);
        if told(&status) {
            stage.say(&format!("  {what}, after {:.1} s", took.as_secs_f64()));
            return Ok(());
        }
        if took > PATIENCE {
            let cause = format!("after {} s it is not so that {what}", PATIENCE.as_secs());
            return Err(Failure::coded(1, &codes::DEMO, cause));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What is not in the log, or not published yet.
fn owed(status: &Value) -> u64 {
    let count = |name: &str| status["external_log"][name].as_u64().unwrap_or(u64::MAX / 2);
    count("owed") + count("unpublished")
}

fn external(status: &Value) -> &Value {
    let mut all = status["dependencies"].as_array().into_iter().flatten();
    all.find(|one| one["name"] == "external-log")
        .unwrap_or(&Value::Null)
}
