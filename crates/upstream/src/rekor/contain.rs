//! Whether the log is one that was once as an answer says: the same log, and neither a fork of it nor a copy.
//!
//! The right key is no proof of that, and two servers behind one name may both have it. The newest checkpoint that the
//! probe found well is: it follows each one that was found well before, over restarts too.

use std::sync::PoisonError;

use futures::StreamExt as _;
use futures::stream;
use signing::ports::TreeHead;
use tlog::merkle::verify_consistency;
use tlog::{Checkpoint, View};

use super::tiles::Tiles;
use super::transport::Connections;
use super::{Api, Client, Observed, RekorReason, document, statement, unproven};

/// Proofs of a Rekor v1 that are asked for at once, each with a call of its own: 160 a second at 200 ms.
const PROOFS_AT_ONCE: usize = 32;

/// What the probe and those who write tell each other.
#[derive(Default)]
pub(super) struct Known {
    /// The newest checkpoint that was found well.
    well: Option<Observed>,
    /// How often a person has had another one taken for the log before it.
    taken: u64,
    /// What somebody with the log's key said since the last look that this one contradicts.
    contradiction: Option<RekorReason>,
}

pub(super) fn head(checkpoint: &Checkpoint) -> TreeHead {
    TreeHead {
        origin: checkpoint.origin.clone(),
        size: checkpoint.size,
        root: checkpoint.root,
    }
}

impl Client {
    /// Learns of a checkpoint that follows all that were found well.
    pub(super) fn found_well(&self, observed: Observed, taken: u64) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        (known.well, known.taken) = (Some(observed), taken);
    }

    /// How often a person has had another log taken for this one, as of the last look that found it well: what was proven
    /// before is proven no more.
    pub fn taken(&self) -> u64 {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).taken
    }

    /// What contradicts the log and was met since this was last asked.
    pub(super) fn contradiction(&self) -> Option<RekorReason> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.contradiction.take()
    }

    /// Proves for each of `heads` that the log which was found well last has been so once; `None` where it is smaller.
    /// With Rekor v2 they share the tiles that are read.
    ///
    /// # Errors
    /// [`RekorReason::Forked`] if it is another log, which the next look of the probe names; others if that could not be
    /// found out.
    pub async fn contains(&self, heads: &[TreeHead]) -> Vec<Option<Result<(), RekorReason>>> {
        let well = self
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .well
            .clone();
        let Some(well) = well else {
            let unknown = || RekorReason::Unreachable("it was not found well yet".to_owned());
            return heads.iter().map(|_| Some(Err(unknown()))).collect();
        };
        let view = self.view(&well, Connections::Kept);
        let (well, view) = (&well, &view);
        let one = |head: TreeHead| async move {
            if head.size > well.checkpoint.size {
                return None;
            }
            Some(match view {
                Ok(view) => self.proves(&head, well, view, Connections::Kept).await,
                Err(reason) => Err(reason.clone()),
            })
        };
        // The tiles of one are those of the others, which find them read; the proofs of a v1 are all different.
        let at_once = if well.api == Api::V1 { PROOFS_AT_ONCE } else { 1 };
        let found: Vec<_> = stream::iter(heads.to_vec())
            .map(one)
            .buffered(at_once)
            .collect()
            .await;
        let mut failed = found.iter().flatten().filter_map(|one| one.as_ref().err());
        if let Some(forked) = failed.find(|reason| matches!(reason, RekorReason::Forked { .. })) {
            self.contradicts(forked.clone());
        }
        found
    }

    /// Learns what contradicts the log; the next look of the probe names it.
    pub fn contradicts(&self, reason: RekorReason) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.contradiction = Some(reason);
    }

    /// The tiles of a log as it is at a checkpoint; a Rekor v1 has none.
    pub(super) fn view<'a>(
        &'a self,
        at: &Observed,
        connections: Connections,
    ) -> Result<Option<View<Tiles<'a>>>, RekorReason> {
        if at.api == Api::V1 {
            return Ok(None);
        }
        let tiles = Tiles(&self.transport, connections);
        let view = View::new(tiles, self.verifier(at.api), &at.checkpoint.note);
        view.map(Some).map_err(unproven)
    }

    /// Proves that a log as it is now was once as `old` says, and not larger now.
    pub(super) async fn proves(
        &self,
        old: &TreeHead,
        now: &Observed,
        view: &Option<View<Tiles<'_>>>,
        connections: Connections,
    ) -> Result<(), RekorReason> {
        let fresh = &now.checkpoint;
        let forked = || RekorReason::Forked {
            old: described(old),
            new: statement(fresh),
        };
        if old.size == 0 {
            return Ok(());
        }
        if old.size == fresh.size || old.origin != fresh.origin {
            let same = old.origin == fresh.origin && old.root == fresh.root;
            return if same { Ok(()) } else { Err(forked()) };
        }
        let (from, to) = (old.size, fresh.size);
        let Some(view) = view else {
            let tree = fresh.origin.rsplit_once(" - ").map(|(_, tree)| tree);
            let tree = tree.map(|tree| format!("&treeID={tree}")).unwrap_or_default();
            let path = format!("api/v1/log/proof?firstSize={from}&lastSize={to}{tree}");
            let answer = self.transport.get(connections, &path).await?.found()?;
            let proof = document::consistency_proof(&answer.body).map_err(RekorReason::NotALog)?;
            return verify_consistency(from, to, &old.root, &fresh.root, &proof).map_err(|_| forked());
        };
        match view.consistency(from, to).await {
            Ok(proof) if proof.old_root == old.root => Ok(()),
            Ok(_) => Err(forked()),
            Err(error) => Err(unproven(error)),
        }
    }
}

fn described(head: &TreeHead) -> String {
    let root = &hex::encode(head.root)[..12];
    format!("{} entries, root {root}…", head.size)
}
