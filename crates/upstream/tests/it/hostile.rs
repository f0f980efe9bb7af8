//! A registry that lies, floods or leads astray.

use flow::Caller;
use kernel::limits::REFERRERS_MAX;
use kernel::{Digest, Fault as _, Kind};
use registry::Options;
use serde_json::json;
use signing::ports::{Registry as _, RegistryReason};

use super::{BUNDLE, INDEX, MANIFEST, World, client, reason, referrer};

#[tokio::test]
async fn t10_a_registry_that_answers_differently_the_second_time_is_caught() {
    let world = World::new(Options::default()).await;
    let client = client(Default::default());
    world.fake.fault(|plan| plan.flip_flop = true);
    let first = client.manifest(Caller::LOCAL, &world.tag("v1")).await.unwrap();
    let second = reason(
        client
            .manifest(Caller::LOCAL, &world.repository.at(first.digest))
            .await,
    );
    assert!(
        matches!(second, RegistryReason::DigestMismatch { .. }),
        "{second:?}"
    );
}

#[tokio::test]
async fn t11_the_digest_is_computed_and_a_header_that_says_otherwise_is_an_error() {
    let world = World::new(Options::default()).await;
    let client = client(Default::default());
    world.fake.fault(|plan| plan.wrong_digest_header = true);
    for image in [world.tag("v1"), world.repository.at(world.image)] {
        let answer = client.manifest(Caller::LOCAL, &image).await.unwrap_err();
        assert!(
            matches!(answer.reason, RegistryReason::DigestMismatch { .. }),
            "{answer:?}"
        );
        assert_eq!((answer.kind(), answer.code().id), (Kind::Unavailable, "PC1504"));
    }
}

#[tokio::test]
async fn t11_a_blob_with_other_bytes_is_refused() {
    let world = World::new(Options::default()).await;
    let digest = world.fake.put_blob("team/app", b"content").await.unwrap();
    let liar = liar(b"tampered").await;
    world
        .fake
        .fault(|plan| plan.redirect_blobs = Some(format!("http://{liar}")));
    let answer = reason(
        client(Default::default())
            .blob(Caller::LOCAL, &world.repository, digest, 100)
            .await,
    );
    let RegistryReason::DigestMismatch { expected, found } = answer else {
        panic!("{answer:?}")
    };
    assert_eq!((expected, found), (digest, Digest::of(b"tampered")));
}

/// Answers every connection with 200 and these bytes, once each; ends with the test's runtime.
async fn liar(body: &'static [u8]) -> std::net::SocketAddr {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(body).await;
        }
    });
    address
}

#[tokio::test]
async fn t13_more_referrers_than_the_cap_are_an_error_that_names_it() {
    let api = World::new(Options::default()).await;
    for n in 0..=REFERRERS_MAX {
        let (_, bytes) = referrer(api.image, &n.to_string());
        api.fake
            .put_manifest("team/app", None, MANIFEST, &bytes)
            .await
            .unwrap();
    }
    let answer = client(Default::default())
        .referrers(Caller::LOCAL, &api.repository, api.image)
        .await
        .unwrap_err();
    assert!(
        matches!(answer.reason, RegistryReason::TooManyReferrers),
        "{answer:?}"
    );
    assert!(kernel::chain(&answer).contains("REFERRERS_MAX"));

    let fallback = World::without_referrers().await;
    let entries: Vec<_> = (0..=REFERRERS_MAX)
        .map(|n| json!({ "mediaType": MANIFEST, "digest": Digest::of(&n.to_be_bytes()), "size": 1 }))
        .collect();
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries }).to_string();
    let tag = format!("sha256-{}", fallback.image.hex());
    fallback
        .fake
        .put_manifest("team/app", Some(&tag), INDEX, index.as_bytes())
        .await
        .unwrap();
    let answer = reason(
        client(Default::default())
            .referrers(Caller::LOCAL, &fallback.repository, fallback.image)
            .await,
    );
    assert!(matches!(answer, RegistryReason::TooManyReferrers), "{answer:?}");
}

