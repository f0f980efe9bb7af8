//! Records in the Open Cybersecurity Schema Framework (OCSF 1.8.0, schema.ocsf.io), for the systems that gather them.
//!
//! A refused token is class 3002, Authentication; everything else is class 6003, API Activity. What OCSF has no place
//! for is under `unmapped`. The address of the caller is not recorded, so `src_endpoint`, which class 6003 requires, has
//! only the name of the interface that was used.

use serde_json::{Value, json};

use super::{AuditRecord, Outcome};
use crate::{codes, oidc};

/// The version of the schema that the events are written in.
const VERSION: &str = "1.8.0";
/// Severities: informational, and low for what was refused.
const SEVERITIES: [(u8, &str); 2] = [(1, "Informational"), (2, "Low")];

/// That a token was refused, ours or a workload's. An issuer that does not answer is no refusal.
const AUTHENTICATION: [&str; 5] = [
    codes::TOKEN.id,
    oidc::codes::FORM.id,
    oidc::codes::RULE.id,
    oidc::codes::KEY.id,
    oidc::codes::TIME.id,
];

/// A record as an event; `sequence` is its place under the seal. Pure.
#[must_use]
pub fn ocsf(record: &AuditRecord, sequence: Option<u64>) -> Value {
    let authentication = AUTHENTICATION.contains(&record.code.as_str());
    let (category, category_name, class, class_name) = if authentication {
        (3, "Identity & Access Management", 3002, "Authentication")
    } else {
        (6, "Application Activity", 6003, "API Activity")
    };
    let (activity, activity_name) = activity(record, authentication);
    let refused = record.outcome != Outcome::Success;
    let (severity_id, severity) = SEVERITIES[usize::from(refused)];
    let (status_id, status) = if refused { (2, "Failure") } else { (1, "Success") };
    let user = user(&record.actor);
    let service = json!({ "name": "portcullis" });
    let mut event = json!({
        "activity_id": activity, "activity_name": activity_name,
        "category_uid": category, "category_name": category_name,
        "class_uid": class, "class_name": class_name,
        "type_uid": class * 100 + activity, "type_name": format!("{class_name}: {activity_name}"),
        "severity_id": severity_id, "severity": severity,
        "status_id": status_id, "status": status,
        "time": record.at_us / 1_000,
        "message": record.detail,
        "metadata": {
            "version": VERSION,
            "product": { "name": "Portcullis", "vendor_name": "Portcullis", "version": env!("CARGO_PKG_VERSION") },
            "original_event_uid": record.id, "event_code": record.action,
            "correlation_uid": record.request_id, "tenant_uid": record.project,
            "original_time": record.at(),
        },
        "actor": { "user": user },
        "src_endpoint": { "svc_name": "portcullis-api" },
        "unmapped": { "outcome": record.outcome, "sequence": sequence },
    });
    if let Some((rule, ..)) = workload(&record.actor) {
        event["unmapped"]["trust_rule"] = json!(rule);
    }
    if refused {
        event["status_code"] = json!(record.code);
        event["status_detail"] = json!(record.detail);
    }
    if record.times > 1 {
        event["count"] = json!(record.times);
    }
    if authentication {
        event["user"] = user;
        event["service"] = service;
    } else {
        event["api"] = json!({ "operation": record.action, "service": service, "request": { "uid": record.request_id } });
        if !record.resource.is_empty() {
            let kind = record.action.split('.').next().unwrap_or_default();
            event["resources"] =
                json!([{ "name": record.resource, "type": kind, "namespace": record.project }]);
        }
    }
    event
}

fn activity(record: &AuditRecord, authentication: bool) -> (u32, &'static str) {
    if authentication {
        return (1, "Logon");
    }
    match record.action.rsplit('.').next().unwrap_or_default() {
        "create" | "import" => (1, "Create"),
        "get" | "list" => (2, "Read"),
        "put" | "set" | "update" | "rotate" | "repair" | "revoke" => (3, "Update"),
        "delete" => (4, "Delete"),
        _ => (99, "Other"),
    }
}

/// An actor as it is written: `token NAME (ID)`, a workload, or a word.
fn user(actor: &str) -> Value {
    if let Some((_, subject, issuer)) = workload(actor) {
        return json!({ "name": subject, "uid": subject, "domain": issuer, "type_id": 4, "type": "Service" });
    }
    let token = actor
        .strip_prefix("token ")
        .and_then(|rest| rest.strip_suffix(')'));
    match token.and_then(|rest| rest.rsplit_once(" (")) {
        Some((name, id)) => json!({ "name": name, "uid": id, "type_id": 99, "type": "Token" }),
        None if actor == "server" => json!({ "name": actor, "type_id": 3, "type": "System" }),
        None => json!({ "name": actor, "type_id": 0, "type": "Unknown" }),
    }
}

