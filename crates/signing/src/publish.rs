//! From a signature to what the registry holds.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use flow::Caller;
use kernel::{Digest, Repository};

use crate::SigningError;
use crate::format::{legacy, referrer};
use crate::key::PublicKey;
use crate::ports::{Descriptor, Manifest, Registry, RegistryError, RegistryReason};

/// In which formats a signature is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Formats {
    /// The Sigstore bundle as a referrer; cosign 3 and what is newer.
    pub bundle: bool,
    /// The tag `sha256-<hex>.sig`; cosign 1 and 2, Harbor, older admission controllers.
    pub legacy: bool,
}

impl Formats {
    pub const BOTH: Self = Self {
        bundle: true,
        legacy: true,
    };
    pub(crate) const NONE: Self = Self {
        bundle: false,
        legacy: false,
    };
    pub const LEGACY: Self = Self {
        bundle: false,
        legacy: true,
    };
    pub const BUNDLE: Self = Self {
        bundle: true,
        legacy: false,
    };
}

impl fmt::Display for Formats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.bundle, self.legacy) {
            (true, true) => "bundle,legacy",
            (true, false) => "bundle",
            (false, true) => "legacy",
            (false, false) => "none",
        })
    }
}

impl FromStr for Formats {
    type Err = SigningError;

    fn from_str(text: &str) -> Result<Self, SigningError> {
        let mut formats = Self {
            bundle: false,
            legacy: false,
        };
        for word in text.split(',').map(str::trim) {
            match word {
                "bundle" => formats.bundle = true,
                "legacy" => formats.legacy = true,
                other => {
                    return Err(SigningError::Request(format!(
                        "{other:?} is not a format; known are bundle and legacy"
                    )));
                }
            }
        }
        Ok(formats)
    }
}

/// Attaches a bundle to an image. Doing it twice changes nothing.
pub(crate) async fn bundle(
    registry: &dyn Registry,
    caller: Caller<'_>,
    repository: &Repository,
    subject: &Descriptor,
    bytes: Bytes,
) -> Result<(), SigningError> {
    let (descriptor, manifest) = referrer::write(subject, &bytes);
    registry
        .push_blob(caller, repository, Bytes::from_static(referrer::EMPTY_JSON))
        .await?;
    registry.push_blob(caller, repository, bytes).await?;
    kernel::crash_point("signing.pushed_blobs");
    registry
        .attach(caller, repository, subject.digest, &descriptor, manifest.into())
        .await?;
    Ok(())
}

/// Adds a legacy signature to the image's signature tag. Doing it twice changes nothing.
pub(crate) async fn legacy(
    registry: &dyn Registry,
    caller: Caller<'_>,
    repository: &Repository,
    image: Digest,
    key: &PublicKey,
    payload: Vec<u8>,
    signature: &[u8],
) -> Result<(), SigningError> {
    let tag = legacy::tag(image);
    registry
        .push_blob(caller, repository, Bytes::from(payload.clone()))
        .await?;
    let unreadable = Mutex::new(None);
    let merge = |current: Option<&Manifest>| {
        legacy::add(current, key, &payload, signature).map_err(|error| {
            let reason = RegistryReason::Malformed(error.to_string());
            *unreadable.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            RegistryError {
                operation: format!("adding a signature to the tag {tag}"),
                registry: repository.registry().to_owned(),
                reason,
            }
        })
    };
    let updated = registry.update_tag(caller, repository, &tag, &merge).await;
    // The registry answered; it is the tag's content that stands in the way.
    match unreadable.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => {
            let why = error.to_string();
            Err(SigningError::LegacyTag { tag, why })
        }
        None => match updated {
            Err(RegistryError {
                reason: reason @ (RegistryReason::Unreadable { .. } | RegistryReason::TooLarge { .. }),
                ..
            }) => {
                let why = reason.to_string();
                Err(SigningError::LegacyTag { tag, why })
            }
            updated => Ok(updated?),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_of_formats_has_its_own_name() {
        let names =
            [Formats::BOTH, Formats::BUNDLE, Formats::LEGACY, Formats::NONE].map(|own| own.to_string());
        assert_eq!(names, ["bundle,legacy", "bundle", "legacy", "none"]);
        for name in &names[..3] {
            assert_eq!(name.parse::<Formats>().unwrap().to_string(), *name);
        }
    }
}
