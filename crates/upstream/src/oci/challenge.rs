//! What a registry asks for in `WWW-Authenticate` (RFC 9110, section 11.6.1).

/// A challenge that we can answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// RFC 7617.
    Basic,
    /// Distribution, "Token Authentication Specification". The scope is not taken from here: we ask for
    /// what we need and nothing else.
    Bearer { realm: String, service: Option<String> },
}

/// Characters of one header that are read; an honest one has a few hundred.
const HEADER_BYTES_MAX: usize = 8 << 10;

impl Challenge {
    /// The best challenge among the values of all `WWW-Authenticate` headers: bearer before basic. Any text
    /// is read without an error; what makes no sense is passed over.
    pub fn choose<'a>(values: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let all: Vec<_> = values
            .into_iter()
            .filter(|value| value.len() <= HEADER_BYTES_MAX)
            .flat_map(parse)
            .collect();
        let bearer = all.iter().filter(|one| one.scheme == "bearer").find_map(|one| {
            let realm = one.parameter("realm")?.to_owned();
            Some(Self::Bearer {
                realm,
                service: one.parameter("service").map(str::to_owned),
            })
        });
        bearer.or_else(|| all.iter().any(|one| one.scheme == "basic").then_some(Self::Basic))
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Parsed {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Parsed {
    fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(key, _)| key == name);
        found
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }
}

/// Reads `scheme key=value, key="value", scheme …`. A word followed by `=` is a parameter of the scheme
/// before it, any other word begins a scheme.
fn parse(value: &str) -> Vec<Parsed> {
    let mut found: Vec<Parsed> = Vec::new();
    let mut rest = value;
    while !rest.is_empty() {
        let (word, after) = token(rest);
        if word.is_empty() {
            // Not the start of anything: pass over one character, whatever it is.
            rest = rest.chars().next().map_or("", |skip| &rest[skip.len_utf8()..]);
            continue;
        }
        match (
            after.trim_start_matches([' ', '\t']).strip_prefix('='),
            found.last_mut(),
        ) {
            (Some(after), Some(last)) => {
                let (value, after) = parameter_value(after.trim_start_matches([' ', '\t']));
                last.parameters.push((word.to_ascii_lowercase(), value));
                rest = after;
            }
            _ => {
                found.push(Parsed {
                    scheme: word.to_ascii_lowercase(),
                    parameters: Vec::new(),
                });
                rest = after;
            }
        }
    }
    found
}

/// A token (RFC 9110, section 5.6.2) at the start of `text`, and what follows.
fn token(text: &str) -> (&str, &str) {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    text.split_at(text.find(|c| !is_token(c)).unwrap_or(text.len()))
}

/// A token or a quoted string (RFC 9110, section 5.6.4) at the start of `text`, and what follows. A string
/// that is never closed ends with the text.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        // Leniently up to a comma: registries have sent URLs without quotes.
        let (value, after) = text.split_at(text.find([',', ' ']).unwrap_or(text.len()));
        return (value.to_owned(), after);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
        })
    }

    #[test]
    fn challenges_of_real_registries_are_understood() {
        let table: [(&[&str], Option<Challenge>); 9] = [
            (
                &[
                    r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a:pull,push""#,
                ],
                bearer("https://auth.docker.io/token", Some("registry.docker.io")),
            ),
            (
                &[
                    r#"Bearer realm="https://ghcr.io/token",service="ghcr.io",scope="repository:user/image:pull""#,
                ],
                bearer("https://ghcr.io/token", Some("ghcr.io")),
            ),
            (&[r#"Basic realm="Registry Realm""#], Some(Challenge::Basic)),
            (
                &[r#"Basic realm="x", Bearer realm="https://r/t""#],
                bearer("https://r/t", None),
            ),
            (
                &["Basic realm=x", r#"bearer Realm = "https://r/t" , SERVICE=s"#],
                bearer("https://r/t", Some("s")),
            ),
            (&[r#"Bearer service="without realm""#], None),
            (&["Negotiate"], None),
            (&[r#"Bearer realm="a\"b\\c""#], bearer(r#"a"b\c"#, None)),
            (&[], None),
        ];
        for (values, want) in table {
            assert_eq!(Challenge::choose(values.iter().copied()), want, "{values:?}");
        }
    }

    #[test]
    fn a_giant_header_is_passed_over() {
        let giant = format!("Bearer realm=\"{}\"", "a".repeat(HEADER_BYTES_MAX));
        assert_eq!(Challenge::choose([giant.as_str()]), None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC{0,60}") {
            let _ = Challenge::choose([text.as_str()]);
        }

        #[test]
        fn any_mix_of_its_own_characters_is_read_without_a_panic(text in "[Ba=\\\\\", \té]{0,60}") {
            let _ = Challenge::choose([text.as_str()]);
        }
    }
}
