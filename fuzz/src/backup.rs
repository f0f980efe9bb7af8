//! What `portcullis restore` reads.

use store::archive::{self, Manifest, Part, Reader, Writer};

/// An archive that is accepted, written anew, is the same to the bit: there is nothing in it that another program would
/// read otherwise.
pub fn backup_archive(bytes: &[u8]) {
    let verified = Reader::new(bytes).and_then(|mut reader| archive::verify(&mut reader));
    let Ok(manifest) = verified else { return };
    let mut writer = Writer::new(Vec::new()).expect("memory takes it");
    let mut reader = Reader::new(bytes).expect("it was read before");
    let mut last = Vec::new();
    while let Some(member) = reader.member().expect("it was read before") {
        assert!(
            !member.name.starts_with('/') && !member.name.contains(".."),
            "{}",
            member.name
        );
        match member.name == archive::MANIFEST {
            true => last = member.bytes,
            false => writer.add(&member.name, &member.bytes).expect("it was there"),
        }
    }
    let (written, again) = writer.finish(manifest.clone()).expect("it was there");
    assert_eq!(again, manifest);
    if manifest.render().is_ok_and(|rendered| rendered == last) {
        assert!(written == bytes, "it is another archive");
    }
}

/// Rows read back as what they say.
pub fn backup_part(bytes: &[u8]) {
    if let Ok(part) = Part::parse(bytes) {
        assert_eq!(Part::parse(&part.render()).ok(), Some(part));
    }
}

/// A manifest reads back as what it says.
pub fn backup_manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::parse(bytes) {
        let rendered = manifest.render().expect("it is plain data");
        assert_eq!(Manifest::parse(&rendered).ok(), Some(manifest));
    }
}
