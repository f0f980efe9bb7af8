//! Signing without a server: a key file, a registry, nothing else.

use bytes::Bytes;
use flow::Caller;
use jiff::Timestamp;
use kernel::{Digest, Reference};

use crate::format::{self, Annotations};
use crate::key::Signer;
use crate::ports::Registry;
use crate::sign::require_sane;
use crate::verify::{Policy, survey};
use crate::{Formats, SigningError, publish, resolve};

/// One image that is signed now.
#[derive(Debug, Clone)]
pub struct LocallySigned {
    pub image: Reference,
    pub digest: Digest,
    /// Whether this key's signature was there already.
    pub deduplicated: bool,
}

/// Signs an image, and with `recursive` every manifest under it. Without a server there is no log: what is written
/// verifies where the policy asks for none. An image that carries this key's signature in the wanted formats is left
/// as it is.
///
/// # Errors
/// Those of the registry and the key.
pub async fn sign(
    registry: &dyn Registry,
    signer: &dyn Signer,
    image: &Reference,
    annotations: &Annotations,
    recursive: bool,
    formats: Formats,
    now: Timestamp,
) -> Result<Vec<LocallySigned>, SigningError> {
    require_sane(annotations)?;
    let repository = image.repository();
    let mut signed = Vec::new();
    for subject in resolve::subjects(registry, Caller::LOCAL, image, recursive).await? {
        let own =
            Policy::keys("own key", vec![signer.public_key().clone()]).with_annotations(annotations.clone());
        let report = survey(registry, Caller::LOCAL, repository, subject.digest, &own, now).await?;
        let missing = Formats {
            bundle: formats.bundle && !report.accepted_in("bundle"),
            legacy: formats.legacy && !report.accepted_in("legacy"),
        };
        if missing.bundle {
            let statement = format::statement::write(&[subject.digest], annotations);
            let pae = format::dsse::pae(format::dsse::IN_TOTO, &statement);
            let signature = sign_bytes(signer, &pae).await?;
            let bytes = Bytes::from(format::bundle::write(
                signer.public_key(),
                &statement,
                &signature,
                None,
            ));
            publish::bundle(registry, Caller::LOCAL, repository, &subject, bytes).await?;
        }
        if missing.legacy {
            let payload = format::legacy::payload(repository, subject.digest, annotations);
            let signature = sign_bytes(signer, &payload).await?;
            let key = signer.public_key();
            publish::legacy(
                registry,
                Caller::LOCAL,
                repository,
                subject.digest,
                key,
                payload,
                &signature,
            )
            .await?;
        }
        let deduplicated = !missing.bundle && !missing.legacy;
        signed.push(LocallySigned {
            image: repository.at(subject.digest),
            digest: subject.digest,
            deduplicated,
        });
    }
    Ok(signed)
}

async fn sign_bytes(signer: &dyn Signer, message: &[u8]) -> Result<Vec<u8>, SigningError> {
    let signed = signer.sign(Digest::of(message)).await;
    signed.map_err(|source| SigningError::Sign {
        name: "from the file".to_owned(),
        source,
    })
}
