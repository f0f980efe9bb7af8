//! The checkpoint: a C2SP tlog-checkpoint inside a C2SP signed-note. Ours is signed with Ed25519; those of other
//! people's logs may be signed with ECDSA P-256 too, as Rekor does.

use aws_lc_rs::digest::{Context, SHA256, digest};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey, VerificationAlgorithm,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::der::{KeyKind, key_kind};
use crate::merkle::Hash;

/// A note, in bytes: a checkpoint with room for dozens of witnesses.
pub const NOTE_BYTES_MAX: usize = 64 << 10;
/// Signature lines of a note, as many as the Go implementation reads.
pub const NOTE_SIGNATURES_MAX: usize = 100;
/// An origin, in bytes: a host name fits.
pub const ORIGIN_BYTES_MAX: usize = 255;
/// The signature type of Ed25519 (C2SP signed-note, "Signature types").
const ED25519_TYPE: u8 = 1;
/// SubjectPublicKeyInfo of an Ed25519 key without its last 32 bytes (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// Why a note is not a checkpoint of this log, or a key not a log key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    #[error("it is not a signed note with origin, size and root hash")]
    Malformed,
    #[error("it is a checkpoint of {found:?} and not of {expected:?}")]
    Origin { expected: String, found: String },
    #[error("no signature on it is by the log's key {key_id}")]
    NotSigned { key_id: String },
    #[error("the signature by the log's key does not verify")]
    Signature,
    #[error("the log's key is not a key that logs sign with: Ed25519, or ECDSA P-256 to verify with")]
    Key,
    #[error("{0:?} is no origin: it has 1 to {ORIGIN_BYTES_MAX} bytes, no space and no plus sign")]
    BadOrigin(String),
}

/// A statement of a log: how many entries it has, and the root hash over them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    pub origin: String,
    pub size: u64,
    pub root: Hash,
    /// The signed note it came in.
    pub note: String,
}

/// What a verifier needs to know of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogVerifier {
    origin: String,
    public_key: PublicKey,
    /// Whether the origin in a checkpoint is followed by the number of a tree, as Rekor v1 writes it.
    with_tree: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum PublicKey {
    Ed25519([u8; 32]),
    /// SubjectPublicKeyInfo, DER.
    P256(Vec<u8>),
}

/// The private half: signs checkpoints.
pub struct LogKey {
    pair: Ed25519KeyPair,
    verifier: LogVerifier,
}

/// One signature line of a note.
struct SignatureLine<'a> {
    name: &'a str,
    key_id: [u8; 4],
    signature: Vec<u8>,
}

/// Splits a note into its text (with the last newline) and its signature lines.
fn split_note(note: &str) -> Option<(&str, Vec<SignatureLine<'_>>)> {
    let plain = |c: char| c == '\n' || !c.is_control();
    if note.len() > NOTE_BYTES_MAX || !note.ends_with('\n') || !note.chars().all(plain) {
        return None;
    }
    let at = note.rfind("\n\n")?;
    let (text, lines) = (&note[..=at], &note[at + 2..]);
    let mut signatures = Vec::new();
    for line in lines.lines() {
        let (name, encoded) = line.strip_prefix("— ")?.split_once(' ')?;
        let bytes = STANDARD.decode(encoded).ok()?;
        let (key_id, signature) = bytes.split_first_chunk::<4>()?;
        if !is_origin(name) || signature.is_empty() || signatures.len() >= NOTE_SIGNATURES_MAX {
            return None;
        }
        signatures.push(SignatureLine {
            name,
            key_id: *key_id,
            signature: signature.to_vec(),
        });
    }
    (!signatures.is_empty()).then_some((text, signatures))
}

fn is_origin(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= ORIGIN_BYTES_MAX
        && !text.contains(|c: char| c.is_whitespace() || c == '+')
}

impl Checkpoint {
    /// Who says to have signed it: names with the first four bytes of their key ids, in hexadecimal. Nothing of it is
    /// checked; it names a wrong log to a person.
    #[must_use]
    pub fn signers(&self) -> Vec<String> {
        let lines = split_note(&self.note).map(|(_, lines)| lines).unwrap_or_default();
        lines
            .iter()
            .map(|line| format!("{} {}", line.name, hex::encode(line.key_id)))
            .collect()
    }

