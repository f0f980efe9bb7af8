//! Private key files as cosign writes them.
//!
//! PEM labelled `ENCRYPTED SIGSTORE PRIVATE KEY` (or, before cosign 2, `ENCRYPTED COSIGN PRIVATE KEY`) around
//! JSON: scrypt makes a key of the password, NaCl secretbox (XSalsa20-Poly1305) closes the PKCS #8 DER with it.
//! Source: `github.com/secure-systems-lab/go-securesystemslib/encrypted`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use crypto_secretbox::aead::{Aead, KeyInit};
use crypto_secretbox::{Nonce, XSalsa20Poly1305};
use kernel::{Random, Secret};
use zeroize::Zeroizing;

const LABEL: &str = "ENCRYPTED SIGSTORE PRIVATE KEY";
const LABEL_OLD: &str = "ENCRYPTED COSIGN PRIVATE KEY";
/// scrypt's cost as cosign has it: 2^16 rounds of 8 KiB need 64 MiB and a tenth of a second.
const LOG_N: u8 = 16;
const R: u32 = 8;
const P: u32 = 1;
/// The most that a file may ask for: 128 MiB, the strongest that the Go library writes; cosign writes 2^16, and wrote
/// 2^15. A hostile file could otherwise ask for all memory.
const LOG_N_MAX: u8 = 17;
/// A key file is under 1 KiB.
const FILE_BYTES_MAX: usize = 16 << 10;

