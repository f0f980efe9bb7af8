//! Whose credentials go where.

use flow::{Caller, Class};
use registry::{Auth, Options};
use signing::ports::{Registry as _, RegistryReason};
use upstream::oci::{Config, RegistryConfig};

use super::{World, basic, bearer, client, reason};

#[tokio::test]
async fn basic_credentials_are_sent_after_the_challenge_and_remembered() {
    let world = World::new(basic()).await;
    let client = client(world.config("team", "robot", "hunter2"));
    client
        .manifest(Caller::new("team", Class::Sign), &world.tag("v1"))
        .await
        .unwrap();
    assert_eq!(
        world.fake.calls().manifest_reads,
        2,
        "asked, challenged, asked again"
    );
    client
        .manifest(Caller::new("team", Class::Sign), &world.tag("v1"))
        .await
        .unwrap();
    assert_eq!(world.fake.calls().manifest_reads, 3, "the second read knows");
}

#[tokio::test]
async fn a_bearer_token_is_fetched_once_for_each_scope() {
    let world = World::new(bearer()).await;
    let client = client(world.config("", "robot", "hunter2"));
    for _ in 0..5 {
        client.manifest(Caller::LOCAL, &world.tag("v1")).await.unwrap();
    }
    assert_eq!(world.fake.calls().tokens, 1);
    world.attach(&client, "a").await.unwrap();
    world.attach(&client, "b").await.unwrap();
    assert_eq!(world.fake.calls().tokens, 2, "one to pull, one to push");
}

#[tokio::test]
async fn callers_at_the_same_time_share_one_token() {
    let world = World::new(bearer()).await;
    let client = std::sync::Arc::new(client(world.config("", "robot", "hunter2")));
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let (client, tag) = (client.clone(), world.tag("v1"));
            tokio::spawn(async move { client.manifest(Caller::LOCAL, &tag).await })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    let tokens = world.fake.calls().tokens;
    assert!(tokens <= 20 / 4, "{tokens} tokens for 20 calls");
}

#[tokio::test]
async fn a_revoked_token_is_fetched_again() {
    let world = World::new(bearer()).await;
    let client = client(world.config("", "robot", "hunter2"));
    client.manifest(Caller::LOCAL, &world.tag("v1")).await.unwrap();
    world.fake.revoke_tokens();
    client.manifest(Caller::LOCAL, &world.tag("v1")).await.unwrap();
    assert_eq!(world.fake.calls().tokens, 2);
}

#[tokio::test]
async fn a_token_that_ran_out_is_fetched_before_it_is_refused() {
    let auth = Auth::Bearer {
        username: "robot".to_owned(),
        password: "hunter2".to_owned(),
        token_seconds: 100,
    };
    let world = World::new(Options {
        auth,
        ..Options::default()
    })
    .await;
    let clock = std::sync::Arc::new(kernel::TestClock::at("2026-01-01T00:00:00Z".parse().unwrap()));
    let random = std::sync::Arc::new(kernel::SystemRandom);
    let client =
        upstream::oci::Client::new(world.config("", "robot", "hunter2"), clock.clone(), random).unwrap();
    client.manifest(Caller::LOCAL, &world.tag("v1")).await.unwrap();
    clock.advance(std::time::Duration::from_secs(89));
    client.manifest(Caller::LOCAL, &world.tag("v1")).await.unwrap();
    assert_eq!(world.fake.calls().tokens, 1);
    clock.advance(std::time::Duration::from_secs(2));
    client.manifest(Caller::LOCAL, &world.tag("v1")).await.unwrap();
    assert_eq!(world.fake.calls().tokens, 2);
}

