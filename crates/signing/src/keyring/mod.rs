//! The keys of projects.

mod derivation;
mod rows;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use access::Context;
use access::audit::{self, Record};
use jiff::Timestamp;
use kernel::{Clock, Random, Secret};
use store::{Db, Kept, Recent, args};

use crate::SigningError;
use crate::key::{self, LocalSigner, PublicKey, Signer};
use derivation::{Derivations, Place};
pub use rows::DamagedKey;
use rows::Keys;

/// By project, and by name or the empty text for all names: every version, read and parsed.
type RecentKeys = Recent<(String, Option<String>), Arc<Keys>>;
/// Keys that [`Keyring::check`] tries: where one row is damaged, the next tells whether the password is right.
const KEYS_CHECKED_MAX: u32 = 3;

/// Keys in the database, private halves closed with the server's password. Cheap to clone.
///
/// Opening a private half costs a tenth of a second and 64 MiB; it is done once and kept.
#[derive(Clone)]
pub struct Keyring {
    db: Db,
    password: Arc<Secret>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    recent: Arc<RecentKeys>,
    open: Arc<Mutex<HashMap<String, Arc<LocalSigner>>>>,
    /// Held while a private half is opened: many who need the same wait for one.
    opening: Arc<tokio::sync::Mutex<()>>,
    derivations: Derivations,
}

/// A key as it may be shown.
#[derive(Debug, Clone)]
pub struct KeyInfo {
    pub name: String,
    /// Counted from 1; rotating a key makes the next.
    pub version: i64,
    pub public: PublicKey,
    pub created_at: Timestamp,
    /// Until when signatures of a rotated key verify; `None` for the current one.
    pub verify_until: Option<Timestamp>,
}

impl KeyInfo {
    /// `sha256:` and hex of the public key's DER.
    #[must_use]
    pub fn id(&self) -> String {
        self.public.id().to_string()
    }
}

impl Keyring {
    #[must_use]
    pub fn new(db: Db, password: Secret, clock: Arc<dyn Clock>, random: Arc<dyn Random>) -> Self {
        Self {
            db,
            password: Arc::new(password),
            recent: Arc::new(Recent::new("signing_key", clock.clone(), |project, key, _| {
                key.0 == project
            })),
            clock,
            random,
            open: Arc::default(),
            opening: Arc::default(),
            derivations: Derivations::new(),
        }
    }

    /// What is kept in memory of the rows that other servers may change.
    #[must_use]
    pub fn kept(&self) -> Arc<dyn Kept> {
        self.recent.clone()
    }

    /// Makes a key.
    ///
    /// # Errors
    /// [`SigningError::KeyExists`] if the project has one of that name, [`SigningError::KeysBusy`] if too many keys
    /// are being made.
    pub async fn create(&self, context: &Context, name: &str) -> Result<KeyInfo, SigningError> {
        let place = self.derivations.place()?;
        let (signer, pkcs8) = LocalSigner::generate().map_err(|source| SigningError::Sign {
            name: name.to_owned(),
            source,
        })?;
        self.insert(context, name, &place, signer, pkcs8, "key.create")
            .await
    }

    /// Takes a cosign key file in.
    ///
    /// # Errors
    /// If the file does not open, the project has a key of that name, or too many keys are being made.
    pub async fn import(
        &self,
        context: &Context,
        name: &str,
        file: String,
        password: Secret,
    ) -> Result<KeyInfo, SigningError> {
        let place = self.derivations.place()?;
        let pkcs8 = place.run(move || key::decrypt(&file, &password)).await??;
        let signer =
            LocalSigner::from_pkcs8(&pkcs8).map_err(|_| SigningError::KeyFile(key::KeyFileError::Curve))?;
        self.insert(context, name, &place, signer, pkcs8, "key.import")
            .await
    }

    /// Replaces a key by a new one of the same name. What the old one signed verifies until `verify_until`.
    ///
    /// # Errors
    /// [`SigningError::NoKey`] if there is none, [`SigningError::KeysBusy`] if too many keys are being made.
    pub async fn rotate(
        &self,
        context: &Context,
        name: &str,
        verify_until: Timestamp,
    ) -> Result<KeyInfo, SigningError> {
        let place = self.derivations.place()?;
        let project = context.project.as_str();
        // What a moment ago was the newest may not be any more.
        let old = self.read(project, Some(name)).await?.newest(project, name)?;
        let (signer, pkcs8) = LocalSigner::generate().map_err(|source| SigningError::Sign {
            name: name.to_owned(),
            source,
        })?;
        let until = verify_until.as_microsecond();
        let private = self.close(&place, pkcs8).await?;
        let info = self.info(name, old.version + 1, &signer);
        let mut tx = self.db.begin().await?;
        let _change = self.recent.change(&mut tx, project).await?;
        tx.execute(
            "UPDATE signing_key SET verify_until = $1 WHERE project = $2 AND name = $3 AND version = $4",
            args![until, project, name, old.version],
        )
        .await?;
        self.write(&mut tx, context, &info, &private, "key.rotate")
            .await?;
        tx.commit().await?;
        self.keep(&info, signer);
        Ok(info)
    }

