//! The signing path of the server.

use std::sync::Arc;

use access::audit::{self, Record};
use access::{Access, Action, Context};
use bytes::Bytes;
use jiff::Timestamp;
use kernel::{Clock, Digest, Id, Random, Reference, Repository};
use store::Db;

use crate::flight::Flights;
use crate::format::{self, Annotations};
use crate::key::{PublicKey, Signer};
use crate::ports::{Descriptor, Log, LoggedEntry, NewEntry, Registry};
use crate::tables::{self, SignatureRow, Wish};
use crate::verdicts::Verdicts;
use crate::{Formats, KeyInfo, Keyring, SigningError, publish, resolve};

/// The key that is used when a request names none.
pub const DEFAULT_KEY: &str = "default";
/// Annotations of one signature: what fits a screen.
const ANNOTATIONS_MAX: usize = 64;
/// Bytes of one annotation's name or value.
const ANNOTATION_BYTES_MAX: usize = 4_096;
/// Bytes of one statement: in base64 and with its log entry it stays under `SIGNATURE_BLOB_BYTES_MAX`, the most that
/// verifying reads. Every image of a release repeats the annotations.
const STATEMENT_BYTES_MAX: usize = 640 << 10;

/// What signing is done with.
pub struct Settings {
    pub db: Db,
    pub access: Access,
    pub keyring: Keyring,
    pub registry: Arc<dyn Registry>,
    pub log: Arc<dyn Log>,
    pub formats: FormatsOf,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
}

/// What to write to a registry, by its host.
pub type FormatsOf = Box<dyn Fn(&str) -> Formats + Send + Sync>;

/// Signs images and remembers what it signed. Cheap to clone.
#[derive(Clone)]
pub struct Signing {
    pub(crate) parts: Arc<Parts>,
}

pub(crate) struct Parts {
    pub db: Db,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    pub access: Access,
    pub keyring: Keyring,
    pub registry: Arc<dyn Registry>,
    pub log: Arc<dyn Log>,
    pub formats: FormatsOf,
    pub flights: Flights<Wish, Result<Signed, Arc<SigningError>>>,
    pub verdicts: Verdicts,
}

/// What is wanted.
#[derive(Debug, Clone)]
pub struct SignRequest {
    pub image: Reference,
    /// A key of the project; [`DEFAULT_KEY`] if `None`.
    pub key: Option<String>,
    pub annotations: Annotations,
    /// Also every manifest under an index.
    pub recursive: bool,
    /// Look into the registry for a signature that stands already, and put it back if it is lost there.
    pub repair: bool,
    /// The registry's configured formats if `None`.
    pub formats: Option<Formats>,
}

/// A signature that stands: durable here, in the log and in the registry.
#[derive(Debug, Clone)]
pub struct Signed {
    pub id: Id,
    pub repository: Repository,
    pub digest: Digest,
    pub key: String,
    pub key_id: String,
    pub formats: Formats,
    pub log_index: Option<u64>,
    pub created_at: Timestamp,
    /// Whether it stood already.
    pub deduplicated: bool,
    /// Whether the registry had lost it, and holds it again.
    pub repaired: bool,
}

