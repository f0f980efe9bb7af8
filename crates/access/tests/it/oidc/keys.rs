//! The issuer's keys: rotation, floods, outages.

use std::sync::Arc;

use access::oidc::OidcError;
use access::oidc::keys::KeySet;
use kernel::{Clock as _, Fault as _, Kind, SystemClock};
use serde_json::json;

use super::{Mood, Signer, World, header};

fn is_key(answer: &Result<access::oidc::Workload, OidcError>) -> bool {
    matches!(answer, Err(error @ OidcError::Key { .. }) if error.kind() == Kind::Unauthenticated)
}

fn is_unheard(answer: &Result<access::oidc::Workload, OidcError>) -> bool {
    matches!(answer, Err(error @ OidcError::Unheard { .. }) if error.kind() == Kind::Unavailable)
}

#[tokio::test]
async fn a_key_that_the_issuer_does_not_publish_is_refused() {
    let world = World::new(Signer::p256());
    let token = world
        .signer
        .token(&header(&world.signer, "k2"), &world.claims().to_string());
    let answer = world.shows(&token).await;
    assert!(is_key(&answer), "{answer:?}");
}

#[tokio::test]
async fn a_new_key_is_learnt_and_a_withdrawn_one_is_refused() {
    let world = World::new(Signer::p256());
    let old = world.token();
    world.shows(&old).await.unwrap();
    // The issuer rotates: the next token names a key that is not known yet.
    let next = Signer::p256();
    world.publishes(&[next.jwk("k2")]);
    world.passes(31);
    let new = next.token(&header(&next, "k2"), &world.claims().to_string());
    world.shows(&new).await.unwrap();
    world.passes(31);
    let answer = world.shows(&old).await;
    assert!(is_key(&answer), "the old key is gone: {answer:?}");
}

#[tokio::test]
async fn a_flood_of_unknown_keys_asks_the_issuer_once_in_half_a_minute() {
    let world = Arc::new(World::new(Signer::p256()));
    world.shows(&world.token()).await.unwrap();
    assert_eq!(world.asked(), 2, "a description and a key set");
    for minute in 0..3 {
        world.passes(60);
        let flood = (0..200).map(|n| {
            let kid = format!("{minute}-{n}");
            let token = world
                .signer
                .token(&header(&world.signer, &kid), &world.claims().to_string());
            let world = world.clone();
            tokio::spawn(async move { world.shows(&token).await })
        });
        for answer in flood.collect::<Vec<_>>() {
            assert!(is_key(&answer.await.unwrap()));
        }
        assert_eq!(world.asked(), 2 + 2 * (minute + 1));
        world.shows(&world.token()).await.unwrap();
    }
    // What is over is never asked about.
    world.passes(60);
    let old = json!({ "exp": 1 });
    let mut claims = world.claims();
    claims["exp"] = old["exp"].clone();
    let token = world
        .signer
        .token(&header(&world.signer, "zz"), &claims.to_string());
    assert!(matches!(world.shows(&token).await, Err(OidcError::Ended { .. })));
    assert_eq!(world.asked(), 8);
}

#[tokio::test]
async fn an_issuer_that_hangs_stops_nobody_whose_key_is_known() {
    let world = World::new(Signer::p256());
    world.shows(&world.token()).await.unwrap();
    world.is(Mood::Hangs);
    world.passes(3_600);
    let token = world
        .signer
        .token(&header(&world.signer, "k2"), &world.claims().to_string());
    let clock = SystemClock::new();
    let start = clock.monotonic();
    // While the one waits for the issuer, the other is in.
    let (unknown, known) = tokio::join!(world.shows(&token), async {
        let answer = world.shows(&world.token()).await;
        (answer, clock.monotonic().since(start))
    });
    assert!(is_unheard(&unknown), "{unknown:?}");
    assert!(known.0.is_ok() && known.1.as_millis() < 1_000, "{known:?}");
    let waited = clock.monotonic().since(start).as_secs();
    assert!((4..15).contains(&waited), "the question had its end: {waited} s");
}