/// Why a key file does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileError {
    #[error("it is not PEM with the label {LABEL}")]
    Pem,
    #[error("what the PEM holds is not a key file: {0}")]
    Content(String),
    #[error("it asks for a key derivation or cipher that we do not know: {0}")]
    Unknown(String),
    #[error("the password is wrong, or the file is damaged")]
    Password,
    #[error("it holds a key that is not P-256, and only P-256 keys sign")]
    Curve,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Envelope {
    kdf: Kdf,
    cipher: Cipher,
    ciphertext: String,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Kdf {
    name: String,
    params: KdfParams,
    salt: String,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct KdfParams {
    #[serde(rename = "N")]
    n: u64,
    r: u32,
    p: u32,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Cipher {
    name: String,
    nonce: String,
}

/// Opens a key file. Takes about 0.1 s of CPU and 64 MiB while it runs.
///
/// # Errors
/// If it is not a key file or the password is wrong.
pub fn decrypt(file: &str, password: &Secret) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    if file.len() > FILE_BYTES_MAX {
        return Err(KeyFileError::Content(format!(
            "it is larger than {FILE_BYTES_MAX} bytes"
        )));
    }
    let block = pem::parse(file.trim()).map_err(|_| KeyFileError::Pem)?;
    if block.tag() != LABEL && block.tag() != LABEL_OLD {
        return Err(KeyFileError::Pem);
    }
    let content = |error: &dyn std::fmt::Display| KeyFileError::Content(error.to_string());
    let envelope: Envelope = serde_json::from_slice(block.contents()).map_err(|error| content(&error))?;
    let Envelope {
        kdf,
        cipher,
        ciphertext,
    } = envelope;
    if kdf.name != "scrypt" || cipher.name != "nacl/secretbox" {
        return Err(KeyFileError::Unknown(format!(
            "{} with {}",
            kdf.name, cipher.name
        )));
    }
    let log_n = u8::try_from(kdf.params.n.trailing_zeros()).unwrap_or(u8::MAX);
    let sane = kdf.params.n.is_power_of_two() && log_n <= LOG_N_MAX && kdf.params.r == R && kdf.params.p == P;
    if !sane {
        let KdfParams { n, r, p } = kdf.params;
        return Err(KeyFileError::Unknown(format!("scrypt with N={n} r={r} p={p}")));
    }
    let decode = |text: &str| BASE64.decode(text).map_err(|error| content(&error));
    let (salt, nonce, ciphertext) = (decode(&kdf.salt)?, decode(&cipher.nonce)?, decode(&ciphertext)?);
    let nonce: [u8; 24] = nonce
        .try_into()
        .map_err(|_| content(&"the nonce is not 24 bytes"))?;
    let key = derive(password, &salt, log_n)?;
    let plain =
        XSalsa20Poly1305::new((&*key).into()).decrypt(Nonce::from_slice(&nonce), ciphertext.as_slice());
    plain.map(Zeroizing::new).map_err(|_| KeyFileError::Password)
}

/// Writes a key file that cosign opens.
///
/// # Errors
/// Only if the cipher refuses, which it does for gigabytes.
pub fn encrypt(pkcs8: &[u8], password: &Secret, random: &dyn Random) -> Result<String, KeyFileError> {
    let (mut salt, mut nonce) = ([0; 32], [0; 24]);
    random.fill(&mut salt);
    random.fill(&mut nonce);
    let key = derive(password, &salt, LOG_N)?;
    let closed = XSalsa20Poly1305::new((&*key).into()).encrypt(Nonce::from_slice(&nonce), pkcs8);
    let closed = closed.map_err(|_| KeyFileError::Content("it is too large".to_owned()))?;
    let envelope = Envelope {
        kdf: Kdf {
            name: "scrypt".to_owned(),
            params: KdfParams {
                n: 1 << LOG_N,
                r: R,
                p: P,
            },
            salt: BASE64.encode(salt),
        },
        cipher: Cipher {
            name: "nacl/secretbox".to_owned(),
            nonce: BASE64.encode(nonce),
        },
        ciphertext: BASE64.encode(closed),
    };
    let json = serde_json::to_vec(&envelope).map_err(|error| KeyFileError::Content(error.to_string()))?;
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    Ok(pem::encode_config(&pem::Pem::new(LABEL, json), config))
}

fn derive(password: &Secret, salt: &[u8], log_n: u8) -> Result<Zeroizing<[u8; 32]>, KeyFileError> {
    let mut key = Zeroizing::new([0; 32]);
    let unknown = |_| KeyFileError::Unknown("scrypt parameters".to_owned());
    let params = scrypt::Params::new(log_n, R, P, key.len()).map_err(unknown)?;
    scrypt::scrypt(password.expose().as_bytes(), salt, &params, &mut *key)
        .map_err(|_| KeyFileError::Unknown("scrypt output length".to_owned()))?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel::SeededRandom;

    fn secret(text: &str) -> Secret {
        Secret::new(text.to_owned())
    }

    #[test]
    fn a_file_opens_with_its_password_only() {
        let file = encrypt(b"a key", &secret("right"), &SeededRandom::new(1)).unwrap();
        assert_eq!(**decrypt(&file, &secret("right")).unwrap(), *b"a key");
        assert_eq!(decrypt(&file, &secret("wrong")), Err(KeyFileError::Password));
        let old = file.replace("SIGSTORE", "COSIGN");
        assert_eq!(**decrypt(&old, &secret("right")).unwrap(), *b"a key");
        assert_eq!(
            decrypt(
                "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----",
                &secret("")
            ),
            Err(KeyFileError::Pem)
        );
    }

    #[test]
    fn a_file_cannot_ask_for_all_memory() {
        let json = r#"{"kdf":{"name":"scrypt","params":{"N":1099511627776,"r":8,"p":1},"salt":""},"cipher":{"name":"nacl/secretbox","nonce":""},"ciphertext":""}"#;
        let file = pem::encode(&pem::Pem::new(LABEL, json.as_bytes()));
        assert!(matches!(
            decrypt(&file, &secret("")),
            Err(KeyFileError::Unknown(_))
        ));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,200}") {
            let _ = decrypt(&text, &secret(""));
            let _ = decrypt(&pem::encode(&pem::Pem::new(LABEL, text.as_bytes())), &secret(""));
        }
    }
}