#[tokio::test]
async fn t13_a_list_over_its_bytes_is_an_error_and_no_answer() {
    for api in [true, false] {
        let world = match api {
            true => World::new(Options::default()).await,
            false => World::without_referrers().await,
        };
        // Whoever may attach something writes into the list as much as a manifest holds.
        let entries: Vec<_> = (0..3_u8)
            .map(|n| {
                json!({
                    "mediaType": MANIFEST, "digest": Digest::of(&[n]), "size": 1,
                    "annotations": { "a": "x".repeat(kernel::limits::MANIFEST_BYTES_MAX / 2) },
                })
            })
            .collect();
        if api {
            for entry in &entries {
                let manifest = json!({
                    "schemaVersion": 2, "mediaType": MANIFEST, "layers": [], "subject": { "mediaType": MANIFEST,
                    "digest": world.image, "size": 1 }, "number": entry["digest"], "annotations": entry["annotations"],
                    "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": world.image, "size": 2 },
                });
                let bytes = manifest.to_string();
                world
                    .fake
                    .put_manifest("team/app", None, MANIFEST, bytes.as_bytes())
                    .await
                    .unwrap();
            }
        } else {
            let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries }).to_string();
            let tag = format!("sha256-{}", world.image.hex());
            world
                .fake
                .put_manifest("team/app", Some(&tag), INDEX, index.as_bytes())
                .await
                .unwrap();
        }
        let listed = client(Default::default())
            .referrers(Caller::LOCAL, &world.repository, world.image)
            .await;
        let answer = listed.unwrap_err();
        assert_eq!(
            (answer.kind(), answer.code().id),
            (Kind::Unavailable, "PC1513"),
            "{answer:?}"
        );
        assert_eq!(answer.kind().exit_code(), 6);
        assert!(
            kernel::chain(&answer).contains("the list of its referrers"),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn t13_pages_without_end_are_an_error() {
    let world = World::new(Options::default()).await;
    world.fake.fault(|plan| plan.endless_listing = true);
    let answer = reason(
        client(Default::default())
            .referrers(Caller::LOCAL, &world.repository, world.image)
            .await,
    );
    assert!(matches!(answer, RegistryReason::Malformed(_)), "{answer:?}");
    assert_eq!(world.fake.calls().referrer_lists, 32, "PAGES_MAX");
}

#[tokio::test]
async fn t14_a_manifest_without_end_is_cut_at_the_cap() {
    let world = World::new(Options::default()).await;
    world.fake.fault(|plan| plan.endless_manifest = true);
    let client = client(Default::default());
    let before = resident_bytes();
    for _ in 0..5 {
        let answer = reason(client.manifest(Caller::LOCAL, &world.tag("v1")).await);
        assert!(
            matches!(
                answer,
                RegistryReason::TooLarge {
                    name: "MANIFEST_BYTES_MAX",
                    ..
                }
            ),
            "{answer:?}"
        );
    }
    // Other tests run in this process: the bound is wide, but a stream that is kept would pass it at once.
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 512 << 20, "grew by {grown} bytes");
}

/// Resident memory of this process (proc(5), `statm`); 0 where there is no such file.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok())
        .unwrap_or(0)
        * 4096
}

#[tokio::test]
async fn t14_a_manifest_over_the_cap_is_refused() {
    let world = World::new(Options::default()).await;
    let bytes = format!(
        r#"{{"layers":[],"x":"{}"}}"#,
        "a".repeat(kernel::limits::MANIFEST_BYTES_MAX)
    );
    world
        .fake
        .put_manifest("team/app", Some("big"), MANIFEST, bytes.as_bytes())
        .await
        .unwrap();
    let answer = client(Default::default())
        .manifest(Caller::LOCAL, &world.tag("big"))
        .await
        .unwrap_err();
    assert_eq!((answer.kind(), answer.code().id), (Kind::TooLarge, "PC1503"));
    assert!(kernel::chain(&answer).contains("MANIFEST_BYTES_MAX"));
}

