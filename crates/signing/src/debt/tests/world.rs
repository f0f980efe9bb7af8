//! A server's parts around a registry and two logs that are no more than lists.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use access::{Access, Context, ProjectName};
use async_trait::async_trait;
use bytes::Bytes;
use flow::{Caller, Class, Rate};
use kernel::{
    Clock as _, Digest, Fault, Monotonic, Random, Reference, Repository, Secret, SystemRandom, TestClock,
};
use serde_json::value::RawValue;
use store::{Db, Lease};

use crate::debt::pay::Payer;
use crate::debt::publish::Publisher;
use crate::debt::{LEASE, Settings, Standing};
use crate::format::Annotations;
use crate::ports::{
    Answered, Contained, Descriptor, ExternalLog, ExternalLogError, Log, LoggedEntry, Looks, Manifest, Merge,
    NewEntry, Registry, RegistryError, RegistryReason, TreeHead,
};
use crate::trust::TrustRoot;
use crate::{Formats, Keyring, SignRequest, Signed, Signing};

/// What the tests allow in a second.
pub const RATE: u32 = 5;
/// A day like any other.
const NOW: &str = "2026-11-20T08:00:00Z";

/// One copy of the external log.
#[derive(Default, Clone)]
pub struct Tree {
    pub entries: Vec<Digest>,
    /// After each of them; all that came before is in it.
    roots: Vec<Digest>,
}

impl Tree {
    fn push(&mut self, entry: Digest) {
        let last = self.roots.last().map_or([0; 32], |root| *root.as_bytes());
        self.roots.push(Digest::of(&[last, *entry.as_bytes()].concat()));
        self.entries.push(entry);
    }

    fn head(&self) -> TreeHead {
        TreeHead {
            origin: "outside".to_owned(),
            size: self.roots.len() as u64,
            root: *self.roots.last().unwrap().as_bytes(),
        }
    }

    fn contains(&self, head: &TreeHead) -> Contained {
        match self.roots.get(head.size as usize - 1) {
            None => Contained::NotYet,
            Some(root) if *root.as_bytes() == head.root => Contained::Yes,
            Some(_) => Contained::No("it is a fork".to_owned()),
        }
    }
}

/// The external log. It has what it answered for, in order; what it is asked again it has twice, unless `knows`.
#[derive(Default)]
pub struct Outside {
    pub down: AtomicBool,
    pub wrong: AtomicBool,
    /// Recognises what it has.
    pub knows: AtomicBool,
    /// It never takes these, and never proves those.
    pub refused: Mutex<BTreeSet<Digest>>,
    pub unproven: Mutex<BTreeSet<Digest>>,
    pub tree: Mutex<Tree>,
    /// What answers every second question, if anything does; and how many there were.
    pub fork: Mutex<Option<Tree>>,
    turns: AtomicU64,
    /// Its proofs do not come, or are counted.
    pub unprovable: AtomicBool,
    pub proofs: AtomicU64,
    /// It says of every entry that it lies here.
    pub place: Mutex<Option<u64>>,
    /// When it was asked, in microseconds since 1970, also while it was down.
    pub asked: Mutex<Vec<i64>>,
    /// Where it was told to look first, if anywhere.
    pub looked_at: Mutex<Vec<Option<u64>>>,
    /// What was found there; `None` is well at every moment.
    pub looks: Mutex<Option<Looks>>,
    /// A person had another log taken for it, which has none of this.
    pub other_was_taken: AtomicBool,
    /// What it was told that contradicts it.
    pub contradictions: Mutex<Vec<String>>,
    clock: Mutex<Option<Arc<TestClock>>>,
}

impl Outside {
    /// A look that takes no time and finds the log, or somebody else.
    pub fn is_looked_at(&self, well: bool) {
        self.is_found(|looks, now| match well {
            true => looks.well = Some(now),
            false => (looks.ill, looks.wrong) = (Some(now), Some(now)),
        });
    }

    /// A look that nobody answers.
    pub fn is_looked_for_in_vain(&self) {
        self.is_found(|looks, now| looks.ill = Some(now));
    }

    fn is_found(&self, note: impl FnOnce(&mut Looks, Monotonic)) {
        let now = self.clock.lock().unwrap().clone().unwrap();
        now.advance(Duration::from_millis(1));
        let mut looks = self.looks.lock().unwrap();
        note(looks.get_or_insert_default(), now.monotonic());
        now.advance(Duration::from_millis(1));
    }

    /// The most that it was asked for within any second.
    pub fn most_in_a_second(&self) -> usize {
        let asked = self.asked.lock().unwrap();
        let within = |from: &i64| {
            asked
                .iter()
                .filter(|at| (*from..*from + 1_000_000).contains(at))
                .count()
        };
        asked.iter().map(within).max().unwrap_or(0)
    }

