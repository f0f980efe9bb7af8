//! The keys that an issuer publishes (JWK Set, RFC 7517 section 5), and what they verify.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::json;
use super::token::{Algorithm, Jwt, KID_CHARS_MAX};

/// Bytes of a key set: one with certificate chains for each key has some ten thousand.
pub const KEY_SET_BYTES_MAX: usize = 256 << 10;
/// Keys of one set: issuers publish one to ten.
pub const KEYS_MAX: usize = 100;
/// Bytes of an RSA modulus: 2048 to 4096 bits.
const MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=512;
/// Bytes of an RSA exponent; nearly always 65537.
const EXPONENT_BYTES_MAX: usize = 4;
/// Bytes of a coordinate on P-256 (RFC 7518 section 6.2.1.2).
const COORDINATE_BYTES: usize = 32;

/// The keys of a set that can verify a workload's token; at least one.
#[derive(Debug, PartialEq, Eq)]
pub struct KeySet {
    keys: Vec<Key>,
}

#[derive(Debug, PartialEq, Eq)]
struct Key {
    kid: String,
    public: PublicKey,
}

/// The kind of key decides which algorithm it is for: a token cannot choose.
#[derive(Debug, PartialEq, Eq)]
enum PublicKey {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// An uncompressed point.
    P256(Vec<u8>),
}

impl KeySet {
    /// Reads a set. Keys that are for something else, or are of no use, are left out (RFC 7517 section 5).
    ///
    /// # Errors
    /// If it is no key set, or holds no key that could verify a token.
    pub fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.len() > KEY_SET_BYTES_MAX {
            return Err("it is longer than 256 KiB");
        }
        let object = json::object(bytes)?;
        let Some(keys) = object.get("keys").and_then(Value::as_array) else {
            return Err("it has no list of keys");
        };
        if keys.len() > KEYS_MAX {
            return Err("it has more than 100 keys");
        }
        let keys: Vec<Key> = keys
            .iter()
            .filter_map(Value::as_object)
            .filter_map(read)
            .collect();
        if keys.is_empty() {
            return Err("it has no key with an id for RS256 (2048 to 4096 bits) or ES256");
        }
        Ok(Self { keys })
    }

    /// Whether there is a key of this id for this algorithm.
    #[must_use]
    pub fn has(&self, kid: &str, algorithm: Algorithm) -> bool {
        self.named(kid, algorithm).next().is_some()
    }

    /// Whether a key that the token names has signed it.
    #[must_use]
    pub fn verify(&self, jwt: &Jwt<'_>) -> bool {
        self.named(&jwt.kid, jwt.algorithm)
            .any(|key| key.public.verify(jwt.signed, &jwt.signature))
    }

    fn named<'a>(&'a self, kid: &str, algorithm: Algorithm) -> impl Iterator<Item = &'a Key> {
        self.keys
            .iter()
            .filter(move |key| key.kid == kid && key.public.algorithm() == algorithm)
    }
}

impl PublicKey {
    fn algorithm(&self) -> Algorithm {
        match self {
            Self::Rsa { .. } => Algorithm::Rs256,
            Self::P256(_) => Algorithm::Es256,
        }
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Rsa { n, e } => RsaPublicKeyComponents { n, e }
                .verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
                .is_ok(),
            // R and S side by side (RFC 7518 section 3.4).
            Self::P256(point) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                .verify(message, signature)
                .is_ok(),
        }
    }
}

fn read(key: &Map<String, Value>) -> Option<Key> {
    let text = |name: &str| key.get(name).and_then(Value::as_str);
    let is_for_signatures = key.get("use").is_none_or(|value| value == "sig");
    let verifies = |operations: &Value| {
        operations
            .as_array()
            .is_some_and(|all| all.iter().any(|one| one == "verify"))
    };
    if !is_for_signatures || !key.get("key_ops").is_none_or(verifies) {
        return None;
    }
    let kid = text("kid").filter(|kid| !kid.is_empty() && kid.chars().count() <= KID_CHARS_MAX)?;
    let number = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
    let public = match text("kty")? {
        "RSA" => {
            let (n, e) = (without_zeros(number("n")?), without_zeros(number("e")?));
            if !MODULUS_BYTES.contains(&n.len()) || !(1..=EXPONENT_BYTES_MAX).contains(&e.len()) {
                return None;
            }
            PublicKey::Rsa { n, e }
        }
        "EC" if text("crv") == Some("P-256") => {
            let (x, y) = (number("x")?, number("y")?);
            if x.len() != COORDINATE_BYTES || y.len() != COORDINATE_BYTES {
                return None;
            }
            PublicKey::P256([&[4], &x[..], &y[..]].concat())
        }
        _ => return None,
    };
    // A key that is named for another algorithm than its kind's (RFC 7517 section 4.4) is not ours to use.
    let fits = |value: &Value| value.as_str().and_then(Algorithm::parse) == Some(public.algorithm());
    key.get("alg").is_none_or(fits).then(|| Key {
        kid: kid.to_owned(),
        public,
    })
}

/// RFC 7518 section 6.3.1.1 knows of issuers that write zeros before the modulus.
fn without_zeros(number: Vec<u8>) -> Vec<u8> {
    number.into_iter().skip_while(|byte| *byte == 0).collect()
}
