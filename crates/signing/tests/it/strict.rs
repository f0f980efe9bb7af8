//! Bundles that one verifier accepts and another refuses: here they are refused, as by cosign.

use serde_json::{Value, json};
use signing::verify::check_bundle;

use crate::evidence::{Case, refused, without_log};
use crate::forge::*;

#[test]
fn t04_an_entry_that_names_another_log_is_refused() {
    let case = Case::new();
    let other = Rekor2::new("other");
    let named = other.entry(&case.work.rekord)["logId"].clone();
    let policies = [
        case.policy.clone(),
        // Also where the other log is believed too.
        by_key(&case.signer).with_log(root(&[
            case.log.trusted(ago(60), None),
            other.trusted(ago(60), None),
        ])),
    ];
    for policy in policies {
        assert!(check_bundle(&case.good(), case.image, &policy, now()).is_ok());
        for name in [
            named.clone(),
            json!({ "keyId": b64([0; 32]) }),
            json!({ "keyId": "" }),
        ] {
            let mut entry = case.entry();
            entry["logId"] = name;
            for entries in [vec![entry.clone()], vec![case.entry(), entry]] {
                let bundle = key_bundle(&case.signer, &case.work, &entries);
                let rejected = refused(&bundle, case.image, &policy);
                assert_eq!(rejected.reason, "log", "{}", rejected.detail);
            }
        }
    }
}

#[test]
fn t04_the_same_log_entry_twice_is_refused() {
    let case = Case::new();
    let twice = key_bundle(&case.signer, &case.work, &[case.entry(), case.entry()]);
    for policy in [&case.policy, &without_log(&case.policy)] {
        let rejected = refused(&twice, case.image, policy);
        assert_eq!(rejected.reason, "malformed");
        assert!(
            rejected.detail.contains("log entry stands twice"),
            "{}",
            rejected.detail
        );
    }
}

#[test]
fn t29_a_bundle_with_a_member_twice_is_refused() {
    let case = Case::new();
    let good = String::from_utf8(case.good()).unwrap();
    let whole: Value = serde_json::from_str(&good).unwrap();
    let members = [
        ("", "dsseEnvelope"),
        ("", "mediaType"),
        ("/dsseEnvelope", "payload"),
        ("/dsseEnvelope/signatures/0", "sig"),
        ("/verificationMaterial", "tlogEntries"),
        ("/verificationMaterial/tlogEntries/0", "logIndex"),
        ("/verificationMaterial/tlogEntries/0", "unknown"),
        (
            "/verificationMaterial/tlogEntries/0/inclusionProof/checkpoint",
            "envelope",
        ),
    ];
    for (at, member) in members {
        let object = whole.pointer(at).unwrap();
        let value = object.get(member).cloned().unwrap_or(json!(1));
        let mut twice = whole.clone();
        twice.pointer_mut(at).unwrap()[member] = value.clone();
        twice.pointer_mut(at).unwrap()["SECOND"] = value;
        let twice = twice.to_string().replace("\"SECOND\"", &format!("{member:?}"));
        let mut other_name = whole.clone();
        let snake: String = member.chars().fold(String::new(), |mut name, letter| {
            if letter.is_ascii_uppercase() {
                name.push('_');
            }
            name.push(letter.to_ascii_lowercase());
            name
        });
        let second = object.get(member).cloned().unwrap_or(json!(1));
        other_name.pointer_mut(at).unwrap()[&snake] = second;
        let other_name = other_name.to_string();
        if snake != member && object.get(member).is_some() {
            let rejected = refused(other_name.as_bytes(), case.image, &case.policy);
            assert_eq!(rejected.reason, "malformed", "{at}/{snake}");
            assert!(rejected.detail.contains("twice"), "{}", rejected.detail);
        }
        for policy in [&case.policy, &without_log(&case.policy)] {
            let rejected = refused(twice.as_bytes(), case.image, policy);
            assert_eq!(rejected.reason, "malformed", "{at}/{member}");
            assert!(rejected.detail.contains("twice"), "{}", rejected.detail);
        }
    }
    // The same in what is signed.
    let statement = String::from_utf8(case.work.payload.clone()).unwrap();
    let twice = statement.replacen('{', r#"{"predicateType":"x","#, 1);
    let bundle = key_bundle(&case.signer, &dsse_work(&case.signer, twice.as_bytes()), &[]);
    let rejected = refused(&bundle, case.image, &by_key(&case.signer));
    assert_eq!(rejected.reason, "malformed");
    assert!(rejected.detail.contains("twice"), "{}", rejected.detail);
}