    async fn insert(
        &self,
        context: &Context,
        name: &str,
        place: &Place,
        signer: LocalSigner,
        pkcs8: zeroize::Zeroizing<Vec<u8>>,
        action: &str,
    ) -> Result<KeyInfo, SigningError> {
        if name.parse::<access::ProjectName>().is_err() {
            return Err(SigningError::KeyName(name.chars().take(100).collect()));
        }
        let private = self.close(place, pkcs8).await?;
        let info = self.info(name, 1, &signer);
        let mut tx = self.db.begin().await?;
        let _change = self.recent.change(&mut tx, context.project.as_str()).await?;
        self.write(&mut tx, context, &info, &private, action).await?;
        tx.commit().await?;
        self.keep(&info, signer);
        Ok(info)
    }

    async fn write(
        &self,
        tx: &mut store::Tx,
        context: &Context,
        info: &KeyInfo,
        private: &str,
        action: &str,
    ) -> Result<(), SigningError> {
        let project = context.project.as_str();
        let rows = tx
            .execute(
                "INSERT INTO signing_key (project, name, version, key_id, public_pem, private_pem, created_at) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (project, name, version) DO NOTHING",
                args![
                    project,
                    &info.name,
                    info.version,
                    info.id(),
                    info.public.to_pem(),
                    private,
                    info.created_at.as_microsecond()
                ],
            )
            .await?;
        if rows == 0 {
            return Err(SigningError::KeyExists {
                name: info.name.clone(),
                project: project.to_owned(),
            });
        }
        let record = Record {
            action,
            resource: &info.name,
            detail: &info.id(),
        };
        audit::record(tx, context, &*self.clock, &*self.random, record).await?;
        Ok(())
    }

    async fn close(&self, place: &Place, pkcs8: zeroize::Zeroizing<Vec<u8>>) -> Result<String, SigningError> {
        let (password, random) = (self.password.clone(), self.random.clone());
        Ok(place
            .run(move || key::encrypt(&pkcs8, &password, &*random))
            .await??)
    }

    fn info(&self, name: &str, version: i64, signer: &LocalSigner) -> KeyInfo {
        let public = signer.public_key().clone();
        KeyInfo {
            name: name.to_owned(),
            version,
            public,
            created_at: self.clock.now(),
            verify_until: None,
        }
    }