#[tokio::test]
async fn t28_deep_json_is_refused_before_it_is_parsed() {
    let world = World::new(Options::default()).await;
    let deep = format!(r#"{{"layers":{}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    world
        .fake
        .put_manifest("team/app", Some("deep"), MANIFEST, deep.as_bytes())
        .await
        .unwrap();
    let answer = reason(
        client(Default::default())
            .manifest(Caller::LOCAL, &world.tag("deep"))
            .await,
    );
    assert!(matches!(answer, RegistryReason::Unreadable { .. }), "{answer:?}");
}

#[tokio::test]
async fn t29_a_document_with_layers_and_manifests_is_refused() {
    let world = World::new(Options::default()).await;
    let both = r#"{"schemaVersion":2,"layers":[],"manifests":[]}"#;
    for (tag, media_type) in [("image", MANIFEST), ("index", INDEX)] {
        world
            .fake
            .put_manifest("team/app", Some(tag), media_type, both.as_bytes())
            .await
            .unwrap();
        let answer = client(Default::default())
            .manifest(Caller::LOCAL, &world.tag(tag))
            .await
            .unwrap_err();
        assert!(
            matches!(answer.reason, RegistryReason::Unreadable { .. }),
            "{answer:?}"
        );
        assert_eq!(answer.code().id, "PC1505");
    }
}

/// What the registry holds and nobody can read is told from a page that stands between us and the registry.
#[tokio::test]
async fn content_that_does_not_read_is_told_from_a_login_page() {
    let world = World::new(Options::default()).await;
    let client = client(Default::default());
    for (kind, bytes) in [
        (MANIFEST, "no JSON"),
        ("application/vnd.oci.artifact.manifest.v1+json", "{}"),
        ("text/html", "<html>"),
    ] {
        let digest = world
            .fake
            .put_manifest("team/app", Some("strange"), kind, bytes.as_bytes())
            .await
            .unwrap();
        for image in [world.tag("strange"), world.repository.at(digest)] {
            let answer = reason(client.manifest(Caller::LOCAL, &image).await);
            assert!(
                matches!(&answer, RegistryReason::Unreadable { digest: found, .. } if *found == digest),
                "{image}: {answer:?}"
            );
        }
    }
    let proxy = liar(b"<html>Please log in</html>").await;
    let repository: kernel::Repository = format!("{proxy}/team/app").parse().unwrap();
    let answer = reason(client.manifest(Caller::LOCAL, &repository.tagged("v1")).await);
    assert!(matches!(answer, RegistryReason::Malformed(_)), "{answer:?}");
    let answer = reason(client.manifest(Caller::LOCAL, &repository.at(world.image)).await);
    assert!(
        matches!(answer, RegistryReason::DigestMismatch { .. }),
        "{answer:?}"
    );
}

#[tokio::test]
async fn t35_a_listing_that_redirects_is_followed_and_entries_need_no_artifact_type() {
    let other = World::new(Options::default()).await;
    let world = World::new(Options::default()).await;
    let attached = other.attach(&client(Default::default()), "a").await.unwrap();
    world
        .fake
        .fault(|plan| plan.redirect_listings = Some(format!("http://{}", other.running.host())));
    let listed = client(Default::default())
        .referrers(Caller::LOCAL, &world.repository, world.image)
        .await
        .unwrap();
    assert_eq!(listed, [attached], "both registries hold the same image");

    let fallback = World::without_referrers().await;
    let entry = |artifact_type: Option<&str>, name: &str| {
        let mut entry = json!({ "mediaType": MANIFEST, "digest": Digest::of(name.as_bytes()), "size": 1 });
        if let Some(kind) = artifact_type {
            entry["artifactType"] = kind.into();
        }
        entry
    };
    let entries = [entry(None, "a"), entry(Some(""), "b"), entry(Some(BUNDLE), "c")];
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries }).to_string();
    let tag = format!("sha256-{}", fallback.image.hex());
    fallback
        .fake
        .put_manifest("team/app", Some(&tag), INDEX, index.as_bytes())
        .await
        .unwrap();
    let listed = client(Default::default())
        .referrers(Caller::LOCAL, &fallback.repository, fallback.image)
        .await
        .unwrap();
    let kinds: Vec<_> = listed
        .iter()
        .map(|entry| entry.artifact_type.as_deref())
        .collect();
    assert_eq!(kinds, [None, None, Some(BUNDLE)], "unfiltered");
}

