//! A line of an exported trail: a record, its place under the seal, and the proof of both.

use kernel::limits::too_deep;

use super::record::RECORD_LINE_BYTES_MAX;
use super::{AuditRecord, RecordError};

/// Hashes of an inclusion proof: a tree of 2^64 leaves needs no more.
const PROOF_HASHES_MAX: usize = 64;

/// A record that proves itself: with the checkpoint and its key nothing else is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportLine {
    pub sequence: u64,
    pub record: AuditRecord,
    /// The inclusion proof of the record's leaf (RFC 9162, section 2.1.3), SHA-256 hashes from the leaf up.
    pub proof: Vec<[u8; 32]>,
}

/// The line as it is written; a struct of its own, so that unknown members are refused.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    sequence: u64,
    /// For readers, RFC 3339; what is sealed is `record.at_us`.
    at: String,
    record: AuditRecord,
    /// Hex.
    proof: Vec<String>,
}

impl ExportLine {
    /// The line, without its end. Serialising texts and numbers does not fail.
    #[must_use]
    pub fn render(&self) -> String {
        let written = Written {
            sequence: self.sequence,
            at: self.record.at(),
            record: self.record.clone(),
            proof: self
                .proof
                .iter()
                .map(|hash| kernel::Digest::from_bytes(*hash).hex())
                .collect(),
        };
        serde_json::to_string(&written).unwrap_or_default()
    }

    /// Reads a line; whether its proof holds is another question.
    ///
    /// # Errors
    /// If it is too large, or not what [`ExportLine::render`] writes.
    pub fn parse(line: &[u8]) -> Result<Self, RecordError> {
        if line.len() > RECORD_LINE_BYTES_MAX {
            return Err(RecordError::TooLarge { found: line.len() });
        }
        if too_deep(line) {
            return Err(RecordError::Member("nesting"));
        }
        let written: Written = serde_json::from_slice(line)?;
        if written.at != written.record.at() {
            return Err(RecordError::Member("at"));
        }
        if written.proof.len() > PROOF_HASHES_MAX {
            return Err(RecordError::Member("proof"));
        }
        let hash = |text: &String| {
            let digest: Result<kernel::Digest, _> = format!("sha256:{text}").parse();
            digest
                .map(|digest| *digest.as_bytes())
                .map_err(|_| RecordError::Member("proof"))
        };
        Ok(Self {
            sequence: written.sequence,
            proof: written.proof.iter().map(hash).collect::<Result<_, _>>()?,
            record: written.record,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    #[test]
    fn a_line_reads_back_and_what_was_added_to_it_is_refused() {
        let record = AuditRecord {
            action: "key.create".to_owned(),
            actor: "server".to_owned(),
            at_us: 1_700_000_000_000_000,
            code: String::new(),
            detail: "a\nb".to_owned(),
            id: "aud_1".to_owned(),
            outcome: Outcome::Success,
            project: "default".to_owned(),
            request_id: String::new(),
            resource: "k".to_owned(),
            times: 1,
        };
        let line = ExportLine {
            sequence: 7,
            record,
            proof: vec![[1; 32], [2; 32]],
        };
        let text = line.render();
        assert!(!text.contains('\n'));
        assert_eq!(ExportLine::parse(text.as_bytes()).unwrap(), line);
        for (from, to) in [
            ("\"sequence\":7", "\"sequence\":7,\"x\":1"),
            ("\"times\":1", "\"times\":1,\"x\":1"),
            ("2023", "2024"),
            ("0101", "01"),
        ] {
            assert!(
                ExportLine::parse(text.replace(from, to).as_bytes()).is_err(),
                "{from}"
            );
        }
    }
}
