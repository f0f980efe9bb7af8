//! The signing path of the server.

use std::sync::Arc;

use access::audit::{self, Record};
use access::{Access, Action, Context};
use bytes::Bytes;
use flow::{Caller, Class, Pass, Rate};
use jiff::Timestamp;
use kernel::{Clock, Digest, Id, Random, Reference, Repository};
use store::Db;

use crate::door::{Door, DoorStanding};
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
    /// New signatures that a project may make where it has no rate of its own.
    pub quota: Rate,
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
    pub quota: Rate,
    pub door: Door,
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
    /// With whom it shares the turns.
    pub class: Class,
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
            quota,
            clock,
            random,
        } = settings;
        let (flights, verdicts) = (Flights::new(), Verdicts::new(clock.clone()));
        let door = Door::new(clock.clone());
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
                quota,
                door,
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

    /// The rate of new signatures of the context's project, and how many it could make at once now.
    ///
    /// # Errors
    /// If there is no such project.
    pub async fn quota(&self, context: &Context) -> Result<(Rate, u32), SigningError> {
        let project = self.parts.access.project(&context.project).await?;
        let rate = project.quota.unwrap_or(self.parts.quota);
        Ok((rate, self.parts.door.left(project.name.as_str(), rate)))
    }

    /// How the queues stand.
    #[must_use]
    pub fn standing(&self) -> DoorStanding {
        self.parts.door.standing()
    }

    /// Signs an image, or finds that it is signed already; with `recursive` the image comes first in the answer
    /// and the manifests under it follow.
    ///
    /// An image named by digest that this key signed before is answered from the store: no key, log or registry
    /// is touched. That it stands is known from the store alone: if the registry has lost it since, a request with
    /// `repair` looks there and puts it back.
    ///
    /// Who goes away cancels nothing: what is new is signed by a task of its own.
    ///
    /// # Errors
    /// Those of the context's rights, the registry, the key and the log; [`SigningError::Busy`], at once, if the
    /// project's quota is used up or too many wait. What is signed stays signed.
    pub async fn sign(&self, context: &Context, request: &SignRequest) -> Result<Vec<Signed>, SigningError> {
        let caller = Caller::new(context.project.as_str(), request.class);
        let turn = self.parts.door.look_up(caller).await?;
        let draft = self.draft(context, request).await?;
        let plain = !request.recursive && !request.repair;
        if let (Some(digest), true) = (request.image.digest(), plain) {
            if let Some(row) = draft.known(digest).await? {
                return Ok(vec![draft.signed(&row, true)]);
            }
            drop(turn);
            return Ok(vec![draft.one(digest, None).await?]);
        }
        drop(turn);
        let work = tokio::spawn(async move { draft.resolved().await });
        work.await.map_err(|_| SigningError::Lost)?
    }

    async fn draft(&self, context: &Context, request: &SignRequest) -> Result<Draft, SigningError> {
        let images = std::slice::from_ref(&request.image);
        let admitted = self
            .admit(context, images, request.key.as_deref(), &request.annotations)
            .await?;
        let registry = request.image.repository().registry();
        Ok(Draft {
            parts: self.parts.clone(),
            context: context.clone(),
            key: admitted.key,
            quota: admitted.quota,
            formats: request.formats.unwrap_or_else(|| (self.parts.formats)(registry)),
            request: request.clone(),
        })
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
    ) -> Result<Admitted, SigningError> {
        context.require(Action::SignImages)?;
        let project = self.parts.access.project(&context.project).await?;
        for image in images {
            project.require_image(image.repository())?;
        }
        require_sane(annotations)?;
        let name = key.unwrap_or(DEFAULT_KEY);
        Ok(Admitted {
            key: self.parts.keyring.current(context.project.as_str(), name).await?,
            quota: project.quota.unwrap_or(self.parts.quota),
        })
    }
}

/// What a project may do: sign with this key, so often.
pub(crate) struct Admitted {
    pub key: KeyInfo,
    pub quota: Rate,
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
    pub quota: Rate,
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