    /// Reads a note **without** checking any signature; [`LogVerifier::verify`] does both.
    ///
    /// # Errors
    /// If it is not one.
    pub fn parse(note: &str) -> Result<Self, CheckpointError> {
        let (text, _) = split_note(note).ok_or(CheckpointError::Malformed)?;
        let mut lines = text.lines();
        let mut line = || lines.next().ok_or(CheckpointError::Malformed);
        let (origin, digits, root) = (line()?, line()?, line()?);
        let size: u64 = digits.parse().map_err(|_| CheckpointError::Malformed)?;
        let root = STANDARD
            .decode(root)
            .ok()
            .and_then(|root| Hash::try_from(root).ok());
        let root = root.ok_or(CheckpointError::Malformed)?;
        if origin.is_empty() || size.to_string() != digits {
            return Err(CheckpointError::Malformed);
        }
        Ok(Self {
            origin: origin.to_owned(),
            size,
            root,
            note: note.to_owned(),
        })
    }
}

impl LogVerifier {
    /// # Errors
    /// If the origin is not one.
    pub fn new(origin: &str, public_key: [u8; 32]) -> Result<Self, CheckpointError> {
        Self::with_key(origin, PublicKey::Ed25519(public_key))
    }

    fn with_key(origin: &str, public_key: PublicKey) -> Result<Self, CheckpointError> {
        if !is_origin(origin) {
            return Err(CheckpointError::BadOrigin(
                origin.chars().take(ORIGIN_BYTES_MAX).collect(),
            ));
        }
        Ok(Self {
            origin: origin.to_owned(),
            public_key,
            with_tree: false,
        })
    }

    /// From the key's SubjectPublicKeyInfo, DER.
    ///
    /// # Errors
    /// If it is not one of an Ed25519 or ECDSA P-256 key, or the origin is not one.
    pub fn from_spki(origin: &str, spki: &[u8]) -> Result<Self, CheckpointError> {
        let ed25519 = spki
            .strip_prefix(&SPKI_PREFIX)
            .and_then(|key| <[u8; 32]>::try_from(key).ok());
        let key = match (ed25519, key_kind(spki)) {
            (Some(key), _) => PublicKey::Ed25519(key),
            (None, Some(KeyKind::P256)) => PublicKey::P256(spki.to_vec()),
            _ => return Err(CheckpointError::Key),
        };
        Self::with_key(origin, key)
    }

    /// The same log as Rekor v1 writes its checkpoints: signed by the name `origin`, over a first line that is
    /// `origin - TREE`, with the number of its tree (rekor `pkg/util/checkpoint.go`).
    #[must_use]
    pub fn with_tree_number(self) -> Self {
        Self {
            with_tree: true,
            ..self
        }
    }

    /// Whether the first line of a checkpoint is this log's.
    fn is_own(&self, line: &str) -> bool {
        if line == self.origin {
            return true;
        }
        let tree = line
            .strip_prefix(&self.origin)
            .and_then(|rest| rest.strip_prefix(" - "));
        self.with_tree
            && tree.is_some_and(|tree| !tree.is_empty() && tree.bytes().all(|byte| byte.is_ascii_digit()))
    }

    /// From what [`LogVerifier::pem`] writes.
    ///
    /// # Errors
    /// If it is not the key of a log, or the origin is not one.
    pub fn from_pem(origin: &str, pem: &str) -> Result<Self, CheckpointError> {
        let encoded: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let spki = STANDARD.decode(encoded).map_err(|_| CheckpointError::Key)?;
        Self::from_spki(origin, &spki)
    }

    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The public key as SubjectPublicKeyInfo, DER (RFC 8410, RFC 5480).
    #[must_use]
    pub fn spki(&self) -> Vec<u8> {
        match &self.public_key {
            PublicKey::Ed25519(key) => [&SPKI_PREFIX[..], key].concat(),
            PublicKey::P256(spki) => spki.clone(),
        }
    }

