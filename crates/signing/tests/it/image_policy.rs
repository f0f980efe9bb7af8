//! Image policies: every field with a value that accepts and one that does not, and none that is passed over.

use std::sync::Arc;

use access::ProjectName;
use kernel::Reference;
use serde_json::{Value, json};
use signing::image_policy::{ImagePolicy, Root};
use signing::key::{LocalSigner, Signer as _};
use signing::trust::TrustRoot;
use signing::verify::check_bundle;
use signing::{Asked, SigningError, VerifyRequest};
use store::args;

use crate::ca::{Ca, IDENTITY, ISSUER};
use crate::evidence::Case;
use crate::forge::*;
use crate::world::World;

fn document(authorities: &Value) -> Value {
    json!({
        "apiVersion": "policy.sigstore.dev/v1beta1",
        "kind": "ClusterImagePolicy",
        "metadata": { "name": "release" },
        "spec": { "images": [{ "glob": "**" }], "authorities": authorities },
    })
}

fn pem(signer: &LocalSigner) -> String {
    signer.public_key().to_pem()
}

fn read(document: &Value, root: Option<&Arc<TrustRoot>>) -> Result<ImagePolicy, SigningError> {
    ImagePolicy::read(document, &|asked| {
        root.filter(|_| matches!(asked, Root::Own | Root::Named("own")))
            .cloned()
    })
}

/// Whether a bundle is accepted by a policy of these authorities; `Err` if the policy cannot be used.
fn accepts(
    authorities: &Value,
    bundle: &[u8],
    case: &Case,
    root: Option<&Arc<TrustRoot>>,
) -> Result<Result<(), &'static str>, String> {
    let policy = read(&document(authorities), root).map_err(|error| kernel::chain(&error))?;
    let image: Reference = format!("r.example/app@{}", case.image).parse().unwrap();
    let policy = policy.policy_for(&image).unwrap();
    Ok(check_bundle(bundle, case.image, &policy, now())
        .map(|_| ())
        .map_err(|rejected| rejected.reason))
}

#[test]
fn t16_every_field_of_a_key_authority_counts() {
    let case = Case::new();
    let root = case.policy.authorities[0].trust.clone().unwrap();
    let bare = key_bundle(&case.signer, &case.work, &[]);
    let logged = key_bundle(&case.signer, &case.work, &[case.entry()]);
    let (own, other) = (pem(&case.signer), pem(&signer()));
    let url = "https://log.example";
    let table = [
        (json!([{ "key": { "data": own } }]), &bare, Ok(())),
        (
            json!([{ "key": { "data": other } }]),
            &bare,
            Err("no-matching-key"),
        ),
        (
            json!([{ "key": { "data": format!("{other}{own}") } }]),
            &bare,
            Ok(()),
        ),
        (
            json!([{ "key": { "data": own, "hashAlgorithm": "sha256" } }]),
            &bare,
            Ok(()),
        ),
        // One authority is enough; the better reason wins.
        (
            json!([{ "key": { "data": other } }, { "key": { "data": own } }]),
            &bare,
            Ok(()),
        ),
        (
            json!([{ "key": { "data": other } }, { "key": { "data": own }, "ctlog": {} }]),
            &bare,
            Err("log"),
        ),
        (json!([{ "key": { "data": own }, "ctlog": {} }]), &logged, Ok(())),
        (
            json!([{ "key": { "data": own }, "ctlog": { "trustRootRef": "own" } }]),
            &logged,
            Ok(()),
        ),
        (
            json!([{ "key": { "data": own }, "signatureFormat": "bundle" }]),
            &bare,
            Ok(()),
        ),
        (
            json!([{ "key": { "data": own }, "signatureFormat": "legacy" }]),
            &bare,
            Err("format"),
        ),
    ];
    for (authorities, bundle, expected) in table {
        assert_eq!(
            accepts(&authorities, bundle, &case, Some(&root)),
            Ok(expected),
            "{authorities}"
        );
    }
    let log = |url: &str| json!([{ "key": { "data": own }, "ctlog": { "url": url } }]);
    let trusted = case.log.trusted(ago(60), None);
    let known = trusted["baseUrl"].as_str().unwrap();
    assert_eq!(accepts(&log(known), &logged, &case, Some(&root)), Ok(Ok(())));
    assert!(
        accepts(&log(url), &logged, &case, Some(&root))
            .unwrap_err()
            .contains("knows no log")
    );
}

