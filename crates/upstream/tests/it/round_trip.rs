//! What works when nothing is wrong.

use bytes::Bytes;
use flow::Caller;
use kernel::{Digest, Fault as _, Kind};
use registry::{Calls, Options, Registry as Fake};
use signing::ports::{NewManifest, Registry as _, RegistryReason};

use super::{INDEX, MANIFEST, World, client, reason};

#[tokio::test]
async fn a_manifest_is_read_by_tag_and_by_digest() {
    let world = World::new(Options::default()).await;
    let client = client(Default::default());
    let by_tag = client.manifest(Caller::LOCAL, &world.tag("v1")).await.unwrap();
    assert_eq!(
        (by_tag.digest, by_tag.media_type.as_str()),
        (world.image, MANIFEST)
    );
    let by_digest = client
        .manifest(Caller::LOCAL, &world.repository.at(world.image))
        .await
        .unwrap();
    assert_eq!(by_tag, by_digest);
    let missing = client
        .manifest(Caller::LOCAL, &world.tag("v2"))
        .await
        .unwrap_err();
    assert_eq!((missing.kind(), missing.code().id), (Kind::NotFound, "PC1501"));
    assert!(missing.to_string().contains(":v2 at 127.0.0.1"), "{missing}");
}

#[tokio::test]
async fn an_index_and_its_images_are_read() {
    let world = World::new(Options::default()).await;
    let (index, images) = world
        .fake
        .put_index("team/app", "multi", &["amd64", "arm64"], "x")
        .await
        .unwrap();
    let client = client(Default::default());
    let read = client.manifest(Caller::LOCAL, &world.tag("multi")).await.unwrap();
    assert_eq!((read.digest, read.media_type.as_str()), (index, INDEX));
    for image in images {
        assert_eq!(
            client
                .manifest(Caller::LOCAL, &world.repository.at(image))
                .await
                .unwrap()
                .digest,
            image
        );
    }
}

#[tokio::test]
async fn a_blob_is_pushed_once_and_read_back() {
    let world = World::new(Options::default()).await;
    let client = client(Default::default());
    // Large enough that the client asks first.
    let bytes = Bytes::from(vec![7; 16 << 10]);
    client
        .push_blob(Caller::LOCAL, &world.repository, bytes.clone())
        .await
        .unwrap();
    let writes = world.fake.calls().blob_writes;
    assert_eq!(writes, 2, "one POST and one PUT");
    client
        .push_blob(Caller::LOCAL, &world.repository, bytes.clone())
        .await
        .unwrap();
    assert_eq!(world.fake.calls().blob_writes, writes, "it was there already");
    let read = client
        .blob(Caller::LOCAL, &world.repository, Digest::of(&bytes), bytes.len())
        .await
        .unwrap();
    assert_eq!(read, bytes);
    let small = reason(
        client
            .blob(Caller::LOCAL, &world.repository, Digest::of(&bytes), 5)
            .await,
    );
    assert!(
        matches!(small, RegistryReason::TooLarge { bytes_max: 5, .. }),
        "{small:?}"
    );
}

#[tokio::test]
async fn a_small_blob_is_one_call_where_the_registry_takes_that() {
    // How the registry answers the POST with the blob in it, and the calls for the first and the second blob.
    for (status, first, second) in [
        (None, 1, 1),
        // It opened an upload, to which the blob goes; the next is not sent in vain.
        (Some(202), 2, 2),
        // It refused, so an upload is opened.
        (Some(400), 3, 2),
        (Some(415), 3, 2),
        (Some(501), 3, 2),
    ] {
        let world = World::new(Options::default()).await;
        world.fake.fault(|plan| plan.blob_post_status = status);
        let client = client(Default::default());
        for (bytes, calls) in [(&b"one"[..], first), (b"two", second)] {
            let before = world.fake.calls();
            let bytes = Bytes::from_static(bytes);
            client
                .push_blob(Caller::LOCAL, &world.repository, bytes.clone())
                .await
                .unwrap();
            let after = world.fake.calls();
            assert_eq!(after.blob_writes - before.blob_writes, calls, "{status:?}");
            assert_eq!(
                after.blob_reads, before.blob_reads,
                "{status:?}: it does not ask first"
            );
            let digest = Digest::of(&bytes);
            let read = client
                .blob(Caller::LOCAL, &world.repository, digest, bytes.len())
                .await;
            assert_eq!(read.unwrap(), bytes, "{status:?}");
        }
    }
}

#[tokio::test]
async fn a_refusal_of_the_caller_is_not_taken_for_one_of_the_short_way() {
    for (status, code) in [(403, "PC1502"), (404, "PC1501"), (429, "PC1507")] {
        let world = World::new(Options::default()).await;
        world.fake.fault(|plan| plan.blob_post_status = Some(status));
        let pushed = client(Default::default())
            .push_blob(Caller::LOCAL, &world.repository, Bytes::from_static(b"one"))
            .await;
        match pushed {
            Err(error) => assert_eq!(error.code().id, code, "{status}"),
            // Too many calls is something that passes: the next round takes the long way.
            Ok(()) => assert_eq!(status, 429),
        }
    }
}

