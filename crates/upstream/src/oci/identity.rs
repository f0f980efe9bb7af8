//! Whether what answers is a registry, and the one that it was.

use probing::{Finding, State};
use reqwest::Url;

use super::challenge::Challenge;

/// Whom a registry says to be: where it sends for tokens, and under which name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// `Bearer` with the host of the realm and the service, `Basic`, or nothing.
    asks: String,
}

/// What `GET /v2/` answered, as far as it matters.
#[derive(Debug, Clone, Default)]
pub(super) struct Answered {
    pub status: u16,
    pub is_v2: bool,
    pub challenge: Option<Challenge>,
    pub is_json: bool,
    /// The answer in one line.
    pub described: String,
}

/// Judges an answer beside whom the first good one came from.
pub(super) fn judge(name: &str, known: Option<&Who>, answered: &Answered) -> (Finding, Option<Who>) {
    let expected = expected(name, known);
    let of = |state, found: String| (Finding::new(state, expected.clone(), found), None);
    let Answered {
        status,
        challenge,
        described,
        ..
    } = answered;
    match status {
        // It is there and wants to be left alone: that is an answer.
        429 => return of(State::Ok, "a registry that asks to come back later".to_owned()),
        500..=599 => return of(State::Unreachable, described.clone()),
        200 if answered.is_v2 || answered.is_json => {}
        401 if challenge.is_some() => {}
        _ => return of(State::NotARegistry, described.clone()),
    }
    let who = Who {
        asks: match challenge {
            None => "nothing".to_owned(),
            Some(Challenge::Basic) => "for a password".to_owned(),
            Some(Challenge::Bearer { realm, service }) => {
                let host = Url::parse(realm).ok();
                let host = host.as_ref().and_then(Url::host_str).unwrap_or("nowhere");
                let service = service.as_deref().unwrap_or("no service");
                kernel::words(&format!("for tokens of {host} for {service}"))
            }
        },
    };
    match known {
        Some(known) if *known != who => {
            of(State::WrongRegistry, format!("a registry that asks {}", who.asks))
        }
        _ => {
            let found = format!("a registry that asks {}", who.asks);
            (Finding::new(State::Ok, expected, found), Some(who))
        }
    }
}

pub(super) fn expected(name: &str, known: Option<&Who>) -> String {
    match known {
        Some(known) => format!("the registry {name}, which asks {}", known.asks),
        None => format!("the registry {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str) -> Option<Challenge> {
        Some(Challenge::Bearer {
            realm: realm.to_owned(),
            service: Some("r.example".to_owned()),
        })
    }

    fn answered(status: u16, challenge: Option<Challenge>) -> Answered {
        Answered {
            status,
            challenge,
            described: format!("status {status}"),
            ..Answered::default()
        }
    }

    /// Shown to fail: without the comparison with `known`, the other realm is OK.
    #[test]
    fn p14_another_registry_behind_the_same_name_is_named() {
        let own = answered(401, bearer("https://auth.example/token"));
        let (first, who) = judge("r.example", None, &own);
        assert_eq!(first.state, State::Ok);
        let known = who.as_ref();
        assert_eq!(judge("r.example", known, &own).0.state, State::Ok);
        let other = judge(
            "r.example",
            known,
            &answered(401, bearer("https://evil.example/token")),
        );
        assert_eq!(other.0.state, State::WrongRegistry);
        assert!(other.0.expected.contains("auth.example"), "{other:?}");
        assert!(other.0.found.contains("evil.example"), "{other:?}");
        let open = Answered {
            is_v2: true,
            ..answered(200, None)
        };
        assert_eq!(judge("r.example", known, &open).0.state, State::WrongRegistry);
    }

    #[test]
    fn what_is_no_registry_is_told_from_one_that_is_ill_or_busy() {
        for (answer, state) in [
            (answered(200, None), State::NotARegistry),
            (answered(404, None), State::NotARegistry),
            (answered(302, None), State::NotARegistry),
            (answered(401, None), State::NotARegistry),
            (answered(401, Some(Challenge::Basic)), State::Ok),
            (answered(503, None), State::Unreachable),
            (answered(429, None), State::Ok),
        ] {
            assert_eq!(judge("r.example", None, &answer).0.state, state, "{answer:?}");
        }
        let json = Answered {
            is_json: true,
            ..answered(200, None)
        };
        assert_eq!(judge("r.example", None, &json).0.state, State::Ok);
    }
}
