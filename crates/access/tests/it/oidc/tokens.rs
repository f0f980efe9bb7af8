//! The token itself.

use access::oidc::OidcError;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use kernel::{Fault as _, Kind};
use serde_json::json;

use super::{AUDIENCE, ISSUER, Signer, World, header};

fn is_malformed(error: &OidcError, why: &str) -> bool {
    error.kind() == Kind::Unauthenticated
        && matches!(error, OidcError::Malformed(found) if found.contains(why))
}

#[tokio::test]
async fn a_token_of_the_rule_is_taken_with_rsa_and_on_a_curve() {
    for signer in [Signer::rsa(), Signer::p256()] {
        let world = World::new(signer);
        let workload = world.shows(&world.token()).await.unwrap();
        let rule = workload.rule(None);
        assert_eq!(
            (rule.name.as_str(), rule.project.as_str()),
            ("release", "payments")
        );
        assert_eq!(
            workload.actor(rule).to_string(),
            "workload release (repo:octo/payments:ref:refs/heads/main of https://ci.example)"
        );
    }
}

#[tokio::test]
async fn a_token_without_signature_is_refused() {
    let world = World::new(Signer::rsa());
    let payload = B64.encode(world.claims().to_string());
    for alg in ["none", "None", "NONE", "nOnE", ""] {
        let header = B64.encode(json!({ "alg": alg, "kid": "k1" }).to_string());
        for signature in ["", "AAAA"] {
            let error = world
                .shows(&format!("{header}.{payload}.{signature}"))
                .await
                .unwrap_err();
            assert!(matches!(error, OidcError::Algorithm(_)), "{alg}: {error}");
        }
    }
    assert_eq!(world.asked(), 0, "nobody was asked about it");
    // The right algorithm and no signature.
    let token = world.token();
    let (signed, _) = token.rsplit_once('.').unwrap();
    let error = world.shows(&format!("{signed}.")).await.unwrap_err();
    assert!(matches!(error, OidcError::Signature { .. }), "{error}");
}

#[tokio::test]
async fn the_public_key_is_no_shared_secret() {
    let world = World::new(Signer::rsa());
    world.shows(&world.token()).await.unwrap();
    let jwk = world.signer.jwk("k1");
    let modulus = B64.decode(jwk["n"].as_str().unwrap()).unwrap();
    let secrets = [world.signer.spki(), modulus, jwk.to_string().into_bytes()];
    for alg in ["HS256", "HS384", "HS512"] {
        for secret in &secrets {
            let header = B64.encode(json!({ "alg": alg, "kid": "k1" }).to_string());
            let signed = format!("{header}.{}", B64.encode(world.claims().to_string()));
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
            let error = world
                .shows(&format!("{signed}.{}", B64.encode(tag)))
                .await
                .unwrap_err();
            assert!(matches!(error, OidcError::Algorithm(_)), "{error}");
        }
    }
}

#[tokio::test]
async fn an_algorithm_of_another_kind_of_key_is_refused() {
    let world = World::new(Signer::rsa());
    let curve = Signer::p256();
    // Signed by somebody's own P-256 key, which the header brings along, under the id of the issuer's RSA key.
    let header =
        json!({ "alg": "ES256", "kid": "k1", "jwk": curve.jwk("k1"), "jku": "https://evil.example" });
    let token = curve.token(&header.to_string(), &world.claims().to_string());
    let error = world.shows(&token).await.unwrap_err();
    assert!(matches!(error, OidcError::Key { .. }), "{error}");
    // The same algorithm, and another's key.
    let error = {
        let world = World::new(Signer::p256());
        let token = curve.token(&super::header(&curve, "k1"), &world.claims().to_string());
        world.shows(&token).await.unwrap_err()
    };
    assert!(matches!(error, OidcError::Signature { .. }), "{error}");
    for alg in ["RS384", "RS512", "PS256", "ES384", "EdDSA", "rs256"] {
        let header = json!({ "alg": alg, "kid": "k1" }).to_string();
        let token = world.signer.token(&header, &world.claims().to_string());
        let error = world.shows(&token).await.unwrap_err();
        assert!(matches!(error, OidcError::Algorithm(_)), "{alg}: {error}");
    }
}

