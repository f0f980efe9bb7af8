//! A registry that fails, lies or changes its mind: what could not be asked is an error, and never "unsigned".

use flow::Caller;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use kernel::limits::SIGNATURE_BLOB_BYTES_MAX;
use kernel::{Clock as _, Digest, Fault as _, Kind, Reference, Repository};
use serde_json::json;
use signing::SigningError;
use signing::format::legacy;
use signing::ports::{Descriptor, Manifest, Merge, Registry, RegistryError, RegistryReason};

use crate::forge::*;
use crate::world::{REPOSITORY, World, only_reason};

type Reason = fn() -> RegistryReason;

/// What a call that cannot be answered looks like. `NotFound` is none of them: it is an answer.
const REASONS: &[Reason] = &[
    || RegistryReason::Unauthenticated("no".to_owned()),
    || RegistryReason::Denied("no".to_owned()),
    || RegistryReason::TooManyReferrers,
    || RegistryReason::DigestMismatch {
        expected: Digest::of(b"a"),
        found: Digest::of(b"b"),
    },
    || RegistryReason::Malformed("a login page".to_owned()),
    || RegistryReason::Refused("no".to_owned()),
    || RegistryReason::Throttled { retry_after: None },
    || RegistryReason::Contended { attempts: 1 },
    || RegistryReason::PlainHttp,
    || RegistryReason::Address("link-local".to_owned()),
    || RegistryReason::Redirect("elsewhere".to_owned()),
    || RegistryReason::Unavailable("the connection broke".to_owned()),
];

/// A registry of which one call fails.
struct Flaky {
    inner: Arc<dyn Registry>,
    calls: AtomicU32,
    fails_at: u32,
    reason: Reason,
}

impl Flaky {
    fn new(inner: Arc<dyn Registry>, fails_at: u32, reason: Reason) -> Self {
        Self {
            inner,
            calls: AtomicU32::new(0),
            fails_at,
            reason,
        }
    }

    fn call(&self) -> Result<(), RegistryError> {
        if self.calls.fetch_add(1, Ordering::SeqCst) != self.fails_at {
            return Ok(());
        }
        Err(RegistryError {
            operation: "a call".to_owned(),
            registry: "r.example".to_owned(),
            reason: (self.reason)(),
        })
    }
}

#[async_trait]
impl Registry for Flaky {
    async fn manifest(&self, caller: Caller<'_>, image: &Reference) -> Result<Manifest, RegistryError> {
        self.call()?;
        self.inner.manifest(caller, image).await
    }

    async fn blob(
        &self,
        caller: Caller<'_>,
        repository: &Repository,
        digest: Digest,
        bytes_max: usize,
    ) -> Result<Bytes, RegistryError> {
        self.call()?;
        self.inner.blob(caller, repository, digest, bytes_max).await
    }

    async fn referrers(
        &self,
        caller: Caller<'_>,
        repository: &Repository,
        subject: Digest,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        self.call()?;
        self.inner.referrers(caller, repository, subject).await
    }

    async fn push_blob(
        &self,
        caller: Caller<'_>,
        repository: &Repository,
        bytes: Bytes,
    ) -> Result<(), RegistryError> {
        self.call()?;
        self.inner.push_blob(caller, repository, bytes).await
    }

    async fn attach(
        &self,
        caller: Caller<'_>,
        repository: &Repository,
        subject: Digest,
        manifest: &Descriptor,
        bytes: Bytes,
    ) -> Result<(), RegistryError> {
        self.call()?;
        self.inner
            .attach(caller, repository, subject, manifest, bytes)
            .await
    }

    async fn update_tag(
        &self,
        caller: Caller<'_>,
        repository: &Repository,
        tag: &str,
        merge: &Merge<'_>,
    ) -> Result<(), RegistryError> {
        self.call()?;
        self.inner.update_tag(caller, repository, tag, merge).await
    }
}

