//! `portcullis log`: everything that is printed was verified here.

use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};
use store::Blobs;
use tlog::tile::{TILE_WIDTH, TilePath};
use tlog::{Audit, Folder, Inclusion, LogVerifier};

use crate::args::{Globals, Log, Output};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Progress, document, println, table};

pub async fn run(globals: &Globals, own: Log) -> Result<ExitCode, Failure> {
    match own {
        Log::Info => info(globals).await?,
        Log::Entry { index } => entry(globals, index).await?,
        Log::Proof {
            index,
            size,
            folder: Some(folder),
        } => {
            proof(
                globals,
                &Folder::open(&folder, None).await?.proof(index, size).await?,
            );
        }
        Log::Proof {
            index,
            size,
            folder: None,
        } => {
            let mirror = Mirror::of_server(globals).await?;
            proof(globals, &mirror.open().await?.proof(index, size).await?);
        }
        Log::Fsck { folder: Some(folder) } if folder.join("portcullis.db").exists() => {
            return fsck_data(globals, &folder).await;
        }
        Log::Fsck { folder: Some(folder) } => {
            return report(
                globals,
                &Folder::open(&folder, None).await?.fsck(&mut |_| {}).await?,
            );
        }
        Log::Fsck { folder: None } => {
            let mirror = Mirror::of_server(globals).await?;
            return report(globals, &mirror.open().await?.fsck(&mut |_| {}).await?);
        }
        Log::Export { folder } => {
            let size = mirror(globals, &folder).await?;
            if !globals.quiet {
                eprintln!(
                    "{size} entries are in {}; check them with: portcullis log fsck {0}",
                    folder.display()
                );
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The server's log: where it is asked and by which key it is checked.
async fn identity(client: &Client) -> Result<LogVerifier, Failure> {
    let root: Value = client.get("api/v1/trust/trusted_root.json").await?;
    let log = &root["tlogs"][0];
    let origin = log["baseUrl"]
        .as_str()
        .and_then(|url| url.strip_prefix("https://"))
        .unwrap_or_default();
    let key = base64::Engine::decode(
        &base64::engine::general_purpose::STANDARD,
        log["publicKey"]["rawBytes"].as_str().unwrap_or_default(),
    );
    let key = key.map_err(|error| Failure::local("reading the log's public key", &error))?;
    LogVerifier::from_spki(origin, &key)
        .map_err(|error| Failure::local("reading the log's public key", &error))
}

async fn info(globals: &Globals) -> Result<(), Failure> {
    let client = Client::new(globals)?;
    let verifier = identity(&client).await?;
    let note = client.text("api/v2/checkpoint").await?;
    let checkpoint = verifier
        .verify(&note)
        .map_err(|error| Failure::local("the checkpoint is not this log's", &error))?;
    let root = kernel::Digest::from_bytes(checkpoint.root).hex();
    let id = kernel::Digest::from_bytes(verifier.log_id()).hex();
    match globals.output {
        Output::Json | Output::Yaml => document(
            globals,
            &json!({ "origin": checkpoint.origin, "size": checkpoint.size, "root": root, "log_id": id }),
        ),
        Output::Name => println(&checkpoint.origin),
        Output::Table => table(
            &["FIELD", "VALUE"],
            &[
                vec!["origin".to_owned(), checkpoint.origin.clone()],
                vec!["log id".to_owned(), id],
                vec!["entries".to_owned(), checkpoint.size.to_string()],
                vec!["root".to_owned(), root],
            ],
        ),
    }
    Ok(())
}

async fn entry(globals: &Globals, index: u64) -> Result<(), Failure> {
    let client = Client::new(globals)?;
    let verifier = identity(&client).await?;
    let note = client.text("api/v2/checkpoint").await?;
    let checkpoint = verifier
        .verify(&note)
        .map_err(|error| Failure::local("the checkpoint is not this log's", &error))?;
    if index >= checkpoint.size {
        let what = format!(
            "the log has {} entries; there is no entry {index}",
            checkpoint.size
        );
        return Err(Failure::plain(4, what, "portcullis log info"));
    }
    let width = TilePath::width_at(None, index / TILE_WIDTH, checkpoint.size);
    let path = TilePath::bundle(index / TILE_WIDTH).with_width(width);
    let bytes = client.bytes(&format!("api/v2/{path}")).await?;
    let entries = tlog::tile::parse_bundle(&bytes, width)
        .map_err(|error| Failure::local("reading the entries", &error))?;
    let body: Value = serde_json::from_slice(&entries[(index % TILE_WIDTH) as usize])
        .map_err(|error| Failure::local("reading the entry", &error))?;
    document(globals, &json!({ "index": index, "body": body }));
    Ok(())
}

fn proof(globals: &Globals, proof: &Inclusion) {
    let hex = |hash: &[u8; 32]| kernel::Digest::from_bytes(*hash).hex();
    let hashes: Vec<String> = proof.hashes.iter().map(hex).collect();
    let json = json!({
        "index": proof.index, "size": proof.size, "leaf": hex(&proof.leaf), "root": hex(&proof.root), "hashes": hashes,
    });
    if globals.output.is_document() {
        return document(globals, &json);
    }
    println(&format!(
        "entry {} is in the log of {} entries",
        proof.index, proof.size
    ));
    println(&format!("leaf  {}", hex(&proof.leaf)));
    hashes.iter().for_each(|hash| println(&format!("      {hash}")));
    println(&format!("root  {}", hex(&proof.root)));
}

fn report(globals: &Globals, audit: &Audit) -> Result<ExitCode, Failure> {
    if globals.output.is_document() {
        document(globals, &serde_json::to_value(audit).unwrap_or_default());
    } else {
        let Audit {
            size,
            entries_checked,
            tiles_checked,
            root,
            ..
        } = audit;
        println(&format!(
            "{entries_checked} of {size} entries and {tiles_checked} tiles checked, root {root}"
        ));
    }
    if audit.damage.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    if globals.output.is_document() {
        // The document names the damage.
        return Ok(ExitCode::FAILURE);
    }
    audit
        .damage
        .iter()
        .for_each(|damage| eprintln!("damaged: {damage}"));
    Err(Failure::plain(
        1,
        format!("the log is damaged in {} places", audit.damage.len()),
        "put the named files back from a backup",
    ))
}

/// Checks the log of a data folder whose server is stopped.
async fn fsck_data(globals: &Globals, folder: &Path) -> Result<ExitCode, Failure> {
    let mut config = crate::config::Config::default();
    config.data.folder = folder.to_owned();
    let started = crate::wiring::start(&config, config.listen()?).await?;
    let audit = started.app.tlog.fsck(&mut |_| {}).await;
    started.app.tlog.close().await;
    report(globals, &audit?)
}

/// The server's log in a folder that goes when this does.
struct Mirror {
    folder: std::path::PathBuf,
    verifier: LogVerifier,
}

impl Mirror {
    async fn of_server(globals: &Globals) -> Result<Self, Failure> {
        let folder = std::env::temp_dir().join(format!("portcullis-log-{}", uuid_of_process()));
        let verifier = identity(&Client::new(globals)?).await?;
        let mirrored = Self { folder, verifier };
        mirror(globals, &mirrored.folder).await?;
        Ok(mirrored)
    }

    async fn open(&self) -> Result<Folder, Failure> {
        Ok(Folder::open(&self.folder, Some(self.verifier.clone())).await?)
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn uuid_of_process() -> String {
    let mut bytes = [0; 16];
    kernel::Random::fill(&kernel::SystemRandom, &mut bytes);
    uuid::Builder::from_random_bytes(bytes)
        .into_uuid()
        .simple()
        .to_string()
}

/// Copies the server's log: every tile first, the checkpoint last, then everything is checked.
async fn mirror(globals: &Globals, folder: &Path) -> Result<u64, Failure> {
    let client = Client::new(globals)?;
    let verifier = identity(&client).await?;
    let note = client.text("api/v2/checkpoint").await?;
    let checkpoint = verifier
        .verify(&note)
        .map_err(|error| Failure::local("the checkpoint is not this log's", &error))?;
    let blobs = Blobs::folder(folder)?;
    let paths = tiles(checkpoint.size);
    let mut progress = Progress::new(globals, paths.len() as u64);
    for path in paths {
        // A full tile that is there already is the same for ever.
        if path.width < TILE_WIDTH as u16 || blobs.get(&path.to_string()).await?.is_none() {
            let bytes = client.bytes(&format!("api/v2/{path}")).await?;
            blobs.put(&path.to_string(), bytes.into()).await?;
        }
        progress.step();
    }
    let write = |name: &str, text: String| {
        std::fs::write(folder.join(name), text)
            .map_err(|error| Failure::local(format!("writing {name}"), &error))
    };
    write("log.pub", verifier.pem())?;
    write("checkpoint", note)?;
    let audit = Folder::open(folder, Some(verifier))
        .await?
        .fsck(&mut |_| {})
        .await?;
    match audit.damage.first() {
        None => Ok(checkpoint.size),
        Some(damage) => Err(Failure::plain(
            1,
            format!("what the server sent is damaged: {damage}"),
            "portcullis log fsck",
        )),
    }
}

/// Every tile of a log of `size` entries.
fn tiles(size: u64) -> Vec<TilePath> {
    let mut paths = Vec::new();
    let mut level_of = |level: Option<u8>, hashes: u64| {
        for index in 0..hashes.div_ceil(TILE_WIDTH) {
            let width = TilePath::width_at(level, index, size);
            paths.push(TilePath { level, index, width });
        }
    };
    level_of(None, size);
    let mut level = 0;
    while size >> (8 * u32::from(level)) > 0 {
        level_of(Some(level), size >> (8 * u32::from(level)));
        level += 1;
    }
    paths
}
