//! A record, and the bytes of it that are sealed.

use kernel::Digest;

/// A resource longer than this, in bytes, is sealed by its digest: with the detail and every byte escaped, a leaf stays
/// below the 65,535 bytes that a log entry has at most.
const RESOURCE_BYTES_MAX: usize = 2_048;
/// The same for the detail.
const DETAIL_BYTES_MAX: usize = 4_096;
/// The same for each of the other texts, all of which are short by their own rules.
const WORD_BYTES_MAX: usize = 512;
/// How a text begins that is sealed by its digest.
const CLIPPED: &str = "\u{29c9} ";
/// A line of an export, in bytes: a project with the largest request of patterns, every byte escaped, and its proof.
pub const RECORD_LINE_BYTES_MAX: usize = 8 << 20;

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was done.
    Success,
    /// Who asked may not, or has used up a quota.
    Denied,
    /// A change was wanted that cannot be made: of a thing that is not there, or with values that are not valid.
    Failed,
    /// A word that no server writes: somebody else changed the row.
    Unknown,
}

/// A record of the trail. Its fields stand in the order of their names: so serialised it is canonical (RFC 8785).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditRecord {
    /// `noun.verb`.
    pub action: String,
    /// Who, as `token NAME (ID)`, `server`, `local`; `unknown` for a request without a token that is known.
    pub actor: String,
    /// When, in microseconds since 1970, by the clock of the server that wrote it.
    pub at_us: i64,
    /// Of a refusal: why, as `portcullis explain` knows it.
    pub code: String,
    pub detail: String,
    pub id: String,
    pub outcome: Outcome,
    pub project: String,
    pub request_id: String,
    pub resource: String,
    /// How often: more than once for refusals that were the same.
    pub times: i64,
}

/// Why bytes are no record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("it has {found} bytes, more than {RECORD_LINE_BYTES_MAX}")]
    TooLarge { found: usize },
    #[error("it does not read as an audit record")]
    Json(#[from] serde_json::Error),
    #[error("its {0} is not that of an audit record")]
    Member(&'static str),
}

impl Outcome {
    /// Those that a server writes.
    pub const ALL: &[Self] = &[Self::Success, Self::Denied, Self::Failed];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Denied => "denied",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|own| own.as_str() == text)
    }
}

impl AuditRecord {
    /// The leaf: canonical JSON (RFC 8785), with texts that are too long for a log entry in the form of their digest.
    #[must_use]
    pub fn leaf(&self) -> Vec<u8> {
        let sealed = Self {
            action: clipped(&self.action, WORD_BYTES_MAX),
            actor: clipped(&self.actor, WORD_BYTES_MAX),
            at_us: self.at_us,
            code: clipped(&self.code, WORD_BYTES_MAX),
            detail: clipped(&self.detail, DETAIL_BYTES_MAX),
            id: clipped(&self.id, WORD_BYTES_MAX),
            outcome: self.outcome,
            project: clipped(&self.project, WORD_BYTES_MAX),
            request_id: clipped(&self.request_id, WORD_BYTES_MAX),
            resource: clipped(&self.resource, RESOURCE_BYTES_MAX),
            times: self.times,
        };
        // A struct of texts and numbers always serialises.
        serde_json::to_vec(&sealed).unwrap_or_default()
    }

    /// Reads a leaf, or the record of an export's line.
    ///
    /// # Errors
    /// If it is not one.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > RECORD_LINE_BYTES_MAX {
            return Err(RecordError::TooLarge { found: bytes.len() });
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    /// When, in RFC 3339.
    #[must_use]
    pub fn at(&self) -> String {
        jiff::Timestamp::from_microsecond(self.at_us)
            .map_or_else(|_| self.at_us.to_string(), |at| at.to_string())
    }
}

/// A text, or what stands for one that is too long; a text that only looks like that is not taken for it.
fn clipped(text: &str, most: usize) -> String {
    if text.len() <= most && !text.starts_with(CLIPPED) {
        return text.to_owned();
    }
    format!("{CLIPPED}{} bytes, {}", text.len(), Digest::of(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> AuditRecord {
        AuditRecord {
            action: "token.create".to_owned(),
            actor: "token ä (tok_1)".to_owned(),
            at_us: 1,
            code: String::new(),
            detail: "a\u{1}\"b".to_owned(),
            id: "aud_1".to_owned(),
            outcome: Outcome::Denied,
            project: "default".to_owned(),
            request_id: "req_1".to_owned(),
            resource: "tok_1".to_owned(),
            times: 2,
        }
    }

    #[test]
    fn a_leaf_is_canonical_json_and_reads_back() {
        let leaf = record().leaf();
        let text = r#"{"action":"token.create","actor":"token ä (tok_1)","at_us":1,"code":"","detail":"a\u0001\"b","id":"aud_1","outcome":"denied","project":"default","request_id":"req_1","resource":"tok_1","times":2}"#;
        assert_eq!(String::from_utf8_lossy(&leaf), text);
        assert_eq!(AuditRecord::parse(&leaf).unwrap(), record());
    }

    #[test]
    fn whatever_was_recorded_fits_a_log_entry_and_no_byte_of_it_is_free_to_change() {
        let worst = |length: usize| "\u{1}".repeat(length);
        let mut record = AuditRecord {
            detail: worst(DETAIL_BYTES_MAX),
            resource: worst(RESOURCE_BYTES_MAX),
            actor: worst(WORD_BYTES_MAX),
            action: worst(WORD_BYTES_MAX),
            project: worst(WORD_BYTES_MAX),
            request_id: worst(WORD_BYTES_MAX),
            ..record()
        };
        assert!(record.leaf().len() < 65_536, "{}", record.leaf().len());
        record.detail = "x".repeat(1 << 20);
        let before = record.leaf();
        assert!(before.len() < 65_536);
        record.detail.replace_range(500_000..500_001, "y");
        assert_ne!(record.leaf(), before);
        record.detail = AuditRecord::parse(&before).unwrap().detail;
        assert_ne!(record.leaf(), before, "the digest of a text is not that text");
    }
}
