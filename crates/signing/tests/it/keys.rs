//! Keys: files that cosign wrote, rotation, and what opening one costs.

use std::time::Duration;

use kernel::{Clock as _, Fault as _, Secret, SystemClock};
use signing::key::{KeyFileError, LocalSigner, PublicKey, Signer as _, SignerError, decrypt};
use signing::{Formats, SigningError};

use crate::world::{REPOSITORY, World};

const NEW: (&str, &str) = (
    include_str!("fixtures/cosign-3.1.3.key"),
    include_str!("fixtures/cosign-3.1.3.pub"),
);
const OLD: (&str, &str) = (
    include_str!("fixtures/cosign-2.6.5.key"),
    include_str!("fixtures/cosign-2.6.5.pub"),
);
const OLD_LABEL: (&str, &str) = (include_str!("fixtures/old-label.key"), OLD.1);
const P384: &str = include_str!("fixtures/p384.key");

fn password() -> Secret {
    Secret::new("fixture".to_owned())
}

#[test]
fn key_files_of_cosign_open_under_both_labels() {
    assert!(
        OLD_LABEL
            .0
            .starts_with("-----BEGIN ENCRYPTED COSIGN PRIVATE KEY-----")
    );
    for (private, public) in [NEW, OLD, OLD_LABEL] {
        let signer = LocalSigner::from_file(private, &password()).unwrap();
        assert_eq!(*signer.public_key(), PublicKey::from_pem(public).unwrap());
    }
}

