//! Credentials of a person: the Docker client's `config.json` and its credential helpers.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kernel::Secret;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The configuration file, in bytes; a real one has a few thousand.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// What a credential helper may print, in bytes: tokens of cloud registries have a few thousand.
const HELPER_BYTES_MAX: u64 = 64 << 10;
/// Seconds that a credential helper may take: some ask a cloud service, none asks a person.
const HELPER_SECONDS_MAX: u64 = 10;
/// How Docker names its own registry in `config.json` and to helpers.
const HUB: &str = "https://index.docker.io/v1/";

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

/// `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`: for the command line, never for a server.
#[must_use]
pub fn user_docker_config() -> Option<PathBuf> {
    let folder = std::env::var_os("DOCKER_CONFIG")
        .filter(|folder| !folder.is_empty())
        .map(PathBuf::from);
    let folder = folder.or_else(|| std::env::home_dir().map(|home| home.join(".docker")));
    folder.map(|folder| folder.join("config.json"))
}

#[derive(Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct DockerConfig {
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

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: Secret,
}

/// The login for `registry` (as references name it), if there is one. Order as in the Docker client: a
/// helper for this registry, the store for all, the file itself.
///
/// # Errors
/// A sentence, without any secret, when the file or a helper cannot be used.
pub async fn login(config: &Path, helpers: Option<&Path>, registry: &str) -> Result<Option<Login>, String> {
    let config = match read(config).await? {
        Some(config) => config,
        None => return Ok(None),
    };
    let helper = config
        .cred_helpers
        .iter()
        .find(|(key, _)| names(key, registry))
        .map(|(_, helper)| helper);
    if let Some(helper) = helper.or(config.creds_store.as_ref().filter(|store| !store.is_empty()))
        && let Some(login) = ask_helper(helper, helpers, registry).await?
    {
        return Ok(Some(login));
    }
    let entry = config
        .auths
        .into_iter()
        .find(|(key, _)| names(key, registry))
        .map(|(_, entry)| entry);
    entry.map_or(Ok(None), from_entry)
}

async fn read(path: &Path) -> Result<Option<DockerConfig>, String> {
    let file = match tokio::fs::File::open(path).await {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{} cannot be read: {error}", path.display())),
    };
    let mut bytes = Vec::new();
    let read = file.take(CONFIG_BYTES_MAX).read_to_end(&mut bytes).await;
    read.map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    // The parser's own message may quote the content, which is secret.
    let parsed = serde_json::from_slice(&bytes);
    parsed.map(Some).map_err(|error| {
        format!(
            "{} is not a Docker configuration (line {})",
            path.display(),
            error.line()
        )
    })
}

/// Whether a key of the file, which may be a URL, means this registry.
fn names(key: &str, registry: &str) -> bool {
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

/// Runs `docker-credential-<helper> get` (docker/docker-credential-helpers, "Development").
async fn ask_helper(helper: &str, folder: Option<&Path>, registry: &str) -> Result<Option<Login>, String> {
    if helper.is_empty()
        || !helper
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    {
        return Err("the Docker configuration names a credential helper that is not a plain name".to_owned());
    }
    let program = format!("docker-credential-{helper}");
    let answer = tokio::time::timeout(
        Duration::from_secs(HELPER_SECONDS_MAX),
        run(&program, folder, registry),
    );
    let (succeeded, output) = match answer.await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(format!("the credential helper {program} failed: {error}")),
        Err(_) => {
            return Err(format!(
                "the credential helper {program} took over {HELPER_SECONDS_MAX} s"
            ));
        }
    };
    if !succeeded {
        let nothing = output.expose().contains("credentials not found");
        return if nothing {
            Ok(None)
        } else {
            Err(format!("the credential helper {program} failed"))
        };
    }
    let answer: HelperAnswer = serde_json::from_str(output.expose())
        .map_err(|_| format!("the credential helper {program} printed something else than credentials"))?;
    Ok(Some(match answer.username.as_str() {
        "<token>" => Login::IdentityToken(answer.secret),
        _ => Login::Password {
            username: answer.username,
            password: answer.secret,
        },
    }))
}

/// Whether the helper succeeded, and what it printed.
async fn run(program: &str, folder: Option<&Path>, registry: &str) -> std::io::Result<(bool, Secret)> {
    let server = if names("docker.io", registry) {
        HUB
    } else {
        registry
    };
    let mut path = OsString::new();
    if let Some(folder) = folder {
        path.push(folder);
        path.push(":");
    }
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut child = tokio::process::Command::new(program)
        .arg("get")
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that needs no input may have closed it already; what counts is what it prints.
        let _ = stdin.write_all(server.as_bytes()).await;
    }
    let mut output = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(HELPER_BYTES_MAX).read_to_string(&mut output).await?;
    }
    let output = Secret::new(output);
    Ok((child.wait().await?.success(), output))
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

    #[tokio::test]
    async fn a_broken_file_is_named_and_not_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        assert!(
            login(&path, None, "r.example").await.unwrap().is_none(),
            "no file is no login"
        );
        std::fs::write(&path, r#"{"auths":{"r.example":{"auth":hunter2"#).unwrap();
        let error = login(&path, None, "r.example").await.unwrap_err();
        assert!(
            error.contains("config.json") && !error.contains("hunter2"),
            "{error}"
        );
        std::fs::write(&path, r#"{"credsStore":"../../bin/sh"}"#).unwrap();
        assert!(
            login(&path, None, "r.example")
                .await
                .unwrap_err()
                .contains("plain name")
        );
    }
}
