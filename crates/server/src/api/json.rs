//! Request bodies: strict JSON, and typed access that names the field at fault.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::api::error::ApiError;

/// Parses a body that must be one JSON object: valid UTF-8, at most 127 levels deep (the parser's own limit), numbers
/// in range, and no object with the same key twice, since readers disagree about which one counts.
pub fn parse_object(bytes: &[u8]) -> Result<Object, ApiError> {
    let refuse = |e: serde_json::Error| ApiError::invalid(format!("the body is not valid JSON: {e}"));
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Strict.deserialize(&mut deserializer).map_err(refuse)?;
    deserializer.end().map_err(refuse)?;
    match value {
        Value::Object(map) => Ok(Object { map, asked: RefCell::default() }),
        _ => Err(ApiError::invalid("the body is not a JSON object")),
    }
}

/// A request's body, and the names of the fields that were looked for in it.
#[derive(Debug)]
pub struct Object {
    map: Map<String, Value>,
    asked: RefCell<BTreeSet<String>>,
}

impl Object {
    /// How many fields nobody has looked for.
    pub fn unknown(&self) -> usize {
        self.map.len() - self.asked.borrow().len()
    }
}

struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = seq.next_element_seed(Strict)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let value = access.next_value_seed(Strict)?;
            if map.contains_key(&key) {
                // The key may be any text of the client, so it is cut.
                let shown: String = key.chars().take(64).collect();
                return Err(A::Error::custom(format!("the key `{shown}` appears twice")));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// The fields of a request. `null` counts as absent.
#[derive(Clone, Copy)]
pub struct Fields<'a>(pub &'a Object);

impl<'a> Fields<'a> {
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        let value = self.0.map.get(name)?;
        let mut asked = self.0.asked.borrow_mut();
        if !asked.contains(name) {
            asked.insert(name.to_owned());
        }
        Some(value).filter(|v| !v.is_null())
    }

    /// An integer in a range; `16.0` is one, as in other servers.
    pub fn int(&self, name: &str, min: i64, max: i64) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let outside = || Err(ApiError::field(name, format!("{value} is not between {min} and {max}")));
        match (value.as_i64(), value.as_f64()) {
            (Some(i), _) if (min..=max).contains(&i) => Ok(Some(i)),
            (Some(_), _) => outside(),
            (None, Some(f)) if f.fract() != 0.0 => {
                Err(ApiError::field(name, format!("an integer is needed, not {value}")))
            }
            // Whole, but not written so; from here on such numbers stand for several integers.
            (None, Some(f)) if f.abs() < 2f64.powi(53) => match f as i64 {
                i if (min..=max).contains(&i) => Ok(Some(i)),
                _ => outside(),
            },
            (None, Some(f)) if f > 0.0 => {
                Err(ApiError::field(name, format!("{value} is too large for an integer between {min} and {max}")))
            }
            (None, Some(_)) => {
                Err(ApiError::field(name, format!("{value} is too small for an integer between {min} and {max}")))
            }
            (None, None) => Err(ApiError::field(name, format!("an integer is needed, not {}", type_of(value)))),
        }
    }

    pub fn float(&self, name: &str, min: f64, max: f64) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64() {
            Some(f) if (min..=max).contains(&f) => Ok(Some(f)),
            Some(_) => Err(ApiError::field(name, format!("not between {min} and {max}"))),
            None => Err(ApiError::field(name, format!("a number is needed, not {}", type_of(value)))),
        }
    }

    pub fn boolean(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.get(name)
            .map(|v| {
                v.as_bool().ok_or_else(|| ApiError::field(name, format!("true or false is needed, not {}", type_of(v))))
            })
            .transpose()
    }

    pub fn string(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.get(name)
            .map(|v| v.as_str().ok_or_else(|| ApiError::field(name, format!("a string is needed, not {}", type_of(v)))))
            .transpose()
    }

    pub fn array(&self, name: &str) -> Result<Option<&'a [Value]>, ApiError> {
        let needed = |v: &Value| ApiError::field(name, format!("a list is needed, not {}", type_of(v)));
        self.get(name).map(|v| v.as_array().map(Vec::as_slice).ok_or_else(|| needed(v))).transpose()
    }

    pub fn object(&self, name: &str) -> Result<Option<&'a Map<String, Value>>, ApiError> {
        let needed = |v: &Value| ApiError::field(name, format!("an object is needed, not {}", type_of(v)));
        self.get(name).map(|v| v.as_object().ok_or_else(|| needed(v))).transpose()
    }
}

pub fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_bodies_are_refused() {
        let deep = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n), "]".repeat(n)).into_bytes();
        let bad: Vec<Vec<u8>> = vec![
            b"".to_vec(),
            b"{".to_vec(),
            b"[]".to_vec(),
            b"3".to_vec(),
            b"{} {}".to_vec(),
            b"{\"a\":1,\"a\":1}".to_vec(),
            b"{\"a\":{\"b\":1,\"c\":2,\"b\":3}}".to_vec(),
            b"{\"a\":[{\"b\":1,\"b\":3}]}".to_vec(),
            b"{\"a\":NaN}".to_vec(),
            b"{\"a\":1e999}".to_vec(),
            b"{\"a\":\"\xff\"}".to_vec(),
            b"{\"a\":\"\\ud800\"}".to_vec(),
            b"{\"a\":'x'}".to_vec(),
            b"\xef\xbb\xbf{}".to_vec(),
            deep(128),
            deep(1_000_000),
        ];
        for body in bad {
            let error = parse_object(&body).unwrap_err();
            assert_eq!(error.status, 400, "{:?}", String::from_utf8_lossy(&body[..body.len().min(80)]));
        }
        assert!(parse_object(&deep(100)).is_ok());
        assert!(parse_object(b" {\"a\": null, \"b\": {\"a\": 1}} \n").is_ok());
    }

    #[test]
    fn numbers_are_checked_by_name() {
        let map =
            parse_object(br#"{"a": 9223372036854775808, "b": 16.0, "c": 1.5, "d": -1, "e": "1", "f": null}"#).unwrap();
        let fields = Fields(&map);
        let param = |r: Result<Option<i64>, ApiError>| r.unwrap_err().param.unwrap();
        assert_eq!(param(fields.int("a", 0, i64::MAX)), "a");
        assert_eq!(fields.int("b", 0, 16).unwrap(), Some(16));
        assert_eq!(param(fields.int("c", 0, 16)), "c");
        assert_eq!(param(fields.int("d", 0, 16)), "d");
        assert_eq!(param(fields.int("e", 0, 16)), "e");
        assert_eq!(fields.int("f", 0, 16).unwrap(), None);
        assert_eq!(fields.int("g", 0, 16).unwrap(), None);
        for (number, part) in [
            ("1e18", "too large"),
            ("18446744073709551616", "too large"),
            ("9223372036854775808", "too large"),
            ("-1e18", "too small"),
            ("17", "not between 0 and 16"),
            ("17.0", "not between 0 and 16"),
            ("1.5", "an integer is needed, not 1.5"),
            ("true", "an integer is needed, not a boolean"),
        ] {
            let map = parse_object(format!("{{\"n\": {number}}}").as_bytes()).unwrap();
            let error = Fields(&map).int("n", 0, 16).unwrap_err();
            assert!(error.message.contains(part) && error.message.starts_with("`n`"), "{number}: {}", error.message);
        }
    }
}