impl Signing {
    /// Puts the parts together.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let Settings {
            db,
            access,
            keyring,
            registry,
            log,
            formats,
            clock,
            random,
        } = settings;
        let (flights, verdicts) = (Flights::new(), Verdicts::new(clock.clone()));
        Self {
            parts: Arc::new(Parts {
                db,
                clock,
                random,
                access,
                keyring,
                registry,
                log,
                formats,
                flights,
                verdicts,
            }),
        }
    }

    /// The server's time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.parts.clock.now()
    }

    #[must_use]
    pub fn keyring(&self) -> &Keyring {
        &self.parts.keyring
    }

    /// Signs an image, or finds that it is signed already; with `recursive` the image comes first in the answer
    /// and the manifests under it follow.
    ///
    /// An image named by digest that this key signed before is answered from the store: no key, log or registry
    /// is touched. That it stands is known from the store alone: if the registry has lost it since, a request with
    /// `repair` looks there and puts it back.
    ///
    /// # Errors
    /// Those of the context's rights, the registry, the key and the log. What is signed stays signed.
    pub async fn sign(&self, context: &Context, request: &SignRequest) -> Result<Vec<Signed>, SigningError> {
        let images = std::slice::from_ref(&request.image);
        let key = self
            .admit(context, images, request.key.as_deref(), &request.annotations)
            .await?;
        let formats = request
            .formats
            .unwrap_or_else(|| (self.parts.formats)(request.image.repository().registry()));
        let draft = Draft {
            parts: self.parts.clone(),
            context: context.clone(),
            key,
            formats,
            request: request.clone(),
        };
        let known = request
            .image
            .digest()
            .filter(|_| !request.recursive && !request.repair);
        if let Some(digest) = known
            && let Some(row) = draft.known(digest).await?
        {
            return Ok(vec![draft.signed(&row, true)]);
        }
        let project = context.project.as_str();
        let subjects =
            resolve::subjects(&*self.parts.registry, project, &request.image, request.recursive).await?;
        let mut signed = Vec::with_capacity(subjects.len());
        for subject in &subjects {
            // What was looked for a moment ago is looked for again by whoever leads, and by nobody in between.
            let hit = match known {
                Some(_) => None,
                None => draft.known(subject.digest).await?,
            };
            signed.push(match hit {
                Some(row) if request.repair => draft.repair(subject, &row).await?,
                Some(row) => draft.signed(&row, true),
                None => draft.one(subject).await?,
            });
        }
        if request.image.digest().is_none() && signed.first().is_some_and(|first| !first.deduplicated) {
            self.tag_stayed(project, &request.image, subjects[0].digest)
                .await?;
        }
        Ok(signed)
    }

    /// What has to be true before anything is done: the role, the project's patterns, sane annotations, a key.
    /// The key is read once for all `images`: what one statement says is signed by one key, also if it is rotated
    /// meanwhile.
    pub(crate) async fn admit(
        &self,
        context: &Context,
        images: &[Reference],
        key: Option<&str>,
        annotations: &Annotations,
    ) -> Result<KeyInfo, SigningError> {
        context.require(Action::SignImages)?;
        let project = self.parts.access.project(&context.project).await?;
        for image in images {
            project.require_image(image.repository())?;
        }
        require_sane(annotations)?;
        let name = key.unwrap_or(DEFAULT_KEY);
        self.parts.keyring.current(context.project.as_str(), name).await
    }

    /// A tag is resolved once. If it names another image now, the caller has to know that that one is not signed.
    pub(crate) async fn tag_stayed(
        &self,
        project: &str,
        image: &Reference,
        was: Digest,
    ) -> Result<(), SigningError> {
        let now = self.parts.registry.manifest(project, image).await?.digest;
        if now == was {
            Ok(())
        } else {
            Err(SigningError::TagMoved {
                image: Box::new(image.clone()),
                was,
                now,
            })
        }
    }
}

pub(crate) fn require_sane(annotations: &Annotations) -> Result<(), SigningError> {
    if annotations.len() > ANNOTATIONS_MAX {
        return Err(SigningError::Request(format!(
            "there are more than {ANNOTATIONS_MAX} annotations"
        )));
    }
    let long = |text: &String| text.len() > ANNOTATION_BYTES_MAX;
    match annotations
        .iter()
        .find(|(name, value)| name.is_empty() || long(name) || long(value))
    {
        Some((name, _)) => {
            let name: String = name.chars().take(60).collect();
            Err(SigningError::Request(format!(
                "annotation {name:?} is empty or over {ANNOTATION_BYTES_MAX} bytes"
            )))
        }
        None => Ok(()),
    }
}

/// One request on its way, with everything it needs.
#[derive(Clone)]
pub(crate) struct Draft {
    pub parts: Arc<Parts>,
    pub context: Context,
    pub key: KeyInfo,
    pub formats: Formats,
    pub request: SignRequest,
}

impl Draft {
    pub(crate) fn wish(&self, digest: Digest) -> Wish {
        Wish {
            project: self.context.project.to_string(),
            repository: self.repository().to_string(),
            digest,
            key_id: self.key.id(),
            payload: Wish::payload(&self.request.annotations, self.formats),
        }
    }

