//! `portcullis demo`: the story, told with the commands that a person would type.
//!
//! A registry runs in this process, the server is a child of it: a real one, so that `kill -9` is one. Every step
//! runs this same program as a command and compares what came out with what was told.

mod images;
mod outside;
mod owed;
mod server;
mod stage;

use std::process::ExitCode;
use std::time::Duration;

use registry::{Options, Registry};

use crate::args::Demo;
use crate::demo::images::Images;
use crate::demo::server::ServerProcess;
use crate::demo::stage::{Begun, Expect, Stage};
use crate::failure::Failure;
use crate::lifecycle::Lifecycle;
use crate::output::println;

/// Images of the release.
const RELEASE: usize = 40;
/// Images of the fleet, and how many of them change.
const FLEET: usize = 400;
const CHANGED: usize = 3;
/// How often a pipeline that went wild signs all of them at once.
const TIMES: usize = 3;
/// When the storm is in full swing.
const STORM_BEGUN: Duration = Duration::from_millis(100);

pub async fn run(own: Demo) -> Result<ExitCode, Failure> {
    let folder = Folder::new(own.data.clone())?;
    let registry = Registry::memory(Options::default());
    let running = registry
        .serve_on_loopback()
        .await
        .map_err(|error| Failure::local("starting the registry", &error))?;
    let images = Images::new(registry, running.host());
    let mut server = ServerProcess::start(&folder.path.join("server")).await?;
    let mut stage = Stage::new(&folder.path, &server);
    stage.say(&format!(
        "A registry runs at {}, a server at {}. Both are on this machine only.",
        images.host, server.url
    ));
    story(&mut stage, &images, &mut server).await?;
    owed::scenes(&mut stage, &images, &mut server, &folder.path).await?;
    let failed = stage.failed();
    if own.exit {
        server.stop().await?;
        println(&format!(
            "\n{}",
            if failed == 0 {
                "Every step came out as told.".to_owned()
            } else {
                format!("{failed} steps did not come out as told.")
            }
        ));
        return Ok(if failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    farewell(&server, &images.host);
    let lifecycle = Lifecycle::new();
    lifecycle
        .on_signals(std::time::Duration::ZERO)
        .map_err(|error| Failure::local("waiting for signals", &error))?;
    lifecycle.soft.cancelled().await;
    server.stop().await?;
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn story(stage: &mut Stage, images: &Images, server: &mut ServerProcess) -> Result<(), Failure> {
    let web = images
        .push("shop/web", "1.0", "the web shop, version 1.0")
        .await?;
    stage.chapter("Sign one image, and verify it");
    stage
        .run(&["sign", &web], Expect::code(0).prints("signed "))
        .await?;
    stage
        .run(
            &["verify", &web],
            Expect::code(0).prints("verified ").prints("log index"),
        )
        .await?;
    stage
        .run(
            &["image", "tree", &web],
            Expect::code(0).prints("cosign/sign/v1").prints(".sig"),
        )
        .await?;

    stage.chapter("An image that nobody signed is refused, with the reason");
    let stranger = images.push("shop/stranger", "1.0", "nobody signed this").await?;
    stage
        .run(
            &["verify", &stranger],
            Expect::code(8)
                .prints("REFUSED")
                .prints("no signature is attached"),
        )
        .await?;

    stage.chapter(
        "Somebody pushes other content under the signed tag: the digest is another, so it is refused",
    );
    images
        .push("shop/web", "1.0", "the web shop, with a surprise")
        .await?;
    stage
        .run(&["verify", &web], Expect::code(8).prints("REFUSED"))
        .await?;

    stage.chapter(&format!(
        "Release {RELEASE} images with one signature and one log entry"
    ));
    let release = images.many("release/part", RELEASE).await?;
    let list = stage.write("release.txt", &release)?;
    let before = stage.log_size().await?;
    let expect = Expect::code(0).prints_err(&format!("{RELEASE} signed, 0 already signed, 0 failed"));
    stage
        .run(&["sign", "--release", "--from-file", &list], expect)
        .await?;
    stage.check(
        "entries that the log grew by",
        stage.log_size().await? - before,
        1,
    );
    stage
        .run(
            &["verify", &release[RELEASE - 1]],
            Expect::code(0).prints("verified "),
        )
        .await?;

    fleet(stage, images).await?;
    storm(stage, images).await?;
    crash(stage, server, &release[0]).await
}

async fn fleet(stage: &mut Stage, images: &Images) -> Result<(), Failure> {
    stage.chapter(&format!(
        "A team signs its {FLEET} images, and then all of them again, because {CHANGED} changed"
    ));
    let fleet = images.many("fleet/service", FLEET).await?;
    let list = stage.write("fleet.txt", &fleet)?;
    let expect = Expect::code(0).prints_err(&format!("{FLEET} signed, 0 already signed, 0 failed"));
    stage.run(&["sign", "--from-file", &list], expect).await?;
    images.change("fleet/service", CHANGED, "second").await?;
    let before = stage.log_size().await?;
    let known = FLEET - CHANGED;
    let expect = Expect::code(0).prints_err(&format!("{CHANGED} signed, {known} already signed, 0 failed"));
    stage.run(&["sign", "--from-file", &list], expect).await?;
    stage.check(
        "entries that the log grew by",
        stage.log_size().await? - before,
        CHANGED as u64,
    );
    Ok(())
}

async fn storm(stage: &mut Stage, images: &Images) -> Result<(), Failure> {
    stage.chapter(&format!(
        "Its pipeline goes wild: all {FLEET} images {TIMES} times at once, {CHANGED} changed; another team signs meanwhile"
    ));
    stage
        .run(
            &["project", "create", "payments", "--image", "**"],
            Expect::code(0),
        )
        .await?;
    stage
        .run(
            &["--project", "payments", "key", "create", "default"],
            Expect::code(0),
        )
        .await?;
    let alone = images
        .push("payments/api", "1.0", "the first of payments")
        .await?;
    let beside = images
        .push("payments/web", "1.0", "the second of payments")
        .await?;
    let signed = || Expect::code(0).prints("signed ");
    stage
        .run(&["--project", "payments", "sign", &alone], signed())
        .await?;
    images.change("fleet/service", CHANGED, "third").await?;
    let before = stage.log_size().await?;
    let begun: Vec<Begun> = (0..TIMES)
        .map(|_| stage.begin(&["sign", "--from-file", "fleet.txt"]))
        .collect();
    tokio::time::sleep(STORM_BEGUN).await;
    stage
        .run(&["--project", "payments", "sign", &beside], signed())
        .await?;
    for storm in begun {
        stage.end(storm, Expect::code(0).prints_err("0 failed")).await?;
    }
    stage.say("The three runs did the work of one: each of them names the changed images as signed.");
    stage.check(
        "entries that the log grew by, of the changed images and the other team's",
        stage.log_size().await? - before,
        CHANGED as u64 + 1,
    );
    Ok(())
}

async fn crash(stage: &mut Stage, server: &mut ServerProcess, image: &str) -> Result<(), Failure> {
    stage.chapter("Kill the server with kill -9, and start it again: nothing is lost");
    let (signatures, size) = (stage.signatures().await?, stage.log_size().await?);
    stage.say(&format!("$ kill -9 {}", server.pid()));
    server.kill_and_restart().await?;
    stage.check("signatures", stage.signatures().await?, signatures);
    stage.check("log entries", stage.log_size().await?, size);
    stage
        .run(
            &["log", "fsck"],
            Expect::code(0).prints(&format!("{size} of {size} entries")),
        )
        .await?;
    stage
        .run(&["verify", image], Expect::code(0).prints("verified "))
        .await
}

fn farewell(server: &ServerProcess, host: &str) {
    println(&format!(
        "
The server and the registry stay up; Ctrl-C ends both. In another terminal:

  export PORTCULLIS_SERVER={}
  export PORTCULLIS_TOKEN={}

  portcullis sign YOUR-REGISTRY/YOUR/IMAGE:TAG      with credentials: see registries in portcullis init
  portcullis verify {host}/fleet/service-1:1.0
  portcullis log info
",
        server.url, server.token,
    ));
}

/// Where the demo keeps its things; removed at the end unless it was named.
struct Folder {
    path: std::path::PathBuf,
    keep: bool,
}

impl Folder {
    fn new(named: Option<std::path::PathBuf>) -> Result<Self, Failure> {
        let keep = named.is_some();
        let path = named
            .unwrap_or_else(|| std::env::temp_dir().join(format!("portcullis-demo-{}", std::process::id())));
        std::fs::create_dir_all(&path).map_err(|error| Failure::file("making", &path, &error))?;
        Ok(Self { path, keep })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
