//! Keys in a database that was damaged, under a wrong password, and too many at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use kernel::{Clock as _, Fault as _, Kind, Secret, SystemRandom};
use signing::key::{KeyFileError, decrypt, encrypt};
use signing::{Keyring, SignRequest};

use crate::world::{REPOSITORY, World};

const COSIGN: &str = include_str!("fixtures/cosign-3.1.3.key");

async fn damage(world: &World, sql: &'static str) {
    let mut tx = world.db.begin().await.unwrap();
    assert_eq!(tx.execute(sql, store::args![]).await.unwrap(), 1, "{sql}");
    tx.commit().await.unwrap();
    world.clock.advance(Duration::from_millis(store::STALE_MS_MAX));
}

fn keyring(world: &World, password: &str) -> Keyring {
    let password = Secret::new(password.to_owned());
    Keyring::new(
        world.db.clone(),
        password,
        world.clock.clone(),
        Arc::new(SystemRandom),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_row_of_an_old_version_takes_no_other_key_with_it() {
    for sql in [
        "UPDATE signing_key SET public_pem = 'no PEM' WHERE version = 1",
        "UPDATE signing_key SET key_id = 'sha256:00' WHERE version = 1",
        "UPDATE signing_key SET created_at = 9223372036854775807 WHERE version = 1",
        "UPDATE signing_key SET public_pem = (SELECT public_pem FROM signing_key WHERE version = 2) \
         WHERE version = 1",
    ] {
        let world = World::new().await;
        let (context, by_old) = (world.context(), world.verify_request());
        world.sign().await;
        let until = world.clock.now() + jiff::SignedDuration::from_hours(2);
        let keys = world.signing.keyring();
        keys.rotate(&context, "default", until).await.unwrap();
        let new = world.fake.put_image(REPOSITORY, "new", "new").await.unwrap();
        let bare = world.fake.put_image(REPOSITORY, "bare", "bare").await.unwrap();
        world.sign_as(&world.request(world.repository.at(new))).await;
        damage(&world, sql).await;
        // A server that keeps no verdict of before.
        let verifying = signing::Verifying::new(world.another(), world.policies.clone());
        let of = |digest| signing::VerifyRequest {
            image: world.repository.at(digest),
            ..by_old.clone()
        };
        let verdict = verifying.verify(&context, &of(new)).await.unwrap();
        assert!(verdict[0].report.verified, "{sql}");
        // What the lost key signed is not "unsigned", and the error says which key is lost.
        let error = verifying.verify(&context, &by_old).await.unwrap_err();
        assert_eq!((error.code().id, error.kind()), ("PC1215", Kind::Unavailable));
        let text = error.to_string();
        for word in ["default", "version 1", "sha256:", "signing_key", "damaged"] {
            assert!(text.contains(word), "{word} in {text}");
        }
        assert!(error.hint().contains("backup"));
        // What nobody signed is that.
        let verdict = verifying.verify(&context, &of(bare)).await.unwrap();
        assert!(!verdict[0].report.verified);
        // Signing goes on with the current version.
        world
            .another()
            .sign(&context, &world.request(world.repository.at(bare)))
            .await
            .unwrap();
        // When the lost key would not count any more, nobody needs it.
        world.clock.advance(Duration::from_secs(7_200));
        if !sql.contains("created_at") {
            let verdict = verifying.verify(&context, &by_old).await.unwrap();
            assert!(!verdict[0].report.verified);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_current_version_is_named_and_no_older_one_signs_in_its_place() {
    let world = World::new().await;
    let context = world.context();
    let keys = world.signing.keyring();
    keys.rotate(&context, "default", world.clock.now()).await.unwrap();
    damage(&world, "UPDATE signing_key SET public_pem = '' WHERE version = 2").await;
    let request = world.request(world.reference());
    for error in [
        world.signing.sign(&context, &request).await.unwrap_err(),
        keys.current("default", "default").await.unwrap_err(),
        keys.rotate(&context, "default", world.clock.now())
            .await
            .unwrap_err(),
    ] {
        assert_eq!(error.code().id, "PC1215");
        assert!(error.to_string().contains("version 2"), "{error}");
    }
    keys.create(&context, "other").await.unwrap();
    let key = Some("other".to_owned());
    world.sign_as(&SignRequest { key, ..request }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_half_that_does_not_open_is_told_with_both_causes() {
    let world = World::new().await;
    let context = world.context();
    let damaged = [
        "UPDATE signing_key SET private_pem = 'no PEM'",
        "UPDATE signing_key SET private_pem = replace(private_pem, 'A', 'B')",
    ];
    for sql in damaged {
        damage(&world, sql).await;
        let error = world
            .another()
            .sign(&context, &world.request(world.reference()))
            .await
            .unwrap_err();
        assert_eq!((error.code().id, error.kind()), ("PC1216", Kind::Unavailable));
        let text = kernel::chain(&error);
        assert!(
            text.contains("default of project default") && text.contains("signing_key"),
            "{text}"
        );
        let said = format!("{}{}", error.code().explanation, error.hint());
        assert!(
            said.contains("keys.password") && said.contains("private_pem"),
            "{said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_check_at_the_start_finds_a_wrong_password_and_not_a_damaged_row() {
    let world = World::new().await;
    let context = world.context();
    keyring(&world, "the server's").check().await.unwrap();
    let error = keyring(&world, "another").check().await.unwrap_err();
    assert_eq!(error.code().id, "PC1216");
    assert!(
        kernel::chain(&error).contains("the password is wrong"),
        "{}",
        kernel::chain(&error)
    );
    // A damaged row of the newest version neither: the one before it tells the password as well.
    world.clock.advance(Duration::from_secs(1));
    world.signing.keyring().create(&context, "rotated").await.unwrap();
    world.clock.advance(Duration::from_secs(1));
    let until = world.clock.now() + jiff::SignedDuration::from_hours(2);
    world
        .signing
        .keyring()
        .rotate(&context, "rotated", until)
        .await
        .unwrap();
    damage(
        &world,
        "UPDATE signing_key SET private_pem = 'no PEM' WHERE name = 'rotated' AND version = 2",
    )
    .await;
    damage(
        &world,
        "UPDATE signing_key SET private_pem = 'no PEM' WHERE name = 'default'",
    )
    .await;
    keyring(&world, "the server's").check().await.unwrap();
    let error = keyring(&world, "another").check().await.unwrap_err();
    assert_eq!(error.code().id, "PC1216");
    // One damaged row does not keep the server from starting.
    world.clock.advance(Duration::from_secs(1));
    world.signing.keyring().create(&context, "newer").await.unwrap();
    damage(
        &world,
        "UPDATE signing_key SET private_pem = 'no PEM' WHERE name = 'newer'",
    )
    .await;
    keyring(&world, "the server's").check().await.unwrap();
    assert_eq!(
        keyring(&world, "another").check().await.unwrap_err().code().id,
        "PC1216"
    );
    let mut tx = world.db.begin().await.unwrap();
    tx.execute("DELETE FROM signing_key", store::args![])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    keyring(&world, "another").check().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_half_of_another_key_signs_nothing() {
    let world = World::new().await;
    let context = world.context();
    world.signing.keyring().create(&context, "other").await.unwrap();
    damage(
        &world,
        "UPDATE signing_key SET private_pem = (SELECT private_pem FROM signing_key WHERE name = 'other') \
         WHERE name = 'default'",
    )
    .await;
    let error = world
        .another()
        .sign(&context, &world.request(world.reference()))
        .await
        .unwrap_err();
    assert_eq!(error.code().id, "PC1215", "{error:?}");
    assert_eq!(world.signatures().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_thirty_imports_at_once_a_few_wait_and_the_others_are_told_at_once() {
    let world = World::new().await;
    let (keys, context) = (world.signing.keyring(), world.context());
    let file = encrypt(
        &decrypt(COSIGN, &Secret::new("fixture".to_owned())).unwrap(),
        &Secret::new(String::new()),
        &SystemRandom,
    )
    .unwrap();
    let finished = AtomicUsize::new(0);
    let import = async |number: usize| {
        let (name, password) = (format!("key-{number}"), Secret::new(String::new()));
        let outcome = match number % 3 {
            0 => keys.create(&context, &name).await,
            1 => keys.import(&context, &name, file.clone(), password).await,
            _ => keys.rotate(&context, "default", world.clock.now()).await,
        };
        (finished.fetch_add(1, Ordering::SeqCst), outcome)
    };
    let outcomes = join_all((0..30).map(import)).await;
    let (refused, done): (Vec<_>, Vec<_>) = outcomes
        .into_iter()
        .partition(|(_, outcome)| outcome.as_ref().is_err_and(|error| error.code().id == "PC1217"));
    assert_eq!((refused.len(), done.len()), (22, 8));
    assert!(
        refused
            .iter()
            .all(|(_, outcome)| outcome.as_ref().unwrap_err().kind() == Kind::Overloaded)
    );
    assert!(
        refused.iter().all(|(place, _)| *place < 22),
        "those without a place wait for nobody"
    );
    keys.create(&context, "afterwards").await.unwrap();
}

#[test]
fn a_key_file_may_ask_for_128_mib_and_no_more() {
    let file = |n: u64| {
        let json = serde_json::json!({
            "kdf": { "name": "scrypt", "params": { "N": n, "r": 8, "p": 1 }, "salt": "" },
            "cipher": { "name": "nacl/secretbox", "nonce": "A".repeat(32) }, "ciphertext": "",
        });
        let label = "ENCRYPTED SIGSTORE PRIVATE KEY";
        let text = crate::forge::b64(json.to_string());
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    };
    let open = |n| decrypt(&file(n), &Secret::new(String::new())).unwrap_err();
    assert_eq!(open(1 << 15), KeyFileError::Password);
    assert!(matches!(open(1 << 18), KeyFileError::Unknown(_)));
}
