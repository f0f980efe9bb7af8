//! One look at one image: its list of referrers, its signature tag, and what they hold.

use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::Bytes;
use flow::Caller;
use futures::future::{Either, select};
use jiff::Timestamp;
use kernel::limits::SIGNATURE_BLOB_BYTES_MAX;
use kernel::{Digest, Reference, Repository};
use serde::Deserialize;
use tokio::time::{Sleep, sleep};

use super::gather::in_order;
use super::report::Accepted;
use super::{Candidate, Policy, Rejected, Report, check};
use crate::SigningError;
use crate::format::{bundle, legacy};
use crate::ports::{Descriptor, Manifest, Registry, RegistryError, RegistryReason};

/// What reading the candidates of one image may take: under the 60 s at which proxies and CI steps give up, with room
/// for the list itself.
pub(super) const LOOK_TIME_MAX: Duration = Duration::from_secs(50);

/// One look at one image.
pub(super) struct Look<'a> {
    pub registry: &'a dyn Registry,
    pub caller: Caller<'a>,
    pub repository: &'a Repository,
    pub digest: Digest,
    pub policy: &'a Policy,
    pub now: Timestamp,
    /// Also behind the first candidate that counts.
    pub to_the_end: bool,
    pub time_max: Duration,
}

/// Where a candidate is.
enum Place {
    Referrer(Descriptor),
    Layer(Descriptor),
}

/// What matters of a referrer's manifest. The list entry's own artifact type is not to be trusted: registries and
/// cosign's fallback tag fill it with other things.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReferrerManifest {
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    subject: Option<Descriptor>,
}

/// The reason of a candidate that is not there.
const GONE: &str = "gone";

/// What was read, or why it is no signature, or that it could not be asked for; see the top of this module.
fn read<T>(answer: Result<T, RegistryError>, what: &str) -> Result<Result<T, Rejected>, SigningError> {
    let error = match answer {
        Ok(read) => return Ok(Ok(read)),
        Err(error) => error,
    };
    let rejected = match &error.reason {
        // A list may name what was deleted since.
        RegistryReason::NotFound => Rejected::new(GONE, format!("the registry does not have {what}")),
        RegistryReason::TooLarge { name, bytes_max } => {
            Rejected::new("too-large", format!("{what} is over {name} of {bytes_max} bytes"))
        }
        RegistryReason::Unreadable { why, .. } => {
            Rejected::new("malformed", format!("{what} does not read: {why}"))
        }
        _ => return Err(error.into()),
    };
    Ok(Err(rejected))
}

