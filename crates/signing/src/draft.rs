//! One request on its way, from its image to a signature that stands.

use std::collections::BTreeMap;
use std::sync::Arc;

use access::Context;
use access::audit::{self, Record};
use bytes::Bytes;
use flow::{Caller, Pass, Rate};
use jiff::Timestamp;
use kernel::{Digest, Id, Repository};

use crate::format;
use crate::key::{PublicKey, Signer};
use crate::parts::Parts;
use crate::ports::{Descriptor, LoggedEntry, NewEntry};
use crate::request::{Ask, SignRequest, Signed};
use crate::tables::{self, SignatureRow, Wish};
use crate::{Formats, KeyInfo, SigningError, debt, publish, resolve};

/// Bytes of one statement: in base64 and with its log entry it stays under `SIGNATURE_BLOB_BYTES_MAX`, the most that
/// verifying reads. Every image of a release repeats the annotations.
const STATEMENT_BYTES_MAX: usize = 640 << 10;

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
    #[tracing::instrument(name = "look up", skip_all)]
    pub(crate) async fn known(&self, digest: Digest) -> Result<Option<SignatureRow>, SigningError> {
        let row = tables::find(&self.parts.db, &self.wish(digest)).await?;
        Ok(row.filter(|row| row.done))
    }

    pub(crate) fn signed(&self, row: &SignatureRow, deduplicated: bool) -> Signed {
        if deduplicated {
            self.parts.counts.count_known();
        }
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
    #[tracing::instrument(name = "wait for a turn", skip_all)]
    pub(crate) async fn turn(&self, cost: usize) -> Result<Pass, SigningError> {
        let registry = self.repository().registry();
        Ok(self.parts.door.work(self.caller(), registry, cost).await?)
    }

    /// The image by its tag, with everything under it, or with a look into the registry: it has to be resolved first.
    /// Who asks the same while that waits for its turn waits with it. Later ones do not: the tag may have moved since.
    pub(crate) async fn by_name(self) -> Result<Vec<Signed>, SigningError> {
        let request = &self.request;
        let ask = Ask {
            project: self.context.project.to_string(),
            image: request.image.to_string(),
            key_id: self.key.id(),
            payload: Wish::payload(&request.annotations, self.formats),
            recursive: request.recursive,
            repair: request.repair,
        };
        let parts = self.parts.clone();
        let lead = move |boarding| async move { self.resolved(boarding).await.map_err(Arc::new) };
        match parts.asked.join(ask, lead).await {
            Some(outcome) => outcome.map_err(SigningError::Shared),
            None => Err(SigningError::Lost),
        }
    }

    async fn resolved(&self, boarding: impl Send) -> Result<Vec<Signed>, SigningError> {
        let (image, recursive) = (&self.request.image, self.request.recursive);
        let subjects = {
            let _turn = self.turn(1).await?;
            drop(boarding);
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
    pub(crate) async fn one(
        &self,
        digest: Digest,
        subject: Option<Descriptor>,
    ) -> Result<Signed, SigningError> {
        let draft = self.clone();
        let lead = move |boarding| async move {
            let outcome = draft.lead(digest, subject).await.map_err(Arc::new);
            drop(boarding);
            outcome
        };
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
    #[tracing::instrument(name = "stage signature", skip_all)]
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

    #[tracing::instrument(name = "append to log", skip_all)]
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

    #[tracing::instrument(name = "publish signature", skip_all)]
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

    /// Marks signatures as done, each with its place in the log, an audit record, and what is owed to the external log,
    /// in one transaction.
    #[tracing::instrument(name = "finish signature", skip_all)]
    pub(crate) async fn finish(&self, done: &[(Wish, Id, u64)]) -> Result<(), SigningError> {
        let mut tx = self.parts.db.begin().await?;
        let mut finished: BTreeMap<&Id, i64> = BTreeMap::new();
        for (wish, id, index) in done {
            if !tables::finish(&mut tx, wish, id, *index, self.parts.clock.now_us()).await? {
                continue;
            }
            self.parts.counts.count_new();
            *finished.entry(id).or_default() += 1;
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
        if self.parts.external_log {
            debt::owe(&mut tx, &finished, self.parts.clock.now_us()).await?;
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