#[tokio::test]
async fn t35_only_answers_that_mean_no_such_api_lead_to_the_fallback_tag() {
    let world = World::without_referrers().await;
    let client = client(Default::default());
    let attached = world.attach(&client, "a").await.unwrap();
    for status in [400, 404, 405, 406, 501] {
        world.fake.fault(|plan| plan.listing_status = Some(status));
        let listed = client
            .referrers(Caller::LOCAL, &world.repository, world.image)
            .await
            .unwrap();
        assert_eq!(listed, std::slice::from_ref(&attached), "{status}");
    }
}

/// A listing that failed is not an empty one.
#[tokio::test]
async fn t44_a_listing_error_is_an_error_and_never_none() {
    let statuses = [401, 403, 410, 429, 500, 502, 503, 504].map(|status| {
        tokio::spawn(async move {
            let world = World::without_referrers().await;
            let short = upstream::oci::RegistryConfig {
                call_seconds_max: 3,
                ..Default::default()
            };
            let client = client(world.with(short));
            world.fake.fault(|plan| plan.listing_status = Some(status));
            let answer = client
                .referrers(Caller::LOCAL, &world.repository, world.image)
                .await;
            assert!(answer.is_err(), "{status}: {answer:?}");
            assert!(!matches!(reason(answer), RegistryReason::NotFound), "{status}");
        })
    });
    for status in statuses {
        status.await.unwrap();
    }
    for kind in ["text/html", "application/json", MANIFEST] {
        let world = World::new(Options::default()).await;
        world
            .fake
            .fault(|plan| plan.listing_content_type = Some(kind.to_owned()));
        let answer = reason(
            client(Default::default())
                .referrers(Caller::LOCAL, &world.repository, world.image)
                .await,
        );
        assert!(
            matches!(answer, RegistryReason::Malformed(_)),
            "{kind}: {answer:?}"
        );
    }
}

#[tokio::test]
async fn a_fallback_tag_that_holds_an_image_is_an_error() {
    let world = World::without_referrers().await;
    world
        .fake
        .put_image("team/app", &format!("sha256-{}", world.image.hex()), "other")
        .await
        .unwrap();
    let client = client(Default::default());
    let listed = reason(
        client
            .referrers(Caller::LOCAL, &world.repository, world.image)
            .await,
    );
    assert!(matches!(listed, RegistryReason::Malformed(_)), "{listed:?}");
    let attached = reason(world.attach(&client, "a").await);
    assert!(matches!(attached, RegistryReason::Malformed(_)), "{attached:?}");
}

#[tokio::test]
async fn redirects_in_a_circle_end() {
    let world = World::new(Options::default()).await;
    let digest = world.fake.put_blob("team/app", b"content").await.unwrap();
    world
        .fake
        .fault(|plan| plan.redirect_blobs = Some(format!("http://{}", world.running.host())));
    let answer = client(Default::default())
        .blob(Caller::LOCAL, &world.repository, digest, 100)
        .await
        .unwrap_err();
    assert!(matches!(answer.reason, RegistryReason::Redirect(_)), "{answer:?}");
    assert_eq!(answer.code().id, "PC1510");
    assert_eq!(world.fake.calls().blob_reads, 6, "the read and five redirects");
}
