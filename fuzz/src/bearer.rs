//! What callers show to be known, and what the issuers of their tokens publish.

use access::oidc::discovery;
use access::oidc::keys::KeySet;
use access::oidc::token::{Algorithm, Jwt, TOKEN_BYTES_MAX};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{assert_short, text};

/// The issuer that [`issuer_description`] asks.
pub const ISSUER: &str = "https://ci.example";
/// A key that nobody has: the points of RFC 7515 appendix A.3, without what signed there.
pub const KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"k1","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;

/// Keys are on the issuer's own host, or nowhere.
pub fn issuer_description(bytes: &[u8]) {
    let issuer = discovery::issuer(ISSUER).expect("a constant");
    if let Ok(url) = discovery::keys_address(bytes, ISSUER, &issuer) {
        assert_eq!(url.origin(), issuer.origin());
    }
    let _ = discovery::issuer(text(bytes)).map(|url| discovery::description(&url));
}

/// A set verifies nothing that nobody signed.
pub fn issuer_keys(bytes: &[u8]) {
    let Ok(keys) = KeySet::parse(bytes) else { return };
    for algorithm in ["RS256", "ES256"] {
        let header = format!(r#"{{"alg":"{algorithm}","kid":"k1"}}"#);
        let token = compact(header.as_bytes(), br#"{"iss":"a","sub":"b","aud":"c","exp":1}"#);
        let jwt = Jwt::parse(&token).expect("a token");
        assert!(!keys.verify(&jwt));
        assert_eq!(Algorithm::parse(algorithm), Some(jwt.algorithm));
    }
}

/// A token of ours reads back.
pub fn token(bytes: &[u8]) {
    if let Ok(token) = access::TokenText::parse(text(bytes)) {
        assert_eq!(token.expose(), text(bytes));
    }
}

/// A token as it comes, and one whose header and payload are the two lines of the input.
pub fn workload_token(bytes: &[u8]) {
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(bytes.len());
    let (header, payload) = bytes.split_at(end);
    let keys = KeySet::parse(KEYS.as_bytes()).expect("a constant");
    for token in [text(bytes), &compact(header, payload)] {
        match Jwt::parse(token) {
            Ok(jwt) => {
                assert!(token.len() <= TOKEN_BYTES_MAX);
                assert!(!keys.verify(&jwt), "nobody signed it");
                let _ = jwt.claims.require_current(jiff::Timestamp::UNIX_EPOCH);
            }
            Err(error) => assert_short(&error.to_string()),
        }
    }
}

fn compact(header: &[u8], payload: &[u8]) -> String {
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    format!("{}.{}.{}", part(header), part(payload), part(&[7; 64]))
}
