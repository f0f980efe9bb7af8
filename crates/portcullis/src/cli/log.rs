//! `portcullis log`: everything that is printed was verified here.

use std::path::Path;
use std::process::ExitCode;

use bytes::Bytes;
use kernel::{SystemClock, SystemRandom};
use serde_json::{Value, json};
use store::FolderLock;
use tlog::tile::TilePath;
use tlog::{Audit, Checkpoint, Files, Folder, Inclusion, LogVerifier, TlogError, View};

use crate::args::{ConfigFile, Globals, Log, LogArgs, Output};
use crate::cli::admin::{self, Columns};
use crate::cli::input::read_text;
use crate::client::Client;
use crate::codes;
use crate::config::Loaded;
use crate::failure::Failure;
use crate::output::{Progress, document, println, say, table};
use crate::wiring;

/// The columns of what servers have seen.
const SEEN: Columns = &[
    ("SERVER", "server"),
    ("LOG", "log"),
    ("SIZE", "size"),
    ("STOPS THE LOG", "stops"),
    ("DISMISSED", "dismissed_at"),
    ("REASON", "reason"),
    ("ROOT", "root"),
];

/// The exit code of "not found".
const NOT_FOUND: u8 = 4;

/// The files by which a data folder is known: with PostgreSQL, or after a loss, one of them is still there.
const DATA_FILES: [&str; 3] = ["portcullis.db", "log.checkpoint", "lock"];

