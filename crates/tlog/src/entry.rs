//! The one kind of entry: `hashedrekord` 0.0.2 of Rekor v2. Its signature is checked before it is accepted,
//! and its canonical body is what the leaf hash is taken of.

use aws_lc_rs::digest::{self, Digest, SHA256, SHA384, SHA512};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ECDSA_P521_SHA512_ASN1, RSA_PKCS1_2048_8192_SHA256,
    UnparsedPublicKey, VerificationAlgorithm,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::der::{KeyKind, certificate_spki, key_kind};
use crate::merkle::{Hash, leaf_hash};
use crate::tile::ENTRY_BYTES_MAX;

/// A hashed message with its signature and what checks it, as submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashedRekord {
    /// The digest of the signed bytes under the key's hash: SHA-256 for P-256 and RSA, SHA-384 for P-384,
    /// SHA-512 for P-521.
    pub digest: Vec<u8>,
    /// The signature: ASN.1 DER for ECDSA, PKCS#1 v1.5 for RSA.
    pub signature: Vec<u8>,
    pub verifier: Verifier,
}

/// What checks the signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verifier {
    /// SubjectPublicKeyInfo, DER.
    PublicKey(Vec<u8>),
    /// X.509, DER. Only its key is used; who issued it is the verifier's business.
    Certificate(Vec<u8>),
}

/// An entry that may go into a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The canonical body (RFC 8785).
    pub body: Vec<u8>,
    /// The RFC 6962 hash of the body.
    pub leaf: Hash,
}

impl Accepted {
    /// An entry of a log whose leaves need no check but their length, which whoever appends vouches for.
    ///
    /// # Errors
    /// [`EntryError::TooLarge`].
    pub fn of(body: Vec<u8>) -> Result<Self, EntryError> {
        if body.len() > ENTRY_BYTES_MAX {
            return Err(EntryError::TooLarge(body.len()));
        }
        let leaf = leaf_hash(&body);
        Ok(Self { body, leaf })
    }
}

/// Why an entry is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    #[error("the public key is neither ECDSA P-256, P-384 or P-521 nor RSA of 2048, 3072 or 4096 bits")]
    Key,
    #[error("the key is Ed25519, whose signatures cannot be checked against a digest alone")]
    Ed25519,
    #[error("the certificate is not one")]
    Certificate,
    #[error("the key is {expected} and not {found}")]
    KeyDetails { expected: &'static str, found: String },
    #[error("the digest has {found} bytes and should have {expected} for this key")]
    Digest { expected: usize, found: usize },
    #[error("the signature does not verify")]
    Signature,
    #[error("the entry has {0} bytes; a log entry has at most {ENTRY_BYTES_MAX}")]
    TooLarge(usize),
}

/// A key's algorithm by its names in the Sigstore protobuf specification (`sigstore_common.proto`).
#[derive(Clone, Copy)]
pub struct Algorithm {
    pub key_details: &'static str,
    /// The number of `key_details` in the enumeration.
    pub key_details_number: u64,
    pub hash_name: &'static str,
    hash: &'static digest::Algorithm,
    verification: &'static dyn VerificationAlgorithm,
}

impl Algorithm {
    /// The digest of `message` under the key's hash.
    #[must_use]
    pub fn digest(&self, message: &[u8]) -> Vec<u8> {
        digest::digest(self.hash, message).as_ref().to_vec()
    }
}

const P256: Algorithm = Algorithm {
    key_details: "PKIX_ECDSA_P256_SHA_256",
    key_details_number: 5,
    hash_name: "SHA2_256",
    hash: &SHA256,
    verification: &ECDSA_P256_SHA256_ASN1,
};

const fn rsa(key_details: &'static str, key_details_number: u64) -> Algorithm {
    Algorithm {
        key_details,
        key_details_number,
        hash_name: "SHA2_256",
        hash: &SHA256,
        verification: &RSA_PKCS1_2048_8192_SHA256,
    }
}