#[tokio::test]
async fn an_issuer_that_is_not_itself_stops_nobody_whose_key_is_known() {
    for mood in [Mood::Down, Mood::Garbage, Mood::Empty, Mood::Another] {
        let mut world = World::new(Signer::p256());
        world.shows(&world.token()).await.unwrap();
        world.is(mood);
        for _ in 0..3 {
            world.passes(3_600);
            world.shows(&world.token()).await.unwrap();
            // Whoever asks for another key neither gets it nor takes this one away.
            let token = world
                .signer
                .token(&header(&world.signer, "k2"), &world.claims().to_string());
            let answer = world.shows(&token).await;
            assert!(is_unheard(&answer), "{mood:?}: {answer:?}");
        }
        world.restarts();
        let asked = world.asked();
        world.shows(&world.token()).await.unwrap();
        assert_eq!(world.asked(), asked, "{mood:?}: the key was on disk");
        let token = world
            .signer
            .token(&header(&world.signer, "k2"), &world.claims().to_string());
        let answer = world.shows(&token).await;
        assert!(is_unheard(&answer), "{mood:?} after a restart: {answer:?}");
        // It is well again: what was unheard is answered.
        world.is(Mood::Well);
        world.passes(31);
        let answer = world.shows(&token).await;
        assert!(is_key(&answer), "{mood:?} is over: {answer:?}");
    }
}

#[tokio::test]
async fn keys_of_an_issuer_that_was_not_heard_for_a_week_no_longer_count() {
    let world = World::new(Signer::p256());
    world.shows(&world.token()).await.unwrap();
    world.is(Mood::Down);
    world.passes(7 * 86_400);
    world.shows(&world.token()).await.unwrap();
    world.passes(1);
    let answer = world.shows(&world.token()).await;
    assert!(is_unheard(&answer), "{answer:?}");
    world.is(Mood::Well);
    world.passes(31);
    world.shows(&world.token()).await.unwrap();
}

#[tokio::test]
async fn kept_keys_that_were_damaged_are_fetched_again() {
    let mut world = World::new(Signer::p256());
    world.shows(&world.token()).await.unwrap();
    let file = std::fs::read_dir(world.folder.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("k1", "k9")).unwrap();
    world.restarts();
    let asked = world.asked();
    world.shows(&world.token()).await.unwrap();
    assert_eq!(world.asked(), asked + 2);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text, "and kept again");
}

#[test]
fn keys_for_something_else_are_left_out_of_a_set() {
    let (rsa, curve) = (Signer::rsa().jwk("r"), Signer::p256().jwk("c"));
    let read = |keys: Vec<serde_json::Value>| KeySet::parse(json!({ "keys": keys }).to_string().as_bytes());
    assert!(read(vec![rsa.clone(), curve.clone()]).is_ok());
    let with = |key: &serde_json::Value, name: &str, value: serde_json::Value| {
        let mut key = key.clone();
        key[name] = value;
        key
    };
    for useless in [
        with(&rsa, "use", json!("enc")),
        with(&rsa, "key_ops", json!(["encrypt"])),
        with(&rsa, "alg", json!("RS512")),
        with(&rsa, "alg", json!("ES256")),
        with(&rsa, "alg", json!("none")),
        with(&rsa, "kid", json!("")),
        with(&rsa, "n", json!("AQAB")),
        with(&rsa, "n", json!("A".repeat(700))),
        with(&rsa, "e", json!("")),
        with(&rsa, "e", json!("AAAA")),
        with(&rsa, "kty", json!("oct")),
        with(&curve, "crv", json!("P-384")),
        with(&curve, "x", json!("AAAA")),
        with(&curve, "alg", json!("RS256")),
        json!({ "kty": "oct", "kid": "s", "k": "c2VjcmV0" }),
        json!(1),
    ] {
        assert!(read(vec![useless.clone()]).is_err(), "{useless}");
        assert!(
            read(vec![useless, curve.clone()]).is_ok(),
            "the others still count"
        );
    }
    assert!(read(vec![curve; 101]).is_err());
    for text in ["", "{}", "[]", r#"{"keys":1}"#, r#"{"keys":[],"keys":[]}"#] {
        assert!(KeySet::parse(text.as_bytes()).is_err(), "{text}");
    }
    let large = format!(r#"{{"x":"{}","keys":[]}}"#, "a".repeat(300_000));
    assert_eq!(KeySet::parse(large.as_bytes()), Err("it is longer than 256 KiB"));
}