    /// The public key as a `PUBLIC KEY` block (RFC 7468, section 13).
    #[must_use]
    pub fn pem(&self) -> String {
        format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            STANDARD.encode(self.spki())
        )
    }

    /// The log's id: for Ed25519, SHA-256 over origin, newline, signature type and key; for ECDSA, SHA-256 over the
    /// SubjectPublicKeyInfo. Its first four bytes are the key id in notes (C2SP signed-note, "Signatures"); the whole
    /// is `logId.keyId` (rekor-tiles `pkg/note`).
    #[must_use]
    pub fn log_id(&self) -> [u8; 32] {
        let id = match &self.public_key {
            PublicKey::Ed25519(key) => {
                let mut context = Context::new(&SHA256);
                context.update(self.origin.as_bytes());
                context.update(&[b'\n', ED25519_TYPE]);
                context.update(key);
                context.finish()
            }
            PublicKey::P256(spki) => digest(&SHA256, spki),
        };
        let mut out = [0; 32];
        out.copy_from_slice(id.as_ref());
        out
    }

    fn key_id(&self) -> [u8; 4] {
        let id = self.log_id();
        [id[0], id[1], id[2], id[3]]
    }

    /// Reads a note and checks that this log signed it.
    ///
    /// # Errors
    /// If it is no checkpoint, of another origin, or not signed by this log's key.
    pub fn verify(&self, note: &str) -> Result<Checkpoint, CheckpointError> {
        let checkpoint = Checkpoint::parse(note)?;
        let (text, signatures) = split_note(note).ok_or(CheckpointError::Malformed)?;
        if !self.is_own(&checkpoint.origin) {
            return Err(CheckpointError::Origin {
                expected: self.origin.clone(),
                found: checkpoint.origin,
            });
        }
        let key_id = self.key_id();
        let own = signatures
            .iter()
            .find(|line| line.name == self.origin && line.key_id == key_id);
        let own = own.ok_or_else(|| CheckpointError::NotSigned {
            key_id: hex::encode(key_id),
        })?;
        let (algorithm, key): (&'static dyn VerificationAlgorithm, &[u8]) = match &self.public_key {
            PublicKey::Ed25519(key) => (&ED25519, key),
            PublicKey::P256(spki) => (&ECDSA_P256_SHA256_ASN1, spki),
        };
        UnparsedPublicKey::new(algorithm, key)
            .verify(text.as_bytes(), &own.signature)
            .map_err(|_| CheckpointError::Signature)?;
        Ok(checkpoint)
    }
}

impl LogKey {
    /// A new private key, PKCS#8 (RFC 8410), for the caller to keep.
    ///
    /// # Errors
    /// [`CheckpointError::Key`] if the library refuses the seed, which it does not for 32 bytes.
    pub fn generate(random: &dyn kernel::Random) -> Result<Zeroizing<Vec<u8>>, CheckpointError> {
        let mut seed = Zeroizing::new([0; 32]);
        random.fill(seed.as_mut());
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.as_ref()).map_err(|_| CheckpointError::Key)?;
        let document = pair.to_pkcs8v1().map_err(|_| CheckpointError::Key)?;
        Ok(Zeroizing::new(document.as_ref().to_vec()))
    }

    /// The key of the log named `origin`: a unique name that does not depend on the log's address.
    ///
    /// # Errors
    /// If `pkcs8` is not an Ed25519 key or `origin` is not a name.
    pub fn new(origin: &str, pkcs8: &[u8]) -> Result<Self, CheckpointError> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8).map_err(|_| CheckpointError::Key)?;
        let public_key =
            <[u8; 32]>::try_from(pair.public_key().as_ref()).map_err(|_| CheckpointError::Key)?;
        Ok(Self {
            verifier: LogVerifier::new(origin, public_key)?,
            pair,
        })
    }

    #[must_use]
    pub fn verifier(&self) -> &LogVerifier {
        &self.verifier
    }

    /// Signs the statement that the log has `size` entries under `root`.
    #[must_use]
    pub fn sign(&self, size: u64, root: Hash) -> Checkpoint {
        let origin = &self.verifier.origin;
        let text = format!("{origin}\n{size}\n{}\n", STANDARD.encode(root));
        let signature = [
            &self.verifier.key_id()[..],
            self.pair.sign(text.as_bytes()).as_ref(),
        ]
        .concat();
        let note = format!("{text}\n— {origin} {}\n", STANDARD.encode(signature));
        Checkpoint {
            origin: origin.clone(),
            size,
            root,
            note,
        }
    }
}

#[cfg(test)]
mod tests {
    use kernel::SeededRandom;
    use proptest::prelude::*;

    use super::*;

    fn key(seed: u64, origin: &str) -> LogKey {
        LogKey::new(origin, &LogKey::generate(&SeededRandom::new(seed)).unwrap()).unwrap()
    }

    #[test]
    fn the_example_of_the_go_checksum_database_verifies() {
        // golang.org/x/mod/sumdb/note, example: verifier key PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW
        let key = STANDARD
            .decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
            .unwrap();
        let verifier = LogVerifier::new("PeterNeumann", key[1..].try_into().unwrap()).unwrap();
        assert_eq!(hex::encode(verifier.key_id()), "c74f20a3");
        let text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
        let note = format!(
            "{text}\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
        );
        let (found, lines) = split_note(&note).unwrap();
        assert_eq!(found, text);
        let spki = verifier.spki();
        let key = UnparsedPublicKey::new(&ED25519, &spki[SPKI_PREFIX.len()..]);
        assert!(key.verify(text.as_bytes(), &lines[0].signature).is_ok());
    }

