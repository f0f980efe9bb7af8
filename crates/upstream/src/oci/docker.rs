//! Credentials of a person: the Docker client's `config.json` and its credential helpers.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use kernel::Secret;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::login::{DockerConfig, HUB, Login, helper_answer, names};

/// The configuration file, in bytes; a real one has a few thousand.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// What a credential helper may print, in bytes: tokens of cloud registries have a few thousand.
const HELPER_BYTES_MAX: u64 = 64 << 10;
/// Seconds that a credential helper may take: some ask a cloud service, none asks a person.
const HELPER_SECONDS_MAX: u64 = 10;

/// `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`: for the command line, never for a server.
#[must_use]
pub fn user_docker_config() -> Option<PathBuf> {
    let folder = std::env::var_os("DOCKER_CONFIG")
        .filter(|folder| !folder.is_empty())
        .map(PathBuf::from);
    let folder = folder.or_else(|| std::env::home_dir().map(|home| home.join(".docker")));
    folder.map(|folder| folder.join("config.json"))
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
    if let Some(helper) = config.helper(registry)?
        && let Some(login) = ask_helper(&helper, helpers, registry).await?
    {
        return Ok(Some(login));
    }
    config.login(registry)
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
    DockerConfig::parse(&bytes)
        .map(Some)
        .map_err(|line| format!("{} is not a Docker configuration (line {line})", path.display()))
}

/// Runs `docker-credential-<helper> get` (docker/docker-credential-helpers, "Development").
async fn ask_helper(program: &str, folder: Option<&Path>, registry: &str) -> Result<Option<Login>, String> {
    let answer = tokio::time::timeout(
        Duration::from_secs(HELPER_SECONDS_MAX),
        run(program, folder, registry),
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
    match helper_answer(&output) {
        Some(login) => Ok(Some(login)),
        None => Err(format!(
            "the credential helper {program} printed something else than credentials"
        )),
    }
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
