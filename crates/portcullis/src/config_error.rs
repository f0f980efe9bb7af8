//! What is said about a configuration that does not read: where and why, never what stands there. The file holds
//! passwords, and these lines end in the logs of build servers. So does what is shown of one that reads.

/// serde's words before the value that it met, and before what it wanted.
const UNWANTED: &[&str] = &[
    "invalid type",
    "invalid value",
    "invalid length",
    "unknown variant",
];
const WANTED: &str = ", expected ";
/// What serde calls whole numbers.
const NUMBERS: &[&str] = &["u8", "u16", "u32", "u64", "usize", "i32", "i64"];
/// Messages that name keys, never values.
const ABOUT_KEYS: &[&str] = &[
    "unknown field",
    "duplicate key",
    "duplicate field",
    "missing field",
];

/// `line 2, column 12: string values must be quoted, expected literal string`; a value from the environment has no
/// line.
pub fn describe(error: &toml::de::Error, text: &str) -> String {
    let Some(start) = error.span().map(|span| span.start.min(text.len())) else {
        return without_values(error.message(), "");
    };
    let before = &text.as_bytes()[..start];
    let line_start = before
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    let line = before.iter().filter(|byte| **byte == b'\n').count();
    let column = String::from_utf8_lossy(&before[line_start..]).chars().count();
    let offending = text.lines().nth(line).unwrap_or_default();
    let why = without_values(error.message(), offending);
    format!("line {}, column {}: {why}", line + 1, column + 1)
}

fn without_values(message: &str, line: &str) -> String {
    let message = message.lines().next().unwrap_or_default();
    if let Some(kind) = UNWANTED.iter().find(|kind| message.starts_with(**kind)) {
        let key = key_of(line).map_or_else(String::new, |key| format!("{key}: "));
        return match message.rfind(WANTED) {
            Some(at) => {
                let wanted = &message[at + WANTED.len()..];
                let wanted = if NUMBERS.contains(&wanted) {
                    "a whole number"
                } else {
                    wanted
                };
                format!("{key}{kind}{WANTED}{wanted}")
            }
            None => format!("{key}{kind}"),
        };
    }
    let value = line.split_once('=').map_or(line, |(_, value)| value);
    let mut words = value
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty());
    if ABOUT_KEYS.iter().any(|start| message.starts_with(start)) || !words.any(|word| message.contains(word))
    {
        return message.to_owned();
    }
    "it is not valid TOML".to_owned()
}

/// The bare key that a line begins with (TOML 1.0, Keys).
fn key_of(line: &str) -> Option<&str> {
    let key = line.split_once('=')?.0.trim();
    let is_bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (!key.is_empty() && key.chars().all(is_bare)).then_some(key)
}

/// An address as it may be shown.
pub fn without_password(url: &str) -> String {
    if url.starts_with("sqlite:") {
        return url.to_owned();
    }
    let Ok(mut url) = url::Url::parse(url) else {
        return "***".to_owned();
    };
    if url.password().is_some() {
        let _ = url.set_password(Some("***"));
    }
    // libpq takes it there too.
    if url.query_pairs().any(|(name, _)| name == "password") {
        url.set_query(Some("***"));
    }
    url.to_string()
}

#[cfg(test)]
mod tests {
    use super::describe;
    use crate::config::Config;

    fn of(text: &str) -> String {
        describe(&toml::from_str::<Config>(text).unwrap_err(), text)
    }

    #[test]
    fn an_error_says_where_and_why_and_never_what_stands_there() {
        let section = "[registries.\"r.example\".credentials.default]\nusername = \"robot\"\n";
        for line in [
            "password = s3cret",
            "password = \"s3cret",
            "password = 's3cret",
            "password = \"\"\"s3cret",
            "password = \"s3cret\\q\"",
            "password = s3cret # \"",
            "password = [\"s3cret\"]",
            "password = { s3cret = 1 }",
            "password = 77345",
            "password = 77345s3cret",
            "password = 1979-05-27",
            "password s3cret",
            "password : s3cret",
            "= s3cret",
        ] {
            let said = of(&format!("{section}{line}\n"));
            for secret in ["s3cret", "77345", "1979"] {
                assert!(!said.contains(secret), "{line}: {said}");
            }
            assert!(said.starts_with("line "), "{line}: {said}");
        }
        assert!(
            of(&format!("{section}password = s3cret\n"))
                .starts_with("line 3, column 12: string values must be quoted")
        );
        let url = of("[database]\nurl = postgres://a:s3cret@h/d\n");
        assert!(
            url.starts_with("line 2, column 7: ") && !url.contains("s3cret"),
            "{url}"
        );
    }

    #[test]
    fn keys_and_what_is_wanted_are_still_named() {
        let unknown = of("[server]\nlisten = \"127.0.0.1:1\"\nlisen = 1\n");
        assert!(
            unknown.starts_with("line 3, column 1: unknown field `lisen`, expected"),
            "{unknown}"
        );
        let wrong = of("[server]\ninsecure_http = \"maybe, expected nothing\"\n");
        assert_eq!(
            wrong,
            "line 2, column 17: insecure_http: invalid type, expected a boolean"
        );
        let wrong = of("[database]\nconnections_max = \"16\"\n");
        assert_eq!(
            wrong,
            "line 2, column 19: connections_max: invalid type, expected a whole number"
        );
    }
}