pub async fn run(globals: &Globals, own: LogArgs) -> Result<ExitCode, Failure> {
    let key = own.log_key.as_deref().map(read_text).transpose()?;
    let (server, opened) = (
        async || server(globals, key.as_deref()).await,
        async |folder| opened(folder, key.as_deref()).await,
    );
    match own.command {
        Log::Info => info(globals, &server().await?),
        Log::Entry { index } => {
            let body = server().await?.entry(index).await.map_err(Failure::log)?;
            entry(globals, index, &body)?;
        }
        Log::Proof { index, size, folder } => {
            let found = match folder {
                Some(folder) => opened(&folder).await?.proof(index, size).await,
                None => server().await?.proof(index, size).await,
            };
            proof(globals, &found.map_err(Failure::log)?);
        }
        Log::Fsck { folder, file } => {
            let audit = match folder {
                Some(folder) if DATA_FILES.iter().any(|name| folder.join(name).exists()) => {
                    fsck_data(&folder, &file, key.as_deref()).await?
                }
                Some(folder) => fsck(globals, &opened(&folder).await?).await?,
                None => fsck(globals, &server().await?).await?,
            };
            return report(globals, &audit);
        }
        Log::Seen {
            dismiss,
            reason,
            audit,
        } => seen(globals, dismiss.zip(reason), audit).await?,
        Log::Export { folder } => export(globals, &server().await?, &folder).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What servers have seen; with a size and a reason, that is dismissed first.
async fn seen(globals: &Globals, dismiss: Option<(u64, String)>, audit: bool) -> Result<(), Failure> {
    let client = Client::new(globals)?;
    let seen: Value = match dismiss {
        Some((size, reason)) => {
            let log = if audit { "audit" } else { "signatures" };
            let body = json!({ "log": log, "size": size, "reason": reason });
            client.post("api/v1/log/seen/dismissals", &body).await?
        }
        None => client.get("api/v1/log/seen").await?,
    };
    admin::show(globals, &seen["items"], SEEN);
    Ok(())
}

/// The server's tiles and bundles.
struct Server(Client);

impl Files for Server {
    async fn file(&self, path: TilePath) -> Result<Option<Bytes>, TlogError> {
        match self.0.bytes(&format!("api/v2/{path}")).await {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(failure) if failure.exit() == NOT_FOUND => Ok(None),
            Err(failure) => Err(TlogError::Fetch {
                what: path.to_string(),
                source: Box::new(failure),
            }),
        }
    }
}

/// The server's log as it is now; of the log with the public key `key` (PEM), or of the one that the server names.
async fn server(globals: &Globals, key: Option<&str>) -> Result<View<Server>, Failure> {
    let client = Client::new(globals)?;
    let note = client.text("api/v2/checkpoint").await?;
    let verifier = match key {
        Some(key) => expected(key, &note)?,
        None => identity(&client).await?,
    };
    View::new(Server(client), verifier, &note).map_err(Failure::log)
}

/// An exported log; of the log with the public key `key` (PEM), or of the one that it says itself.
async fn opened(folder: &Path, key: Option<&str>) -> Result<Folder, Failure> {
    let opened = Folder::open(folder, None).await.map_err(Failure::log)?;
    verify_by(key, &opened.checkpoint().note)?;
    Ok(opened)
}

/// That the log with this public key signed the note, if a key was given.
fn verify_by(key: Option<&str>, note: &str) -> Result<(), Failure> {
    let Some(key) = key else { return Ok(()) };
    let signed = expected(key, note)?.verify(note);
    signed
        .map(drop)
        .map_err(|error| Failure::log(TlogError::Checkpoint(error)))
}

/// The log with this public key (PEM), under the name in the note: the name is signed with the rest.
fn expected(key: &str, note: &str) -> Result<LogVerifier, Failure> {
    let unusable = |error| Failure::log(TlogError::Checkpoint(error));
    let origin = Checkpoint::parse(note).map_err(unusable)?.origin;
    LogVerifier::from_pem(&origin, key).map_err(|_| {
        let cause = "the file of --log-key is no Ed25519 public key in PEM".to_owned();
        Failure::coded(1, &codes::CONTENT, cause)
            .with_hint("give the file with the log's public key: log.pub of an exported log is one")
    })
}

/// The server's log: where it is asked and by which key it is checked.
pub async fn identity(client: &Client) -> Result<LogVerifier, Failure> {
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
    let key = key.map_err(|error| Failure::content("reading the log's public key", &error))?;
    LogVerifier::from_spki(origin, &key)
        .map_err(|error| Failure::content("reading the log's public key", &error))
}

fn info(globals: &Globals, view: &View<Server>) {
    let (checkpoint, verifier) = (view.checkpoint(), view.verifier());
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
}

fn entry(globals: &Globals, index: u64, body: &[u8]) -> Result<(), Failure> {
    let body: Value =
        serde_json::from_slice(body).map_err(|error| Failure::content("reading the entry", &error))?;
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
        .for_each(|damage| say(&format!("damaged: {damage}")));
    let places = match audit.damage.len() {
        1 => "in one place, named above".to_owned(),
        count => format!("in {count} places, named above"),
    };
    Err(Failure::coded(1, &tlog::codes::DAMAGED, places))
}

async fn export(globals: &Globals, view: &View<Server>, folder: &Path) -> Result<(), Failure> {
    let size = view.checkpoint().size;
    let mut progress = Progress::new(globals, size);
    let done = view.export(folder, &mut |done| progress.reach(done)).await;
    drop(progress);
    done.map_err(Failure::log)?;
    if !globals.quiet {
        say(&format!(
            "{size} entries are in {}; check them with: portcullis log fsck {0}",
            folder.display()
        ));
    }
    Ok(())
}

/// Checks a log file by file.
async fn fsck<F: Files>(globals: &Globals, view: &View<F>) -> Result<Audit, Failure> {
    let mut progress = Progress::new(globals, view.checkpoint().size);
    let audit = view.fsck(&mut |done| progress.reach(done)).await;
    audit.map_err(Failure::log)
}

/// Checks the log of a data folder whose server is stopped; the configuration says where its keys are.
async fn fsck_data(folder: &Path, file: &ConfigFile, key: Option<&str>) -> Result<Audit, Failure> {
    let mut config = Loaded::read(file)?.config;
    config.data.folder = folder.to_owned();
    let _lock = FolderLock::take(folder)?;
    let db = wiring::open_database(&config).await?;
    let holder = crate::place::holder(folder, &db, &SystemRandom)?;
    let clock = SystemClock::new();
    let (tlog, _) = wiring::open_log(&config, db.clone(), holder, false, &clock, &SystemRandom).await?;
    let checkpoint = tlog.checkpoint().await.map_err(Failure::log)?;
    let audit = match verify_by(key, &checkpoint.note) {
        Ok(()) => tlog.fsck(&mut |_| {}).await.map_err(Failure::log),
        Err(failure) => Err(failure),
    };
    tlog.close().await;
    db.close().await;
    audit
}