    #[test]
    fn a_checkpoint_verifies_under_its_own_key_and_origin_only() {
        let log = key(1, "a.log.example");
        let checkpoint = log.sign(42, [7; 32]);
        assert_eq!(log.verifier().verify(&checkpoint.note), Ok(checkpoint.clone()));
        let other = key(2, "a.log.example");
        assert!(matches!(
            other.verifier().verify(&checkpoint.note),
            Err(CheckpointError::NotSigned { .. })
        ));
        let renamed = LogVerifier::from_spki("b.log.example", &log.verifier().spki()).unwrap();
        assert!(matches!(
            renamed.verify(&checkpoint.note),
            Err(CheckpointError::Origin { .. })
        ));
        let grown = checkpoint.note.replacen("42", "43", 1);
        assert_eq!(log.verifier().verify(&grown), Err(CheckpointError::Signature));
        assert_eq!(
            LogVerifier::from_spki("a.log.example", &log.verifier().spki()).as_ref(),
            Ok(log.verifier())
        );
    }

    #[test]
    fn what_is_not_a_checkpoint_is_refused() {
        let log = key(1, "a.log.example");
        let note = log.sign(42, [7; 32]).note;
        for broken in [
            String::new(),
            "\n\n".to_owned(),
            note.replacen("42", "042", 1),
            note.replacen("42", "+42", 1),
            note.replacen("42", "99999999999999999999", 1),
            note.replace("— ", "- "),
            note.trim_end().to_owned(),
            note.replace("\n\n", "\n"),
            note.replace('=', "\r="),
            format!("{note}{}", "— x AAAAAAA=\n".repeat(NOTE_SIGNATURES_MAX)),
        ] {
            assert_eq!(
                log.verifier().verify(&broken),
                Err(CheckpointError::Malformed),
                "{broken:?}"
            );
        }
        for origin in ["", "a b", "a+b", "a\nb", &"a".repeat(256)] {
            assert!(LogVerifier::new(origin, [0; 32]).is_err(), "{origin:?}");
        }
        assert!(matches!(
            LogKey::new("a", b"not a key"),
            Err(CheckpointError::Key)
        ));
    }

    /// What Rekor v1 writes: ECDSA P-256, and the number of the tree in the first line.
    #[test]
    fn a_checkpoint_of_rekor_v1_verifies_under_its_name_with_a_tree_number_only() {
        use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
        use aws_lc_rs::rand::SystemRandom;
        use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};

        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let spki = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap();
        let plain = LogVerifier::from_spki("rekor.example", spki.as_ref()).unwrap();
        let with_tree = plain.clone().with_tree_number();
        assert_eq!(plain.log_id(), digest(&SHA256, spki.as_ref()).as_ref());
        let note = |origin: &str| {
            let text = format!("{origin}\n42\n{}\n", STANDARD.encode([7; 32]));
            let signature = pair.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
            let line = STANDARD.encode([&plain.log_id()[..4], signature.as_ref()].concat());
            format!("{text}\n— rekor.example {line}\n")
        };
        assert!(plain.verify(&note("rekor.example")).is_ok());
        assert!(with_tree.verify(&note("rekor.example - 12")).is_ok());
        let changed = note("rekor.example - 12").replacen("42", "43", 1);
        assert_eq!(with_tree.verify(&changed), Err(CheckpointError::Signature));
        for (verifier, origin) in [
            (&plain, "rekor.example - 12"),
            (&with_tree, "rekor.example - "),
            (&with_tree, "rekor.example - 1x"),
            (&with_tree, "rekor.example.evil - 12"),
        ] {
            let refused = verifier.verify(&note(origin));
            assert!(matches!(refused, Err(CheckpointError::Origin { .. })), "{origin}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_checkpoint_or_an_error(text in "(?s).{0,200}", tail in "\n\n— [a-z]{1,5} [A-Za-z0-9+/]{8}\n") {
            let _ = Checkpoint::parse(&text);
            let _ = Checkpoint::parse(&format!("{text}{tail}"));
        }

        #[test]
        fn one_changed_byte_is_noticed(at in 0_usize..1_000, bit in 0_u8..8) {
            let log = key(1, "a.log.example");
            let mut note = log.sign(42, [7; 32]).note.into_bytes();
            let at = at % note.len();
            note[at] ^= 1 << bit;
            if let Ok(note) = String::from_utf8(note) {
                prop_assert!(log.verifier().verify(&note).is_err());
            }
        }
    }
}
