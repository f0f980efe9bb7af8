//! Which records are wanted.

use jiff::Timestamp;
use store::{Value, args};

use super::Outcome;
use crate::AccessError;

/// What a list is narrowed down to; an empty text stands for any.
#[derive(Debug, Clone)]
pub struct Filter {
    pub project: String,
    /// A part of the actor, such as a token's name or id.
    pub actor: String,
    /// An action; `*` stands for anything, as in `token.*`.
    pub action: String,
    /// A resource; `*` stands for anything.
    pub resource: String,
    pub outcome: Option<Outcome>,
    /// From this moment on, in microseconds since 1970.
    pub since_us: i64,
    /// Until this moment, which is the last one.
    pub last_us: i64,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            project: String::new(),
            actor: String::new(),
            action: String::new(),
            resource: String::new(),
            outcome: None,
            since_us: i64::MIN,
            last_us: i64::MAX,
        }
    }
}

impl Filter {
    /// Reads the filters of a query; `value` gives that of a name.
    ///
    /// # Errors
    /// If an outcome or a time is not one.
    pub fn read<'a>(value: impl Fn(&str) -> Option<&'a str>) -> Result<Self, AccessError> {
        let text = |name: &str| value(name).unwrap_or_default().to_owned();
        let time = |name: &str, what: &'static str, left_out: i64| match value(name) {
            None => Ok(left_out),
            Some(text) => text
                .parse::<Timestamp>()
                .map(Timestamp::as_microsecond)
                .map_err(|_| {
                    let why = "a time is written as in RFC 3339, such as 2026-01-31T12:00:00Z";
                    invalid(what, text, why)
                }),
        };
        let outcome = value("outcome").map(|text| {
            Outcome::parse(text).ok_or_else(|| invalid("outcome", text, "it is success, denied or failed"))
        });
        Ok(Self {
            project: text("project"),
            actor: text("actor"),
            action: text("action"),
            resource: text("resource"),
            outcome: outcome.transpose()?,
            since_us: time("since", "since", i64::MIN)?,
            // Whoever says until when means the moments before that.
            last_us: time("until", "until", i64::MAX)?.saturating_sub(i64::from(value("until").is_some())),
        })
    }

    /// The first seven arguments of a list.
    pub(super) fn args(&self) -> Vec<Value> {
        let part = match self.actor.as_str() {
            "" => String::new(),
            actor => format!("%{}%", like(actor)),
        };
        args![
            &self.project,
            part,
            like(&self.action),
            like(&self.resource),
            self.outcome.map_or("", Outcome::as_str),
            self.since_us,
            self.last_us
        ]
    }
}

/// The pattern for LIKE: `*` is anything, everything else itself.
fn like(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '*' => out.push('%'),
            '%' | '_' | '\\' => out.extend(['\\', char]),
            other => out.push(other),
        }
    }
    out
}

fn invalid(what: &'static str, text: &str, why: &'static str) -> AccessError {
    AccessError::Invalid {
        what,
        text: text.chars().take(60).collect(),
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_star_stands_for_anything() {
        assert_eq!(like("token.*"), "token.%");
        assert_eq!(like(r"a_b%c\d"), r"a\_b\%c\\d");
    }

    #[test]
    fn what_is_no_outcome_or_time_is_refused() {
        let with = |name: &'static str, text: &'static str| {
            Filter::read(move |asked| (asked == name).then_some(text))
                .map(|filter| (filter.since_us, filter.outcome))
        };
        assert_eq!(with("since", "1970-01-01T00:00:01Z").unwrap().0, 1_000_000);
        assert_eq!(with("outcome", "denied").unwrap().1, Some(Outcome::Denied));
        for (name, text) in [("since", "yesterday"), ("until", ""), ("outcome", "Denied")] {
            assert!(
                matches!(with(name, text), Err(AccessError::Invalid { .. })),
                "{name} {text}"
            );
        }
    }
}