#[test]
fn t16_every_field_of_a_keyless_authority_counts() {
    let (case, log) = (Case::new(), Rekor1::new());
    let ca = Ca::new((1_000, -1_000), (900, -900));
    let issued = ca.issue((600, 300));
    let bundle = crate::keyless::bundle_of(&issued, &[], case.image, &log, 450);
    let root = root_with(ca.trusted(&[log.trusted(ago(10_000), None)], true));
    let of = |identity: Value| json!([{ "keyless": { "identities": [identity] } }]);
    let table = [
        (json!({ "subject": IDENTITY, "issuer": ISSUER }), true),
        (json!({ "subject": IDENTITY, "issuerRegExp": "issuer" }), true),
        (json!({ "subjectRegExp": "^builder@", "issuer": ISSUER }), true),
        (json!({ "subjectRegExp": "^uilder@", "issuer": ISSUER }), false),
        (
            json!({ "subjectRegExp": ".*", "issuerRegExp": "^https://issuer$" }),
            false,
        ),
        (json!({ "subject": ".*", "issuer": ISSUER }), false),
        (
            json!({ "subject": IDENTITY, "issuer": "https://other.example" }),
            false,
        ),
    ];
    for (identity, expected) in table {
        let outcome = accepts(&of(identity.clone()), &bundle, &case, Some(&root)).unwrap();
        assert_eq!(
            outcome,
            if expected { Ok(()) } else { Err("identity") },
            "{identity}"
        );
    }
    // A key's signature is none of an identity, and a certificate's none of a key.
    let by_key = key_bundle(&case.signer, &case.work, &[]);
    let names = json!({ "subject": IDENTITY, "issuer": ISSUER });
    assert_eq!(
        accepts(&of(names), &by_key, &case, Some(&root)),
        Ok(Err("no-matching-key"))
    );
    let keys = json!([{ "key": { "data": pem(&issued.signer) } }]);
    assert_eq!(accepts(&keys, &bundle, &case, Some(&root)), Ok(Err("identity")));
}

