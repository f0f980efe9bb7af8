//! The keys of projects.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use access::Context;
use access::audit::{self, Record};
use jiff::Timestamp;
use kernel::{Clock, Random, Secret};
use store::{Db, Recent, Row, args};

use crate::SigningError;
use crate::key::{self, LocalSigner, PublicKey, Signer};

/// By project, and by name or the empty text for all names: every version, read and parsed.
type RecentKeys = Recent<(String, Option<String>), Arc<[KeyInfo]>>;

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
    /// Held while a private half is opened: many who need the same wait for one, and 64 MiB are in use once.
    opening: Arc<tokio::sync::Mutex<()>>,
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
            recent: Arc::new(Recent::new(clock.clone())),
            clock,
            random,
            open: Arc::default(),
            opening: Arc::default(),
        }
    }

    /// Makes a key.
    ///
    /// # Errors
    /// [`SigningError::KeyExists`] if the project has one of that name.
    pub async fn create(&self, context: &Context, name: &str) -> Result<KeyInfo, SigningError> {
        let (signer, pkcs8) = LocalSigner::generate().map_err(|source| SigningError::Sign {
            name: name.to_owned(),
            source,
        })?;
        self.insert(context, name, 1, signer, pkcs8, "key.create").await
    }

    /// Takes a cosign key file in.
    ///
    /// # Errors
    /// If the file does not open, or the project has a key of that name.
    pub async fn import(
        &self,
        context: &Context,
        name: &str,
        file: String,
        password: Secret,
    ) -> Result<KeyInfo, SigningError> {
        let pkcs8 = blocking(move || key::decrypt(&file, &password)).await??;
        let signer =
            LocalSigner::from_pkcs8(&pkcs8).map_err(|_| SigningError::KeyFile(key::KeyFileError::Curve))?;
        self.insert(context, name, 1, signer, pkcs8, "key.import").await
    }

    /// Replaces a key by a new one of the same name. What the old one signed verifies until `verify_until`.
    ///
    /// # Errors
    /// [`SigningError::NoKey`] if there is none.
    pub async fn rotate(
        &self,
        context: &Context,
        name: &str,
        verify_until: Timestamp,
    ) -> Result<KeyInfo, SigningError> {
        // What a moment ago was the newest may not be any more.
        let old = newest(
            &self.read(context.project.as_str(), Some(name)).await?,
            context.project.as_str(),
            name,
        )?;
        let (signer, pkcs8) = LocalSigner::generate().map_err(|source| SigningError::Sign {
            name: name.to_owned(),
            source,
        })?;
        let until = verify_until.as_microsecond();
        let private = self.close(pkcs8).await?;
        let info = self.info(name, old.version + 1, &signer);
        let _change = self.recent.change();
        let mut tx = self.db.begin().await?;
        tx.execute(
            "UPDATE signing_key SET verify_until = $1 WHERE project = $2 AND name = $3 AND version = $4",
            args![until, context.project.as_str(), name, old.version],
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
        version: i64,
        signer: LocalSigner,
        pkcs8: zeroize::Zeroizing<Vec<u8>>,
        action: &str,
    ) -> Result<KeyInfo, SigningError> {
        if name.parse::<access::ProjectName>().is_err() {
            return Err(SigningError::KeyName(name.chars().take(100).collect()));
        }
        let private = self.close(pkcs8).await?;
        let info = self.info(name, version, &signer);
        let _change = self.recent.change();
        let mut tx = self.db.begin().await?;
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

    async fn close(&self, pkcs8: zeroize::Zeroizing<Vec<u8>>) -> Result<String, SigningError> {
        let (password, random) = (self.password.clone(), self.random.clone());
        Ok(blocking(move || key::encrypt(&pkcs8, &password, &*random)).await??)
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

    /// Every version of every key of a project, or of one name. A key that this server made or rotated counts at
    /// once, what another server on the same database did after [`store::STALE_MS_MAX`] at the latest.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn list(&self, project: &str, name: Option<&str>) -> Result<Arc<[KeyInfo]>, SigningError> {
        let read = async {
            let keys = self.read(project, name).await?;
            Ok::<_, SigningError>((!keys.is_empty()).then(|| Arc::from(keys)))
        };
        let keys = self
            .recent
            .read((project.to_owned(), name.map(str::to_owned)), read)
            .await?;
        Ok(keys.unwrap_or_default())
    }

    async fn read(&self, project: &str, name: Option<&str>) -> Result<Vec<KeyInfo>, SigningError> {
        let rows = match name {
            Some(name) => {
                let sql = "SELECT name, version, public_pem, created_at, verify_until FROM signing_key \
                           WHERE project = $1 AND name = $2 ORDER BY version";
                self.db.read(sql, args![project, name]).await?
            }
            None => {
                let sql = "SELECT name, version, public_pem, created_at, verify_until FROM signing_key \
                           WHERE project = $1 ORDER BY name, version";
                self.db.read(sql, args![project]).await?
            }
        };
        rows.iter().map(info_of).collect()
    }

    /// The current version of a key.
    ///
    /// # Errors
    /// [`SigningError::NoKey`] if the project has none of that name.
    pub async fn current(&self, project: &str, name: &str) -> Result<KeyInfo, SigningError> {
        newest(&self.list(project, Some(name)).await?, project, name)
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

    /// The private half of a key, opened the first time.
    ///
    /// # Errors
    /// If the server's password is not the one that closed it.
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
        let opened = blocking(move || LocalSigner::from_file(&file, &password)).await?;
        let signer = opened.map_err(|source| SigningError::Sign {
            name: key.name.clone(),
            source,
        })?;
        Ok(self.keep(key, signer))
    }
}

/// The last of one key's versions.
fn newest(versions: &[KeyInfo], project: &str, name: &str) -> Result<KeyInfo, SigningError> {
    versions.last().cloned().ok_or_else(|| SigningError::NoKey {
        name: name.chars().take(100).collect(),
        project: project.to_owned(),
    })
}

fn info_of(row: &Row) -> Result<KeyInfo, SigningError> {
    let time =
        |us: i64| Timestamp::from_microsecond(us).map_err(|error| SigningError::Row(error.to_string()));
    Ok(KeyInfo {
        name: row.text("name")?,
        version: row.int("version")?,
        public: PublicKey::from_pem(&row.text("public_pem")?)?,
        created_at: time(row.int("created_at")?)?,
        verify_until: row.opt_int("verify_until")?.map(time).transpose()?,
    })
}

/// Work of a tenth of a second belongs on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, SigningError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| SigningError::Lost)
}