    pub(crate) fn repository(&self) -> &Repository {
        self.request.image.repository()
    }

    /// What stands for this image already.
    async fn known(&self, digest: Digest) -> Result<Option<SignatureRow>, SigningError> {
        let row = tables::find(&self.parts.db, &self.wish(digest)).await?;
        Ok(row.filter(|row| row.done))
    }

    pub(crate) fn signed(&self, row: &SignatureRow, deduplicated: bool) -> Signed {
        Signed {
            id: row.id.clone(),
            repository: self.repository().clone(),
            digest: row.digest,
            key: row.key_name.clone(),
            key_id: row.key_id.clone(),
            formats: row.formats,
            log_index: row.log_index,
            created_at: row.created_at,
            deduplicated,
            repaired: false,
        }
    }

    /// One image, by whoever comes first; all others get that one's answer.
    async fn one(&self, subject: &Descriptor) -> Result<Signed, SigningError> {
        let (draft, subject) = (self.clone(), subject.clone());
        let wish = self.wish(subject.digest);
        let lead = move || async move { draft.lead(&subject).await.map_err(Arc::new) };
        match self.parts.flights.join(wish, lead).await {
            Some(outcome) => outcome.map_err(SigningError::Shared),
            None => Err(SigningError::Lost),
        }
    }

    /// Stage, log, publish, finish. Each step finds what an earlier run of it left behind.
    async fn lead(&self, subject: &Descriptor) -> Result<Signed, SigningError> {
        let wish = self.wish(subject.digest);
        let row = match tables::find(&self.parts.db, &wish).await? {
            // Somebody finished between the caller's look and this one.
            Some(row) if row.done => return Ok(self.signed(&row, true)),
            Some(staged) => staged,
            None => match self.stage(subject.digest).await? {
                // Another server was faster by a whole signature.
                row if row.done => return Ok(self.signed(&row, true)),
                row => row,
            },
        };
        kernel::crash_point("signing.staged");
        let entry = self.log(&row).await?;
        kernel::crash_point("signing.logged");
        self.publish(subject, &row, &entry).await?;
        kernel::crash_point("signing.published");
        self.finish(&[(wish, row.id.clone(), entry.index)]).await?;
        kernel::crash_point("signing.finished");
        Ok(self.signed(
            &SignatureRow {
                log_index: Some(entry.index),
                ..row
            },
            false,
        ))
    }

    /// Signs this one image and makes the signature durable. The answer is what stands then: another server's
    /// signature, if that was staged first.
    async fn stage(&self, digest: Digest) -> Result<SignatureRow, SigningError> {
        let row = self.sign_statement(&[digest]).await?;
        let legacy = match self.formats.legacy {
            true => Some(self.sign_bytes(&self.legacy_payload(digest)).await?),
            false => None,
        };
        let wish = self.wish(digest);
        if self.store_stage(&row, &[(wish.clone(), legacy.clone())]).await? == 1 {
            return Ok(SignatureRow { legacy, ..row });
        }
        tables::find(&self.parts.db, &wish)
            .await?
            .ok_or(SigningError::Lost)
    }

    /// One statement over `digests`, signed; the row is that of the first.
    pub(crate) async fn sign_statement(&self, digests: &[Digest]) -> Result<SignatureRow, SigningError> {
        let statement = format::statement::write(digests, &self.request.annotations);
        if statement.len() > STATEMENT_BYTES_MAX {
            let (count, found) = (digests.len(), statement.len());
            return Err(SigningError::Request(format!(
                "the statement over {count} images with these annotations would have {found} bytes, \
                 more than the cap STATEMENT_BYTES_MAX of {STATEMENT_BYTES_MAX}"
            )));
        }
        let pae = format::dsse::pae(format::dsse::IN_TOTO, &statement);
        Ok(SignatureRow {
            id: Id::new("sig", &*self.parts.clock, &*self.parts.random),
            repository: self.repository().to_string(),
            digest: digests[0],
            key_name: self.key.name.clone(),
            key_id: self.key.id(),
            annotations: self.request.annotations.clone(),
            formats: self.formats,
            log_index: None,
            // As precise as the column that it is read from later.
            created_at: Timestamp::from_microsecond(self.parts.clock.now_us()).unwrap_or(Timestamp::MAX),
            actor: self.context.actor.to_string(),
            signature: self.sign_bytes(&pae).await?,
            statement,
            legacy: None,
            done: false,
        })
    }

