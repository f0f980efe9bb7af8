//! What this server looks at, and how: its own store and log, the registries in use, the external log, the clock, the
//! disk, and what ends.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use kernel::{Clock, Fault as _, Random};
use probing::log::{Seen, Step, compare};
use probing::{
    BlobsProbe, Board, ClockProbe, DatabaseProbe, DiskProbe, ExpiryProbe, Finding, Kind, LogMark, Marks,
    Probe, References, State, Watch,
};
use signing::ports::Registry;
use signing::trust::TrustRoot;
use store::{Blobs, Db};
use tlog::{Checkpoint, Tlog, TlogError};
use upstream::oci::RegistryProbe;
use upstream::rekor::LogProbe;

use crate::canary::Canary;
use crate::config::Config;
use crate::dead_man::DeadMansSwitch;
use crate::external_log::External;
use crate::failure::Failure;
use crate::metrics::Metrics;

/// What is looked at.
pub struct Parts<'a> {
    pub config: &'a Config,
    pub db: Db,
    pub blobs: Blobs,
    pub tlog: Tlog,
    pub registries: Arc<upstream::oci::Client>,
    /// The external log, and what all servers saw there last.
    pub external: Option<(&'a External, LogMark)>,
    pub oidc: &'a access::oidc::Oidc,
    pub metrics: Metrics,
    /// This server's name on leases.
    pub holder: String,
    /// Where users reach this server.
    pub public_url: &'a str,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
}

/// Starts to look. Nothing outside is waited for.
pub async fn start(parts: Parts<'_>) -> Result<Watch, Failure> {
    let (config, db, clock) = (parts.config, &parts.db, parts.clock);
    let folder = &config.data.folder;
    let watch = Watch::new(Board::new(clock.clone()), clock.clone(), parts.random.clone());
    let (marks, references) = (Marks::new(db.clone()), References::default());
    let installation = marks.installation(&*clock, &*parts.random).await?;

    let database = DatabaseProbe::new(
        db,
        folder.join("database.mark"),
        sqlite_file(config, db),
        clock.clone(),
        &*parts.random,
    );
    watch.add(Arc::new(database));
    watch.add(Arc::new(EmbeddedLog::new(parts.tlog.clone())));
    let blobs = BlobsProbe::new(parts.blobs, marks.clone(), clock.clone(), installation);
    watch.add(Arc::new(blobs));
    let latest = ClockProbe::latest(&marks).await?;
    watch.add(Arc::new(ClockProbe::new(
        clock.clone(),
        db,
        references.clone(),
        latest,
    )));
    watch.add(Arc::new(DiskProbe::new(folder.clone())));
    for (name, root) in config.trusted_roots()? {
        watch.add(Arc::new(trust_root(&name, &root, clock.clone())));
    }
    if let Some((external, mark)) = parts.external {
        let client = external.client.clone();
        let (clock, references) = (clock.clone(), references.clone());
        watch.add(Arc::new(LogProbe::new(client, mark, clock, references)));
    }
    crate::workloads::probes(parts.oidc).for_each(|probe| watch.add(probe));
    watch.add_all(RegistryProbe::in_use(
        parts.registries.clone(),
        clock.clone(),
        references,
    ));
    if let Some(settings) = &config.dead_mans_switch {
        let (board, tlog) = (watch.board().clone(), parts.tlog.clone());
        let switch = DeadMansSwitch::new(settings, parts.public_url, board, tlog)?;
        watch.add(Arc::new(switch));
    }
    if let Some(settings) = &config.canary {
        let registry: Arc<dyn Registry> = parts.registries;
        let canary = Canary::new(
            settings,
            registry,
            db.clone(),
            parts.holder,
            parts.public_url,
            parts.metrics,
            clock,
        )?;
        watch.add(Arc::new(canary));
    }
    Ok(watch)
}

/// SQLite's file, which may be replaced under the server that has it open.
fn sqlite_file(config: &Config, db: &Db) -> Option<PathBuf> {
    if db.is_shared() {
        return None;
    }
    let default = || config.data.folder.join("portcullis.db");
    let named = config
        .database
        .url
        .as_deref()
        .and_then(|url| url.strip_prefix("sqlite:"));
    Some(named.map_or_else(default, |path| {
        Path::new(path.strip_prefix("//").unwrap_or(path)).to_owned()
    }))
}

fn trust_root(name: &str, root: &TrustRoot, clock: Arc<dyn Clock>) -> ExpiryProbe {
    ExpiryProbe::new(format!("trust-root {name}"), root.ends(), clock)
}

/// Looks at this server's own log: is its checkpoint by its key, does it only grow, and does it move when it has to?
struct EmbeddedLog {
    tlog: Tlog,
    last: Mutex<Option<Last>>,
}

#[derive(Clone)]
struct Last {
    seen: Seen,
    /// Whether entries waited already at the last look.
    waited: bool,
}