/// Rule, subject and issuer of `workload RULE (SUBJECT of ISSUER)`. A subject may have anything in it; the others have
/// no spaces.
fn workload(actor: &str) -> Option<(&str, &str, &str)> {
    let (rule, rest) = actor.strip_prefix("workload ")?.split_once(" (")?;
    let (subject, issuer) = rest.strip_suffix(')')?.rsplit_once(" of ")?;
    Some((rule, subject, issuer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(action: &str, outcome: Outcome, code: &str) -> AuditRecord {
        AuditRecord {
            action: action.to_owned(),
            actor: "token ci (x) (tok_1)".to_owned(),
            at_us: 1_700_000_000_123_456,
            code: code.to_owned(),
            detail: "d".to_owned(),
            id: "aud_1".to_owned(),
            outcome,
            project: "payments".to_owned(),
            request_id: "req_1".to_owned(),
            resource: "r".to_owned(),
            times: 1,
        }
    }

    /// The attributes that OCSF 1.8.0 requires of the two classes, of the objects in them, and its constraints.
    #[test]
    fn events_have_what_their_class_requires() {
        for (action, outcome, code, class) in [
            ("token.create", Outcome::Success, "", 6003),
            ("token.revoke", Outcome::Success, "", 6003),
            ("signature.create", Outcome::Denied, "PC1603", 6003),
            ("image-policy.delete", Outcome::Failed, "PC1604", 6003),
            ("audit.lose", Outcome::Denied, "", 6003),
            ("key.list", Outcome::Denied, "PC1601", 3002),
        ] {
            let event = ocsf(&record(action, outcome, code), Some(7));
            for required in [
                "activity_id",
                "category_uid",
                "class_uid",
                "metadata",
                "severity_id",
                "time",
                "type_uid",
            ] {
                assert!(!event[required].is_null(), "{required}: {event}");
            }
            assert_eq!(event["class_uid"], class);
            assert_eq!(
                event["type_uid"],
                class * 100 + event["activity_id"].as_u64().unwrap()
            );
            assert_eq!(event["time"], 1_700_000_000_123_u64);
            assert_eq!(
                event["status_id"],
                if outcome == Outcome::Success { 1 } else { 2 }
            );
            assert_eq!(event["metadata"]["version"], VERSION);
            assert!(event["metadata"]["product"]["name"].is_string());
            assert_eq!(event["actor"]["user"]["name"], "ci (x)");
            assert_eq!(event["actor"]["user"]["uid"], "tok_1");
            if class == 6003 {
                assert_eq!(event["category_uid"], 6);
                assert!(
                    event["api"]["operation"].is_string() && event["src_endpoint"]["svc_name"].is_string()
                );
            } else {
                assert_eq!(event["category_uid"], 3);
                assert!(event["user"]["name"].is_string() && event["service"]["name"].is_string());
            }
        }
    }

    /// Shown to fail: with the code of our own tokens alone, a workload's that is refused is a call that reads.
    #[test]
    fn a_refused_token_is_a_failed_logon_whosever_it_is() {
        let of = |code| ocsf(&record("key.list", Outcome::Denied, code), None)["class_uid"].clone();
        assert_eq!(of(codes::TOKEN.id), 3002);
        for code in oidc::codes::ALL {
            // Neither a yes nor a no.
            let refuses = code.id != oidc::codes::UNHEARD.id;
            assert_eq!(of(code.id), if refuses { 3002 } else { 6003 }, "{}", code.id);
        }
    }

    /// Shown to fail: without [`workload`] a build system's job is somebody unknown, without an id.
    #[test]
    fn a_workload_is_its_subject_at_its_issuer_and_its_rule_stands_apart() {
        let subject = "repo:acme/app (of b):ref:refs/heads/main";
        let mut record = record("signature.create", Outcome::Success, "");
        let actor = crate::Actor::Workload {
            rule: "release".to_owned(),
            issuer: "https://issuer.example".to_owned(),
            subject: subject.to_owned(),
        };
        record.actor = actor.to_string();
        let event = ocsf(&record, None);
        assert_eq!(
            event["actor"]["user"],
            json!({ "name": subject, "uid": subject, "domain": "https://issuer.example", "type_id": 4, "type": "Service" })
        );
        assert_eq!(event["unmapped"]["trust_rule"], "release");
        for (actor, kind) in [("server", 3), ("unknown", 0), ("workload x", 0)] {
            record.actor = actor.to_owned();
            let event = ocsf(&record, None);
            assert_eq!(event["actor"]["user"]["type_id"], kind, "{event}");
            assert!(event["unmapped"]["trust_rule"].is_null(), "{event}");
        }
    }
}