    pub fn size(&self) -> usize {
        self.tree.lock().unwrap().entries.len()
    }

    pub fn distinct(&self) -> usize {
        let tree = self.tree.lock().unwrap();
        tree.entries.iter().collect::<BTreeSet<_>>().len()
    }

    /// From now on a copy of it answers every second question.
    pub fn forks(&self) {
        let copy = self.tree.lock().unwrap().clone();
        *self.fork.lock().unwrap() = Some(copy);
    }
}

#[async_trait]
impl ExternalLog for Outside {
    async fn append(&self, entry: NewEntry, last_index: Option<u64>) -> Result<Answered, ExternalLogError> {
        let clock = self.clock.lock().unwrap().clone().unwrap();
        self.asked.lock().unwrap().push(clock.now_us());
        self.looked_at.lock().unwrap().push(last_index);
        if self.down.load(Ordering::SeqCst) {
            return Err(ExternalLogError::Away("connection refused".to_owned()));
        }
        if self.refused.lock().unwrap().contains(&entry.digest) {
            return Err(ExternalLogError::Refused("no such key details".to_owned()));
        }
        if self.unproven.lock().unwrap().contains(&entry.digest) {
            return Err(ExternalLogError::Unproven("it is not there".to_owned()));
        }
        let (mut tree, mut fork) = (self.tree.lock().unwrap(), self.fork.lock().unwrap());
        let turn = self.turns.fetch_add(1, Ordering::SeqCst);
        let tree = match &mut *fork {
            Some(fork) if turn % 2 == 1 => fork,
            _ => &mut *tree,
        };
        let known = tree.entries.iter().position(|own| *own == entry.digest);
        let index = match known.filter(|_| self.knows.load(Ordering::SeqCst)) {
            Some(index) => index,
            None => {
                tree.push(entry.digest);
                tree.entries.len() - 1
            }
        };
        // Its places are none of the own log.
        let place = self.place.lock().unwrap().unwrap_or(10_000 + index as u64);
        Ok(Answered {
            entry: logged(place),
            head: tree.head(),
        })
    }

    async fn contains(&self, heads: &[TreeHead]) -> Vec<Contained> {
        self.proofs.fetch_add(heads.len() as u64, Ordering::SeqCst);
        if self.unprovable.load(Ordering::SeqCst) {
            let unknown = || Contained::Unknown("its tiles are away".to_owned());
            return heads.iter().map(|_| unknown()).collect();
        }
        if self.other_was_taken.load(Ordering::SeqCst) {
            let no = |_| Contained::No("it is another log's".to_owned());
            return heads.iter().map(no).collect();
        }
        let tree = self.tree.lock().unwrap();
        heads.iter().map(|head| tree.contains(head)).collect()
    }

    fn barred(&self) -> Option<String> {
        self.wrong
            .load(Ordering::SeqCst)
            .then(|| "it is WRONG_LOG".to_owned())
    }

    fn looks(&self) -> Looks {
        let clock = self.clock.lock().unwrap().clone().unwrap();
        let always = || Looks {
            well: Some(clock.monotonic().after(Duration::from_micros(1))),
            ..Looks::default()
        };
        Looks {
            taken: u64::from(self.other_was_taken.load(Ordering::SeqCst)),
            ..self.looks.lock().unwrap().unwrap_or_else(always)
        }
    }

    fn contradicts(&self, why: &str) {
        self.contradictions.lock().unwrap().push(why.to_owned());
    }
}

fn logged(index: u64) -> LoggedEntry {
    let json = format!("{{\"logIndex\":\"{index}\"}}");
    LoggedEntry {
        index,
        json: RawValue::from_string(json).unwrap(),
    }
}

/// The own log.
struct Own {
    size: AtomicU64,
    trust: Arc<TrustRoot>,
}

#[async_trait]
impl Log for Own {
    async fn append(&self, _: NewEntry) -> Result<LoggedEntry, Box<dyn Fault>> {
        Ok(logged(self.size.fetch_add(1, Ordering::SeqCst)))
    }

    fn trust(&self) -> &Arc<TrustRoot> {
        &self.trust
    }
}

/// Registries that have every image, and remember what is attached.
#[derive(Default)]
pub struct Shelf {
    /// The hosts of those that do not answer.
    pub down: Mutex<BTreeSet<String>>,
    /// The hosts of those that say nothing.
    pub hung: Mutex<BTreeSet<String>>,
    /// Images that are there no more.
    pub gone: Mutex<BTreeSet<Digest>>,
    /// Calls that were not answered.
    pub unanswered: AtomicU64,
    pub bundles: Mutex<Vec<(String, Digest, Digest)>>,
}