impl EmbeddedLog {
    fn new(tlog: Tlog) -> Self {
        Self {
            tlog,
            last: Mutex::new(None),
        }
    }

    async fn judge(&self, last: Option<&Last>) -> Result<(Finding, Last), TlogError> {
        let queued = self.tlog.queued();
        let checkpoint = self.tlog.checkpoint().await?;
        let seen = seen(&checkpoint);
        let expected = last.map_or_else(
            || self.expected(),
            |last| format!("{}, that follows {}", self.expected(), last.seen.described()),
        );
        let mut state = match compare(last.map(|last| &last.seen), &seen) {
            Step::Good => State::Ok,
            Step::RolledBack => State::RolledBack,
            Step::Forked => State::Forked,
            Step::Renamed => State::WrongLog,
            Step::Prove => self.follows(last, &checkpoint).await?,
        };
        let mut found = seen.described();
        if let Some((server, size)) = self.tlog.told().await?.filter(|told| told.1 > seen.size) {
            state = State::RolledBack;
            found = format!(
                "{found}, but the server {server} has seen {size}: nobody appends (portcullis log seen)"
            );
        }
        let stuck = last.is_some_and(|last| last.waited && last.seen.size == seen.size);
        if state == State::Ok && queued > 0 && stuck {
            state = State::Stale;
            found = format!("{found}; {queued} entries wait and it does not move");
        }
        let next = Last {
            seen,
            waited: queued > 0,
        };
        Ok((Finding::new(state, expected, found), next))
    }

    /// The last good look, unless what was seen then was dismissed.
    async fn counting(&self) -> Result<Option<Last>, TlogError> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match last {
            Some(last) if self.tlog.is_dismissed(&last.seen.note).await? => Ok(None),
            last => Ok(last),
        }
    }

    async fn follows(&self, last: Option<&Last>, now: &Checkpoint) -> Result<State, TlogError> {
        let Some(last) = last else { return Ok(State::Ok) };
        let proof = self.tlog.consistency(last.seen.size, now.size).await?;
        let same = hex(proof.old_root) == last.seen.root;
        Ok(if same { State::Ok } else { State::Forked })
    }
}

#[async_trait]
impl Probe for EmbeddedLog {
    fn name(&self) -> &str {
        "log"
    }

    fn kind(&self) -> Kind {
        Kind::Log
    }

    fn expected(&self) -> String {
        let verifier = self.tlog.verifier();
        let id = hex(verifier.log_id());
        format!("{} signed by key {}", verifier.origin(), &id[..8])
    }

    async fn look(&self) -> Finding {
        let last = match self.counting().await {
            Ok(last) => last,
            Err(error) => {
                return Finding::new(
                    State::Unreachable,
                    self.expected(),
                    kernel::words(&kernel::chain(&error)),
                );
            }
        };
        match self.judge(last.as_ref()).await {
            Ok((finding, next)) => {
                // What was good is remembered, also beside entries that wait.
                if matches!(finding.state, State::Ok | State::Stale) {
                    *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(next);
                }
                finding
            }
            Err(error) => {
                let state = meant(&error);
                let found = format!("{}: {}", error.code().id, kernel::chain(&error));
                Finding::new(state, self.expected(), kernel::words(&found))
            }
        }
    }
}

/// What a failure to read or to prove means. Only entries that are others are a fork: what is missing or damaged says
/// nothing of what others were shown.
fn meant(error: &TlogError) -> State {
    match error {
        TlogError::Checkpoint(_) => State::WrongLog,
        TlogError::RolledBack { .. } => State::RolledBack,
        TlogError::Forked { .. } => State::Forked,
        error if error.is_damage() => State::WrongStore,
        _ => State::Unreachable,
    }
}

fn seen(checkpoint: &Checkpoint) -> Seen {
    Seen {
        origin: checkpoint.origin.clone(),
        size: checkpoint.size,
        root: hex(checkpoint.root),
        note: checkpoint.note.clone(),
    }
}

fn hex(bytes: [u8; 32]) -> String {
    kernel::Digest::from_bytes(bytes).hex()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_damaged_is_no_fork() {
        let what = || "tile/entries/000".to_owned();
        let found = || "it has 3 bytes".to_owned();
        let (missing, damaged) = (
            TlogError::Missing { what: what() },
            TlogError::Damaged {
                what: what(),
                found: found(),
            },
        );
        let (size, path) = (5, PathBuf::from("log.checkpoint"));
        for (error, state) in [
            (missing, State::WrongStore),
            (damaged, State::WrongStore),
            (TlogError::Forked { size, path }, State::Forked),
            (TlogError::RolledBack { size, found: found() }, State::RolledBack),
            (TlogError::NotLeader, State::Unreachable),
        ] {
            assert_eq!(meant(&error), state, "{error}");
            assert!(Kind::Log.states().contains(&state), "{state}");
        }
    }
}
