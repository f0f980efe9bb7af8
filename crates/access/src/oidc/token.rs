//! The form of a workload's token: a JSON Web Token (RFC 7519) in compact serialisation (RFC 7515 section 7.1).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use kernel::words;
use serde_json::{Map, Value};

use super::{OidcError, json};

/// Bytes of a token: those of GitHub and GitLab have two to three thousand.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;
/// Characters of a key's id; issuers use digests and UUIDs.
pub const KID_CHARS_MAX: usize = 256;
/// Audiences of one token; it is made for one place, or few.
const AUDIENCES_MAX: usize = 16;
/// Seconds by which the issuer's clock and ours may differ.
pub const SKEW_SECONDS_MAX: i64 = 60;

/// The signatures that are taken (RFC 7518 section 3.1): what GitHub and GitLab use, and its like on a curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
}

impl Algorithm {
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "RS256" => Some(Self::Rs256),
            "ES256" => Some(Self::Es256),
            _ => None,
        }
    }
}

/// A token that reads as one; nothing of it is true yet.
#[derive(Debug)]
pub struct Jwt<'a> {
    pub algorithm: Algorithm,
    pub kid: String,
    pub claims: Claims,
    /// What the signature is over: header and payload as they were sent.
    pub signed: &'a [u8],
    pub signature: Vec<u8>,
}

/// What a token says of its bearer.
#[derive(Debug)]
pub struct Claims {
    pub issuer: String,
    pub subject: String,
    pub audiences: Vec<String>,
    /// Seconds since 1970.
    pub expires_at: i64,
    pub not_before: Option<i64>,
    pub issued_at: Option<i64>,
    /// Everything.
    pub members: Map<String, Value>,
}

/// Whether a bearer's text is meant as a JSON Web Token: those have dots, our own tokens have none.
#[must_use]
pub fn is_jwt(text: &str) -> bool {
    text.contains('.')
}

impl<'a> Jwt<'a> {
    /// Takes a token apart.
    ///
    /// # Errors
    /// [`OidcError::Malformed`] or [`OidcError::Algorithm`].
    pub fn parse(text: &'a str) -> Result<Self, OidcError> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(OidcError::Malformed("it is longer than 8 KiB"));
        }
        let Some((signed, signature)) = text.rsplit_once('.') else {
            return Err(OidcError::Malformed("it has no parts"));
        };
        let Some((header, payload)) = signed.split_once('.').filter(|(_, rest)| !rest.contains('.')) else {
            return Err(OidcError::Malformed("it does not have three parts"));
        };
        let header = json::object(&decode(header)?).map_err(OidcError::Malformed)?;
        let (algorithm, kid) = read_header(&header)?;
        let members = json::object(&decode(payload)?).map_err(OidcError::Malformed)?;
        Ok(Self {
            algorithm,
            kid,
            claims: Claims::read(members).map_err(OidcError::Malformed)?,
            signed: signed.as_bytes(),
            signature: decode(signature)?,
        })
    }
}

fn decode(part: &str) -> Result<Vec<u8>, OidcError> {
    // Strict: no padding, no other alphabet, no stray bits (RFC 7515 section 2).
    let decoded = URL_SAFE_NO_PAD.decode(part);
    decoded.map_err(|_| OidcError::Malformed("a part is not base64url"))
}

/// The algorithm and the key's id (RFC 7515 section 4.1). Keys that a header brings along (`jwk`, `jku`, `x5c`, `x5u`)
/// are never looked at.
fn read_header(header: &Map<String, Value>) -> Result<(Algorithm, String), OidcError> {
    let text = |name: &str| header.get(name).and_then(Value::as_str);
    let Some(named) = text("alg") else {
        return Err(OidcError::Malformed("its header has no alg"));
    };
    let algorithm = Algorithm::parse(named).ok_or_else(|| OidcError::Algorithm(words(named)))?;
    if header.contains_key("crit") {
        return Err(OidcError::Malformed(
            "its header has extensions that are not known here",
        ));
    }
    let is_jwt = |typ: &str| typ.eq_ignore_ascii_case("JWT");
    if header.contains_key("typ") && !text("typ").is_some_and(is_jwt) {
        return Err(OidcError::Malformed("its typ is not JWT"));
    }
    match text("kid") {
        Some(kid) if !kid.is_empty() && kid.chars().count() <= KID_CHARS_MAX => {
            Ok((algorithm, kid.to_owned()))
        }
        _ => Err(OidcError::Malformed(
            "its header has no kid of 1 to 256 characters",
        )),
    }
}

impl Claims {
    fn read(members: Map<String, Value>) -> Result<Self, &'static str> {
        let text = |name: &str| members.get(name).and_then(Value::as_str).map(str::to_owned);
        let audiences = match members.get("aud") {
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(many)) if (1..=AUDIENCES_MAX).contains(&many.len()) => many
                .iter()
                .map(|one| one.as_str().map(str::to_owned))
                .collect::<Option<_>>()
                .ok_or("its aud is not made of texts")?,
            _ => return Err("its aud is neither a text nor a list of 1 to 16 texts"),
        };
        let seconds = |name: &str| match members.get(name) {
            None => Ok(None),
            Some(value) => value.as_i64().map(Some).ok_or("a time is not in whole seconds"),
        };
        Ok(Self {
            issuer: text("iss").ok_or("it has no iss")?,
            subject: text("sub").ok_or("it has no sub")?,
            audiences,
            expires_at: seconds("exp")?.ok_or("it has no exp")?,
            not_before: seconds("nbf")?,
            issued_at: seconds("iat")?,
            members,
        })
    }

    /// Whether the token may be used at `now` (RFC 7519 section 4.1.4 to 4.1.6).
    ///
    /// # Errors
    /// [`OidcError::Ended`] or [`OidcError::Early`].
    pub fn require_current(&self, now: Timestamp) -> Result<(), OidcError> {
        let seconds = now.as_second();
        if self.expires_at.saturating_add(SKEW_SECONDS_MAX) <= seconds {
            return Err(OidcError::Ended {
                at: timestamp(self.expires_at),
            });
        }
        let begins = self.not_before.max(self.issued_at).unwrap_or(i64::MIN);
        if begins.saturating_sub(SKEW_SECONDS_MAX) > seconds {
            return Err(OidcError::Early {
                at: timestamp(begins),
            });
        }
        Ok(())
    }
}

pub(super) fn timestamp(seconds: i64) -> Timestamp {
    let beyond = if seconds < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    };
    Timestamp::from_second(seconds).unwrap_or(beyond)
}