impl Shelf {
    async fn answers(&self, repository: &Repository) -> Result<(), RegistryError> {
        let host = repository.registry();
        if self.hung.lock().unwrap().contains(host) {
            std::future::pending::<()>().await;
        }
        if !self.down.lock().unwrap().contains(host) {
            return Ok(());
        }
        self.unanswered.fetch_add(1, Ordering::SeqCst);
        Err(RegistryError {
            operation: "calling".to_owned(),
            registry: host.to_owned(),
            reason: RegistryReason::Unavailable("it is down".to_owned()),
        })
    }

    /// Bundles that are attached to images of `repository`, each counted once.
    pub fn attached(&self, repository: &str) -> usize {
        let bundles = self.bundles.lock().unwrap();
        let own = bundles.iter().filter(|(of, _, _)| of == repository);
        own.map(|(_, image, bundle)| (image, bundle))
            .collect::<BTreeSet<_>>()
            .len()
    }
}

#[async_trait]
impl Registry for Shelf {
    async fn manifest(&self, _: Caller<'_>, image: &Reference) -> Result<Manifest, RegistryError> {
        self.answers(image.repository()).await?;
        // Nothing is under a tag.
        let digest = image.digest();
        let Some(digest) = digest.filter(|digest| !self.gone.lock().unwrap().contains(digest)) else {
            return Err(RegistryError {
                operation: "reading".to_owned(),
                registry: image.repository().registry().to_owned(),
                reason: RegistryReason::NotFound,
            });
        };
        Ok(Manifest {
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            digest,
            bytes: Bytes::from_static(b"{}"),
        })
    }

    async fn blob(
        &self,
        _: Caller<'_>,
        repository: &Repository,
        _: Digest,
        _: usize,
    ) -> Result<Bytes, RegistryError> {
        self.answers(repository).await?;
        Ok(Bytes::new())
    }

    async fn referrers(
        &self,
        _: Caller<'_>,
        repository: &Repository,
        _: Digest,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        self.answers(repository).await?;
        Ok(Vec::new())
    }

    async fn push_blob(&self, _: Caller<'_>, repository: &Repository, _: Bytes) -> Result<(), RegistryError> {
        self.answers(repository).await
    }

    async fn attach(
        &self,
        _: Caller<'_>,
        repository: &Repository,
        subject: Digest,
        manifest: &Descriptor,
        _: Bytes,
    ) -> Result<(), RegistryError> {
        self.answers(repository).await?;
        let attached = (repository.to_string(), subject, manifest.digest);
        self.bundles.lock().unwrap().push(attached);
        Ok(())
    }

    async fn update_tag(
        &self,
        _: Caller<'_>,
        repository: &Repository,
        _: &str,
        _: &Merge<'_>,
    ) -> Result<(), RegistryError> {
        self.answers(repository).await
    }
}

/// A server.
pub struct World {
    pub db: Db,
    pub clock: Arc<TestClock>,
    pub outside: Arc<Outside>,
    pub shelf: Arc<Shelf>,
    pub signing: Signing,
}

impl World {
    pub async fn on(url: &str) -> Self {
        let db = Db::open(url).await.unwrap();
        let migrations = [store::MIGRATIONS, access::MIGRATIONS, crate::MIGRATIONS];
        db.migrate(&migrations.concat()).await.unwrap();
        let clock = Arc::new(TestClock::at(NOW.parse().unwrap()));
        let random: Arc<dyn Random> = Arc::new(SystemRandom);
        let access = Access::new(db.clone(), clock.clone(), random.clone());
        let name = ProjectName::default_project();
        let (server, patterns) = (context(), vec!["**".parse().unwrap()]);
        let created = access.create_project(&server, name, patterns);
        created.await.unwrap();
        let (outside, shelf) = (Arc::new(Outside::default()), Arc::new(Shelf::default()));
        *outside.clock.lock().unwrap() = Some(clock.clone());
        let password = Secret::new("a password".to_owned());
        let rate = Rate {
            per_minute: 60_000,
            burst: 60_000,
        };
        let signing = Signing::new(crate::Settings {
            keyring: Keyring::new(db.clone(), password, clock.clone(), random.clone()),
            db: db.clone(),
            access,
            registry: shelf.clone(),
            log: Arc::new(Own {
                size: AtomicU64::new(0),
                trust: Arc::new(TrustRoot::from_json(NO_ROOT).unwrap()),
            }),
            external_log: true,
            formats: Box::new(|_| Formats::BUNDLE),
            quota: rate,
            clock: clock.clone(),
            random,
        });
        signing.keyring().create(&context(), "default").await.unwrap();
        Self {
            db,
            clock,
            outside,
            shelf,
            signing,
        }
    }