#[tokio::test]
async fn credentials_of_one_project_are_never_used_for_another() {
    for options in [basic(), bearer()] {
        let world = World::new(options).await;
        let client = client(world.config("a", "robot", "hunter2"));
        client
            .manifest(Caller::new("a", Class::Sign), &world.tag("v1"))
            .await
            .unwrap();
        for other in ["b", ""] {
            let refused = reason(
                client
                    .manifest(Caller::new(other, Class::Sign), &world.tag("v1"))
                    .await,
            );
            assert!(
                matches!(refused, RegistryReason::Unauthenticated(_)),
                "{other:?}: {refused:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_wrong_password_is_said_and_not_shown() {
    for options in [basic(), bearer()] {
        let world = World::new(options).await;
        let client = client(world.config("", "robot", "wrong-password"));
        let error = client
            .manifest(Caller::LOCAL, &world.tag("v1"))
            .await
            .unwrap_err();
        assert!(
            matches!(error.reason, RegistryReason::Unauthenticated(_)),
            "{error:?}"
        );
        let text = format!("{} {error:?}", kernel::chain(&error));
        assert!(
            !text.contains("wrong-password") && !text.contains("d3Jvbmc"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn t24_a_redirect_gets_no_credentials() {
    let other = World::new(Options::default()).await;
    for options in [basic(), bearer()] {
        let world = World::new(options).await;
        let digest = world.fake.put_blob("team/app", b"content").await.unwrap();
        other.fake.put_blob("team/app", b"content").await.unwrap();
        world
            .fake
            .fault(|plan| plan.redirect_blobs = Some(format!("http://{}", other.running.host())));
        let client = client(world.config("", "robot", "hunter2"));
        let read = client
            .blob(Caller::LOCAL, &world.repository, digest, 100)
            .await
            .unwrap();
        assert_eq!(read.as_ref(), b"content");
        assert!(world.fake.calls().authorized > 0);
    }
    let calls = other.fake.calls();
    assert_eq!((calls.blob_reads, calls.authorized), (2, 0));
}

#[tokio::test]
async fn t24_an_upload_location_on_another_host_gets_no_credentials() {
    // An upload that is opened instead of taking the blob at once, and one that is opened after that was refused.
    for status in [202, 405] {
        let other = World::new(Options::default()).await;
        let world = World::new(basic()).await;
        world.fake.fault(|plan| {
            plan.blob_post_status = Some(status);
            plan.upload_origin = Some(format!("http://{}", other.running.host()));
        });
        let client = client(world.config("", "robot", "hunter2"));
        let answer = client
            .push_blob(Caller::LOCAL, &world.repository, "content".into())
            .await;
        assert!(
            answer.is_err(),
            "{status}: the other host does not know the upload"
        );
        let calls = other.fake.calls();
        assert_eq!((calls.blob_writes, calls.authorized), (1, 0), "{status}");
        assert!(world.fake.calls().authorized > 0, "{status}");
    }
}

#[tokio::test]
async fn t24_a_token_realm_without_tls_elsewhere_gets_no_credentials() {
    let other = World::new(bearer()).await;
    let world = World::new(bearer()).await;
    let port = other.running.address.port();
    world
        .fake
        .fault(|plan| plan.realm = Some(format!("http://127.0.0.2:{port}/token")));
    let client = client(world.config("", "robot", "hunter2"));
    let refused = reason(client.manifest(Caller::LOCAL, &world.tag("v1")).await);
    assert!(matches!(refused, RegistryReason::Redirect(_)), "{refused:?}");
    assert_eq!(other.fake.calls().total(), 0);
}

#[tokio::test]
async fn t25_redirects_and_realms_never_lead_to_private_or_metadata_addresses() {
    let world = World::new(bearer()).await;
    let digest = world.fake.put_blob("team/app", b"content").await.unwrap();
    let inside = [
        "http://169.254.169.254",
        "http://10.0.0.1",
        "https://[fe80::1]",
        "http://192.168.0.1:5000",
        "http://0xa9fea9fe",
    ];
    for origin in inside {
        world.fake.fault(|plan| {
            plan.realm = None;
            plan.redirect_blobs = Some(origin.to_owned());
        });
        let fresh = client(world.config("", "robot", "hunter2"));
        let refused = reason(fresh.blob(Caller::LOCAL, &world.repository, digest, 100).await);
        assert!(
            matches!(refused, RegistryReason::Redirect(_)),
            "{origin}: {refused:?}"
        );
        world
            .fake
            .fault(|plan| plan.realm = Some(format!("{origin}/token")));
        let fresh = client(world.config("", "robot", "hunter2"));
        let refused = reason(fresh.manifest(Caller::LOCAL, &world.tag("v1")).await);
        assert!(
            matches!(refused, RegistryReason::Redirect(_)),
            "realm {origin}: {refused:?}"
        );
    }
}

#[tokio::test]
async fn t25_metadata_addresses_are_no_registries() {
    let image = "169.254.169.254/latest/meta-data:v1".parse().unwrap();
    let refused = reason(client(Config::default()).manifest(Caller::LOCAL, &image).await);
    assert!(matches!(refused, RegistryReason::Address(_)), "{refused:?}");
}

#[tokio::test]
async fn a_registry_without_tls_is_named_as_such() {
    let world = World::new(Options::default()).await;
    let tls = RegistryConfig {
        plain_http: Some(false),
        ..RegistryConfig::default()
    };
    let refused = reason(
        client(world.with(tls))
            .manifest(Caller::LOCAL, &world.tag("v1"))
            .await,
    );
    assert!(matches!(refused, RegistryReason::PlainHttp), "{refused:?}");
    assert_eq!(world.fake.calls().total(), 0);
}