impl Verifier {
    /// The key, SubjectPublicKeyInfo DER.
    ///
    /// # Errors
    /// If the certificate is not one.
    pub fn spki(&self) -> Result<&[u8], EntryError> {
        match self {
            Self::PublicKey(spki) => Ok(spki),
            Self::Certificate(certificate) => certificate_spki(certificate).ok_or(EntryError::Certificate),
        }
    }

    /// The algorithm that Rekor v2 uses with this key.
    ///
    /// # Errors
    /// If Rekor v2 takes no such key, or it is Ed25519: Rekor v2 knows it as Ed25519ph only, which aws-lc-rs
    /// does not offer.
    pub fn algorithm(&self) -> Result<Algorithm, EntryError> {
        match key_kind(self.spki()?) {
            Some(KeyKind::P256) => Ok(P256),
            Some(KeyKind::P384) => Ok(Algorithm {
                key_details: "PKIX_ECDSA_P384_SHA_384",
                key_details_number: 12,
                hash_name: "SHA2_384",
                hash: &SHA384,
                verification: &ECDSA_P384_SHA384_ASN1,
            }),
            Some(KeyKind::P521) => Ok(Algorithm {
                key_details: "PKIX_ECDSA_P521_SHA_512",
                key_details_number: 13,
                hash_name: "SHA2_512",
                hash: &SHA512,
                verification: &ECDSA_P521_SHA512_ASN1,
            }),
            Some(KeyKind::Rsa { bits: 2048 }) => Ok(rsa("PKIX_RSA_PKCS1V15_2048_SHA256", 9)),
            Some(KeyKind::Rsa { bits: 3072 }) => Ok(rsa("PKIX_RSA_PKCS1V15_3072_SHA256", 10)),
            Some(KeyKind::Rsa { bits: 4096 }) => Ok(rsa("PKIX_RSA_PKCS1V15_4096_SHA256", 11)),
            Some(KeyKind::Ed25519) => Err(EntryError::Ed25519),
            Some(KeyKind::Rsa { .. }) | None => Err(EntryError::Key),
        }
    }
}

impl HashedRekord {
    /// Checks the signature and makes the body.
    ///
    /// # Errors
    /// If the key is of no supported kind, the digest is not of its hash, or the signature does not verify.
    pub fn accept(&self) -> Result<Accepted, EntryError> {
        let algorithm = self.verifier.algorithm()?;
        let digest =
            Digest::import_less_safe(&self.digest, algorithm.hash).map_err(|_| EntryError::Digest {
                expected: algorithm.hash.output_len(),
                found: self.digest.len(),
            })?;
        let body = self.body(&algorithm);
        if body.len() > ENTRY_BYTES_MAX {
            return Err(EntryError::TooLarge(body.len()));
        }
        let key = UnparsedPublicKey::new(algorithm.verification, self.verifier.spki()?);
        key.verify_digest(&digest, &self.signature)
            .map_err(|_| EntryError::Signature)?;
        Ok(Accepted {
            leaf: leaf_hash(&body),
            body,
        })
    }

    /// The canonical JSON (RFC 8785) of the protobuf message `Entry` of rekor-tiles, as its server writes it.
    /// Its members are in order and base64 needs no escapes, so the text is put together directly.
    #[must_use]
    pub fn body(&self, algorithm: &Algorithm) -> Vec<u8> {
        let (member, key) = match &self.verifier {
            Verifier::PublicKey(key) => ("publicKey", key),
            Verifier::Certificate(certificate) => ("x509Certificate", certificate),
        };
        format!(
            concat!(
                r#"{{"apiVersion":"0.0.2","kind":"hashedrekord","spec":{{"hashedRekordV002":{{"#,
                r#""data":{{"algorithm":"{hash}","digest":"{digest}"}},"#,
                r#""signature":{{"content":"{signature}","verifier":{{"keyDetails":"{details}","#,
                r#""{member}":{{"rawBytes":"{key}"}}}}}}}}}}}}"#
            ),
            hash = algorithm.hash_name,
            digest = STANDARD.encode(&self.digest),
            signature = STANDARD.encode(&self.signature),
            details = algorithm.key_details,
            member = member,
            key = STANDARD.encode(key),
        )
        .into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::{
        self, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1_SIGNING,
        EcdsaKeyPair, KeyPair, RsaKeyPair,
    };

    use super::*;

    const MESSAGE: &[u8] = b"what was signed";

    fn ecdsa(
        algorithm: &'static signature::EcdsaSigningAlgorithm,
        hash: &'static digest::Algorithm,
    ) -> HashedRekord {
        let pair = EcdsaKeyPair::generate(algorithm).unwrap();
        let key = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key())
            .unwrap()
            .as_ref()
            .to_vec();
        HashedRekord {
            digest: digest::digest(hash, MESSAGE).as_ref().to_vec(),
            signature: pair
                .sign(&SystemRandom::new(), MESSAGE)
                .unwrap()
                .as_ref()
                .to_vec(),
            verifier: Verifier::PublicKey(key),
        }
    }

