//! Verifying an export: each line proves itself by the checkpoint, and together they have to be all.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use access::audit::{ExportLine, Finding, Wrong};
use tlog::Checkpoint;
use tlog::merkle::{leaf_hash, verify_inclusion};

use super::export::beside;
use super::{Verified, unsigned, verifier};
use crate::cli::input::read_text;
use crate::failure::Failure;

/// What to do where an export is without the files that were written beside it.
const COMPANIONS: &str = "an export has its checkpoint and key beside it, FILE.checkpoint and FILE.pub; name others with --checkpoint, --audit-key";

pub fn verify(
    path: &Path,
    partial: bool,
    key: Option<&Path>,
    checkpoint: Option<&Path>,
) -> Result<Verified, Failure> {
    let or = |named: Option<&Path>, extension| named.map_or_else(|| beside(path, extension), PathBuf::from);
    let file = File::open(path).map_err(|error| Failure::file("reading", path, &error))?;
    let companion = |path: &Path| read_text(path).map_err(|failure| failure.with_hint(COMPANIONS));
    let note = companion(&or(checkpoint, "checkpoint"))?;
    let verifier = verifier(&companion(&or(key, "pub"))?, &note)?;
    let checkpoint = verifier.verify(&note).map_err(unsigned)?;
    let mut check = Check::new(&checkpoint, partial);
    for line in BufReader::new(file).split(b'\n') {
        check.line(&line.map_err(|error| Failure::file("reading", path, &error))?);
    }
    let (checked, findings) = check.finish();
    Ok(Verified {
        origin: checkpoint.origin.clone(),
        size: checkpoint.size,
        root: kernel::Digest::from_bytes(checkpoint.root).hex(),
        checked,
        unsealed: 0,
        findings,
        damage: Vec::new(),
    })
}

/// Goes through the lines of an export. Pure.
struct Check<'a> {
    checkpoint: &'a Checkpoint,
    /// Gaps mean nothing.
    partial: bool,
    lines: u64,
    /// The sequence number that the next line has to have.
    next: u64,
    findings: Vec<Finding>,
}

impl<'a> Check<'a> {
    fn new(checkpoint: &'a Checkpoint, partial: bool) -> Self {
        Self {
            checkpoint,
            partial,
            lines: 0,
            next: 0,
            findings: Vec::new(),
        }
    }

    fn line(&mut self, line: &[u8]) {
        self.lines += 1;
        let line = match ExportLine::parse(line) {
            Ok(line) => line,
            Err(error) => {
                let detail = format!("line {} of the file: {}", self.lines, kernel::chain(&error));
                self.find(Wrong::Altered, String::new(), self.next, detail);
                // Whatever it was, it stood for one record.
                self.next += 1;
                return;
            }
        };
        let ExportLine {
            sequence,
            record,
            proof,
        } = &line;
        let leaf = leaf_hash(&record.leaf());
        let Checkpoint { size, root, .. } = self.checkpoint;
        if let Err(error) = verify_inclusion(&leaf, *sequence, *size, proof, root) {
            let detail = format!("its content or its place is not what was sealed: {error}");
            self.find(Wrong::Altered, record.id.clone(), *sequence, detail);
            // Its number proves nothing: it may stand for the record that belongs here.
            if *sequence == self.next {
                self.next += 1;
            }
            return;
        }
        if *sequence < self.next {
            let detail = format!(
                "line {} of the file: it stands behind later ones, or twice",
                self.lines
            );
            self.find(Wrong::Reordered, record.id.clone(), *sequence, detail);
            return;
        }
        self.gap(*sequence);
        self.next = sequence + 1;
    }

    fn gap(&mut self, to: u64) {
        if to > self.next && !self.partial {
            let (from, last) = (self.next, to - 1);
            let detail = match last - from {
                0 => "it was sealed and is not in the file".to_owned(),
                _ => format!("the records up to sequence {last} were sealed and are not in the file"),
            };
            self.find(Wrong::Removed, String::new(), from, detail);
        }
    }

    fn find(&mut self, wrong: Wrong, id: String, sequence: u64, detail: String) {
        self.findings.push(Finding {
            wrong,
            id,
            sequence,
            detail,
            sealed: None,
        });
    }

    fn finish(mut self) -> (u64, Vec<Finding>) {
        self.gap(self.checkpoint.size);
        (self.lines, self.findings)
    }
}
