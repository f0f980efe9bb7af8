//! Verifying a server's trail: its rows are read and held against its seal, which is proven by its key alone.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use access::audit::{AuditRecord, Finding, Leaves, Outcome, Wrong};
use bytes::Bytes;
use kernel::limits::PAGE_ROWS_MAX;
use serde::Deserialize;
use tlog::tile::TilePath;
use tlog::{Checkpoint, Files, LogVerifier, TlogError, View};

use super::{Verified, failed, tampered, unsigned, verifier};
use crate::args::Globals;
use crate::cli::input::read_text;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::Progress;

/// Where the parts of the seal are.
const LOG: &str = "api/v1/audit/log";
/// Findings whose sealed content is shown too.
const LOOKED_UP_MAX: usize = 100;
/// What a file that is not there, or cannot be read, is answered with: not found, and the codes of damage.
const NO_FILE: [&str; 3] = ["PC1414", "PC1401", "PC1404"];

/// The seal's tiles on the server.
pub struct Tiles(pub Client);

impl Files for Tiles {
    async fn file(&self, path: TilePath) -> Result<Option<Bytes>, TlogError> {
        match self.0.bytes(&format!("{LOG}/{path}")).await {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(failure) if NO_FILE.contains(&failure.code()) => Ok(None),
            Err(failure) => Err(TlogError::Fetch {
                what: path.to_string(),
                source: Box::new(failure),
            }),
        }
    }
}

/// A record as the server shows it.
#[derive(Deserialize)]
pub struct Shown {
    id: String,
    at_us: i64,
    actor: String,
    project: String,
    action: String,
    resource: String,
    outcome: Outcome,
    code: String,
    detail: String,
    request_id: String,
    times: i64,
    sequence: Option<i64>,
}

impl Shown {
    /// Its place under the seal, if it claims one; one that no seal reaches for a number that is none.
    pub fn place(&self) -> Option<u64> {
        self.sequence
            .map(|sequence| u64::try_from(sequence).unwrap_or(u64::MAX))
    }

    pub fn record(self) -> AuditRecord {
        AuditRecord {
            action: self.action,
            actor: self.actor,
            at_us: self.at_us,
            code: self.code,
            detail: self.detail,
            id: self.id,
            outcome: self.outcome,
            project: self.project,
            request_id: self.request_id,
            resource: self.resource,
            times: self.times,
        }
    }
}

#[derive(Deserialize)]
struct Page {
    items: Vec<Shown>,
    next: Option<String>,
}

/// Every record of a list, a page at a time.
pub async fn each(
    client: &Client,
    order: &str,
    filter: &str,
    mut take: impl AsyncFnMut(Shown) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut next = Some(format!(
        "api/v1/audit?order={order}&limit={PAGE_ROWS_MAX}{filter}"
    ));
    while let Some(path) = next {
        let page: Page = client.get(path.trim_start_matches('/')).await?;
        for shown in page.items {
            take(shown).await?;
        }
        next = page.next;
    }
    Ok(())
}

/// The seal as it is now, by the key that was kept, or by the server's word.
pub async fn seal(globals: &Globals, key: Option<&Path>) -> Result<View<Tiles>, Failure> {
    let client = Client::new(globals)?;
    let note = asked(client.text(&format!("{LOG}/checkpoint")).await)?;
    let key = match key {
        Some(key) => read_text(key)?,
        None => client.text(&format!("{LOG}/key")).await?,
    };
    let verifier = verifier(&key, &note)?;
    View::new(Tiles(client), verifier, &note).map_err(failed)
}

/// A server that says itself that its seal is damaged has answered.
fn asked<T>(answer: Result<T, Failure>) -> Result<T, Failure> {
    const DAMAGE: [&str; 6] = ["PC1401", "PC1402", "PC1403", "PC1404", "PC1405", "PC1419"];
    answer.map_err(|failure| {
        if DAMAGE.contains(&failure.code()) {
            tampered(failure.line())
        } else {
            failure
        }
    })
}