    pub(crate) fn caller(&self) -> Caller<'_> {
        Caller::new(self.context.project.as_str(), self.request.class)
    }

    /// A turn to work at this image's registry.
    pub(crate) async fn turn(&self, cost: usize) -> Result<Pass, SigningError> {
        let registry = self.repository().registry();
        Ok(self.parts.door.work(self.caller(), registry, cost).await?)
    }

    /// The image by its tag, with everything under it, or with a look into the registry: it has to be resolved first.
    async fn resolved(&self) -> Result<Vec<Signed>, SigningError> {
        let (image, recursive) = (&self.request.image, self.request.recursive);
        let subjects = {
            let _turn = self.turn(1).await?;
            resolve::subjects(&*self.parts.registry, self.caller(), image, recursive).await?
        };
        let mut signed = Vec::with_capacity(subjects.len());
        for subject in &subjects {
            signed.push(match self.known(subject.digest).await? {
                Some(row) if self.request.repair => self.repair(subject, &row).await?,
                Some(row) => self.signed(&row, true),
                None => self.one(subject.digest, Some(subject.clone())).await?,
            });
        }
        if image.digest().is_none() && signed.first().is_some_and(|first| !first.deduplicated) {
            self.tag_stayed(subjects[0].digest).await?;
        }
        Ok(signed)
    }

    /// A tag is resolved once. If it names another image now, the caller has to know that that one is not signed.
    pub(crate) async fn tag_stayed(&self, was: Digest) -> Result<(), SigningError> {
        let image = &self.request.image;
        let now = self.parts.registry.manifest(self.caller(), image).await?.digest;
        if now == was {
            return Ok(());
        }
        Err(SigningError::TagMoved {
            image: Box::new(image.clone()),
            was,
            now,
        })
    }

    /// One image, by whoever comes first; all others get that one's answer. `subject` is its descriptor, if it was
    /// resolved already.
    async fn one(&self, digest: Digest, subject: Option<Descriptor>) -> Result<Signed, SigningError> {
        let draft = self.clone();
        let lead = move || async move { draft.lead(digest, subject).await.map_err(Arc::new) };
        match self.parts.flights.join(self.wish(digest), lead).await {
            Some(outcome) => outcome.map_err(SigningError::Shared),
            None => Err(SigningError::Lost),
        }
    }

    /// What is new is charged, and waits for its turn; what a process that died has begun was charged then.
    async fn lead(&self, digest: Digest, subject: Option<Descriptor>) -> Result<Signed, SigningError> {
        let staged = match tables::find(&self.parts.db, &self.wish(digest)).await? {
            // Somebody finished between the caller's look and this one.
            Some(row) if row.done => return Ok(self.signed(&row, true)),
            staged => staged,
        };
        if staged.is_none() {
            self.charge(1)?;
        }
        let _turn = self.turn(1).await?;
        let subject = match subject {
            Some(subject) => subject,
            None => {
                let image = self.repository().at(digest);
                let found = resolve::subjects(&*self.parts.registry, self.caller(), &image, false);
                found.await?.swap_remove(0)
            }
        };
        self.go_on(staged, &subject).await
    }

    pub(crate) fn charge(&self, count: usize) -> Result<(), SigningError> {
        let project = self.context.project.as_str();
        Ok(self.parts.door.charge(project, self.quota, count)?)
    }

    /// Stage, log, publish, finish. Each step finds what an earlier run of it left behind.
    async fn go_on(
        &self,
        staged: Option<SignatureRow>,
        subject: &Descriptor,
    ) -> Result<Signed, SigningError> {
        let wish = self.wish(subject.digest);
        let row = match staged {
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
        let (registry, caller) = (&*self.parts.registry, self.caller());
        let key = self.public_key();
        let bundle = async {
            if row.formats.bundle {
                let bytes = format::bundle::write(key, &row.statement, &row.signature, Some(&entry.json));
                publish::bundle(registry, caller, self.repository(), subject, Bytes::from(bytes)).await?;
            }
            Ok::<_, SigningError>(())
        };
        let legacy = async {
            if let Some(signature) = &row.legacy {
                let payload = self.legacy_payload(subject.digest);
                publish::legacy(
                    registry,
                    caller,
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
