//! Private keys that sign.

use async_trait::async_trait;
use aws_lc_rs::digest::{Digest as Sha256, SHA256};
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use kernel::{Digest, Secret};
use zeroize::Zeroizing;

use super::{KeyFileError, PublicKey, decrypt};

/// Something that signs digests: a key in memory, later a hardware module or a key service.
#[async_trait]
pub trait Signer: Send + Sync + 'static {
    fn public_key(&self) -> &PublicKey;

    /// An ASN.1 DER ECDSA signature over `digest`, which is SHA-256 of the message.
    async fn sign(&self, digest: Digest) -> Result<Vec<u8>, SignerError>;
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    #[error("the key failed to sign")]
    Failed,
    #[error("opening the key file")]
    File(#[from] KeyFileError),
}

/// A P-256 key in memory. The library wipes it when it is dropped; it is neither shown nor copied out.
pub struct LocalSigner {
    pair: EcdsaKeyPair,
    public: PublicKey,
}

impl LocalSigner {
    /// Makes a new key; its PKCS #8 DER is for [`super::encrypt`], at once.
    ///
    /// # Errors
    /// If the generator fails.
    pub fn generate() -> Result<(Self, Zeroizing<Vec<u8>>), SignerError> {
        let pair =
            EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(|_| SignerError::Failed)?;
        let pkcs8 = pair.to_pkcs8v1().map_err(|_| SignerError::Failed)?;
        let pkcs8 = Zeroizing::new(pkcs8.as_ref().to_vec());
        Ok((Self::from_pkcs8(&pkcs8)?, pkcs8))
    }

    /// Takes a key from its PKCS #8 DER.
    ///
    /// # Errors
    /// [`KeyFileError::Curve`] if it is no P-256 key.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, SignerError> {
        let pair = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8)
            .map_err(|_| KeyFileError::Curve)?;
        let spki = pair.public_key().as_der().map_err(|_| SignerError::Failed)?;
        let public = PublicKey::from_spki(spki.as_ref()).map_err(|_| SignerError::Failed)?;
        Ok(Self { pair, public })
    }

    /// Takes a key from a cosign key file.
    ///
    /// # Errors
    /// If the file does not open.
    pub fn from_file(file: &str, password: &Secret) -> Result<Self, SignerError> {
        Self::from_pkcs8(&decrypt(file, password)?)
    }

    /// Signs without waiting; see [`Signer::sign`].
    ///
    /// # Errors
    /// If the library fails.
    pub fn sign_now(&self, digest: Digest) -> Result<Vec<u8>, SignerError> {
        let digest = Sha256::import_less_safe(digest.as_bytes(), &SHA256).map_err(|_| SignerError::Failed)?;
        let signature = self.pair.sign_digest(&digest).map_err(|_| SignerError::Failed)?;
        Ok(signature.as_ref().to_vec())
    }
}

#[async_trait]
impl Signer for LocalSigner {
    fn public_key(&self) -> &PublicKey {
        &self.public
    }

    async fn sign(&self, digest: Digest) -> Result<Vec<u8>, SignerError> {
        self.sign_now(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Algorithm;

    #[test]
    fn a_signature_verifies_over_its_message_only() {
        let (signer, pkcs8) = LocalSigner::generate().unwrap();
        let again = LocalSigner::from_pkcs8(&pkcs8).unwrap();
        assert_eq!(again.public_key(), signer.public_key());
        assert_eq!(signer.public_key().algorithm(), Algorithm::P256);
        let signature = signer.sign_now(Digest::of(b"message")).unwrap();
        assert!(again.public_key().verifies(b"message", &signature));
        assert!(!again.public_key().verifies(b"other", &signature));
        assert!(LocalSigner::from_pkcs8(b"nothing").is_err());
    }
}