impl Look<'_> {
    /// Reads and decides.
    ///
    /// # Errors
    /// If anything could not be asked, or not in time.
    pub async fn report(&self) -> Result<Report, SigningError> {
        let mut deadline = pin!(sleep(self.time_max));
        let mut report = Report::new(self.repository.at(self.digest), self.policy);
        let (caller, repository) = (self.caller, self.repository);
        let referrers = self.registry.referrers(caller, repository, self.digest).await?;
        let places = referrers.into_iter().map(Place::Referrer).collect();
        self.candidates(places, &mut report, deadline.as_mut()).await?;
        if !self.ends(&report) {
            let layers = match select(pin!(self.layers()), deadline.as_mut()).await {
                Either::Left((layers, _)) => layers?,
                Either::Right(_) => return Err(self.slow(&report, 1)),
            };
            match layers {
                Ok(layers) => {
                    let places = layers.into_iter().map(Place::Layer).collect();
                    self.candidates(places, &mut report, deadline.as_mut()).await?;
                }
                Err(candidate) => report.candidates.push(candidate),
            }
        }
        if report.candidates.is_empty() {
            // Of an image that is not there, or that may not be seen, nothing is known: an error, not "unsigned".
            let image = repository.at(self.digest);
            self.registry.manifest(caller, &image).await?;
        }
        report.conclude();
        Ok(report)
    }

    /// Whether there is nothing left to find out: each candidate costs two calls to the registry.
    fn ends(&self, report: &Report) -> bool {
        report.candidates.iter().any(|candidate| self.enough(candidate))
    }

    fn enough(&self, candidate: &Candidate) -> bool {
        !self.to_the_end && candidate.outcome.is_ok()
    }

    /// The registry was too slow, with `unread` candidates left.
    fn slow(&self, report: &Report, unread: usize) -> SigningError {
        let read = report.candidates.len();
        SigningError::Slow {
            image: Box::new(self.repository.at(self.digest)),
            read,
            of: read + unread,
            seconds: self.time_max.as_secs(),
        }
    }

    /// Adds what is at `places` to the report.
    async fn candidates(
        &self,
        places: Vec<Place>,
        report: &mut Report,
        deadline: Pin<&mut Sleep>,
    ) -> Result<(), SigningError> {
        let count = places.len();
        let enough = |candidate: &Candidate| self.enough(candidate);
        let (read, in_time) = in_order(places, |place| self.candidate(place), enough, deadline).await?;
        let unread = count - read.len();
        report.candidates.extend(read);
        if in_time || self.ends(report) {
            Ok(())
        } else {
            Err(self.slow(report, unread))
        }
    }

    async fn candidate(&self, place: Place) -> Result<Candidate, SigningError> {
        let (candidate, outcome) = match place {
            Place::Referrer(referrer) => (
                Candidate::new("bundle", referrer.digest),
                self.bundle(&referrer).await?,
            ),
            Place::Layer(layer) => (
                Candidate::new("legacy", layer.digest),
                self.blob(layer.digest).await?.and_then(|payload| {
                    check::check_legacy(&payload, &layer.annotations, self.digest, self.policy, self.now)
                }),
            ),
        };
        Ok(match outcome {
            Ok(accepted) => candidate.accepted(accepted),
            Err(rejected) => candidate.rejected(rejected),
        })
    }

    async fn manifest(&self, reference: &Reference) -> Result<Result<Manifest, Rejected>, SigningError> {
        read(
            self.registry.manifest(self.caller, reference).await,
            "its manifest",
        )
    }

    async fn blob(&self, digest: Digest) -> Result<Result<Bytes, Rejected>, SigningError> {
        let blob = self
            .registry
            .blob(self.caller, self.repository, digest, SIGNATURE_BLOB_BYTES_MAX)
            .await;
        read(blob, "its content")
    }

    async fn bundle(&self, referrer: &Descriptor) -> Result<Result<Accepted, Rejected>, SigningError> {
        let manifest = match self.manifest(&self.repository.at(referrer.digest)).await? {
            Ok(manifest) => manifest,
            Err(rejected) => return Ok(Err(rejected)),
        };
        let Ok(read) = serde_json::from_slice::<ReferrerManifest>(&manifest.bytes) else {
            return Ok(Err(Rejected::new("malformed", "its manifest does not read")));
        };
        if read.subject.is_none_or(|subject| subject.digest != self.digest) {
            return Ok(Err(Rejected::new(
                "other-subject",
                "its manifest refers to another image",
            )));
        }
        let is_bundle = |kind: &str| kind.starts_with(bundle::MEDIA_TYPE_PREFIX);
        let Some(layer) = read.layers.iter().find(|layer| is_bundle(&layer.media_type)) else {
            let kind = read
                .artifact_type
                .unwrap_or_else(|| "nothing that says what".to_owned());
            return Ok(Err(Rejected::new("not-a-signature", format!("it is {kind}"))));
        };
        let blob = self.blob(layer.digest).await?;
        Ok(blob.and_then(|blob| check::check_bundle(&blob, self.digest, self.policy, self.now)))
    }

    /// The layers of the signature tag, none where there is no tag; or the tag itself as a rejected candidate.
    async fn layers(&self) -> Result<Result<Vec<Descriptor>, Candidate>, SigningError> {
        let tag = legacy::tag(self.digest);
        let manifest = match self.manifest(&self.repository.tagged(&tag)).await? {
            Ok(manifest) => manifest,
            Err(rejected) if rejected.reason == GONE => return Ok(Ok(Vec::new())),
            Err(rejected) => {
                // Nobody named its digest: the image's stands for that of its tag.
                let rejected = Rejected::new(rejected.reason, format!("the tag {tag}: {}", rejected.detail));
                return Ok(Err(Candidate::new("legacy", self.digest).rejected(rejected)));
            }
        };
        let rejected = |error: legacy::LegacyError| {
            let rejected = Rejected::new("malformed", error.to_string());
            Candidate::new("legacy", manifest.digest).rejected(rejected)
        };
        Ok(legacy::layers(&manifest).map_err(rejected))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use async_trait::async_trait;
    use kernel::Fault as _;

    use super::*;
    use crate::format::{Annotations, dsse, referrer, statement};
    use crate::key::{LocalSigner, Signer as _};
    use crate::ports::Merge;

    /// A registry with many referrers, of which some never answer.
    struct Slow {
        listed: Vec<Descriptor>,
        manifests: HashMap<Digest, Bytes>,
        blob: Bytes,
    }

    #[async_trait]
    impl Registry for Slow {
        async fn manifest(&self, _: Caller<'_>, image: &Reference) -> Result<Manifest, RegistryError> {
            let Some(digest) = image.digest() else {
                return Err(RegistryError {
                    operation: "reading".to_owned(),
                    registry: "r.example".to_owned(),
                    reason: RegistryReason::NotFound,
                });
            };
            let Some(bytes) = self.manifests.get(&digest).cloned() else {
                return std::future::pending().await;
            };
            sleep(Duration::from_millis(1)).await;
            let media_type = referrer::IMAGE_MANIFEST.to_owned();
            Ok(Manifest {
                media_type,
                digest,
                bytes,
            })
        }

        async fn blob(
            &self,
            _: Caller<'_>,
            _: &Repository,
            _: Digest,
            _: usize,
        ) -> Result<Bytes, RegistryError> {
            Ok(self.blob.clone())
        }

        async fn referrers(
            &self,
            _: Caller<'_>,
            _: &Repository,
            _: Digest,
        ) -> Result<Vec<Descriptor>, RegistryError> {
            Ok(self.listed.clone())
        }

        async fn push_blob(&self, _: Caller<'_>, _: &Repository, _: Bytes) -> Result<(), RegistryError> {
            Ok(())
        }

        async fn attach(
            &self,
            _: Caller<'_>,
            _: &Repository,
            _: Digest,
            _: &Descriptor,
            _: Bytes,
        ) -> Result<(), RegistryError> {
            Ok(())
        }

        async fn update_tag(
            &self,
            _: Caller<'_>,
            _: &Repository,
            _: &str,
            _: &Merge<'_>,
        ) -> Result<(), RegistryError> {
            Ok(())
        }
    }

    /// Looks at an image with twenty referrers, of which the third hangs and the tenth is its signature.
    async fn outcome(signer: &LocalSigner, to_the_end: bool, own: bool) -> Result<Report, SigningError> {
        let digest = Digest::of(b"image");
        let statement = statement::write(&[digest], &Annotations::new());
        let pae = dsse::pae(dsse::IN_TOTO, &statement);
        let signature = signer.sign_now(Digest::of(&pae)).unwrap();
        let bytes = bundle::write(signer.public_key(), &statement, &signature, None);
        let descriptor = |digest| Descriptor {
            media_type: referrer::IMAGE_MANIFEST.to_owned(),
            digest,
            size: 1,
            artifact_type: None,
            annotations: BTreeMap::new(),
        };
        let (signed, manifest) = referrer::write(&descriptor(digest), &bytes);
        let mut listed: Vec<_> = (0..20_u8).map(|at| descriptor(Digest::of(&[at]))).collect();
        listed[9] = signed;
        let mut manifests = HashMap::from([(listed[9].digest, Bytes::from(manifest))]);
        for (at, other) in listed.iter().enumerate() {
            if at != 2 && at != 9 {
                manifests.insert(other.digest, Bytes::from_static(b"{}"));
            }
        }
        let registry = Slow {
            listed,
            manifests,
            blob: bytes.into(),
        };
        let (stranger, _) = LocalSigner::generate().unwrap();
        let key = if own { signer } else { &stranger }.public_key().clone();
        let look = Look {
            registry: &registry,
            caller: Caller::LOCAL,
            repository: &"r.example/app".parse().unwrap(),
            digest,
            policy: &Policy::keys("test", vec![key]),
            now: Timestamp::UNIX_EPOCH,
            to_the_end,
            time_max: Duration::from_secs(1),
        };
        look.report().await
    }

    #[tokio::test]
    async fn a_registry_that_is_too_slow_is_an_error_with_what_was_read() {
        let (signer, _) = LocalSigner::generate().unwrap();
        let error = outcome(&signer, false, false).await.unwrap_err();
        assert_eq!(
            (error.code().id, error.kind()),
            ("PC1218", kernel::Kind::Unavailable)
        );
        let text = error.to_string();
        assert!(
            text.contains("slow: 19 of 20 candidates of r.example/app@"),
            "{text}"
        );
        // Who has to know everything is not content with one that counts.
        let error = outcome(&signer, true, true).await.unwrap_err();
        assert_eq!(error.code().id, "PC1218");
    }

    #[tokio::test]
    async fn what_verified_in_time_is_verified_whatever_hangs_before_it() {
        let (signer, _) = LocalSigner::generate().unwrap();
        let report = outcome(&signer, false, true).await.unwrap();
        assert!(report.verified);
        assert_eq!(report.candidates.len(), 19);
    }
}
