//! What commands are given: lists of images, keys, passwords.

use std::cell::Cell;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use kernel::{Fault as _, Reference, ReferenceError, Secret, SystemClock, SystemRandom};
use serde_json::Value;
use signing::image_policy::{ImagePolicy, Root};
use signing::key::PublicKey;
use signing::trust::TrustRoot;
use signing::verify::{self, Identity, Policy};
use upstream::oci;

use crate::args::{Authority, Images, LocalRegistry};
use crate::failure::Failure;

/// The images of the command line and of its file, each parsed before anything is done.
pub fn images(own: &Images) -> Result<Vec<Reference>, Failure> {
    let mut images = own.images.clone();
    if let Some(path) = &own.from_file {
        let text = read_text(path)?;
        let lines = (1..).zip(text.lines().map(str::trim));
        for (number, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            let image = line.parse().map_err(|error: ReferenceError| {
                let what = format!("{}, line {number}: {}", path.display(), kernel::chain(&error));
                Failure::usage(what, error.hint())
            })?;
            images.push(image);
        }
    }
    if images.is_empty() {
        return Err(Failure::usage(
            "no image is named",
            "name images, or give --from-file a file that is not empty",
        ));
    }
    Ok(images)
}

/// A file, or standard input for `-`.
pub fn read_text(path: &Path) -> Result<String, Failure> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::InvalidData => Failure::content(format!("{} is no text", path.display()), &error),
        _ => Failure::file("reading", path, &error),
    };
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(failed)?;
        return Ok(text);
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// The password of a key file, from the variable that cosign reads too.
pub fn password() -> Secret {
    Secret::new(std::env::var("COSIGN_PASSWORD").unwrap_or_default())
}

/// The policy that the options describe.
pub fn policy(own: &Authority) -> Result<Policy, Failure> {
    let mut authority = verify::Authority::keys("the command line", Vec::with_capacity(own.key.len()));
    for path in &own.key {
        let key = PublicKey::from_pem(&read_text(path)?).map_err(signing::SigningError::from)?;
        authority.keys.push(key);
    }
    if let (Some(subject), Some(issuer)) = (&own.certificate_identity, &own.certificate_oidc_issuer) {
        authority.identities.push(Identity::exact(subject, issuer));
    }
    if authority.keys.is_empty() && authority.identities.is_empty() {
        let hint = "give --key cosign.pub, or --certificate-identity with --certificate-oidc-issuer";
        return Err(Failure::usage("nothing says who has to have signed", hint));
    }
    let keyless = !authority.identities.is_empty();
    authority.trust = own.trusted_root.as_deref().map(trusted_root).transpose()?;
    if authority.trust.is_none() && (keyless || !own.insecure_ignore_log) {
        let hint =
            "give --trusted-root trusted_root.json, or --insecure-ignore-log to do without a log (keys only)";
        return Err(Failure::usage("nothing says which log to believe", hint));
    }
    authority.log_required = !own.insecure_ignore_log;
    Ok(Policy::of(authority))
}

/// The image policy of a file; where it asks for a log or for certificates, `root` says which to believe, whatever
/// the policy calls it.
pub fn image_policy(file: &Path, root: Option<&Path>) -> Result<ImagePolicy, Failure> {
    let mut documents = image_policies(file)?;
    if documents.len() != 1 {
        let what = format!("{} holds {} documents", file.display(), documents.len());
        return Err(Failure::usage(what, "give a file with one image policy"));
    }
    let root = root.map(trusted_root).transpose()?;
    let asked = Cell::new(false);
    let roots = |_: Root<'_>| {
        asked.set(true);
        root.clone()
    };
    ImagePolicy::read(&documents.remove(0), &roots).map_err(|error| {
        let hint = match asked.get() && root.is_none() {
            true => "the policy asks for a log: give --trusted-root trusted_root.json",
            false => {
                "correct the field that the message names; `portcullis explain PC1211` says which are known"
            }
        };
        Failure::from(error).with_hint(hint)
    })
}

/// The documents of a file with image policies, YAML or JSON; at least one.
pub fn image_policies(file: &Path) -> Result<Vec<Value>, Failure> {
    let text = read_text(file)?;
    // JSON is YAML.
    let mut documents: Vec<Value> = serde_saphyr::from_multiple(&text)
        .map_err(|error| Failure::content(format!("{} is no YAML", file.display()), &error))?;
    // Nothing between two lines of dashes is no document.
    documents.retain(|document| !document.is_null());
    if documents.is_empty() {
        let what = format!("{} holds no image policy", file.display());
        return Err(Failure::usage(what, "give a file with a ClusterImagePolicy"));
    }
    Ok(documents)
}

fn trusted_root(path: &Path) -> Result<Arc<TrustRoot>, Failure> {
    Ok(Arc::new(TrustRoot::from_json(&read_text(path)?)?))
}

/// The registries' client of a person: their Docker configuration.
pub fn registry(own: &LocalRegistry) -> Result<oci::Client, Failure> {
    let mut config = oci::Config {
        docker_config: oci::user_docker_config(),
        ..oci::Config::default()
    };
    for host in &own.allow_plain_http {
        let plain = oci::RegistryConfig {
            plain_http: Some(true),
            ..oci::RegistryConfig::default()
        };
        config.registries.insert(host.clone(), plain);
    }
    Ok(oci::Client::new(
        config,
        Arc::new(SystemClock::new()),
        Arc::new(SystemRandom),
    )?)
}

/// A time as it is written, or so long before `now`.
pub fn moment(flag: &str, text: &str, now: Timestamp) -> Result<String, Failure> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at.to_string());
    }
    let ago = text
        .parse::<SignedDuration>()
        .ok()
        .filter(|ago| !ago.is_negative());
    let at = ago.and_then(|ago| now.checked_sub(ago).ok());
    at.map(|at| at.to_string()).ok_or_else(|| {
        Failure::usage(
            format!("{flag} {text:?} is neither a time nor how long ago"),
            "write 2026-01-31T12:00:00Z, or 30m, 24h",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_one_or_how_long_ago() {
        let now: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        let read = |text| moment("--since", text, now).map_err(|failure| failure.exit());
        assert_eq!(read("2026-01-30T00:00:00+01:00").unwrap(), "2026-01-29T23:00:00Z");
        assert_eq!(read("24h").unwrap(), "2026-01-30T12:00:00Z");
        assert_eq!(read("1h 30m").unwrap(), "2026-01-31T10:30:00Z");
        for wrong in ["yesterday", "", "-1h", "24"] {
            assert_eq!(read(wrong), Err(crate::failure::USAGE), "{wrong}");
        }
    }
}
