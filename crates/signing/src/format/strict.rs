//! JSON that can be read in one way only.
//!
//! Of two members of one name in an object one reader takes the first, another the last, and a third refuses both. A
//! signature must not be of one content here and of another elsewhere, so such text is refused, at every level, as
//! Sigstore's own readers do (protobuf JSON mapping: "duplicate field").

use std::collections::HashSet;
use std::fmt;

use kernel::words;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Checks text before it is parsed into what it means: that it nests no deeper than `JSON_DEPTH_MAX`, is JSON, and
/// names every member of an object once.
///
/// # Errors
/// Why not, in words.
pub fn check(json: &[u8]) -> Result<(), String> {
    if kernel::limits::too_deep(json) {
        return Err("it nests too deep".to_owned());
    }
    match serde_json::from_slice::<Once>(json) {
        Ok(Once) => Ok(()),
        Err(error) => Err(words(&error.to_string())),
    }
}

/// Any value whose objects name every member once.
struct Once;

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Look)
    }
}

struct Look;

impl<'de> Visitor<'de> for Look {
    type Value = Once;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Once, A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if names.contains(&name) {
                return Err(A::Error::custom(format!(
                    "the member {:?} stands twice",
                    words(&name)
                )));
            }
            names.insert(name);
            map.next_value::<Once>()?;
        }
        Ok(Once)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Once, A::Error> {
        while list.next_element::<Once>()?.is_some() {}
        Ok(Once)
    }

    fn visit_str<E>(self, _: &str) -> Result<Once, E> {
        Ok(Once)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Once, E> {
        Ok(Once)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Once, E> {
        Ok(Once)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Once, E> {
        Ok(Once)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Once, E> {
        Ok(Once)
    }

    fn visit_unit<E>(self) -> Result<Once, E> {
        Ok(Once)
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