    #[test]
    fn each_supported_key_is_accepted_and_a_wrong_signature_is_not() {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let mut rsa_signature = vec![0; pair.public_modulus_len()];
        pair.sign(
            &signature::RSA_PKCS1_SHA256,
            &SystemRandom::new(),
            MESSAGE,
            &mut rsa_signature,
        )
        .unwrap();
        let rsa = HashedRekord {
            digest: digest::digest(&SHA256, MESSAGE).as_ref().to_vec(),
            signature: rsa_signature,
            verifier: Verifier::PublicKey(
                AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key())
                    .unwrap()
                    .as_ref()
                    .to_vec(),
            ),
        };
        for mut entry in [
            ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING, &SHA256),
            ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING, &SHA384),
            ecdsa(&ECDSA_P521_SHA512_ASN1_SIGNING, &SHA512),
            rsa,
        ] {
            let accepted = entry.accept().unwrap();
            assert_eq!(accepted.leaf, leaf_hash(&accepted.body));
            entry.digest[0] ^= 1;
            assert_eq!(entry.accept(), Err(EntryError::Signature));
            entry.digest.pop();
            assert!(matches!(entry.accept(), Err(EntryError::Digest { .. })));
        }
    }

    #[test]
    fn the_body_is_canonical_json_with_the_members_of_rekor_tiles() {
        let entry = ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING, &SHA256);
        let body = entry.accept().unwrap().body;
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let record = &value["spec"]["hashedRekordV002"];
        assert_eq!(value["kind"], "hashedrekord");
        assert_eq!(value["apiVersion"], "0.0.2");
        assert_eq!(record["data"]["algorithm"], "SHA2_256");
        assert_eq!(record["data"]["digest"], STANDARD.encode(&entry.digest));
        assert_eq!(record["signature"]["content"], STANDARD.encode(&entry.signature));
        assert_eq!(
            record["signature"]["verifier"]["keyDetails"],
            "PKIX_ECDSA_P256_SHA_256"
        );
        let key = &record["signature"]["verifier"]["publicKey"]["rawBytes"];
        assert_eq!(key, &STANDARD.encode(entry.verifier.spki().unwrap()));
        // serde_json keeps members in order of their names, which for ASCII names is RFC 8785.
        assert_eq!(serde_json::to_vec(&value).unwrap(), body);
    }

    #[test]
    fn keys_that_cannot_be_checked_are_refused_by_name() {
        let mut entry = ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING, &SHA256);
        let pair = signature::Ed25519KeyPair::generate().unwrap();
        let key = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap();
        entry.verifier = Verifier::PublicKey(key.as_ref().to_vec());
        assert_eq!(entry.accept(), Err(EntryError::Ed25519));
        entry.verifier = Verifier::PublicKey(b"no key".to_vec());
        assert_eq!(entry.accept(), Err(EntryError::Key));
        entry.verifier = Verifier::Certificate(b"no certificate".to_vec());
        assert_eq!(entry.accept(), Err(EntryError::Certificate));
        let mut large = ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING, &SHA256);
        large.signature = vec![0; ENTRY_BYTES_MAX];
        assert!(matches!(large.accept(), Err(EntryError::TooLarge(_))));
    }
}
