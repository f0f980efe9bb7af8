//! JSON that can be read in one way only.
//!
//! Of two members of one name in an object one reader takes the first, another the last, and a third refuses both. A
//! signature must not be of one content here and of another elsewhere, so such text is refused, at every level, as
//! Sigstore's own readers do (protobuf JSON mapping: "duplicate field").
//!
//! In what is defined by a protobuf message a field has two names, `dsseEnvelope` and `dsse_envelope`, and both stand
//! for the same member there.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use kernel::words;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Checks text before it is parsed into what it means: that it nests no deeper than `JSON_DEPTH_MAX`, is JSON, and
/// names every member of an object once.
///
/// # Errors
/// Why not, in words.
pub fn check(json: &[u8]) -> Result<(), String> {
    once(
        json,
        Once {
            fold: |name| Cow::Borrowed(name),
        },
    )
}

/// The same for the JSON form of a protobuf message, in which both names of a field are one.
///
/// # Errors
/// Why not, in words.
pub fn check_message(json: &[u8]) -> Result<(), String> {
    once(json, Once { fold: json_name })
}

fn once(json: &[u8], once: Once) -> Result<(), String> {
    if kernel::limits::too_deep(json) {
        return Err("it nests too deep".to_owned());
    }
    let mut reader = serde_json::Deserializer::from_slice(json);
    let read = once.deserialize(&mut reader).and_then(|()| reader.end());
    read.map_err(|error| words(&error.to_string()))
}

/// The name of a field in JSON, by its name in the message (protobuf JSON mapping: lowerCamelCase).
fn json_name(name: &str) -> Cow<'_, str> {
    if !name.contains('_') {
        return Cow::Borrowed(name);
    }
    let mut parts = name.split('_');
    let mut folded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut letters = part.chars();
        folded.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        folded.push_str(letters.as_str());
    }
    Cow::Owned(folded)
}

/// Any value whose objects name every member once, where `fold` says which names are the same.
#[derive(Clone, Copy)]
struct Once {
    fold: fn(&str) -> Cow<'_, str>,
}

impl<'de> DeserializeSeed<'de> for Once {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Once {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !names.insert((self.fold)(&name).into_owned()) {
                return Err(A::Error::custom(format!(
                    "the member {:?} stands twice",
                    words(&name)
                )));
            }
            map.next_value_seed(self)?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_may_stand_once_in_its_object() {
        for good in [
            r#"{"a":1,"b":{"a":[{"a":null},{"a":-1.5}]},"c":"a","d":true}"#,
            "[]",
            r#""text""#,
        ] {
            assert_eq!(check(good.as_bytes()), Ok(()), "{good}");
        }
        for bad in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"b":2,"a":3}"#,
            r#"{"x":[1,{"y":{"a":1,"a":2}}]}"#,
            r#"{"a":1,"\u0061":2}"#,
        ] {
            let why = check(bad.as_bytes()).unwrap_err();
            assert!(why.contains(r#""a" stands twice"#), "{bad}: {why}");
        }
        for broken in ["", "{", "{} {}", r#"{"a"}"#, &"[".repeat(10_000)] {
            assert!(check(broken.as_bytes()).is_err(), "{broken}");
        }
    }

    #[test]
    fn both_names_of_a_field_are_one_in_a_message_only() {
        for (both, twice) in [
            (r#"{"dsseEnvelope":1,"dsse_envelope":2}"#, true),
            (r#"{"x":[{"log_id":1,"logId":1}]}"#, true),
            (r#"{"a_b_c":1,"aBC":2}"#, true),
            (r#"{"log_id":1,"logid":1,"_x":3,"x":5}"#, false),
        ] {
            // Annotations are anybody's words.
            assert_eq!(check(both.as_bytes()), Ok(()), "{both}");
            let outcome = check_message(both.as_bytes());
            assert_eq!(outcome.is_err(), twice, "{both}: {outcome:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn it_refuses_no_json_without_repetitions(text in ".{0,200}") {
            let read = serde_json::from_str::<serde_json::Value>(&text);
            if let Ok(value) = read {
                proptest::prop_assert!(check(value.to_string().as_bytes()).is_ok());
            }
            let _ = check(text.as_bytes());
        }
    }
}