    fn opened(&self, key: &KeyInfo) -> Option<Arc<LocalSigner>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&key.id()).cloned()
    }

    fn keep(&self, info: &KeyInfo, signer: LocalSigner) -> Arc<LocalSigner> {
        let signer = Arc::new(signer);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.entry(info.id()).or_insert(signer).clone()
    }

    /// Every usable version of every key of a project, or of one name. A key that this server made or rotated counts
    /// at once, what another server on the same database did within [`store::STALE_MS_MAX`].
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn list(&self, project: &str, name: Option<&str>) -> Result<Arc<[KeyInfo]>, SigningError> {
        Ok(self.keys(project, name).await?.usable.clone())
    }

    async fn keys(&self, project: &str, name: Option<&str>) -> Result<Arc<Keys>, SigningError> {
        let read = async {
            let keys = self.read(project, name).await?;
            let none = keys.usable.is_empty() && keys.damaged.is_empty();
            Ok::<_, SigningError>((!none).then(|| Arc::new(keys)))
        };
        let keys = self
            .recent
            .read((project.to_owned(), name.map(str::to_owned)), read)
            .await?;
        Ok(keys.unwrap_or_default())
    }

    async fn read(&self, project: &str, name: Option<&str>) -> Result<Keys, SigningError> {
        let rows = match name {
            Some(name) => {
                let sql = "SELECT project, name, version, key_id, public_pem, created_at, verify_until \
                           FROM signing_key WHERE project = $1 AND name = $2 ORDER BY version";
                self.db.read(sql, args![project, name]).await?
            }
            None => {
                let sql = "SELECT project, name, version, key_id, public_pem, created_at, verify_until \
                           FROM signing_key WHERE project = $1 ORDER BY name, version";
                self.db.read(sql, args![project]).await?
            }
        };
        Ok(Keys::of(&rows))
    }

    /// The current version of a key.
    ///
    /// # Errors
    /// [`SigningError::NoKey`] if the project has none of that name, [`SigningError::KeyDamaged`] if its row cannot
    /// be used: no older version takes its place.
    pub async fn current(&self, project: &str, name: &str) -> Result<KeyInfo, SigningError> {
        self.keys(project, Some(name)).await?.newest(project, name)
    }

    /// The public halves that a project's signatures may be checked with now: current ones, and rotated ones
    /// whose date has not come.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn verifying(&self, project: &str) -> Result<Vec<PublicKey>, SigningError> {
        let now = self.clock.now();
        let keys = self.list(project, None).await?;
        let valid = keys
            .iter()
            .filter(|key| key.verify_until.is_none_or(|until| now < until));
        Ok(valid.map(|key| key.public.clone()).collect())
    }

    /// A key of the project that would verify now and cannot be used. What no other key made may be its signature:
    /// nobody knows.
    ///
    /// # Errors
    /// If the database does not answer.
    pub(crate) async fn damaged(&self, project: &str) -> Result<Option<DamagedKey>, SigningError> {
        let (now_us, keys) = (self.clock.now_us(), self.keys(project, None).await?);
        let valid = |key: &&DamagedKey| key.until_us.is_none_or(|until| now_us < until);
        Ok(keys.damaged.iter().find(valid).cloned())
    }

    /// Opens one key, the newest of any project that opens, replaced ones too: whether the server's password is the one
    /// that closed the keys. Costs one opening; a key that does not open costs another, and is told in the log. Fine without keys.
    ///
    /// # Errors
    /// [`SigningError::KeyClosed`] or [`SigningError::KeyDamaged`] of the newest key if none of the newest opens.
    pub async fn check(&self) -> Result<(), SigningError> {
        let sql = "SELECT project, name, version, key_id, public_pem, created_at, verify_until FROM signing_key \
                   ORDER BY created_at DESC, version DESC LIMIT $1";
        let rows = self.db.read(sql, args![KEYS_CHECKED_MAX]).await?;
        let mut first = None;
        for row in &rows {
            let keys = Keys::of(std::slice::from_ref(row));
            let (project, name) = (row.text("project")?, row.text("name")?);
            let opened = match keys.newest(&project, &name) {
                Ok(key) => self.signer(&project, &key).await.map(drop),
                Err(error) => Err(error),
            };
            match opened {
                Ok(()) => return Ok(()),
                Err(
                    error @ (SigningError::KeyClosed { .. }
                    | SigningError::KeyDamaged(_)
                    | SigningError::NoKey { .. }),
                ) => {
                    tracing::warn!(error = kernel::chain(&error), "a key does not open");
                    first.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// The private half of a key, opened the first time.
    ///
    /// # Errors
    /// [`SigningError::KeyClosed`] if it does not open: the server's password is not the one that closed it, or the
    /// row is damaged. [`SigningError::KeyDamaged`] if it is that of another key.
    pub(crate) async fn signer(
        &self,
        project: &str,
        key: &KeyInfo,
    ) -> Result<Arc<LocalSigner>, SigningError> {
        if let Some(signer) = self.opened(key) {
            return Ok(signer);
        }
        let _opening = self.opening.lock().await;
        if let Some(signer) = self.opened(key) {
            return Ok(signer);
        }
        let sql = "SELECT private_pem FROM signing_key WHERE project = $1 AND name = $2 AND version = $3";
        let row = self
            .db
            .read_one(sql, args![project, &key.name, key.version])
            .await?;
        let missing = || SigningError::NoKey {
            name: key.name.clone(),
            project: project.to_owned(),
        };
        let file = row.ok_or_else(missing)?.text("private_pem")?;
        let password = self.password.clone();
        let place = self.derivations.place_apart();
        let opened = place
            .run(move || LocalSigner::from_file(&file, &password))
            .await?;
        let signer = opened.map_err(|source| SigningError::KeyClosed {
            key: format!(
                "{} of project {project}, version {} ({})",
                key.name,
                key.version,
                key.id()
            ),
            source,
        })?;
        if *signer.public_key() != key.public {
            return Err(SigningError::KeyDamaged(Box::new(DamagedKey {
                project: project.to_owned(),
                name: key.name.clone(),
                version: key.version,
                id: key.id(),
                why: format!("its private half is that of {}", signer.public_key().id()),
                until_us: None,
            })));
        }
        Ok(self.keep(key, signer))
    }
}
