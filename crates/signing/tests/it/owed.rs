//! Image policies that ask for the external log: what is proven counts, and what is owed for as long as they say.

use std::sync::Arc;
use std::time::Duration;

use kernel::{Clock as _, Reference};
use serde_json::{Value, json};
use signing::image_policy::{ImagePolicy, Root};
use signing::key::Signer as _;
use signing::trust::TrustRoot;
use signing::verify::{Report, check_bundle};
use signing::{Asked, Formats, SigningError, VerifyRequest, Verifying};
use store::args;

use crate::evidence::Case;
use crate::forge::*;
use crate::world::World;

fn document(key: &str, log: &Value) -> Value {
    json!({
        "apiVersion": "policy.sigstore.dev/v1beta1",
        "kind": "ClusterImagePolicy",
        "metadata": { "name": "release" },
        "spec": { "images": [{ "glob": "**" }], "authorities": [{ "key": { "data": key }, "log": log }] },
    })
}

fn read(document: &Value, external: Option<&Arc<TrustRoot>>) -> Result<ImagePolicy, SigningError> {
    ImagePolicy::read(document, &|asked| {
        external.filter(|_| asked == Root::External).cloned()
    })
}

#[test]
fn what_is_asked_of_the_external_log_is_read_to_the_letter() {
    let case = Case::new();
    let root = case.policy.authorities[0].trust.clone().unwrap();
    let key = case.signer.public_key().to_pem();
    let why = |log: Value| read(&document(&key, &log), Some(&root)).map_err(|error| error.to_string());
    for good in [
        "required",
        "within 1s",
        "within 15m",
        "within 1h",
        "within 30d",
        "within 2592000s",
    ] {
        assert!(why(json!(good)).is_ok(), "{good}");
    }
    for bad in [
        "",
        "Required",
        "within",
        "within ",
        "within 1",
        "within h",
        "within 0h",
        "within 01h",
        "within +1h",
        "within -1h",
        "within 1.5h",
        "within 1H",
        "within  1h",
        "within 1h ",
        "within 31d",
        "within 2592001s",
        "within 99999999999999999999d",
        "within 9223372036854775807d",
        "within 1ü",
    ] {
        let why = why(json!(bad)).unwrap_err();
        assert!(why.contains("spec.authorities[0].log"), "{bad}: {why}");
    }
    assert!(why(json!(true)).is_err());
    let none = read(&document(&key, &json!("required")), None)
        .unwrap_err()
        .to_string();
    assert!(none.contains("[external_log]"), "{none}");
    for (name, field) in [
        ("ctlog", json!({})),
        (
            "keyless",
            json!({ "identities": [{ "subject": "a", "issuer": "b" }] }),
        ),
    ] {
        let mut both = document(&key, &json!("required"));
        both["spec"]["authorities"][0][name] = field;
        assert!(read(&both, Some(&root)).is_err(), "{name}");
    }
}

/// Without a server's records, time is given to nobody, and the reason says so.
#[test]
fn proof_of_the_external_log_counts_and_without_records_nothing_else() {
    let case = Case::new();
    let root = case.policy.authorities[0].trust.clone().unwrap();
    let key = case.signer.public_key().to_pem();
    let image: Reference = format!("r.example/app@{}", case.image).parse().unwrap();
    let (proven, bare) = (case.good(), key_bundle(&case.signer, &case.work, &[]));
    for (log, told) in [("required", false), ("within 1h", true)] {
        let policy = read(&document(&key, &json!(log)), Some(&root)).unwrap();
        let policy = policy.policy_for(&image).unwrap();
        assert!(check_bundle(&proven, case.image, &policy, now()).unwrap().logged);
        let refused = check_bundle(&bare, case.image, &policy, now()).unwrap_err();
        assert_eq!(refused.reason, "log");
        assert_eq!(
            refused.detail.contains("means \"required\" here"),
            told,
            "{}",
            refused.detail
        );
    }
}

/// Shown to fail: with `or_owed` taking any age, the look after an hour verifies; without `Report::holds_until` it does,
/// from the verdict that is known.
#[tokio::test(flavor = "multi_thread")]
async fn a_debt_counts_while_it_is_young_on_this_servers_records() {
    let world = World::new().await;
    let context = world.context();
    let keys = world.signing.keyring().verifying("default").await.unwrap();
    let other_log = Case::new().policy.authorities[0].trust.clone();
    let policies = world.policies.clone().with_external(other_log);
    let verifying = Verifying::new(world.signing.clone(), policies.clone());
    let look = async |log: &str| -> Report {
        let document = document(&keys[0].to_pem(), &json!(log));
        policies.put(&context, "release", document, None).await.unwrap();
        let request = VerifyRequest {
            asked: Asked::Policy("release".to_owned()),
            ..world.verify_request()
        };
        let verdicts = verifying.verify(&context, &request).await.unwrap();
        (*verdicts[0].report).clone()
    };
    world.sign_as(&world.request_in(Formats::BUNDLE)).await;
    let signed_at = world.clock.now();
    let first = look("within 1h").await;
    let accepted = first.candidates[0].outcome.as_ref().unwrap();
    assert!(first.verified && !accepted.logged, "{first:?}");
    assert_eq!(
        accepted.owed_since.map(|since| since.as_second()),
        Some(signed_at.as_second())
    );
    assert!(
        first.checks[1].ends_with("or owed to it for less than 1h"),
        "{:?}",
        first.checks
    );
    let required = look("required").await;
    assert!(!required.verified, "{required:?}");

    world.clock.advance(Duration::from_secs(3_599));
    assert!(look("within 1h").await.verified);
    // The verdict that was just given does not outlive the hour.
    world.clock.advance(Duration::from_secs(2));
    let late = look("within 1h").await;
    assert!(!late.verified, "{late:?}");
    assert!(
        late.reasons[0].contains("the policy gives it 1h"),
        "{:?}",
        late.reasons
    );
    assert!(look("within 2h").await.verified);

    // What the log has and the registry not yet counts at any age; what it refused never does.
    let state = async |state: &str| {
        let mut tx = world.db.begin().await.unwrap();
        tx.execute("UPDATE external_debt SET state = $1", args![state])
            .await
            .unwrap();
        tx.commit().await.unwrap();
        world.clock.advance(Duration::from_secs(11));
    };
    state("refused").await;
    let refused = look("within 3h").await;
    assert!(
        !refused.verified && refused.reasons[0].contains("refused"),
        "{refused:?}"
    );
    state("logged").await;
    assert!(look("within 1h").await.verified);
    // Nor does what is not owed, by whatever key of the project it is.
    state("published").await;
    let unknown = look("within 4h").await;
    assert!(
        !unknown.verified && unknown.reasons[0].contains("does not owe"),
        "{unknown:?}"
    );
}
