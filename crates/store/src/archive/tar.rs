//! The container: POSIX ustar (IEEE Std 1003.1-1988), as little of it as is needed.

use std::io::{ErrorKind, Read, Write};

use kernel::Digest;

use super::manifest::{MANIFEST_BYTES_MAX, Manifest, MemberState};
use super::{ArchiveError, MANIFEST};

/// Tar counts in blocks of so many bytes.
const BLOCK_BYTES: usize = 512;
/// What the field of a header holds.
const NAME_BYTES_MAX: usize = 100;
/// A member is in memory while it is read or written: the largest entry bundle of a log has 16 MiB.
pub const MEMBER_BYTES_MAX: u64 = 32 << 20;
/// The first member and the format's number.
const FIRST: &str = "portcullis-backup";
const FORMAT: u32 = 1;

/// A member of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    pub bytes: Vec<u8>,
}

/// Whether a name is one: parts of small letters, digits and `._-`, each of which names something.
fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    let part = |part: &str| !part.is_empty() && part.bytes().all(plain) && part != "." && part != "..";
    name.len() <= NAME_BYTES_MAX && name.split('/').all(part)
}

/// The most that a member may have, in bytes.
fn bytes_max(name: &str) -> u64 {
    if name == MANIFEST {
        MANIFEST_BYTES_MAX
    } else {
        MEMBER_BYTES_MAX
    }
}

/// The one header that a member of this name and size has.
///
/// # Errors
/// If the name is none, or the size too large.
pub(super) fn header(name: &str, bytes: u64) -> Result<[u8; BLOCK_BYTES], ArchiveError> {
    if !is_name(name) || bytes > bytes_max(name) {
        return Err(ArchiveError::Member {
            name: name.chars().take(NAME_BYTES_MAX).collect(),
            bytes,
        });
    }
    let mut block = [0; BLOCK_BYTES];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{bytes:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(block)
}

/// Name and size of a header; `None` if it is not, to the bit, the one that a member of that name and size has.
#[must_use]
pub fn parse_header(block: &[u8; BLOCK_BYTES]) -> Option<(String, u64)> {
    let end = block[..NAME_BYTES_MAX]
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(NAME_BYTES_MAX);
    let name = std::str::from_utf8(&block[..end]).ok()?;
    let size = std::str::from_utf8(&block[124..135]).ok()?;
    let size = u64::from_str_radix(size, 8).ok()?;
    let same = header(name, size).is_ok_and(|own| own == *block);
    same.then(|| (name.to_owned(), size))
}

/// Zeros after so many bytes, up to a whole block.
fn padding(bytes: u64) -> usize {
    let rest = (bytes % BLOCK_BYTES as u64) as usize;
    (BLOCK_BYTES - rest) % BLOCK_BYTES
}

/// Writes an archive, and its manifest at the end.
pub struct Writer<W> {
    output: W,
    members: Vec<MemberState>,
}

impl<W: Write> Writer<W> {
    /// Begins an archive.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn new(output: W) -> Result<Self, ArchiveError> {
        let mut own = Self {
            output,
            members: Vec::new(),
        };
        own.put(FIRST, format!("{FORMAT}\n").as_bytes())?;
        Ok(own)
    }

    /// Adds a member.
    ///
    /// # Errors
    /// If its name is none, it is too large, or it cannot be written.
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.put(name, bytes)?;
        self.members.push(MemberState {
            name: name.to_owned(),
            bytes: bytes.len() as u64,
            sha256: Digest::of(bytes).hex(),
        });
        Ok(())
    }

    fn put(&mut self, name: &str, bytes: &[u8]) -> Result<(), ArchiveError> {
        let header = header(name, bytes.len() as u64)?;
        let padding = &[0; BLOCK_BYTES][..padding(bytes.len() as u64)];
        for part in [&header[..], bytes, padding] {
            self.output.write_all(part).map_err(ArchiveError::writing)?;
        }
        Ok(())
    }

    /// Ends the archive with `manifest`, to which it adds the members.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(mut self, mut manifest: Manifest) -> Result<(W, Manifest), ArchiveError> {
        manifest.members = std::mem::take(&mut self.members);
        self.put(MANIFEST, &manifest.render()?)?;
        let end = [0; 2 * BLOCK_BYTES];
        self.output.write_all(&end).map_err(ArchiveError::writing)?;
        self.output.flush().map_err(ArchiveError::writing)?;
        Ok((self.output, manifest))
    }
}

