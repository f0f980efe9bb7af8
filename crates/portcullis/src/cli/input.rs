//! What commands are given: lists of images, keys, passwords.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use kernel::{Reference, Secret, SystemClock, SystemRandom};
use signing::key::PublicKey;
use signing::trust::TrustRoot;
use signing::verify::{Identity, Policy};
use upstream::oci;

use crate::args::{Authority, Images, LocalRegistry};
use crate::failure::Failure;

/// The images of the command line and of its file, each parsed before anything is done.
pub fn images(own: &Images) -> Result<Vec<Reference>, Failure> {
    let mut texts = own.images.clone();
    if let Some(path) = &own.from_file {
        let lines = read_text(path)?;
        let lines = lines
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        texts.extend(lines.map(str::to_owned));
    }
    if texts.is_empty() {
        return Err(Failure::usage(
            "no image is named",
            "name images, or give --from-file a file that is not empty",
        ));
    }
    texts
        .iter()
        .map(|text| text.parse().map_err(Failure::from))
        .collect()
}

/// A file, or standard input for `-`.
pub fn read_text(path: &Path) -> Result<String, Failure> {
    let failed = |error: std::io::Error| Failure::local(format!("reading {}", path.display()), &error);
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
pub fn policy(own: &Authority, annotations: &[(String, String)]) -> Result<Policy, Failure> {
    let mut keys = Vec::with_capacity(own.key.len());
    for path in &own.key {
        keys.push(PublicKey::from_pem(&read_text(path)?).map_err(signing::SigningError::from)?);
    }
    let mut policy =
        Policy::keys("the command line", keys).with_annotations(annotations.iter().cloned().collect());
    if let (Some(identity), Some(issuer)) = (&own.certificate_identity, &own.certificate_oidc_issuer) {
        policy.identities.push(Identity {
            identity: identity.clone(),
            issuer: issuer.clone(),
        });
    }
    if policy.keys.is_empty() && policy.identities.is_empty() {
        let hint = "give --key cosign.pub, or --certificate-identity with --certificate-oidc-issuer";
        return Err(Failure::usage("nothing says who has to have signed", hint));
    }
    match &own.trusted_root {
        Some(path) => policy = policy.with_log(Arc::new(TrustRoot::from_json(&read_text(path)?)?)),
        None if !policy.identities.is_empty() || !own.insecure_ignore_log => {
            let hint = "give --trusted-root trusted_root.json, or --insecure-ignore-log to do without a log (keys only)";
            return Err(Failure::usage("nothing says which log to believe", hint));
        }
        None => {}
    }
    if own.insecure_ignore_log {
        policy.log_required = false;
    }
    Ok(policy)
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