    /// Signs an image of this name, which no other is.
    pub async fn sign(&self, name: &str) -> Signed {
        self.sign_in("r.example/app", name, Formats::BUNDLE).await
    }

    /// Signs one image, and owes its signature so many times more.
    pub async fn owe(&self, count: i64) {
        let signed = self.sign("image").await;
        let mut tx = self.db.begin().await.unwrap();
        for sql in [
            "INSERT INTO signature (id, project, key_name, key_id, annotations, statement, signature, created_at, actor) \
             WITH RECURSIVE number (n) AS (SELECT CAST($1 AS BIGINT) UNION ALL SELECT n - 1 FROM number WHERE n > 1) \
             SELECT id || '-' || n, project, key_name, key_id, annotations, statement, signature, created_at, actor \
             FROM signature, number WHERE id = $2",
            "INSERT INTO external_debt (signature_id, state, images, since, attempts, next_at, last_error) \
             WITH RECURSIVE number (n) AS (SELECT CAST($1 AS BIGINT) UNION ALL SELECT n - 1 FROM number WHERE n > 1) \
             SELECT signature_id || '-' || n, state, images, since, 0, next_at, '' \
             FROM external_debt, number WHERE signature_id = $2",
        ] {
            tx.execute(sql, store::args![count, &signed.id]).await.unwrap();
        }
        tx.commit().await.unwrap();
    }

    pub async fn sign_in(&self, repository: &str, name: &str, formats: Formats) -> Signed {
        self.sign_as(&self.request(repository, name, formats)).await
    }

    pub async fn sign_as(&self, request: &SignRequest) -> Signed {
        self.signing.sign(&context(), request).await.unwrap().remove(0)
    }

    pub fn request(&self, repository: &str, name: &str, formats: Formats) -> SignRequest {
        let repository: Repository = repository.parse().unwrap();
        SignRequest {
            image: repository.at(Digest::of(name.as_bytes())),
            key: None,
            annotations: Annotations::new(),
            recursive: false,
            repair: false,
            formats: Some(formats),
            class: Class::Sign,
        }
    }

    /// Signs so many images in a repository.
    pub async fn sign_many(&self, repository: &str, count: usize) {
        for number in 0..count {
            let name = format!("image {number}");
            self.sign_in(repository, &name, Formats::BUNDLE).await;
        }
    }

    /// What the external log would know the signature by.
    pub async fn entry_of(&self, signed: &Signed) -> Digest {
        let sql = "SELECT statement FROM signature WHERE id = $1";
        let row = self
            .db
            .read_one(sql, store::args![&signed.id])
            .await
            .unwrap()
            .unwrap();
        let statement = row.blob("statement").unwrap();
        Digest::of(&crate::format::dsse::pae(
            crate::format::dsse::IN_TOTO,
            &statement,
        ))
    }

    pub async fn lease(&self, holder: &str, ttl: Duration) -> Lease {
        Lease::acquire(&self.db, LEASE, holder, ttl)
            .await
            .unwrap()
            .unwrap()
    }

    pub fn payer(&self, lease: &Lease) -> Payer {
        self.payer_at(lease, RATE)
    }

    pub fn payer_at(&self, lease: &Lease, entries_per_second_max: u32) -> Payer {
        let settings = Settings {
            log: self.outside.clone(),
            entries_per_second_max,
            holder: String::new(),
            lease_ttl: Duration::ZERO,
        };
        Payer::new(self.signing.parts.clone(), &settings, lease.fence())
    }

    /// Lets `payer` work for so long, by the test's clock.
    pub async fn pays_for(&self, payer: &mut Payer, time: Duration) {
        let until = self.clock.monotonic().after(time);
        loop {
            let wait = payer.start().await.unwrap();
            payer.prove().await;
            if !payer.answer().await {
                let left = until.since(self.clock.monotonic());
                if left == Duration::ZERO {
                    break;
                }
                self.clock.advance(wait.max(Duration::from_micros(1)).min(left));
            }
            if payer.is_to_settle() {
                payer.settle().await.unwrap();
            }
        }
        payer.settle().await.unwrap();
    }

    /// Publishes what is to be published now.
    pub async fn publish(&self, lease: &Lease) {
        let mut publisher = Publisher::new(self.signing.parts.clone(), lease.fence());
        while publisher.round().await.unwrap() {}
    }

    pub async fn standing(&self) -> Standing {
        self.signing.debt().await.unwrap()
    }
}

const NO_ROOT: &str = r#"{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}"#;

pub fn context() -> Context {
    Context::server(ProjectName::default_project())
}
