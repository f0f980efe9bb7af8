//! Bad input: each has its own code, and nothing is half done.

use flow::Caller;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use kernel::{Digest, Fault as _, Kind, Reference, Repository};
use serde_json::json;
use signing::format::{legacy, referrer};
use signing::ports::{Descriptor, Manifest, Merge, Registry, RegistryError};

use crate::forge::*;
use crate::world::{REPOSITORY, World};

#[tokio::test(flavor = "multi_thread")]
async fn an_index_with_too_many_manifests_is_refused_before_anything_is_signed() {
    let world = World::new().await;
    let mut manifests = Vec::new();
    for number in 0..257 {
        let digest = world
            .fake
            .put_image(REPOSITORY, "n", &format!("{number}"))
            .await
            .unwrap();
        manifests.push(json!({ "mediaType": referrer::IMAGE_MANIFEST, "digest": digest, "size": 1 }));
    }
    let index = json!({ "schemaVersion": 2, "mediaType": referrer::IMAGE_INDEX, "manifests": manifests });
    let bytes = index.to_string();
    world
        .fake
        .put_manifest(REPOSITORY, Some("all"), referrer::IMAGE_INDEX, bytes.as_bytes())
        .await
        .unwrap();
    let mut request = world.request(world.repository.tagged("all"));
    request.recursive = true;
    let error = world.signing.sign(&world.context(), &request).await.unwrap_err();
    assert_eq!((error.code().id, error.kind()), ("PC1205", Kind::TooLarge));
    assert_eq!((world.signatures().await, world.log_size().await), (0, 0));
    request.recursive = false;
    assert_eq!(
        world
            .signing
            .sign(&world.context(), &request)
            .await
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_whose_manifest_is_missing_signs_nothing() {
    let world = World::new().await;
    let missing = Digest::of(b"nobody pushed this");
    let entries = json!([
        { "mediaType": referrer::IMAGE_MANIFEST, "digest": world.image, "size": 1 },
        { "mediaType": referrer::IMAGE_MANIFEST, "digest": missing, "size": 1 },
    ]);
    let index =
        json!({ "schemaVersion": 2, "mediaType": referrer::IMAGE_INDEX, "manifests": entries }).to_string();
    world
        .fake
        .put_manifest(REPOSITORY, Some("all"), referrer::IMAGE_INDEX, index.as_bytes())
        .await
        .unwrap();
    let mut request = world.request(world.repository.tagged("all"));
    request.recursive = true;
    let error = world.signing.sign(&world.context(), &request).await.unwrap_err();
    assert_eq!(error.code().id, "PC1501");
    assert_eq!((world.signatures().await, world.log_size().await), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn annotations_have_caps() {
    let world = World::new().await;
    let many: Vec<(String, String)> = (0..65)
        .map(|number| (format!("{number}"), String::new()))
        .collect();
    let long = "x".repeat(4_097);
    for bad in [
        many.into_iter().collect(),
        annotations(&[("", "x")]),
        annotations(&[("a", &long)]),
        annotations(&[(&long, "a")]),
    ] {
        let mut request = world.request(world.reference());
        request.annotations = bad;
        let error = world.signing.sign(&world.context(), &request).await.unwrap_err();
        assert_eq!((error.code().id, error.kind()), ("PC1208", Kind::Invalid));
    }
    // Characters that JSON writes as six: many such annotations are over the cap of a statement.
    let escaped = "\u{1}".repeat(4_096);
    let mut request = world.request(world.reference());
    request.annotations = (0..64)
        .map(|number| (format!("{number}"), escaped.clone()))
        .collect();
    let error = world.signing.sign(&world.context(), &request).await.unwrap_err();
    assert_eq!(error.code().id, "PC1208");
    assert_eq!(
        (world.signatures().await, world.fake.calls().manifest_writes),
        (0, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_statement_that_is_signed_is_read_back() {
    let world = World::new().await;
    let mut request = world.request(world.reference());
    request.annotations = (0..64)
        .map(|number| (format!("{number}"), "\u{1}".repeat(1_500)))
        .collect();
    world.sign_as(&request).await;
    let report = world
        .verify(&world.logged_policy().await.with_annotations(request.annotations))
        .await;
    assert!(report.accepted_in("bundle"), "{:?}", report.reasons);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_tag_that_holds_something_else_is_left_alone() {
    let world = World::new().await;
    let tag = legacy::tag(world.image);
    let index =
        json!({ "schemaVersion": 2, "mediaType": referrer::IMAGE_INDEX, "manifests": [] }).to_string();
    let held = world
        .fake
        .put_manifest(REPOSITORY, Some(&tag), referrer::IMAGE_INDEX, index.as_bytes())
        .await
        .unwrap();
    let error = world
        .signing
        .sign(&world.context(), &world.request(world.reference()))
        .await
        .unwrap_err();
    assert_eq!(error.code().id, "PC1207", "{error:?}");
    assert_eq!(world.fake.tag_digest(REPOSITORY, &tag).await.unwrap(), Some(held));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reference_to_nothing_is_told() {
    let world = World::new().await;
    let error = world
        .signing
        .sign(&world.context(), &world.request(world.repository.tagged("no")))
        .await
        .unwrap_err();
    assert_eq!((error.code().id, error.kind()), ("PC1501", Kind::NotFound));
    let policy = world.policy().await;
    let now = now();
    let image = world.repository.tagged("no");
    let outcome = signing::verify::verify(&*world.client, Caller::LOCAL, &image, &policy, false, now).await;
    assert_eq!(outcome.unwrap_err().kind(), Kind::NotFound);
}

/// A registry whose index names itself, directly or through another. Digests of real bytes cannot: this one's are
/// made up, as those of a registry are that a client does not check.
struct Circle(std::collections::BTreeMap<Digest, Vec<Digest>>);

#[async_trait]
impl Registry for Circle {
    async fn manifest(&self, _: Caller<'_>, image: &Reference) -> Result<Manifest, RegistryError> {
        let digest = image.digest().unwrap();
        let kind = |digest| match self.0.contains_key(digest) {
            true => referrer::IMAGE_INDEX,
            false => referrer::IMAGE_MANIFEST,
        };
        let children = self.0.get(&digest).cloned().unwrap_or_default();
        let manifests: Vec<_> = children
            .iter()
            .map(|child| json!({ "mediaType": kind(child), "digest": child, "size": 1 }))
            .collect();
        Ok(Manifest {
            media_type: kind(&digest).to_owned(),
            digest,
            bytes: json!({ "manifests": manifests }).to_string().into(),
        })
    }
    async fn blob(&self, _: Caller<'_>, _: &Repository, _: Digest, _: usize) -> Result<Bytes, RegistryError> {
        panic!("nothing else is asked")
    }
    async fn referrers(
        &self,
        _: Caller<'_>,
        _: &Repository,
        _: Digest,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        panic!("nothing else is asked")
    }
    async fn push_blob(&self, _: Caller<'_>, _: &Repository, _: Bytes) -> Result<(), RegistryError> {
        panic!("nothing is written")
    }
    async fn attach(
        &self,
        _: Caller<'_>,
        _: &Repository,
        _: Digest,
        _: &Descriptor,
        _: Bytes,
    ) -> Result<(), RegistryError> {
        panic!("nothing is written")
    }
    async fn update_tag(
        &self,
        _: Caller<'_>,
        _: &Repository,
        _: &str,
        _: &Merge<'_>,
    ) -> Result<(), RegistryError> {
        panic!("nothing is written")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_names_itself_is_refused_before_anything_is_signed() {
    let world = World::new().await;
    let [a, b, c] = [b"a", b"b", b"c"].map(|name| Digest::of(name));
    for circle in [vec![(a, vec![a])], vec![(a, vec![b]), (b, vec![c, a])]] {
        let signing = world.over(Arc::new(Circle(circle.into_iter().collect())));
        let mut request = world.request(world.repository.at(a));
        request.recursive = true;
        let error = signing.sign(&world.context(), &request).await.unwrap_err();
        assert_eq!((error.code().id, error.kind()), ("PC1205", Kind::Invalid));
    }
    assert_eq!((world.signatures().await, world.log_size().await), (0, 0));
}
