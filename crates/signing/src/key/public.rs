//! Public keys, in the four kinds that images are signed with.

use std::fmt;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kernel::Digest;

/// What kind of key, and with it which signatures it checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// ECDSA over P-256 with SHA-256; the one kind that we also sign with.
    P256,
    /// ECDSA over P-384, with SHA-384 or, as cosign's legacy format has it, SHA-256.
    P384,
    /// Ed25519 (RFC 8032).
    Ed25519,
    /// RSA of 2048 to 8192 bits, PKCS #1 v1.5 with SHA-256.
    Rsa,
}

/// A public key: the DER of its `SubjectPublicKeyInfo` (RFC 5280).
#[derive(Clone)]
pub struct PublicKey {
    spki: Vec<u8>,
    algorithm: Algorithm,
    parsed: Vec<ParsedPublicKey>,
}

/// Why something is not a public key that we can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    #[error("it is not PEM with the label PUBLIC KEY")]
    Pem,
    #[error("its algorithm is not P-256, P-384, Ed25519 or RSA")]
    Algorithm,
    #[error("its content is not a key of its algorithm")]
    Content,
}

const LABEL: &str = "PUBLIC KEY";
/// `id-ecPublicKey` with curve `prime256v1`, as DER of the AlgorithmIdentifier's two OIDs.
const P256_OIDS: &[u8] = &[
    6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7,
];
/// The same with `secp384r1`.
const P384_OIDS: &[u8] = &[
    6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 5, 0x2b, 0x81, 4, 0, 0x22,
];
const ED25519_OID: &[u8] = &[6, 3, 0x2b, 0x65, 0x70];
const RSA_OID: &[u8] = &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];

impl PublicKey {
    /// Reads PEM as `cosign.pub` has it.
    ///
    /// # Errors
    /// If it is not PEM, or not a key that we can use.
    pub fn from_pem(text: &str) -> Result<Self, PublicKeyError> {
        let block = pem::parse(text.trim()).map_err(|_| PublicKeyError::Pem)?;
        if block.tag() != LABEL {
            return Err(PublicKeyError::Pem);
        }
        Self::from_spki(block.contents())
    }

    /// Reads the DER of a `SubjectPublicKeyInfo`.
    ///
    /// # Errors
    /// If it is not a key that we can use.
    pub fn from_spki(spki: &[u8]) -> Result<Self, PublicKeyError> {
        // SEQUENCE { SEQUENCE { OIDs … } BIT STRING }: the OIDs stand right behind the two headers.
        let inner = der_content(spki)
            .and_then(der_content)
            .ok_or(PublicKeyError::Content)?;
        let (algorithm, checks): (_, &[&'static dyn VerificationAlgorithm]) = match inner {
            oids if oids.starts_with(P256_OIDS) => (Algorithm::P256, &[&ECDSA_P256_SHA256_ASN1]),
            oids if oids.starts_with(P384_OIDS) => (
                Algorithm::P384,
                &[&ECDSA_P384_SHA384_ASN1, &ECDSA_P384_SHA256_ASN1],
            ),
            oids if oids.starts_with(ED25519_OID) => (Algorithm::Ed25519, &[&ED25519]),
            oids if oids.starts_with(RSA_OID) => (Algorithm::Rsa, &[&RSA_PKCS1_2048_8192_SHA256]),
            _ => return Err(PublicKeyError::Algorithm),
        };
        let parse = |check: &&'static dyn VerificationAlgorithm| ParsedPublicKey::new(*check, spki);
        let parsed = checks
            .iter()
            .map(parse)
            .collect::<Result<_, _>>()
            .map_err(|_| PublicKeyError::Content)?;
        Ok(Self {
            spki: spki.to_vec(),
            algorithm,
            parsed,
        })
    }

    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The DER of the `SubjectPublicKeyInfo`.
    #[must_use]
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// PEM as `cosign.pub` has it, with a final line feed.
    #[must_use]
    pub fn to_pem(&self) -> String {
        let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        pem::encode_config(&pem::Pem::new(LABEL, self.spki.clone()), config)
    }

    /// The key's id: SHA-256 of its DER.
    #[must_use]
    pub fn id(&self) -> Digest {
        Digest::of(&self.spki)
    }

    /// What a Sigstore bundle calls the key: base64 of [`PublicKey::id`].
    #[must_use]
    pub fn hint(&self) -> String {
        BASE64.encode(self.id().as_bytes())
    }

    /// Whether `signature` is this key's over `message`.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.parsed
            .iter()
            .any(|key| key.verify_sig(message, signature).is_ok())
    }

    /// The same for a message of which only the SHA-256 is known; no for keys that sign messages only.
    #[must_use]
    pub fn verifies_digest(&self, digest: Digest, signature: &[u8]) -> bool {
        let Ok(digest) =
            aws_lc_rs::digest::Digest::import_less_safe(digest.as_bytes(), &aws_lc_rs::digest::SHA256)
        else {
            return false;
        };
        self.parsed
            .iter()
            .any(|key| key.verify_digest_sig(&digest, signature).is_ok())
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.spki == other.spki
    }
}

impl Eq for PublicKey {}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({:?} {})", self.algorithm, self.id())
    }
}

/// The content of the SEQUENCE that `der` begins with.
fn der_content(der: &[u8]) -> Option<&[u8]> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => (usize::from(*rest.first()?), rest.get(1..)?),
        0x82 => (
            usize::from(*rest.first()?) << 8 | usize::from(*rest.get(1)?),
            rest.get(2..)?,
        ),
        _ => return None,
    };
    if tag == 0x30 { rest.get(..length) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519_PEM: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";

    #[test]
    fn pem_reads_back_and_other_things_are_refused() {
        let key = PublicKey::from_pem(ED25519_PEM).unwrap();
        assert_eq!(key.algorithm(), Algorithm::Ed25519);
        assert_eq!(key.to_pem(), ED25519_PEM);
        assert_eq!(PublicKey::from_pem("hello").unwrap_err(), PublicKeyError::Pem);
        assert_eq!(
            PublicKey::from_pem(&ED25519_PEM.replace("PUBLIC", "PRIVATE")).unwrap_err(),
            PublicKeyError::Pem
        );
        assert_eq!(
            PublicKey::from_spki(&[0x30, 2, 0x30, 0]).unwrap_err(),
            PublicKeyError::Algorithm
        );
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = PublicKey::from_spki(&bytes);
        }
    }
}