#[tokio::test]
async fn an_attached_manifest_is_listed_by_the_referrers_api() {
    let world = World::new(Options {
        referrers_per_page: 2,
        ..Options::default()
    })
    .await;
    let client = client(Default::default());
    let mut attached = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        attached.push(world.attach(&client, name).await.unwrap().digest);
    }
    let mut listed: Vec<_> = client
        .referrers(Caller::LOCAL, &world.repository, world.image)
        .await
        .unwrap()
        .iter()
        .map(|one| one.digest)
        .collect();
    attached.sort();
    listed.sort();
    assert_eq!(listed, attached, "over three pages");
    let fallback = world
        .fake
        .tag_digest("team/app", &format!("sha256-{}", world.image.hex()))
        .await
        .unwrap();
    assert_eq!(
        fallback, None,
        "no fallback tag where the registry lists referrers itself"
    );
}

#[tokio::test]
async fn an_attached_manifest_is_listed_by_the_fallback_tag() {
    let world = World::without_referrers().await;
    let client = client(Default::default());
    assert!(
        client
            .referrers(Caller::LOCAL, &world.repository, world.image)
            .await
            .unwrap()
            .is_empty()
    );
    let first = world.attach(&client, "a").await.unwrap();
    let second = world.attach(&client, "b").await.unwrap();
    let listed = client
        .referrers(Caller::LOCAL, &world.repository, world.image)
        .await
        .unwrap();
    assert_eq!(listed, [first.clone(), second]);
    let before = world.fake.calls();
    world.attach(&client, "a").await.unwrap();
    let after = world.fake.calls();
    assert_eq!(
        client
            .referrers(Caller::LOCAL, &world.repository, world.image)
            .await
            .unwrap()
            .len(),
        2
    );
    assert_eq!(
        after.manifest_writes - before.manifest_writes,
        1,
        "the index was not written again"
    );
}

#[tokio::test]
async fn entries_of_other_writers_keep_fields_that_we_do_not_know() {
    let world = World::without_referrers().await;
    let tag = format!("sha256-{}", world.image.hex());
    let foreign = format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","annotations":{{"k":"v"}},"manifests":[{{"mediaType":"{MANIFEST}",
        "digest":"{}","size":3,"data":"e30=","platform":{{"os":"linux"}}}}]}}"#,
        Digest::of(b"foreign")
    );
    world
        .fake
        .put_manifest("team/app", Some(&tag), INDEX, foreign.as_bytes())
        .await
        .unwrap();
    world.attach(&client(Default::default()), "a").await.unwrap();
    let digest = world.fake.tag_digest("team/app", &tag).await.unwrap().unwrap();
    let bytes = world
        .fake
        .manifest_bytes("team/app", digest)
        .await
        .unwrap()
        .unwrap();
    let index: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
    assert_eq!(index["manifests"][0]["data"], "e30=");
    assert_eq!(index["manifests"][0]["platform"]["os"], "linux");
    assert_eq!(index["annotations"]["k"], "v");
}

#[tokio::test]
async fn a_tag_is_updated_with_the_blobs_that_it_needs() {
    let world = World::new(Options::default()).await;
    let client = client(Default::default());
    let layer = Bytes::from_static(b"payload");
    let bytes = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"c","digest":"{0}","size":7}},"layers":[{{"mediaType":"l","digest":"{0}","size":7}}]}}"#,
        Digest::of(&layer)
    );
    let wanted = NewManifest {
        media_type: MANIFEST.to_owned(),
        bytes: bytes.into_bytes(),
        blobs: vec![layer],
    };
    let digest = Digest::of(&wanted.bytes);
    let merge = |current: Option<&signing::ports::Manifest>| {
        Ok(current
            .is_none_or(|current| current.digest != digest)
            .then(|| wanted.clone()))
    };
    client
        .update_tag(Caller::LOCAL, &world.repository, "sig", &merge)
        .await
        .unwrap();
    assert_eq!(
        world.fake.tag_digest("team/app", "sig").await.unwrap(),
        Some(digest)
    );
    let writes = world.fake.calls().manifest_writes;
    client
        .update_tag(Caller::LOCAL, &world.repository, "sig", &merge)
        .await
        .unwrap();
    assert_eq!(
        world.fake.calls().manifest_writes,
        writes,
        "nothing was left to change"
    );
}

#[tokio::test]
async fn no_more_calls_are_under_way_than_configured() {
    let world = World::new(Options::default()).await;
    let limited = upstream::oci::RegistryConfig {
        concurrent_calls_max: 3,
        ..Default::default()
    };
    let client = std::sync::Arc::new(client(world.with(limited)));
    let calls: Vec<_> = (0..40)
        .map(|_| {
            let (client, tag) = (client.clone(), world.tag("v1"));
            tokio::spawn(async move { client.manifest(Caller::LOCAL, &tag).await })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    let Calls {
        manifest_reads,
        concurrent_max,
        ..
    } = world.fake.calls();
    assert_eq!(manifest_reads, 40);
    assert!(concurrent_max <= 3, "{concurrent_max}");
}

#[tokio::test]
async fn a_registry_in_a_folder_keeps_its_content() {
    let folder = tempfile::tempdir().unwrap();
    let put = Fake::folder(folder.path(), Options::default()).unwrap();
    let digest = put.put_image("team/app", "v1", "hello").await.unwrap();
    drop(put);
    let running = Fake::folder(folder.path(), Options::default())
        .unwrap()
        .serve_on_loopback()
        .await
        .unwrap();
    let image = format!("{}/team/app:v1", running.host()).parse().unwrap();
    assert_eq!(
        client(Default::default())
            .manifest(Caller::LOCAL, &image)
            .await
            .unwrap()
            .digest,
        digest
    );
}