/// Reads an archive from its beginning to its end, a member at a time.
pub struct Reader<R> {
    input: R,
    ended: bool,
    /// The member that was read last, to say after which one something is wrong.
    last: String,
}

impl<R: Read> Reader<R> {
    /// Reads the first member, by which a backup is known.
    ///
    /// # Errors
    /// If this is not the beginning of a backup.
    pub fn new(input: R) -> Result<Self, ArchiveError> {
        let mut own = Self {
            input,
            ended: false,
            last: FIRST.to_owned(),
        };
        let foreign = |found: &str| ArchiveError::Foreign {
            found: found.to_owned(),
        };
        let mut block = [0; BLOCK_BYTES];
        let read = own.fill(&mut block)?;
        match &block[..read.min(4)] {
            [] => return Err(foreign("it is empty")),
            [0x1f, 0x8b, ..] => return Err(foreign("it is compressed with gzip")),
            [0x28, 0xb5, 0x2f, 0xfd] => return Err(foreign("it is compressed with zstd")),
            _ => {}
        }
        let size = match parse_header(&block) {
            Some((name, size)) if read == BLOCK_BYTES && name == FIRST && size < 12 => size,
            _ => return Err(foreign("it does not begin as one")),
        };
        let text = own.bytes(FIRST, size)?;
        let format = std::str::from_utf8(&text)
            .ok()
            .and_then(|text| text.strip_suffix('\n')?.parse().ok());
        match format {
            Some(FORMAT) => Ok(own),
            Some(found) => Err(ArchiveError::Newer { found, known: FORMAT }),
            None => Err(foreign("it does not say its format")),
        }
    }

    /// The next member; `None` at the end, which has to be one.
    ///
    /// # Errors
    /// If the archive is cut short, or holds what no backup does.
    pub fn member(&mut self) -> Result<Option<Member>, ArchiveError> {
        if self.ended {
            return Ok(None);
        }
        let after = |last: &str| format!("what follows {last}");
        let mut block = [0; BLOCK_BYTES];
        if self.fill(&mut block)? < BLOCK_BYTES {
            return Err(ArchiveError::damaged(
                after(&self.last),
                "the file is cut short there",
            ));
        }
        if block == [0; BLOCK_BYTES] {
            return self.end().map(|()| None);
        }
        let Some((name, size)) = parse_header(&block) else {
            return Err(ArchiveError::damaged(
                after(&self.last),
                "it is no member of a backup",
            ));
        };
        let bytes = self.bytes(&name, size)?;
        self.last.clone_from(&name);
        Ok(Some(Member { name, bytes }))
    }

    /// One block of zeros was read; another one follows, and nothing more.
    fn end(&mut self) -> Result<(), ArchiveError> {
        let mut block = [0; BLOCK_BYTES];
        let whole = self.fill(&mut block)? == BLOCK_BYTES && block == [0; BLOCK_BYTES];
        if !whole || self.fill(&mut [0; 1])? > 0 {
            return Err(ArchiveError::damaged(
                "the end of the file",
                "it is not that of a backup",
            ));
        }
        self.ended = true;
        Ok(())
    }

    /// The bytes of a member, and the zeros after them. Memory grows with what is really there.
    fn bytes(&mut self, name: &str, size: u64) -> Result<Vec<u8>, ArchiveError> {
        let mut bytes = Vec::new();
        let read = self.input.by_ref().take(size).read_to_end(&mut bytes);
        let read = read.map_err(ArchiveError::reading)? as u64;
        let mut zeros = [0; BLOCK_BYTES];
        let zeros = &mut zeros[..padding(size)];
        if read < size || self.fill(zeros)? < zeros.len() {
            return Err(ArchiveError::damaged(name, "the file is cut short in it"));
        }
        if zeros.iter().any(|byte| *byte != 0) {
            return Err(ArchiveError::damaged(name, "there is something behind its end"));
        }
        Ok(bytes)
    }

    /// Reads until the buffer is full or the file ends; how much was read.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let mut read = 0;
        while read < buffer.len() {
            match self.input.read(&mut buffer[read..]) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(ArchiveError::reading(error)),
            }
        }
        Ok(read)
    }
}
