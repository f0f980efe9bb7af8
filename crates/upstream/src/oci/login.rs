//! Whose credentials a Docker client's files and helpers hold. Pure: [`super::docker`] reads and runs them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kernel::Secret;

/// How Docker names its own registry in `config.json` and to helpers.
pub const HUB: &str = "https://index.docker.io/v1/";

/// How to log in.
#[derive(Debug, Clone)]
pub enum Login {
    Password {
        username: String,
        password: Secret,
    },
    /// An OAuth2 refresh token (`identitytoken`).
    IdentityToken(Secret),
}

/// The `config.json` of a Docker client (docker/cli, `config/configfile`), as far as it is about credentials.
#[derive(Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DockerConfig {
    auths: BTreeMap<String, AuthEntry>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct AuthEntry {
    auth: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    identitytoken: Option<Secret>,
}

impl DockerConfig {
    /// # Errors
    /// The line that does not read. Not the parser's own message: it may quote the content, which is secret.
    pub fn parse(bytes: &[u8]) -> Result<Self, usize> {
        serde_json::from_slice(bytes).map_err(|error| error.line())
    }

    /// The program that is asked for the login of `registry` (as references name it), if one is: the helper
    /// for this registry, else the store for all. `docker-credential-<helper>`.
    ///
    /// # Errors
    /// A sentence when the helper has a name that could lead to another folder.
    pub fn helper(&self, registry: &str) -> Result<Option<String>, String> {
        let own = self.cred_helpers.iter().find(|(key, _)| names(key, registry));
        let helper = own.map(|(_, helper)| helper);
        let Some(helper) = helper.or(self.creds_store.as_ref().filter(|store| !store.is_empty())) else {
            return Ok(None);
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if helper.is_empty() || !helper.bytes().all(plain) {
            return Err(
                "the Docker configuration names a credential helper that is not a plain name".to_owned(),
            );
        }
        Ok(Some(format!("docker-credential-{helper}")))
    }

    /// The login for `registry` (as references name it) in the file itself, if there is one.
    ///
    /// # Errors
    /// A sentence, without any secret, when it does not read.
    pub fn login(self, registry: &str) -> Result<Option<Login>, String> {
        let mut entries = self.auths.into_iter();
        let entry = entries.find(|(key, _)| names(key, registry));
        entry.map_or(Ok(None), |(_, entry)| from_entry(entry))
    }
}

/// Whether a key of the file, which may be a URL, means this registry.
pub fn names(key: &str, registry: &str) -> bool {
    let host = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let host = host.split('/').next().unwrap_or_default();
    let hub = |host: &str| matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io");
    host == registry || (hub(host) && hub(registry))
}

fn from_entry(entry: AuthEntry) -> Result<Option<Login>, String> {
    if let Some(token) = entry.identitytoken.filter(|token| !token.expose().is_empty()) {
        return Ok(Some(Login::IdentityToken(token)));
    }
    if let (Some(username), Some(password)) = (entry.username, entry.password) {
        return Ok(Some(Login::Password { username, password }));
    }
    let Some(auth) = entry.auth.filter(|auth| !auth.expose().is_empty()) else {
        return Ok(None);
    };
    let wrong = || "an `auth` of the Docker configuration is not base64 of user:password".to_owned();
    let text = STANDARD
        .decode(auth.expose().trim())
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    let text = Secret::new(text.ok_or_else(wrong)?);
    let (username, password) = text.expose().split_once(':').ok_or_else(wrong)?;
    let password = Secret::new(password.trim_end_matches('\0').to_owned());
    Ok(Some(Login::Password {
        username: username.to_owned(),
        password,
    }))
}

/// What a credential helper prints when it knows the login (docker/docker-credential-helpers, "Development").
/// `None` when it is something else: the parser's own message may quote it, so there is none.
#[must_use]
pub fn helper_answer(output: &Secret) -> Option<Login> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: Secret,
    }
    let answer: Answer = serde_json::from_str(output.expose()).ok()?;
    Some(match answer.username.as_str() {
        "<token>" => Login::IdentityToken(answer.secret),
        _ => Login::Password {
            username: answer.username,
            password: answer.secret,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_the_file_name_registries_in_many_ways() {
        for key in [
            "r.example:5000",
            "https://r.example:5000",
            "http://r.example:5000/v2/",
            "r.example:5000/v1",
        ] {
            assert!(names(key, "r.example:5000"), "{key}");
            assert!(!names(key, "r.example"), "{key}");
            assert!(!names(key, "evil.r.example:5000"), "{key}");
        }
        assert!(names(HUB, "index.docker.io") && names("docker.io", "index.docker.io"));
        assert!(!names(HUB, "r.example"));
    }
}
