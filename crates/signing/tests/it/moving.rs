//! Tags that move and keys that are rotated while somebody signs.

use flow::Caller;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use kernel::{
    Clock, Digest, Fault as _, Kind, Monotonic, Reference, Repository, Secret, SystemRandom, TestClock,
};
use signing::ports::{Descriptor, Manifest, Merge, Registry, RegistryError};
use signing::{Formats, Keyring, Signing};

use crate::forge::annotations;
use crate::world::{REPOSITORY, World};

/// Moves the tag when the first thing is pushed.
struct Moving(Arc<dyn Registry>, registry::Registry);
#[async_trait]
impl Registry for Moving {
    async fn manifest(&self, caller: Caller<'_>, image: &Reference) -> Result<Manifest, RegistryError> {
        self.0.manifest(caller, image).await
    }
    async fn blob(
        &self,
        p: Caller<'_>,
        r: &Repository,
        d: Digest,
        max: usize,
    ) -> Result<Bytes, RegistryError> {
        self.0.blob(p, r, d, max).await
    }
    async fn referrers(
        &self,
        p: Caller<'_>,
        r: &Repository,
        d: Digest,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        self.0.referrers(p, r, d).await
    }
    async fn push_blob(&self, p: Caller<'_>, r: &Repository, bytes: Bytes) -> Result<(), RegistryError> {
        self.1
            .put_image(REPOSITORY, "v1", "somebody else's")
            .await
            .unwrap();
        self.0.push_blob(p, r, bytes).await
    }
    async fn attach(
        &self,
        p: Caller<'_>,
        r: &Repository,
        d: Digest,
        m: &Descriptor,
        b: Bytes,
    ) -> Result<(), RegistryError> {
        self.0.attach(p, r, d, m, b).await
    }
    async fn update_tag(
        &self,
        p: Caller<'_>,
        r: &Repository,
        t: &str,
        m: &Merge<'_>,
    ) -> Result<(), RegistryError> {
        self.0.update_tag(p, r, t, m).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moved_while_its_image_was_signed_is_told() {
    let world = World::new().await;
    let signing = world.over(Arc::new(Moving(world.client.clone(), world.fake.clone())));
    let request = signing::SignRequest {
        formats: Some(Formats::BUNDLE),
        ..world.request(world.repository.tagged("v1"))
    };
    let error = signing.sign(&world.context(), &request).await.unwrap_err();
    assert_eq!((error.code().id, error.kind()), ("PC1206", Kind::Conflict));
    // The signature of the first image stands; the one that the tag names now has none.
    let policy = world.logged_policy().await;
    assert!(world.verify(&policy).await.verified);
    let now_there = world.fake.tag_digest(REPOSITORY, "v1").await.unwrap().unwrap();
    assert_ne!(now_there, world.image);
    assert!(
        !world
            .try_verify_digest(now_there, &policy)
            .await
            .unwrap()
            .verified
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_of_a_release_that_moved_is_told_for_its_image_alone() {
    let world = World::new().await;
    let mut images = vec![world.reference(), world.repository.tagged("v1")];
    for number in 0..20 {
        let tag = format!("other-{number}");
        let content = format!("image {number}");
        world.fake.put_image(REPOSITORY, &tag, &content).await.unwrap();
        images.push(world.repository.tagged(&tag));
    }
    let signing = world.over(Arc::new(Moving(world.client.clone(), world.fake.clone())));
    let context = world.context();
    let release = || signing.release(&context, images.clone(), None, annotations(&[]));
    let outcome = release().await.unwrap();
    let failed: Vec<usize> = (0..22).filter(|at| outcome[*at].is_err()).collect();
    assert_eq!(failed, [1], "only the one that was named by the tag that moved");
    let error = outcome[1].as_ref().unwrap_err();
    assert_eq!((error.code().id, error.kind()), ("PC1206", Kind::Conflict));
    assert!(error.to_string().contains(&images[1].to_string()), "{error}");
    // What it named is signed, and the other image is not.
    let policy = world.logged_policy().await;
    assert!(world.verify(&policy).await.verified);
    let moved = world.fake.tag_digest(REPOSITORY, "v1").await.unwrap().unwrap();
    assert!(!world.try_verify_digest(moved, &policy).await.unwrap().verified);
    assert_eq!((world.signatures().await, world.audited().await), (1, 21));
    // Again: the new image is signed, and nothing else.
    let again = release().await.unwrap();
    assert!(again.iter().all(Result::is_ok), "{again:?}");
    assert_eq!(again[1].as_ref().unwrap().digest, moved);
    assert_eq!((world.signatures().await, world.audited().await), (2, 22));
}

/// A clock by which nothing that was read is fresh: every look at a key is one into the database.
struct Restless(Arc<TestClock>);

impl Clock for Restless {
    fn now(&self) -> jiff::Timestamp {
        self.0.now()
    }

    fn monotonic(&self) -> Monotonic {
        self.0.advance(Duration::from_secs(3));
        self.0.monotonic()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_is_by_one_key_also_when_it_is_rotated_meanwhile() {
    let world = World::new().await;
    let (clock, random) = (Arc::new(Restless(world.clock.clone())), Arc::new(SystemRandom));
    let password = Secret::new("the server's".to_owned());
    let keyring = Keyring::new(world.db.clone(), password, clock.clone(), random.clone());
    let context = world.context();
    keyring.create(&context, "release").await.unwrap();
    let until = world.clock.now();
    keyring.rotate(&context, "release", until).await.unwrap();
    let signing = Signing::new(signing::Settings {
        quota: flow::Rate {
            per_minute: 60_000,
            burst: 60_000,
        },
        db: world.db.clone(),
        access: world.access.clone(),
        keyring,
        registry: world.client.clone(),
        log: world.log.clone(),
        external_log: false,
        formats: Box::new(|_| Formats::BUNDLE),
        clock,
        random,
    });
    let mut images = Vec::new();
    for number in 0..100 {
        let image = world.fake.put_image(REPOSITORY, "n", &format!("{number}")).await;
        images.push(world.repository.at(image.unwrap()));
    }
    let images = vec![images; 10].concat();
    // The second version comes and goes, as fast as it can.
    let (db, done) = (world.db.clone(), Arc::new(AtomicBool::new(false)));
    let (ends, (began, begins)) = (done.clone(), tokio::sync::oneshot::channel());
    let rotating = tokio::spawn(async move {
        let mut began = Some(began);
        while !ends.load(Ordering::SeqCst) {
            for sql in [
                "UPDATE signing_key SET version = 0 WHERE name = 'release' AND version = 2",
                "UPDATE signing_key SET version = 2 WHERE name = 'release' AND version = 0",
            ] {
                let mut tx = db.begin().await.unwrap();
                tx.execute(sql, store::args![]).await.unwrap();
                tx.commit().await.unwrap();
            }
            if let Some(began) = began.take() {
                began.send(()).unwrap();
            }
        }
    });
    begins.await.unwrap();
    let key = Some("release".to_owned());
    let outcome = signing.release(&context, images, key, annotations(&[])).await;
    done.store(true, Ordering::SeqCst);
    rotating.await.unwrap();
    let outcome = outcome.unwrap();
    let first = outcome[0].as_ref().unwrap();
    assert!(
        outcome
            .iter()
            .all(|signed| signed.as_ref().unwrap().key_id == first.key_id)
    );
    let mixed = "SELECT COUNT(*) AS n FROM signed_image i JOIN signature s ON s.id = i.signature_id \
                 WHERE i.key_id <> s.key_id";
    assert_eq!(
        world.count(mixed).await,
        0,
        "wishes of one key, signed by another"
    );
}
