//! Would the log fork? What the world has seen of it, beside what a backup holds.

use std::path::Path;

use store::archive::LogState;
use tlog::{Checkpoint, CheckpointError, LogVerifier, Name, TlogError};

use super::codes;
use crate::cli::input::read_text;
use crate::failure::Failure;

/// A checkpoint that somebody kept, and where it was found.
pub struct Seen {
    pub place: String,
    pub checkpoint: Checkpoint,
}

/// What follows from two checkpoints alone.
#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    /// The backup holds everything that was seen.
    Same,
    /// It holds more; whether it goes on from what was seen, a proof has to tell.
    Prove,
    Smaller,
    Other,
}

fn judge(held: &Checkpoint, seen: &Checkpoint) -> Judgement {
    match seen.size {
        size if size > held.size => Judgement::Smaller,
        size if size < held.size => Judgement::Prove,
        _ if seen.root == held.root => Judgement::Same,
        _ => Judgement::Other,
    }
}

/// Reads a checkpoint that has to be of one of these logs; of which one it is.
pub fn read(path: &Path, logs: &[&LogVerifier]) -> Result<(usize, Seen), Failure> {
    let place = path.display().to_string();
    let failed = |error| of_another(&place, error);
    let note = read_text(path)?;
    let origin = Checkpoint::parse(&note).map_err(failed)?.origin;
    // That it is of none is said as it would be if there was only the first.
    let at = logs.iter().position(|log| log.origin() == origin).unwrap_or(0);
    let checkpoint = logs[at].verify(&note).map_err(failed)?;
    Ok((at, Seen { place, checkpoint }))
}

fn of_another(place: &str, error: CheckpointError) -> Failure {
    let why = kernel::chain(&error);
    Failure::coded(
        1,
        kernel::Fault::code(&TlogError::Checkpoint(error)),
        format!("{place}: {why}"),
    )
    .with_hint("give a checkpoint of a log that is in the backup; nothing was restored")
}

/// The checkpoint that the backup holds, signed by the log's key.
pub fn held(log: &LogState, verifier: &LogVerifier) -> Result<Checkpoint, Failure> {
    let place = format!("the checkpoint of {} in the backup", log.name);
    let checkpoint = verifier
        .verify(&log.checkpoint)
        .map_err(|error| of_another(&place, error))?;
    if checkpoint.size == log.size && log.tiled <= log.size {
        return Ok(checkpoint);
    }
    Err(store::archive::ArchiveError::damaged(place, "it does not say how many entries the log has").into())
}

/// Refuses a backup that holds less than was seen; gives those checkpoints that a proof has to lead on from.
pub fn check(name: Name, held: &Checkpoint, seen: Vec<Seen>) -> Result<Vec<Seen>, Failure> {
    let mut to_prove = Vec::new();
    for seen in seen {
        match judge(held, &seen.checkpoint) {
            Judgement::Same => {}
            Judgement::Prove => to_prove.push(seen),
            Judgement::Smaller => {
                let (has, was) = (held.size, seen.checkpoint.size);
                let what = format!(
                    "{name}: the backup holds {has} entries, {was} were seen ({}): the {} after it would be given other content",
                    seen.place,
                    was - has
                );
                return Err(Failure::coded(7, &codes::FORK, what));
            }
            Judgement::Other => return Err(differs(name, &seen)),
        }
    }
    Ok(to_prove)
}

/// The first entries are not those that were seen.
pub fn differs(name: Name, seen: &Seen) -> Failure {
    let what = format!(
        "{name}: the backup holds other entries than were seen ({}): two logs of {} entries were signed with one key",
        seen.place, seen.checkpoint.size
    );
    Failure::coded(7, &codes::FORK, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_than_was_seen_or_something_else_would_fork() {
        let checkpoint = |size, root: u8| Checkpoint {
            origin: "log.example".to_owned(),
            size,
            root: [root; 32],
            note: String::new(),
        };
        let judged = |held, seen| judge(&held, &seen);
        assert_eq!(judged(checkpoint(5, 1), checkpoint(5, 1)), Judgement::Same);
        assert_eq!(judged(checkpoint(5, 1), checkpoint(5, 2)), Judgement::Other);
        assert_eq!(judged(checkpoint(5, 1), checkpoint(6, 1)), Judgement::Smaller);
        assert_eq!(judged(checkpoint(5, 1), checkpoint(4, 1)), Judgement::Prove);
    }
}
