//! Where an issuer publishes its keys (OpenID Connect Discovery 1.0, sections 4.1 to 4.3).

use serde_json::Value;
use url::{Host, Url};

use super::json;

/// Bytes of an issuer's own description; those of GitHub and GitLab have some two thousand.
pub const DESCRIPTION_BYTES_MAX: usize = 64 << 10;
/// Characters of an issuer's address.
const ISSUER_CHARS_MAX: usize = 200;

/// The address of an issuer, if it may be one: `https`, or plain HTTP at a loopback address, and nothing but host, port
/// and path.
///
/// # Errors
/// What is wrong with it.
pub fn issuer(text: &str) -> Result<Url, &'static str> {
    let url = Url::parse(text).map_err(|_| "issuer is not an address")?;
    let loopback = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        _ => false,
    };
    if text.len() > ISSUER_CHARS_MAX {
        return Err("issuer is longer than 200 characters");
    }
    if url.scheme() != "https" && !(url.scheme() == "http" && loopback) {
        return Err("issuer is neither https nor plain HTTP at a loopback address");
    }
    let bare = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    if !bare || url.password().is_some() {
        return Err("issuer has more than host, port and path");
    }
    Ok(url)
}

/// Where an issuer describes itself (section 4).
#[must_use]
pub fn description(issuer: &Url) -> Url {
    let mut url = issuer.clone();
    let path = format!(
        "{}/.well-known/openid-configuration",
        issuer.path().trim_end_matches('/')
    );
    url.set_path(&path);
    url
}

/// Where its keys are, from the issuer's description. It has to be of this very issuer (section 4.3), and the keys on
/// its own host: otherwise whoever answers for it once could send us anywhere.
///
/// # Errors
/// What is wrong with the description.
pub fn keys_address(bytes: &[u8], text: &str, issuer: &Url) -> Result<Url, &'static str> {
    if bytes.len() > DESCRIPTION_BYTES_MAX {
        return Err("its description is longer than 64 KiB");
    }
    let object = json::object(bytes).map_err(|_| "its description is not a JSON object")?;
    if object.get("issuer").and_then(Value::as_str) != Some(text) {
        return Err("its description is that of another issuer");
    }
    let url = object
        .get("jwks_uri")
        .and_then(Value::as_str)
        .and_then(|text| Url::parse(text).ok())
        .ok_or("its description has no jwks_uri")?;
    if url.origin() != issuer.origin() || !url.username().is_empty() || url.password().is_some() {
        return Err("its jwks_uri is on another host");
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_is_https_or_here() {
        for good in [
            "https://token.actions.githubusercontent.com",
            "https://gitlab.example:8443/sub",
            "http://127.0.0.1:1",
            "http://[::1]:1",
        ] {
            assert!(issuer(good).is_ok(), "{good}");
        }
        for wrong in [
            "gitlab.com",
            "http://gitlab.example",
            "http://localhost:1",
            "http://10.0.0.1",
            "https://u@gitlab.example",
            "https://u:p@gitlab.example",
            "https://gitlab.example?x",
            "https://gitlab.example#x",
            "file:///etc/passwd",
            "",
        ] {
            assert!(issuer(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn keys_are_where_the_issuer_itself_is() {
        let text = "https://gitlab.example/sub/";
        let url = issuer(text).unwrap();
        let path = "https://gitlab.example/sub/.well-known/openid-configuration";
        assert_eq!(description(&url).as_str(), path);
        let read = |issuer: &str, keys: &str| {
            let json = format!(r#"{{"issuer":"{issuer}","jwks_uri":"{keys}","x":[1]}}"#);
            keys_address(json.as_bytes(), text, &url)
        };
        assert!(read(text, "https://gitlab.example/keys").is_ok());
        for keys in [
            "http://gitlab.example/keys",
            "https://gitlab.example:444/keys",
            "https://evil.example/keys",
            "https://u@gitlab.example/keys",
            "https://169.254.169.254/keys",
            "keys",
        ] {
            assert!(read(text, keys).is_err(), "{keys}");
        }
        for other in ["https://gitlab.example/sub", "https://evil.example", ""] {
            assert!(read(other, "https://gitlab.example/keys").is_err(), "{other}");
        }
    }
}