/// An image with a stranger's bundle and legacy signature before the good legacy one: every kind of call is made.
async fn crowded() -> (World, signing::key::LocalSigner) {
    let world = World::new().await;
    let (ours, stranger) = (signer(), signer());
    world
        .attach(
            world.image,
            &key_bundle(&stranger, &image_work(&stranger, world.image), &[]),
        )
        .await;
    let payload = legacy::payload(&world.repository, world.image, &annotations(&[]));
    let layer = |signer: &signing::key::LocalSigner| {
        let signature = b64(signer.sign_now(Digest::of(&payload)).unwrap());
        (payload.clone(), json!({ (legacy::SIGNATURE): signature }))
    };
    world
        .put_legacy(world.image, &[layer(&stranger), layer(&ours)])
        .await;
    (world, ours)
}

#[tokio::test(flavor = "multi_thread")]
async fn t31_any_error_of_any_call_is_never_verified_and_never_unsigned() {
    let (world, ours) = crowded().await;
    let (policy, now) = (by_key(&ours), world.clock.now());
    let image = world.repository.tagged("v1");
    let verify = async |fails_at, reason| {
        let registry = Flaky::new(world.client.clone(), fails_at, reason);
        let outcome = signing::verify::verify(&registry, Caller::LOCAL, &image, &policy, false, now).await;
        (outcome, registry.calls.load(Ordering::SeqCst))
    };
    let (whole, calls) = verify(u32::MAX, REASONS[0]).await;
    assert!(whole.unwrap()[0].verified);
    assert_eq!(calls, 7, "image, list, referrer, bundle, tag, two layers");
    for fails_at in 0..calls {
        for reason in REASONS {
            let (outcome, _) = verify(fails_at, *reason).await;
            let error = outcome.unwrap_err();
            assert!(
                matches!(error, SigningError::Registry(_)),
                "call {fails_at}: {error:?}"
            );
            assert!(
                format!("{error:?}").contains(&format!("{:?}", reason())),
                "{error:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t31_any_error_of_any_call_while_signing_is_never_a_success() {
    let world = World::new().await;
    let request = world.request(world.repository.tagged("v1"));
    let count = Arc::new(Flaky::new(world.client.clone(), u32::MAX, REASONS[0]));
    world
        .over(count.clone())
        .sign(&world.context(), &request)
        .await
        .unwrap();
    let calls = count.calls.load(Ordering::SeqCst);
    assert!(calls >= 7, "{calls}");
    for fails_at in 0..calls {
        let image = world
            .fake
            .put_image(REPOSITORY, "next", &format!("{fails_at}"))
            .await
            .unwrap();
        let request = world.request(world.repository.tagged("next"));
        let registry = Arc::new(Flaky::new(world.client.clone(), fails_at, REASONS[11]));
        world
            .over(registry)
            .sign(&world.context(), &request)
            .await
            .unwrap_err();
        // The next one goes on from there, with no second signature or entry.
        let signed = world
            .another()
            .sign(&world.context(), &request)
            .await
            .unwrap()
            .remove(0);
        assert_eq!(signed.digest, image);
        assert_eq!(world.log_size().await, u64::from(fails_at) + 2);
        assert_eq!(world.signatures().await, i64::from(fails_at) + 2);
        assert!(
            world
                .try_verify_digest(image, &world.logged_policy().await)
                .await
                .unwrap()
                .verified
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t44_each_failure_to_ask_is_told_as_what_it_is() {
    let world = World::new().await;
    let policy = world.policy().await;
    // Nothing is signed: every one of these would be "unsigned" to a verifier that swallows errors.
    assert!(!world.verify(&policy).await.verified);
    world.fake.fault(|plan| plan.listing_status = Some(500));
    assert_eq!(world.try_verify(&policy).await.unwrap_err().code().id, "PC1511");
    world.fake.fault(|plan| plan.listing_status = Some(401));
    assert_eq!(world.try_verify(&policy).await.unwrap_err().code().id, "PC1502");
    world.fake.fault(|plan| {
        plan.listing_status = None;
        plan.listing_content_type = Some("text/html".to_owned());
    });
    assert_eq!(
        world.try_verify(&policy).await.unwrap_err().kind(),
        Kind::Unavailable
    );
    world.fake.fault(|plan| {
        plan.listing_content_type = None;
        plan.fail_reads = u32::MAX;
    });
    assert_eq!(world.try_verify(&policy).await.unwrap_err().code().id, "PC1511");
    world.fake.fault(|plan| plan.fail_reads = 0);
    assert!(!world.verify(&policy).await.verified);
}

#[tokio::test(flavor = "multi_thread")]
async fn t44_a_dead_registry_is_no_verdict_for_the_server_either() {
    let world = World::new().await;
    let request = world.verify_request();
    world.fake.fault(|plan| plan.listing_status = Some(503));
    world
        .verifying
        .verify(&world.context(), &request)
        .await
        .unwrap_err();
    world.fake.fault(|plan| plan.listing_status = None);
    // The failure was not kept as a verdict.
    world.sign().await;
    assert!(
        world.verifying.verify(&world.context(), &request).await.unwrap()[0]
            .report
            .verified
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn t10_a_registry_that_changes_its_answer_verifies_nothing_else() {
    let world = World::new().await;
    world.sign().await;
    let (policy, now) = (world.logged_policy().await, world.clock.now());
    let other = world.fake.put_image(REPOSITORY, "v2", "other").await.unwrap();
    world.fake.fault(|plan| plan.flip_flop = true);
    for _ in 0..6 {
        let outcome = signing::verify::verify(
            &*world.client,
            Caller::LOCAL,
            &world.reference(),
            &policy,
            false,
            now,
        )
        .await;
        // Either the bytes are those of the digest asked for, or there is no answer.
        match outcome {
            Ok(reports) => assert_eq!(reports[0].digest, world.image),
            Err(error) => assert_eq!(error.code().id, "PC1504", "{error:?}"),
        }
    }
    world.fake.fault(|plan| plan.flip_flop = false);
    // A tag that moves between two looks: each verdict is about the digest that it names.
    let tag = world.repository.tagged("v1");
    let first = signing::verify::verify(&*world.client, Caller::LOCAL, &tag, &policy, false, now)
        .await
        .unwrap();
    assert!(first[0].verified && first[0].digest == world.image);
    world.fake.put_image(REPOSITORY, "v1", "other").await.unwrap();
    let second = signing::verify::verify(&*world.client, Caller::LOCAL, &tag, &policy, false, now)
        .await
        .unwrap();
    assert!(!second[0].verified && second[0].digest == other);
}

#[tokio::test(flavor = "multi_thread")]
async fn t12_the_subject_is_the_image_that_was_asked_for() {
    let world = World::new().await;
    let signer = signer();
    let other = world.fake.put_image(REPOSITORY, "v2", "other").await.unwrap();
    // The right statement, attached by a manifest that refers to another image, listed for this one.
    let bundle = key_bundle(&signer, &image_work(&signer, world.image), &[]);
    let misfiled = world.attach(other, &bundle).await;
    let index = json!({
        "schemaVersion": 2, "mediaType": signing::format::referrer::IMAGE_INDEX, "manifests": [misfiled],
    });
    let tag = format!("sha256-{}", world.image.hex());
    let kind = signing::format::referrer::IMAGE_INDEX;
    world
        .fake
        .put_manifest(REPOSITORY, Some(&tag), kind, index.to_string().as_bytes())
        .await
        .unwrap();
    world.fake.fault(|plan| plan.listing_status = Some(404));
    assert_eq!(
        only_reason(&world.verify(&by_key(&signer)).await),
        "other-subject"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn t15_a_candidate_over_the_cap_is_not_read_and_hides_no_other() {
    let world = World::new().await;
    let mut fat = image_work(&signer(), world.image).content;
    fat["x"] = "x".repeat(SIGNATURE_BLOB_BYTES_MAX).into();
    world.attach(world.image, fat.to_string().as_bytes()).await;
    let policy = world.policy().await;
    assert_eq!(only_reason(&world.verify(&policy).await), "too-large");
    world.sign().await;
    assert!(world.verify(&policy).await.verified);
    // The same in the signature tag.
    let other = world.fake.put_image(REPOSITORY, "v2", "other").await.unwrap();
    world
        .put_legacy(other, &[(vec![b' '; SIGNATURE_BLOB_BYTES_MAX + 1], json!({}))])
        .await;
    let report = world.try_verify_digest(other, &policy).await.unwrap();
    assert_eq!(only_reason(&report), "too-large");
}

#[tokio::test(flavor = "multi_thread")]
async fn t15_what_is_compressed_is_not_unpacked() {
    use std::io::Write as _;
    let world = World::new().await;
    // A gzip member of stored blocks around a bundle: a reader that unpacks would accept it.
    let signer = signer();
    let bundle = key_bundle(&signer, &image_work(&signer, world.image), &[]);
    let mut packed = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff, 1];
    packed.write_all(&(bundle.len() as u16).to_le_bytes()).unwrap();
    packed.write_all(&(!(bundle.len() as u16)).to_le_bytes()).unwrap();
    packed.write_all(&bundle).unwrap();
    world.attach(world.image, &packed).await;
    assert_eq!(only_reason(&world.verify(&by_key(&signer)).await), "malformed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_whose_content_is_gone_is_no_failure() {
    let world = World::new().await;
    let signer = signer();
    let bundle = key_bundle(&signer, &image_work(&signer, world.image), &[]);
    let subject = Descriptor {
        media_type: signing::format::referrer::IMAGE_MANIFEST.to_owned(),
        digest: world.image,
        size: 1,
        artifact_type: None,
        annotations: annotations(&[]),
    };
    let (descriptor, manifest) = signing::format::referrer::write(&subject, &bundle);
    // The manifest is there, its blob never was.
    let kind = signing::format::referrer::IMAGE_MANIFEST;
    world
        .fake
        .put_manifest(REPOSITORY, None, kind, &manifest)
        .await
        .unwrap();
    let listed = world
        .client
        .referrers(Caller::LOCAL, &world.repository, world.image)
        .await
        .unwrap();
    assert_eq!(listed[0].digest, descriptor.digest);
    assert_eq!(only_reason(&world.verify(&by_key(&signer)).await), "gone");
    world.sign().await;
    assert!(world.verify(&world.policy().await).await.verified);
}

/// Shown to fail: with an `upstream` that tries no write again (`Session::pause`), signing fails with the first cut.
#[tokio::test(flavor = "multi_thread")]
async fn p12_a_registry_that_takes_a_put_and_drops_the_connection_ends_in_the_truth() {
    for cuts in 1..=4 {
        let world = World::new().await;
        world.fake.fault(|plan| plan.cut_after_puts = cuts);
        let work = tokio::time::timeout(Duration::from_secs(60), world.sign());
        let signed = work.await.unwrap();
        assert!(!signed.deduplicated);
        let report = world.verify(&world.logged_policy().await).await;
        assert!(report.verified, "{cuts} cuts: {:?}", report.reasons);
        world.only_bundle().await;
        assert_eq!((world.signatures().await, world.log_size().await), (1, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_not_there_is_not_unsigned() {
    let world = World::new().await;
    let missing = Digest::of(b"nobody pushed this");
    let error = world
        .try_verify_digest(missing, &world.policy().await)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), kernel::Kind::NotFound, "{error:?}");
    // One that is there and unsigned is an answer.
    assert!(!world.verify(&world.policy().await).await.verified);
}