#[tokio::test]
async fn a_token_for_another_audience_is_refused() {
    let world = World::new(Signer::p256());
    for audience in [
        json!("https://other.example"),
        json!("https://portcullis.example/"),
        json!("HTTPS://portcullis.example"),
        json!(["https://other.example", "x"]),
        json!(""),
    ] {
        let token = world.token_with(&json!({ "aud": audience }));
        let error = world.shows(&token).await.unwrap_err();
        assert!(matches!(error, OidcError::Audience { .. }), "{audience}: {error}");
    }
    assert_eq!(world.asked(), 0);
    let among_others = world.token_with(&json!({ "aud": ["x", AUDIENCE] }));
    world.shows(&among_others).await.unwrap();
    for audience in [json!(null), json!(1), json!([]), json!([AUDIENCE, 1]), json!({})] {
        let token = world.token_with(&json!({ "aud": audience }));
        let error = world.shows(&token).await.unwrap_err();
        assert!(is_malformed(&error, "aud"), "{audience}: {error}");
    }
}

#[tokio::test]
async fn a_token_of_another_issuer_is_refused() {
    let world = World::new(Signer::p256());
    for issuer in [
        "https://evil.example",
        "https://ci.example/",
        "https://CI.example",
        "",
    ] {
        let token = world.token_with(&json!({ "iss": issuer }));
        let error = world.shows(&token).await.unwrap_err();
        assert!(matches!(error, OidcError::Issuer { .. }), "{issuer}: {error}");
    }
    assert_eq!(world.asked(), 0, "an issuer that no rule names is never called");
}

#[tokio::test]
async fn a_token_that_is_over_is_refused() {
    let world = World::new(Signer::p256());
    let token = world.token();
    world.shows(&token).await.unwrap();
    world.passes(300 + 59);
    world.shows(&token).await.unwrap();
    world.passes(1);
    let error = world.shows(&token).await.unwrap_err();
    assert!(matches!(error, OidcError::Ended { .. }), "{error}");
    assert!(
        error.to_string().ends_with("ended at 2026-01-31T12:05:00Z"),
        "{error}"
    );
    for exp in [json!(i64::MIN), json!(-1), json!(0)] {
        let token = world.token_with(&json!({ "exp": exp }));
        let error = world.shows(&token).await.unwrap_err();
        assert!(matches!(error, OidcError::Ended { .. }), "{exp}: {error}");
    }
    for exp in [
        json!(null),
        json!("1900000000"),
        json!(1.9e9),
        json!(u64::MAX),
        json!([1]),
    ] {
        let token = world.token_with(&json!({ "exp": exp }));
        let error = world.shows(&token).await.unwrap_err();
        assert!(is_malformed(&error, ""), "{exp}: {error}");
    }
}

#[tokio::test]
async fn a_token_whose_time_has_not_come_is_refused() {
    let world = World::new(Signer::p256());
    let now = i64::try_from(world.claims()["iat"].as_u64().unwrap()).unwrap();
    for name in ["nbf", "iat"] {
        let token = world.token_with(&json!({ name: now + 60 }));
        world.shows(&token).await.unwrap();
        let token = world.token_with(&json!({ name: now + 61 }));
        let error = world.shows(&token).await.unwrap_err();
        assert!(matches!(error, OidcError::Early { .. }), "{name}: {error}");
        let without = world.token_with(&json!({ name: null }));
        world.shows(&without).await.unwrap();
        let forever = world.token_with(&json!({ name: i64::MAX }));
        assert!(world.shows(&forever).await.is_err());
    }
}