    /// Stores a signature; the answer is for how many of the images it stands.
    pub(crate) async fn store_stage(
        &self,
        row: &SignatureRow,
        images: &[(Wish, Option<Vec<u8>>)],
    ) -> Result<u64, SigningError> {
        let mut tx = self.parts.db.begin().await?;
        let staged = tables::stage(&mut tx, self.context.project.as_str(), row, images).await?;
        if staged > 0 {
            tx.commit().await?;
        }
        // Otherwise nothing speaks of this signature: it need not stay.
        Ok(staged)
    }

    async fn sign_bytes(&self, message: &[u8]) -> Result<Vec<u8>, SigningError> {
        let signer = self
            .parts
            .keyring
            .signer(self.context.project.as_str(), &self.key)
            .await?;
        let signed = signer.sign(Digest::of(message)).await;
        signed.map_err(|source| SigningError::Sign {
            name: self.key.name.clone(),
            source,
        })
    }

    fn legacy_payload(&self, digest: Digest) -> Vec<u8> {
        format::legacy::payload(self.repository(), digest, &self.request.annotations)
    }

    pub(crate) async fn log(&self, row: &SignatureRow) -> Result<LoggedEntry, SigningError> {
        let entry = NewEntry {
            digest: Digest::of(&format::dsse::pae(format::dsse::IN_TOTO, &row.statement)),
            signature: row.signature.clone(),
            public_key: self.public_key().spki().to_vec(),
        };
        self.parts
            .log
            .append(entry)
            .await
            .map_err(|fault| SigningError::Log(crate::error::LogError(fault)))
    }

    pub(crate) async fn publish(
        &self,
        subject: &Descriptor,
        row: &SignatureRow,
        entry: &LoggedEntry,
    ) -> Result<(), SigningError> {
        let (registry, project) = (&*self.parts.registry, self.context.project.as_str());
        let key = self.public_key();
        let bundle = async {
            if row.formats.bundle {
                let bytes = format::bundle::write(key, &row.statement, &row.signature, Some(&entry.json));
                publish::bundle(registry, project, self.repository(), subject, Bytes::from(bytes)).await?;
            }
            Ok::<_, SigningError>(())
        };
        let legacy = async {
            if let Some(signature) = &row.legacy {
                let payload = self.legacy_payload(subject.digest);
                publish::legacy(
                    registry,
                    project,
                    self.repository(),
                    subject.digest,
                    key,
                    payload,
                    signature,
                )
                .await?;
            }
            Ok::<_, SigningError>(())
        };
        futures::try_join!(bundle, legacy).map(|_| ())
    }

    /// Marks signatures as done, each with its place in the log and an audit record, in one transaction.
    pub(crate) async fn finish(&self, done: &[(Wish, Id, u64)]) -> Result<(), SigningError> {
        let mut tx = self.parts.db.begin().await?;
        for (wish, id, index) in done {
            if !tables::finish(&mut tx, wish, id, *index, self.parts.clock.now_us()).await? {
                continue;
            }
            let resource = format!("{}@{}", wish.repository, wish.digest);
            let detail = format!("{id} key {} log index {index}", self.key.name);
            let record = Record {
                action: "signature.create",
                resource: &resource,
                detail: &detail,
            };
            let (clock, random) = (&*self.parts.clock, &*self.parts.random);
            audit::record(&mut tx, &self.context, clock, random, record).await?;
        }
        tx.commit().await?;
        self.parts
            .verdicts
            .signed(done.iter().map(|(wish, _, _)| wish.digest));
        Ok(())
    }

    fn public_key(&self) -> &PublicKey {
        &self.key.public
    }
}
