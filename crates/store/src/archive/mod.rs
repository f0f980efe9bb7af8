//! What a backup is made of: a tar archive that a person can look into, and that is read strictly.
//!
//! ```text
//!   portcullis-backup            the format's number, so that anything else is told from a backup at once
//!   tables/TABLE/00000001 …      rows as lines of JSON, a few MiB each (part)
//!   blobs/NAME …                 tiles and entry bundles of the logs
//!   secrets/NAME …               unless they were left out
//!   manifest.json                the last one: what was backed up, and the SHA-256 of everything before it (manifest)
//! ```
//!
//! A member is read whole and is bounded, so that neither a backup of a large log nor a made-up archive fills memory.
//! The reader takes only what the writer writes, to the bit: one kind of header, plain names, zeros where nothing is. So
//! there is nothing in an archive that another program would read otherwise, and no name that leads out of a folder.
//! What the hashes show is an accident; whoever may write a backup may also write its manifest, and what guards against
//! that is the log's own key.

mod error;
mod manifest;
mod part;
mod tar;

use std::io::Read;

pub use error::{ArchiveError, codes};
pub use manifest::{LogState, Manifest, MemberState};
pub use part::{Column, ColumnKind, PART_BYTES_MIN, Part, PartWriter};
pub use tar::{MEMBER_BYTES_MAX, Member, Reader, Writer, parse_header};

/// The name of the last member.
pub const MANIFEST: &str = "manifest.json";

/// Reads a whole archive: every member is there, under its name, with the bytes that the manifest says, and nothing else.
///
/// # Errors
/// The first thing that is not so.
pub fn verify<R: Read>(reader: &mut Reader<R>) -> Result<Manifest, ArchiveError> {
    let mut found = Vec::new();
    while let Some(member) = reader.member()? {
        if member.name != MANIFEST {
            found.push(MemberState::of(&member));
            continue;
        }
        let manifest = Manifest::parse(&member.bytes)?;
        if let Some(after) = reader.member()? {
            return Err(ArchiveError::damaged(after.name, "it stands after the manifest"));
        }
        manifest.compare(&found)?;
        return Ok(manifest);
    }
    Err(ArchiveError::damaged(MANIFEST, "it is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Value;

    fn manifest() -> Manifest {
        Manifest {
            program: "0.1.0".to_owned(),
            made_at: "2026-01-01T00:00:00Z".to_owned(),
            secrets: false,
            schema: [("store".to_owned(), 1)].into(),
            rows: [("one".to_owned(), 2)].into(),
            logs: Vec::new(),
            members: Vec::new(),
        }
    }

    fn columns() -> Vec<Column> {
        let column = |name: &str, kind| Column {
            name: name.to_owned(),
            kind,
        };
        vec![
            column("id", ColumnKind::Text),
            column("count", ColumnKind::Int),
            column("bytes", ColumnKind::Blob),
        ]
    }

    fn rows() -> Vec<Vec<Value>> {
        let text = |text: &str| Value::Text(Some(text.to_owned()));
        vec![
            vec![
                text("a\n\"\\\u{2028}ä\u{7f}"),
                Value::Int(Some(i64::MIN)),
                Value::Blob(Some((0..=255).collect())),
            ],
            vec![
                text(""),
                Value::Int(Some(i64::MAX)),
                Value::Blob(Some(Vec::new())),
            ],
            vec![Value::Text(None), Value::Int(None), Value::Blob(None)],
        ]
    }

    fn archive() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new()).unwrap();
        let mut part = PartWriter::new("one", &columns());
        rows().iter().for_each(|row| part.row(row));
        writer.add("tables/one/00000001", &part.take()).unwrap();
        writer.add("blobs/tlog/tile/0/000", &[7; 700]).unwrap();
        writer.finish(manifest()).unwrap().0
    }

    fn read(bytes: &[u8]) -> Result<Manifest, ArchiveError> {
        Reader::new(bytes).and_then(|mut reader| verify(&mut reader))
    }

    #[test]
    fn what_was_written_reads_back_and_nothing_of_a_value_is_lost() {
        let bytes = archive();
        let found = read(&bytes).unwrap();
        assert_eq!((found.rows["one"], found.members.len()), (2, 2));
        let mut reader = Reader::new(&*bytes).unwrap();
        let part = Part::parse(&reader.member().unwrap().unwrap().bytes).unwrap();
        assert_eq!((part.columns, part.rows), (columns(), rows()));
    }

    #[test]
    fn an_archive_that_was_cut_at_any_place_is_refused() {
        let bytes = archive();
        for end in 0..bytes.len() {
            assert!(read(&bytes[..end]).is_err(), "cut at {end} of {}", bytes.len());
        }
    }

    #[test]
    fn a_changed_byte_anywhere_is_refused() {
        let good = archive();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            // In the manifest's own prose a change is a change of prose.
            if let Ok(found) = read(&bytes) {
                assert_eq!(found.members, read(&good).unwrap().members, "at {at}");
                assert!(at > good.len() - 4_096, "at {at}");
            }
        }
        assert!(
            read(&[&good[..], &[0; 512]].concat()).is_err(),
            "something follows"
        );
    }

    #[test]
    fn what_others_made_is_refused_by_what_it_is() {
        let says = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
        assert!(says(&[0x1f, 0x8b, 8, 0]).contains("gzip"));
        assert!(says(b"").contains("empty"));
        assert!(says(&[b'x'; 4_096]).contains("not a backup"));
        let mut other = tar::header("hello.txt", 0).unwrap().to_vec();
        other.extend([0; 1_024]);
        assert!(says(&other).contains("not a backup"));
    }

    #[test]
    fn no_name_leads_anywhere_else() {
        for name in [
            "../x",
            "/etc/passwd",
            "blobs/../../x",
            "blobs//x",
            "blobs/",
            "",
            ".",
            "blobs/./x",
            "a\\b",
            "a b",
            "ä",
            "A",
            "x\0y",
        ] {
            assert!(tar::header(name, 0).is_err(), "{name:?}");
        }
        assert!(tar::header(&"a".repeat(101), 0).is_err());
        assert!(tar::header("blobs/tlog/tile/entries/x001/000", 0).is_ok());
    }

    #[test]
    fn a_size_that_nothing_stands_behind_takes_no_memory() {
        let mut bytes = archive()[..1_024].to_vec();
        bytes.extend(tar::header("blobs/x", MEMBER_BYTES_MAX).unwrap());
        assert!(matches!(read(&bytes), Err(ArchiveError::Damaged { .. })));
        bytes.truncate(1_024);
        assert!(tar::header("blobs/x", MEMBER_BYTES_MAX + 1).is_err());
    }
}
