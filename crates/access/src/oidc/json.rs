//! JSON objects that can be read in one way only.
//!
//! Two readers that take different ones of two members with one name see two different tokens (RFC 7519 section 4,
//! RFC 8259 section 4). Here a name stands once, in every object.

use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Reads an object.
///
/// # Errors
/// What is wrong, without any of its text.
pub fn object(bytes: &[u8]) -> Result<Map<String, Value>, &'static str> {
    if kernel::limits::too_deep(bytes) {
        return Err("its JSON is nested too deep");
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Once.deserialize(&mut reader).map_err(|error| {
        let twice = error.to_string().starts_with(TWICE);
        if twice {
            "a member of its JSON stands twice"
        } else {
            "it is not JSON"
        }
    })?;
    reader.end().map_err(|_| "something follows its JSON")?;
    match value {
        Value::Object(object) => Ok(object),
        _ => Err("its JSON is not an object"),
    }
}

const TWICE: &str = "a member stands twice";

/// Reads any value whose objects name every member once.
struct Once;

impl<'de> DeserializeSeed<'de> for Once {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Once {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(item) = items.next_element_seed(Once)? {
            out.push(item);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let value = members.next_value_seed(Once)?;
            if out.insert(name, value).is_some() {
                return Err(A::Error::custom(TWICE));
            }
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_stands_once_in_every_object() {
        assert!(object(br#"{"a":1,"b":{"a":[{"a":null}]}}"#).is_ok());
        for twice in [
            &br#"{"a":1,"a":1}"#[..],
            br#"{"a":1,"\u0061":2}"#,
            br#"{"b":[{"a":1,"a":2}]}"#,
        ] {
            assert_eq!(object(twice), Err("a member of its JSON stands twice"));
        }
        for wrong in [&b""[..], b"[]", b"1", b"{}{}", b"{\"a\":}", b"\xff"] {
            assert!(object(wrong).is_err(), "{wrong:?}");
        }
        let deep = format!("{}1{}", r#"{"a":"#.repeat(10_000), "}".repeat(10_000));
        assert_eq!(object(deep.as_bytes()), Err("its JSON is nested too deep"));
    }
}
