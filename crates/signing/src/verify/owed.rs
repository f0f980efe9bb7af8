//! Signatures whose entry in the external log is still owed: a policy may give that some time.

use jiff::Timestamp;

use super::policy::said;
use super::report::{Accepted, Outcome};
use super::{Authority, Policy, Rejected};
use crate::debt::tables::State;
use crate::key::PublicKey;

/// What counts of a candidate that `key` has signed, and that came to `outcome`: where only the log's proof is missing,
/// a young debt of this server stands for it.
pub(super) fn or_owed(
    outcome: Outcome,
    key: &PublicKey,
    signature: &[u8],
    authority: &Authority,
    policy: &Policy,
    now: Timestamp,
) -> Outcome {
    let (Err(rejected), Some(within)) = (&outcome, authority.within) else {
        return outcome;
    };
    if rejected.reason != "log" {
        return outcome;
    }
    let too_little = |why: String| Err(Rejected::new("log", format!("{}; {why}", rejected.detail)));
    let Some(records) = &policy.records else {
        let why = "only a server knows what is owed to the log, so that \"within\" means \"required\" here";
        return too_little(why.to_owned());
    };
    let Some(own) = records.0.iter().find(|own| own.signature == signature) else {
        return too_little("and this server does not owe it".to_owned());
    };
    let since = Timestamp::from_microsecond(own.since_us).unwrap_or(Timestamp::MIN);
    let age = now.duration_since(since);
    let holds_until = match own.state {
        State::Logged => None,
        State::Owed if age < within => Some(since.saturating_add(within).unwrap_or(Timestamp::MAX)),
        State::Owed => {
            let (age, within) = (said(age), said(within));
            return too_little(format!(
                "it has been owed for {age}, and the policy gives it {within}"
            ));
        }
        State::Refused => return too_little("the log has refused it".to_owned()),
    };
    let accepted = Accepted {
        key_id: Some(key.id().to_string()),
        owed_since: Some(since),
        holds_until,
        ..Accepted::default()
    };
    accepted.in_time(policy)?;
    Ok(accepted)
}