#[test]
fn a_wrong_password_another_curve_and_damage_are_told_apart() {
    let wrong = decrypt(NEW.0, &Secret::new("Fixture".to_owned()));
    assert_eq!(wrong.unwrap_err(), KeyFileError::Password);
    let Err(SignerError::File(curve)) = LocalSigner::from_file(P384, &password()) else {
        panic!("a P-384 key signs");
    };
    assert_eq!(curve, KeyFileError::Curve);
    for (broken, expected) in [
        (NEW.0.replace("BEGIN ENCRYPTED", "BEGIN"), KeyFileError::Pem),
        (NEW.1.to_owned(), KeyFileError::Pem),
        (String::new(), KeyFileError::Pem),
        (NEW.0[..NEW.0.len() / 2].to_owned(), KeyFileError::Pem),
    ] {
        assert_eq!(decrypt(&broken, &password()).unwrap_err(), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_imported_key_signs_as_the_key_of_cosign_does() {
    let world = World::new().await;
    let keyring = world.signing.keyring();
    let import = |name: &'static str, file: &str, password: Secret| {
        let (file, context) = (file.to_owned(), world.context());
        async move { keyring.import(&context, name, file, password).await }
    };
    let wrong = import("release", NEW.0, Secret::new("wrong".to_owned()))
        .await
        .unwrap_err();
    assert_eq!(wrong.code().id, "PC1203");
    assert!(
        kernel::chain(&wrong).contains("the password is wrong"),
        "{}",
        kernel::chain(&wrong)
    );
    let curve = import("release", P384, password()).await.unwrap_err();
    assert_eq!(curve.code().id, "PC1203");
    assert!(
        kernel::chain(&curve).contains("P-256"),
        "{}",
        kernel::chain(&curve)
    );
    let info = import("release", NEW.0, password()).await.unwrap();
    assert_eq!(info.public, PublicKey::from_pem(NEW.1).unwrap());
    assert_eq!(
        import("release", OLD.0, password()).await.unwrap_err().code().id,
        "PC1202"
    );

    let mut request = world.request(world.reference());
    request.key = Some("release".to_owned());
    assert_eq!(world.sign_as(&request).await.key_id, info.id());
    let by_cosign = signing::verify::Policy::keys("cosign.pub", vec![PublicKey::from_pem(NEW.1).unwrap()]);
    assert!(
        world
            .verify(&by_cosign.with_log(world.trust.clone()))
            .await
            .verified
    );
    // The server's copy is closed with the server's password: a restart opens it with that.
    request.image = world
        .repository
        .at(world.fake.put_image(REPOSITORY, "v2", "v2").await.unwrap());
    world.another().sign(&world.context(), &request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_rotated_key_signed_verifies_until_its_date() {
    let world = World::new().await;
    let request = world.verify_request();
    let verified = async || {
        world.verifying.verify(&world.context(), &request).await.unwrap()[0]
            .report
            .verified
    };
    let old = world.sign().await;
    let until = world.clock.now() + jiff::SignedDuration::from_hours(2);
    let rotated = world
        .signing
        .keyring()
        .rotate(&world.context(), "default", until)
        .await
        .unwrap();
    assert_eq!(rotated.version, 2);
    assert!(verified().await);
    world.clock.advance(Duration::from_secs(7_199));
    assert!(verified().await);
    world.clock.advance(Duration::from_secs(1));
    assert!(!verified().await, "a cached verdict must not outlive the key");
    // The same image by the new key is a new wish.
    let new = world.sign().await;
    assert_ne!((old.id, &old.key_id), (new.id, &new.key_id));
    assert!(verified().await);
    let listed = world
        .signing
        .keyring()
        .list("default", Some("default"))
        .await
        .unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!(
        (listed[0].verify_until, listed[1].verify_until),
        (Some(until), None)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_counts_at_once_here_and_within_the_bound_elsewhere() {
    let world = World::new().await;
    let other = world.another();
    let (here, there) = (world.signing.keyring(), other.keyring());
    for keyring in [here, there] {
        assert_eq!(keyring.current("default", "default").await.unwrap().version, 1);
        assert_eq!(keyring.verifying("default").await.unwrap().len(), 1);
    }
    let until = world.clock.now();
    let rotated = here.rotate(&world.context(), "default", until).await.unwrap();
    assert_eq!(here.current("default", "default").await.unwrap().version, 2);
    assert_eq!(
        here.verifying("default").await.unwrap(),
        std::slice::from_ref(&rotated.public)
    );
    world.clock.advance(Duration::from_millis(store::STALE_MS_MAX));
    assert_eq!(there.current("default", "default").await.unwrap().version, 2);
    assert_eq!(there.verifying("default").await.unwrap(), [rotated.public]);
    // Rotating builds on what the database holds, not on what was read a moment ago.
    let again = here.rotate(&world.context(), "default", until).await.unwrap();
    assert_eq!(again.version, 3);
    assert_eq!(
        there
            .rotate(&world.context(), "default", until)
            .await
            .unwrap()
            .version,
        4
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_rotations_at_once_make_one_new_version() {
    let world = World::new().await;
    let (until, context) = (world.clock.now(), world.context());
    let keyring = world.signing.keyring();
    let (a, b) = tokio::join!(
        keyring.rotate(&context, "default", until),
        keyring.rotate(&context, "default", until)
    );
    let versions: Vec<_> = [a, b]
        .into_iter()
        .filter_map(Result::ok)
        .map(|info| info.version)
        .collect();
    assert!(versions == [2] || versions == [2, 3], "{versions:?}");
    let valid = keyring.verifying("default").await.unwrap();
    assert_eq!(valid.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_need_a_closed_key_at_once_open_it_once() {
    let world = World::new().await;
    let file = NEW.0.to_owned();
    let watch = SystemClock::new();
    let start = watch.monotonic();
    tokio::task::spawn_blocking(move || decrypt(&file, &password()).unwrap())
        .await
        .unwrap();
    let one = watch.monotonic().since(start);
    let mut images = Vec::new();
    for number in 0..32 {
        let image = world
            .fake
            .put_image(REPOSITORY, "n", &format!("{number}"))
            .await
            .unwrap();
        images.push(signing::SignRequest {
            formats: Some(Formats::BUNDLE),
            ..world.request(world.repository.at(image))
        });
    }
    let (server, context) = (world.another(), world.context());
    let start = watch.monotonic();
    let outcomes =
        futures::future::join_all(images.iter().map(|request| server.sign(&context, request))).await;
    let all = watch.monotonic().since(start);
    assert!(outcomes.into_iter().all(|outcome| outcome.is_ok()));
    // 32 openings on two cores take 16 times as long as one; the signatures themselves about as long as one.
    assert!(
        all < one * 8 + Duration::from_secs(1),
        "one opening {one:?}, all signatures {all:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_nobody_made_is_told() {
    let world = World::new().await;
    let mut request = world.request(world.reference());
    request.key = Some("nobody".to_owned());
    let error = world.signing.sign(&world.context(), &request).await.unwrap_err();
    assert_eq!(error.code().id, "PC1201");
    for name in ["", "Upper", "-a", "a b", &"a".repeat(64)] {
        let error = world
            .signing
            .keyring()
            .create(&world.context(), name)
            .await
            .unwrap_err();
        assert_eq!(error.code().id, "PC1202", "{name:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_name_is_the_name_of_no_key() {
    let world = World::new().await;
    let (keyring, context) = (world.signing.keyring(), world.context());
    assert!(matches!(
        keyring.current("default", "").await,
        Err(SigningError::NoKey { .. })
    ));
    let rotated = keyring.rotate(&context, "", world.clock.now()).await;
    assert!(matches!(rotated, Err(SigningError::NoKey { .. })));
    let request = signing::SignRequest {
        key: Some(String::new()),
        ..world.request(world.reference())
    };
    let signed = world.signing.sign(&context, &request).await;
    assert!(matches!(signed, Err(SigningError::NoKey { .. })), "{signed:?}");
    assert_eq!(keyring.list("default", None).await.unwrap().len(), 1);
}