#[test]
fn t16_what_is_not_known_is_refused_by_its_place() {
    let case = Case::new();
    let root = case.policy.authorities[0].trust.clone().unwrap();
    let own = pem(&case.signer);
    let key = json!({ "data": own });
    let names = json!([{ "subject": "a", "issuer": "b" }]);
    let authorities = [
        (json!([]), "spec.authorities"),
        (json!([{}]), "spec.authorities[0]"),
        (
            json!([{ "key": key, "keyless": { "identities": names } }]),
            "spec.authorities[0]",
        ),
        (json!([{ "key": {} }]), "spec.authorities[0].key"),
        (json!([{ "key": { "data": "" } }]), "spec.authorities[0].key.data"),
        (
            json!([{ "key": { "data": "x" } }]),
            "spec.authorities[0].key.data",
        ),
        (
            json!([{ "key": { "data": own, "hashAlgorithm": "sha512" } }]),
            "spec.authorities[0].key.hashAlgorithm",
        ),
        (
            json!([{ "key": { "kms": "awskms:///alias/x" } }]),
            "spec.authorities[0].key.kms",
        ),
        (
            json!([{ "key": { "secretRef": { "name": "x" } } }]),
            "spec.authorities[0].key.secretRef",
        ),
        (
            json!([{ "static": { "action": "pass" } }]),
            "spec.authorities[0].static",
        ),
        (
            json!([{ "key": key, "attestations": [] }]),
            "spec.authorities[0].attestations",
        ),
        (
            json!([{ "key": key, "source": [] }]),
            "spec.authorities[0].source",
        ),
        (
            json!([{ "key": key, "rfc3161timestamp": {} }]),
            "spec.authorities[0].rfc3161timestamp",
        ),
        (
            json!([{ "key": key, "signatureFormat": "pgp" }]),
            "spec.authorities[0].signatureFormat",
        ),
        (
            json!([{ "key": key, "ctlog": { "trustRootRef": "x" } }]),
            "there is no trusted root",
        ),
        (
            json!([{ "keyless": { "identities": [] } }]),
            "spec.authorities[0].keyless.identities",
        ),
        (
            json!([{ "keyless": { "identities": names } }]),
            "no certificate authority",
        ),
        (
            json!([{ "keyless": { "url": "https://f.example", "identities": names } }]),
            "spec.authorities[0].keyless.url",
        ),
        (
            json!([{ "keyless": { "identities": [{ "issuer": "b" }] } }]),
            "identities[0].subject",
        ),
        (
            json!([{ "keyless": { "identities": [{ "subject": "", "issuer": "b" }] } }]),
            "identities[0].subject",
        ),
        (
            json!([{ "keyless": { "identities": [{ "subject": "a", "subjectRegExp": "a", "issuer": "b" }] } }]),
            "identities[0].subject",
        ),
        (
            json!([{ "keyless": { "identities": [{ "subjectRegExp": "(", "issuer": "b" }] } }]),
            "identities[0].subjectRegExp",
        ),
        // A few characters that would take megabytes, and a few kilobytes that would take them 101 times.
        (
            json!([{ "keyless": { "identities": [{ "subjectRegExp": "\\w{1000}", "issuer": "b" }] } }]),
            "identities[0].subjectRegExp",
        ),
        (
            json!([{ "keyless": { "identities": vec![names[0].clone(); 101] } }]),
            "keyless.identities: it has 101 parts",
        ),
    ];
    for (authorities, place) in authorities {
        let refused = accepts(&authorities, b"", &case, Some(&root)).unwrap_err();
        assert!(refused.contains(place), "{authorities}: {refused}");
    }
    let good = document(&json!([{ "key": key }]));
    assert!(read(&good, None).is_ok());
    let with = |pointer: &str, value: Value| {
        let mut document = good.clone();
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        document.pointer_mut(parent).unwrap()[field] = value;
        document
    };
    for (pointer, value, place) in [
        ("/apiVersion", json!("policy.sigstore.dev/v9"), "apiVersion"),
        ("/kind", json!("Pod"), "kind"),
        ("/metadata/name", json!("Not A Name"), "metadata.name"),
        ("/spec/images", json!([]), "spec.images"),
        ("/spec/images", json!([{ "glob": "" }]), "spec.images[0].glob"),
        (
            "/spec/images",
            json!([{ "glob": "team/app" }]),
            "spec.images[0].glob",
        ),
        ("/spec/mode", json!("dream"), "spec.mode"),
        ("/spec/policy", json!({ "type": "cue" }), "spec.policy"),
        ("/spec/match", json!([]), "spec.match"),
        ("/more", json!(1), "more"),
    ] {
        let refused = kernel::chain(&read(&with(pointer, value), None).unwrap_err());
        assert!(refused.contains(place), "{pointer}: {refused}");
    }
    for (pointer, value) in [
        ("/spec/mode", json!("warn")),
        ("/metadata/labels", json!({ "a": "b" })),
        ("/status", json!({ "conditions": [] })),
        ("/apiVersion", json!("policy.sigstore.dev/v1alpha1")),
    ] {
        assert!(read(&with(pointer, value), None).is_ok(), "{pointer}");
    }
    // A policy that needs a log is not read where none is believed.
    let logged = document(&json!([{ "key": key, "ctlog": {} }]));
    assert!(kernel::chain(&read(&logged, None).unwrap_err()).contains("which log to believe"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_written_read_and_verified_with_by_its_project_alone() {
    let world = World::new().await;
    let context = world.context();
    let keys = world.signing.keyring().verifying("default").await.unwrap();
    let own = document(&json!([{ "key": { "data": keys[0].to_pem() }, "ctlog": {} }]));
    let policies = &world.policies;
    let (first, new) = policies
        .put(&context, "release", own.clone(), None)
        .await
        .unwrap();
    assert!(new);
    assert_eq!(policies.get(&context, "release").await.unwrap().document, own);

    let request = VerifyRequest {
        asked: Asked::Policy("release".to_owned()),
        ..world.verify_request()
    };
    let verified = async || {
        let verdicts = world.verifying.verify(&context, &request).await.unwrap();
        (verdicts[0].report.verified, verdicts[0].report.policy.clone())
    };
    assert_eq!(verified().await, (false, "release".to_owned()));
    world.sign().await;
    assert_eq!(verified().await, (true, "release".to_owned()));

    // Another policy under the same name counts at once, whatever was decided under the first.
    let foreign = document(&json!([{ "key": { "data": pem(&signer()) } }]));
    let stale = Some(kernel::Digest::of(b"what somebody read before"));
    let refused = policies.put(&context, "release", foreign.clone(), stale).await;
    assert!(
        matches!(refused, Err(SigningError::ImagePolicyChanged(_))),
        "{refused:?}"
    );
    assert!(verified().await.0, "a refused write changed the policy");
    let (_, new) = policies
        .put(&context, "release", foreign, Some(first.digest))
        .await
        .unwrap();
    assert!(!new);
    assert!(!verified().await.0);

    // It is about other images.
    let mut elsewhere = own.clone();
    elsewhere["spec"]["images"] = json!([{ "glob": "registry.example/**" }]);
    policies.put(&context, "release", elsewhere, None).await.unwrap();
    let outcome = world.verifying.verify(&context, &request).await;
    assert!(
        matches!(outcome, Err(SigningError::NotCovered { .. })),
        "{outcome:?}"
    );

    // Another project has none of it.
    let other: ProjectName = "other".parse().unwrap();
    let patterns = vec!["**".parse().unwrap()];
    world
        .access
        .create_project(&context, other.clone(), patterns)
        .await
        .unwrap();
    let theirs = access::Context::server(other);
    assert!(matches!(
        policies.get(&theirs, "release").await,
        Err(SigningError::NoImagePolicy(_))
    ));
    assert!(matches!(
        policies.delete(&theirs, "release").await,
        Err(SigningError::NoImagePolicy(_))
    ));
    assert!(policies.list(&theirs, "", 10).await.unwrap().is_empty());
    assert_eq!(policies.list(&context, "", 10).await.unwrap().len(), 1);
    assert!(policies.list(&context, "release", 10).await.unwrap().is_empty());

    policies.delete(&context, "release").await.unwrap();
    assert!(matches!(
        policies.get(&context, "release").await,
        Err(SigningError::NoImagePolicy(_))
    ));
    // Sorted by what they say: ids of one millisecond have no order.
    let sql = "SELECT action FROM audit WHERE resource = 'release' ORDER BY action";
    let rows = world.db.read(sql, args![]).await.unwrap();
    let actions: Vec<String> = rows.iter().map(|row| row.text("action").unwrap()).collect();
    assert_eq!(
        actions,
        [
            "image-policy.delete",
            "image-policy.put",
            "image-policy.put",
            "image-policy.put",
        ]
    );
}