#[tokio::test]
async fn a_member_that_stands_twice_is_refused() {
    let world = World::new(Signer::p256());
    let claims = world.claims().to_string();
    let twice = claims.replacen('{', r#"{"repository_id":"1","#, 1);
    let escaped = claims.replacen('{', r#"{"repositor\u0079_id":"1","#, 1);
    let nested = claims.replacen('{', r#"{"x":{"a":1,"a":1},"#, 1);
    for payload in [twice, escaped, nested] {
        let token = world.signer.token(&header(&world.signer, "k1"), &payload);
        let error = world.shows(&token).await.unwrap_err();
        assert!(is_malformed(&error, "twice"), "{error}");
    }
    let header = format!(r#"{{"alg":"none","alg":"{}","kid":"k1"}}"#, world.signer.alg());
    let error = world
        .shows(&world.signer.token(&header, &claims))
        .await
        .unwrap_err();
    assert!(is_malformed(&error, "twice"), "{error}");
}

#[tokio::test]
async fn json_ten_thousand_deep_and_tokens_over_the_cap_are_refused() {
    let world = World::new(Signer::p256());
    // In a token the cap comes first; the reader alone withstands it too (`oidc::json`).
    for depth in [65, 2_000, 10_000] {
        let deep = format!(r#"{{"x":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        let token = world.signer.token(&header(&world.signer, "k1"), &deep);
        let error = world.shows(&token).await.unwrap_err();
        let why = if depth < 10_000 { "too deep" } else { "8 KiB" };
        assert!(is_malformed(&error, why), "{depth}: {error}");
        assert_eq!(
            access::oidc::json::object(deep.as_bytes()),
            Err("its JSON is nested too deep")
        );
    }
    let fits = world.token_with(&json!({ "x": "a".repeat(5_000) }));
    world.shows(&fits).await.unwrap();
    for length in [6_000, 1 << 20] {
        let large = world.token_with(&json!({ "x": "a".repeat(length) }));
        let error = world.shows(&large).await.unwrap_err();
        assert!(is_malformed(&error, "8 KiB"), "{error}");
    }
}

#[tokio::test]
async fn what_is_not_quite_a_token_is_refused() {
    let world = World::new(Signer::p256());
    let (token, claims) = (world.token(), world.claims().to_string());
    let of = |header: &str| world.signer.token(header, &claims);
    let alg = world.signer.alg();
    let mut wrong = vec![
        ".".to_owned(),
        "..".to_owned(),
        "a.b".to_owned(),
        format!("{token}."),
        format!("{token}.AAAA"),
        format!("{token}="),
        token.replacen('.', "=.", 1),
        of(r#"{"kid":"k1"}"#),
        of(&format!(r#"{{"alg":"{alg}"}}"#)),
        of(&format!(r#"{{"alg":"{alg}","kid":""}}"#)),
        of(&format!(r#"{{"alg":"{alg}","kid":1}}"#)),
        of(&format!(r#"{{"alg":"{alg}","kid":"{}"}}"#, "k".repeat(257))),
        of(&format!(
            r#"{{"alg":"{alg}","kid":"k1","crit":["b64"],"b64":false}}"#
        )),
        of(&format!(r#"{{"alg":"{alg}","kid":"k1","typ":"at+jwt"}}"#)),
        of(&format!(r#"{{"alg":["{alg}"],"kid":"k1"}}"#)),
        of("[]"),
        world.signer.token(&header(&world.signer, "k1"), "1"),
        world.signer.token(&header(&world.signer, "k1"), ""),
    ];
    for name in ["iss", "sub"] {
        wrong.push(world.token_with(&json!({ name: null })));
        wrong.push(world.token_with(&json!({ name: 1 })));
    }
    for token in wrong {
        let error = world.shows(&token).await.unwrap_err();
        assert!(is_malformed(&error, ""), "{token}: {error}");
    }
    // One bit of what was signed, or of the signature.
    world.shows(&token).await.unwrap();
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let flip = |text: &str| {
        let mut bytes = B64.decode(text).unwrap();
        bytes[10] ^= 1;
        B64.encode(bytes)
    };
    let changed = claims.replace("octo/payments\"", "octo/payment5\"");
    let (head, _) = signed.split_once('.').unwrap();
    for token in [
        format!("{signed}.{}", flip(signature)),
        format!("{head}.{}.{signature}", B64.encode(&changed)),
    ] {
        let error = world.shows(&token).await.unwrap_err();
        assert!(matches!(error, OidcError::Signature { .. }), "{error}");
    }
    assert_ne!(changed, claims);
    assert!(claims.contains(ISSUER));
}

#[tokio::test]
async fn no_error_shows_the_token() {
    let world = World::new(Signer::p256());
    let token = world.token_with(&json!({ "ref": "refs/heads/dev", "jti": "s3cret" }));
    let (_, signature) = token.rsplit_once('.').unwrap();
    let error = world.shows(&token).await.unwrap_err();
    let text = format!("{} {error:?}", kernel::chain(&error));
    assert!(
        !text.contains(signature) && !text.contains("s3cret") && !text.contains("eyJ"),
        "{text}"
    );
}
