//! Every field of a policy: a value that accepts, and one that does not.

use std::sync::Arc;

use kernel::Digest;
use serde_json::json;
use signing::Formats;
use signing::key::Signer as _;
use signing::verify::{Authority, Identity, Matcher, Policy, check_bundle};

use crate::evidence::Case;
use crate::forge::*;

fn counts(bundle: &[u8], image: Digest, policy: &Policy) -> bool {
    check_bundle(bundle, image, policy, now()).is_ok()
}

#[test]
fn t16_keys() {
    let (a, b, image) = (signer(), signer(), Digest::of(b"image"));
    let bundle = key_bundle(&a, &image_work(&a, image), &[]);
    let of = |keys: &[&signing::key::LocalSigner]| {
        Policy::keys("test", keys.iter().map(|key| key.public_key().clone()).collect())
    };
    assert!(counts(&bundle, image, &of(&[&a])));
    assert!(counts(&bundle, image, &of(&[&b, &a])));
    assert!(!counts(&bundle, image, &of(&[&b])));
    assert!(!counts(&bundle, image, &of(&[])), "no key is not any key");
}

#[test]
fn t16_annotations() {
    let (signer, image) = (signer(), Digest::of(b"image"));
    let statement = signing::format::statement::write(&[image], &annotations(&[("env", "prod"), ("n", "7")]));
    let bundle = key_bundle(&signer, &dsse_work(&signer, &statement), &[]);
    for (wanted, accepted) in [
        (&[][..], true),
        (&[("env", "prod")], true),
        (&[("env", "prod"), ("n", "7")], true),
        (&[("env", "Prod")], false),
        (&[("env", "")], false),
        (&[("other", "prod")], false),
        (&[("env", "prod"), ("other", "x")], false),
    ] {
        let policy = by_key(&signer).with_annotations(annotations(wanted));
        assert_eq!(counts(&bundle, image, &policy), accepted, "{wanted:?}");
    }
}

#[test]
fn t16_log_required() {
    let case = Case::new();
    let bare = key_bundle(&case.signer, &case.work, &[]);
    assert!(counts(&bare, case.image, &by_key(&case.signer)));
    assert!(!counts(&bare, case.image, &case.policy));
}

#[test]
fn t16_trust() {
    let case = Case::new();
    let bundle = key_bundle(&case.signer, &case.work, &[case.entry()]);
    assert!(counts(&bundle, case.image, &case.policy));
    let other = Rekor2::new("other").trusted(ago(60), None);
    assert!(!counts(
        &bundle,
        case.image,
        &by_key(&case.signer).with_log(root(&[other]))
    ));
    assert!(!counts(
        &bundle,
        case.image,
        &by_key(&case.signer).with_log(root(&[]))
    ));
    let none = changed(case.policy, |own| own.trust = None);
    assert!(
        !counts(&bundle, case.image, &none),
        "no trusted root is not any log"
    );
}

#[test]
fn t12_t16_not_before() {
    let (signer, log, image) = (signer(), Rekor1::new(), Digest::of(b"image"));
    let trust = root(&[log.trusted(ago(1_000), None)]);
    let work = image_work(&signer, image);
    let body = dsse1(
        &work.payload,
        &work.rekord.signature,
        &signer.public_key().to_pem(),
    );
    let entry = log.entry("dsse", &body, ago(500));
    let timed = bundle(V01, &by_hint(signer.public_key()), &[entry], &work.content)
        .to_string()
        .into_bytes();
    let timeless = key_bundle(&signer, &work, &[]);
    for log_required in [true, false] {
        let policy = |limit| Policy {
            not_before: limit,
            ..changed(by_key(&signer).with_log(trust.clone()), |own| {
                own.log_required = log_required;
            })
        };
        assert!(counts(&timed, image, &policy(None)));
        assert!(counts(&timed, image, &policy(Some(ago(600)))));
        assert!(!counts(&timed, image, &policy(Some(ago(400)))));
        assert!(
            !counts(&timeless, image, &policy(Some(ago(600)))),
            "an age that is unknown is not young"
        );
    }
    // A time that no trusted log vouches for is a claim.
    let blind = Policy {
        not_before: Some(ago(600)),
        ..by_key(&signer)
    };
    assert!(!counts(&timed, image, &blind));
    let too_old = check_bundle(&timeless, image, &blind, now()).unwrap_err();
    assert_eq!(too_old.reason, "too-old");
}

#[test]
fn the_fingerprint_tells_policies_apart_by_every_field() {
    let case = Case::new();
    let base = || Policy::keys("a", vec![case.signer.public_key().clone()]);
    let other_root = root(&[Rekor2::new("other").trusted(ago(60), None)]);
    let regex = |text: &str| Matcher::Regex(regex::Regex::new(text).unwrap());
    let with = |change: &dyn Fn(&mut Policy)| {
        let mut policy = base();
        change(&mut policy);
        policy
    };
    let own = |change: &dyn Fn(&mut Authority)| changed(base(), change);
    let trust = case.policy.authorities[0].trust.clone();
    let policies = [
        base(),
        own(&|own| own.keys.clear()),
        own(&|own| own.keys.push(signer().public_key().clone())),
        own(&|own| own.identities.push(Identity::exact("a", "b"))),
        own(&|own| own.identities.push(Identity::exact("b", "a"))),
        own(&|own| {
            let subject = regex("a");
            own.identities.push(Identity {
                subject,
                ..Identity::exact("a", "b")
            });
        }),
        own(&|own| own.formats = Formats::BUNDLE),
        own(&|own| own.name = "b".to_owned()),
        with(&|policy| policy.name = "b".to_owned()),
        with(&|policy| policy.authorities.clear()),
        with(&|policy| policy.authorities.extend(base().authorities)),
        with(&|policy| policy.annotations = annotations(&[("a", "b")])),
        with(&|policy| policy.annotations = annotations(&[("a", "c")])),
        own(&|own| own.log_required = true),
        own(&|own| own.trust = trust.clone()),
        own(&|own| own.trust = Some(Arc::clone(&other_root))),
        with(&|policy| policy.not_before = Some(ago(5))),
        with(&|policy| policy.not_before = Some(ago(50))),
    ];
    let mut seen: Vec<_> = policies.iter().map(Policy::fingerprint).collect();
    assert_eq!(base().fingerprint(), base().fingerprint());
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), policies.len());
}

#[test]
fn a_signature_without_a_log_says_so() {
    let case = Case::new();
    // The entry is there and even good; nobody asked for it, so nothing is claimed of it.
    let bundle = key_bundle(&case.signer, &case.work, &[case.entry()]);
    let accepted = check_bundle(&bundle, case.image, &by_key(&case.signer), now()).unwrap();
    assert_eq!((accepted.logged, accepted.log_index), (false, None));
    let mut forged = case.entry();
    forged["logIndex"] = json!("12345");
    let bundle = key_bundle(&case.signer, &case.work, &[forged]);
    let accepted = check_bundle(&bundle, case.image, &by_key(&case.signer), now()).unwrap();
    assert_eq!((accepted.logged, accepted.log_index), (false, None));
}