pub async fn verify(globals: &Globals, key: Option<&Path>, kept: Option<&Path>) -> Result<Verified, Failure> {
    let view = seal(globals, key).await?;
    let mut findings = Vec::new();
    if let Some(kept) = kept {
        findings.extend(follows(kept, &view).await?);
    }
    let size = view.checkpoint().size;
    let leaves = Mutex::new(Leaves::default());
    let mut progress = Progress::new(globals, size);
    let audit = {
        let visit = |index: u64, body: &[u8]| {
            leaves
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .leaf(index, body);
        };
        view.replay(&visit, &mut |done| progress.reach(done))
            .await
            .map_err(failed)?
    };
    drop(progress);
    let mut leaves = leaves.into_inner().unwrap_or_else(PoisonError::into_inner);
    let client = &view.files().0;
    let (mut checked, mut newer) = (0, Vec::new());
    // In this order: a record that is sealed in between is in one of the lists, or in both.
    for order in ["unsealed", "sequence"] {
        each(client, order, "", async |shown| {
            checked += 1;
            match shown.place() {
                Some(sequence) if sequence >= size => newer.push((sequence, shown.record())),
                sequence => leaves.row(&shown.record(), sequence),
            }
            Ok(())
        })
        .await?;
    }
    let later = seal_again(globals, view.verifier()).await?;
    findings.extend(grown(view.checkpoint(), &later).await?);
    for (sequence, record) in newer {
        findings.extend(newly_sealed(&later, sequence, &record).await?);
    }
    let unsealed = leaves.unsealed();
    findings.extend(leaves.findings(size));
    for finding in findings.iter_mut().take(LOOKED_UP_MAX) {
        // Not for one that stands in a damaged part: that has a finding of its own.
        if finding.sequence < size
            && let Ok(body) = view.entry(finding.sequence).await
        {
            finding.sealed = AuditRecord::parse(&body)
                .ok()
                .filter(|sealed| sealed.id == finding.id);
        }
    }
    Ok(Verified {
        origin: view.checkpoint().origin.clone(),
        size,
        root: kernel::Digest::from_bytes(view.checkpoint().root).hex(),
        checked,
        unsealed,
        findings,
        damage: audit.damage,
    })
}

/// The seal of the same key a moment later.
async fn seal_again(globals: &Globals, verifier: &LogVerifier) -> Result<View<Tiles>, Failure> {
    let client = Client::new(globals)?;
    let note = asked(client.text(&format!("{LOG}/checkpoint")).await)?;
    View::new(Tiles(client), verifier.clone(), &note).map_err(failed)
}

/// That the seal has grown from the checkpoint in a file.
pub async fn follows(kept: &Path, view: &View<Tiles>) -> Result<Option<Finding>, Failure> {
    let note = read_text(kept)?;
    let kept = view.verifier().verify(&note).map_err(unsigned)?;
    grown(&kept, view).await
}

/// That the seal has grown from what it was.
async fn grown(old: &Checkpoint, view: &View<Tiles>) -> Result<Option<Finding>, Failure> {
    let now = view.checkpoint();
    let finding = |detail: String| Finding {
        wrong: Wrong::Removed,
        id: String::new(),
        sequence: now.size,
        detail,
        sealed: None,
    };
    if old.size > now.size {
        let detail = format!("the seal had {} records and has {}", old.size, now.size);
        return Ok(Some(finding(detail)));
    }
    let consistency = view.consistency(old.size, now.size).await.map_err(failed)?;
    let same = consistency.old_root == old.root;
    let detail = || {
        format!(
            "the first {} records of the seal are others than they were",
            old.size
        )
    };
    Ok((!same).then(|| finding(detail())))
}

/// A record that was sealed while the others were read.
async fn newly_sealed(
    view: &View<Tiles>,
    sequence: u64,
    record: &AuditRecord,
) -> Result<Option<Finding>, Failure> {
    let finding = |wrong, detail: &str| Finding {
        wrong,
        id: record.id.clone(),
        sequence,
        detail: detail.to_owned(),
        sealed: None,
    };
    if sequence >= view.checkpoint().size {
        return Ok(Some(finding(
            Wrong::Added,
            "it claims a place that the seal has not reached",
        )));
    }
    let sealed = view.entry(sequence).await.map_err(failed)?;
    Ok((sealed != record.leaf()).then(|| {
        finding(
            Wrong::Altered,
            "it claims this place, where something else is sealed",
        )
    }))
}
