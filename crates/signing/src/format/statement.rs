//! The statement that is signed (in-toto Statement v1).

use kernel::Digest;
use serde::Deserialize;

use super::Annotations;

/// The predicate type of "somebody signed this image"; anything else is an attestation of something else.
pub const PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";
const TYPE: &str = "https://in-toto.io/Statement/v1";
const TYPE_OLD: &str = "https://in-toto.io/Statement/v0.1";

/// A statement as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    pub predicate_type: String,
    pub subjects: Vec<Subject>,
}

/// One subject of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// `None` if it has no SHA-256.
    pub digest: Option<Digest>,
    pub annotations: Annotations,
}

/// Why a payload is not a statement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    #[error("it is not JSON of an in-toto statement: {0}")]
    Json(String),
    #[error("its type is {0:?}, not an in-toto statement")]
    Type(String),
    #[error("it has no subject")]
    NoSubject,
}

#[derive(serde::Serialize)]
struct Out<'a> {
    #[serde(rename = "_type")]
    kind: &'static str,
    subject: Vec<OutSubject<'a>>,
    #[serde(rename = "predicateType")]
    predicate_type: &'static str,
    predicate: Empty,
}

#[derive(serde::Serialize)]
struct OutSubject<'a> {
    digest: OutDigest,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    annotations: &'a Annotations,
}

#[derive(serde::Serialize)]
struct OutDigest {
    sha256: String,
}

#[derive(serde::Serialize)]
struct Empty {}

/// Writes the statement "these images are signed". Subjects are sorted and each stands once, so that the same
/// images always give the same bytes.
#[must_use]
pub fn write(subjects: &[Digest], annotations: &Annotations) -> Vec<u8> {
    let mut subjects = subjects.to_vec();
    subjects.sort_unstable();
    subjects.dedup();
    let subject = subjects.iter().map(|digest| OutSubject {
        digest: OutDigest { sha256: digest.hex() },
        annotations,
    });
    let out = Out {
        kind: TYPE,
        subject: subject.collect(),
        predicate_type: PREDICATE,
        predicate: Empty {},
    };
    // Strings and maps of strings always have a JSON form.
    serde_json::to_vec(&out).unwrap_or_default()
}

#[derive(Deserialize)]
struct In {
    #[serde(rename = "_type")]
    kind: String,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    subject: Vec<InSubject>,
}

#[derive(Deserialize)]
struct InSubject {
    digest: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, serde_json::Value>,
}

/// Reads a payload from outside.
///
/// # Errors
/// If it is not an in-toto statement.
pub fn read(payload: &[u8]) -> Result<Statement, StatementError> {
    super::check_json(payload).map_err(StatementError::Json)?;
    let read: In =
        serde_json::from_slice(payload).map_err(|error| StatementError::Json(error.to_string()))?;
    if read.kind != TYPE && read.kind != TYPE_OLD {
        return Err(StatementError::Type(read.kind));
    }
    if read.subject.is_empty() {
        return Err(StatementError::NoSubject);
    }
    let subject_of = |subject: InSubject| Subject {
        digest: subject
            .digest
            .get("sha256")
            .and_then(|hex| format!("sha256:{hex}").parse().ok()),
        annotations: subject
            .annotations
            .into_iter()
            .map(|(name, value)| (name, text_of(value)))
            .collect(),
    };
    Ok(Statement {
        predicate_type: read.predicate_type,
        subjects: read.subject.into_iter().map(subject_of).collect(),
    })
}

/// An annotation's value as text; cosign writes strings, others may write numbers or truth values.
pub(crate) fn text_of(value: serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_and_does_not_depend_on_order() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let annotations = Annotations::from([("build".to_owned(), "7".to_owned())]);
        let bytes = write(&[b, a, b], &annotations);
        assert_eq!(bytes, write(&[a, b], &annotations));
        let statement = read(&bytes).unwrap();
        assert_eq!(statement.predicate_type, PREDICATE);
        assert_eq!(statement.subjects.len(), 2);
        assert_eq!(statement.subjects[0].annotations, annotations);
    }

    #[test]
    fn t07_a_truncated_or_garbled_payload_is_an_error_at_every_byte() {
        let bytes = write(&[Digest::of(b"a")], &Annotations::new());
        for end in 0..bytes.len() {
            assert!(read(&bytes[..end]).is_err(), "cut at {end}");
        }
        let mut type_changed = bytes;
        type_changed[12] ^= 1;
        assert!(read(&type_changed).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let _ = read(&bytes);
        }
    }
}
