//! Trust rules.

use access::oidc::{OidcError, Rule, check_rules};
use serde_json::{Value, json};

use super::issuer::rule;
use super::{AUDIENCE, ISSUER, Signer, World};

fn written(changes: &Value) -> Value {
    let mut rule = json!({
        "name": "release", "issuer": ISSUER, "audience": AUDIENCE, "project": "payments", "role": "signer",
        "claims": { "repository_id": "74" },
    });
    for (name, value) in changes.as_object().unwrap() {
        rule[name] = value.clone();
    }
    rule
}

fn refused(changes: &Value) -> String {
    serde_json::from_value::<Rule>(written(changes))
        .unwrap_err()
        .to_string()
}

#[test]
fn a_rule_names_an_id_that_is_never_given_out_again() {
    for claims in [
        json!({}),
        json!({ "repository": "octo/payments", "ref": "refs/heads/main" }),
        json!({ "sub": "repo:octo/payments:ref:refs/heads/main" }),
        json!({ "project_path": "octo/payments" }),
        // A person starts pipelines of others too.
        json!({ "actor_id": 1 }),
        json!({ "user_id": 1 }),
    ] {
        let error = refused(&json!({ "claims": claims }));
        assert!(
            error.contains("repository_id") && error.contains("project_id"),
            "{error}"
        );
    }
    for id in [
        "repository_id",
        "repository_owner_id",
        "enterprise_id",
        "project_id",
        "namespace_id",
    ] {
        rule(written(&json!({ "claims": { id: 1 } })));
    }
}

#[test]
fn a_rule_is_checked_whole() {
    for (changes, why) in [
        (
            json!({ "claims": { "repository_id": 1, "sub": "repo:octo/*" } }),
            "sub",
        ),
        (json!({ "claims": { "repository_id": "*" } }), "repository_id"),
        (json!({ "claims": { "repository_id": "" } }), "repository_id"),
        (json!({ "claims": { "repository_id": 1.5 } }), ""),
        (json!({ "claims": { "repository_id": 1, "aud": "x" } }), "aud"),
        (json!({ "issuer": "http://ci.example" }), "https"),
        (json!({ "issuer": "ci.example" }), "address"),
        (json!({ "audience": "" }), "audience"),
        (json!({ "role": "admin" }), "never admin"),
        (json!({ "role": "king" }), "role"),
        (json!({ "project": "No Project" }), "project"),
        (json!({ "name": "" }), "name"),
        (json!({ "name": "a\nb" }), "name"),
        (json!({ "wildcard": true }), "unknown field"),
    ] {
        let error = refused(&changes);
        assert!(error.contains(why), "{changes}: {error}");
    }
    let two = |changes: &Value| [rule(written(&json!({}))), rule(written(changes))];
    assert!(check_rules(&two(&json!({ "name": "b" }))).is_ok());
    assert!(check_rules(&two(&json!({}))).is_err(), "one name twice");
    let other_ca = json!({ "name": "b", "ca_file": "/ca.pem" });
    assert!(
        check_rules(&two(&other_ca)).is_err(),
        "one issuer, two certificates"
    );
}

#[tokio::test]
async fn a_claim_that_is_another_or_missing_is_refused_by_its_name() {
    let world = World::new(Signer::p256());
    for (changes, says) in [
        (
            json!({ "ref": "refs/heads/dev" }),
            "its ref is \"refs/heads/dev\"",
        ),
        (json!({ "ref": null }), "it has no ref"),
        (
            json!({ "ref": "refs/heads/main " }),
            "its ref is \"refs/heads/main \"",
        ),
        (json!({ "ref": ["refs/heads/main"] }), "it has no ref"),
        (json!({ "repository_id": "740" }), "its repository_id is \"740\""),
        // A stranger does not learn what else a rule asks for.
        (
            json!({ "repository_id": "1", "ref": "x" }),
            "its repository_id is \"1\"",
        ),
    ] {
        let error = world.shows(&world.token_with(&changes)).await.unwrap_err();
        let OidcError::Claims { why, .. } = &error else {
            panic!("{changes}: {error}");
        };
        assert_eq!(why, says);
    }
    // An id is the same number, as text or as number.
    world
        .shows(&world.token_with(&json!({ "repository_id": 74 })))
        .await
        .unwrap();
}

#[tokio::test]
async fn the_first_rule_counts_unless_another_is_for_the_project_that_is_wanted() {
    let of = |name: &str, project: &str| rule(written(&json!({ "name": name, "project": project })));
    let world = World::new(Signer::p256()).with_rules(vec![of("a", "pa"), of("b", "pb"), of("c", "pb")]);
    let workload = world.shows(&world.token()).await.unwrap();
    let name = |wanted: Option<&str>| {
        let wanted = wanted.map(|text| text.parse().unwrap());
        workload.rule(wanted.as_ref()).name.clone()
    };
    assert_eq!(name(None), "a");
    assert_eq!(name(Some("pb")), "b");
    assert_eq!(name(Some("pc")), "a");
}
