//! Request bodies: strict JSON, and typed access that names the field at fault.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use kvist_base::TokenId;
use kvist_text::{Bounded, Budget, twice};
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::api::error::ApiError;

/// Memory that a body's lists and objects may take, beside twice its length: more than those of any honest conversation,
/// and much less than hostile ones of two megabytes would take.
const VALUES: usize = 20 << 20;
/// What a field costs beside its value.
const FIELD: usize = 160;
/// Fields that may hold a million token ids, each of which would take 72 bytes as a value.
const TOKEN_FIELDS: [&str; 2] = ["prompt", "tokens"];

/// Parses a body that must be one JSON object: valid UTF-8, at most 127 levels deep (the parser's own limit), numbers
/// in range, no object with the same key twice, since readers disagree about which one counts, and not much larger in
/// memory than it was to send.
pub fn parse_object(bytes: &[u8]) -> Result<Object, ApiError> {
    let most = VALUES + 2 * bytes.len();
    let values = Bounded { budget: &Budget::of(most), unique: true };
    let refuse = |e: serde_json::Error| match values.budget.overdrawn() {
        true => {
            let most = most >> 20;
            ApiError::invalid(format!("the body's lists and objects would take more than {most} MiB of memory"))
        }
        false => ApiError::invalid(format!("the body is not valid JSON: {e}")),
    };
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        values.read(bytes).map_err(refuse)?;
        return Err(ApiError::invalid("the body is not a JSON object"));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let fields = deserializer.deserialize_map(Body(values)).map_err(refuse)?;
    deserializer.end().map_err(refuse)?;
    Ok(Object { fields, asked: RefCell::default() })
}

/// Reads a JSON text that stands in a body as a string.
pub fn parse_text(text: &str) -> serde_json::Result<Value> {
    Bounded { budget: &Budget::of(VALUES), unique: true }.read(text.as_bytes())
}

/// A request's body, and the names of the fields that were looked for in it.
#[derive(Debug)]
pub struct Object {
    fields: BTreeMap<String, Field>,
    asked: RefCell<BTreeSet<String>>,
}

impl Object {
    /// How many fields nobody has looked for.
    pub fn unknown(&self) -> usize {
        self.fields.len() - self.asked.borrow().len()
    }
}

#[derive(Debug)]
enum Field {
    Value(Value),
    /// One of [`TOKEN_FIELDS`] that is what it may be.
    Tokens(TokenLists),
}

/// Token ids: a list of them, or a list of such lists.
#[derive(Debug)]
pub enum TokenLists {
    One(Vec<TokenId>),
    Many(Vec<Vec<TokenId>>),
}

impl Field {
    fn tokens(json: &RawValue, values: Bounded) -> serde_json::Result<Field> {
        let json = json.get();
        let one = serde_json::from_str(json).map(TokenLists::One);
        let lists = one.or_else(|_| serde_json::from_str(json).map(TokenLists::Many));
        lists.map(Field::Tokens).or_else(|_| values.read(json.as_bytes()).map(Field::Value))
    }
}

struct Body<'a>(Bounded<'a>);

impl<'de> Visitor<'de> for Body<'_> {
    type Value = BTreeMap<String, Field>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut fields = BTreeMap::new();
        while let Some(name) = access.next_key::<String>()? {
            self.0.budget.spend(FIELD)?;
            if fields.contains_key(&name) {
                return Err(twice(&name));
            }
            let field = match TOKEN_FIELDS.contains(&name.as_str()) {
                true => Field::tokens(access.next_value()?, self.0).map_err(A::Error::custom)?,
                false => Field::Value(access.next_value_seed(self.0)?),
            };
            fields.insert(name, field);
        }
        Ok(fields)
    }
}

/// The fields of a request. `null` counts as absent.
#[derive(Clone, Copy)]
pub struct Fields<'a>(pub &'a Object);

impl<'a> Fields<'a> {
    fn field(&self, name: &str) -> Option<&'a Field> {
        let field = self.0.fields.get(name)?;
        let mut asked = self.0.asked.borrow_mut();
        if !asked.contains(name) {
            asked.insert(name.to_owned());
        }
        Some(field)
    }

    /// The value of a field; of one that [`Self::tokens`] gives, only that it is a list.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        static LIST: Value = Value::Array(Vec::new());
        match self.field(name)? {
            Field::Value(value) => Some(value).filter(|v| !v.is_null()),
            Field::Tokens(_) => Some(&LIST),
        }
    }

    /// The lists of token ids in `prompt` or `tokens`, if they are such.
    pub fn tokens(&self, name: &str) -> Option<&'a TokenLists> {
        match self.field(name)? {
            Field::Tokens(lists) => Some(lists),
            Field::Value(_) => None,
        }
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

    /// A fuzzer's `{"6":[[[..1.5..]],[[..` of 1.5 MB took 206 MB, as every `[` made room for four values.
    #[test]
    fn bodies_that_grow_in_memory_are_refused() {
        let of = |piece: &str| format!("{{\"a\":[{}0]}}", piece.repeat(2_000_000 / piece.len()));
        let arguments = of("{\"a\":0},");
        for body in [
            of("[0],"),
            of("[[[[[[[[[[[[[[[[[[[[[[[1.5]]]]]]]]]]]]]]]]]]]]]]],"),
            of("{\"a\":0},"),
            of("0,"),
            of("0,").replace("\"a\"", "\"prompt\"").replace("0]", "\"\"]"),
            format!("{{{}\"\":0}}", (0..200_000).map(|i| format!("\"{i}\":0,")).collect::<String>()),
            of("0,")[5..].trim_end_matches('}').to_owned(),
        ] {
            let error = parse_object(body.as_bytes()).unwrap_err();
            assert!(error.status == 400 && error.message.contains("MiB of memory"), "{}", error.message);
        }
        assert!(parse_text(&arguments).is_err());
    }

    #[test]
    fn a_million_tokens_are_read() {
        let ids: Vec<TokenId> = (0..1_000_000).collect();
        let body = format!("{{\"prompt\":{ids:?},\"tokens\":[{ids:?},[7]]}}");
        let body = parse_object(body.as_bytes()).unwrap();
        assert!(matches!(Fields(&body).tokens("prompt"), Some(TokenLists::One(read)) if *read == ids));
        assert!(matches!(Fields(&body).tokens("tokens"), Some(TokenLists::Many(read)) if *read == [ids, vec![7]]));
        let message = serde_json::json!({"role": "user", "content": "x".repeat(200)});
        let body = serde_json::json!({"messages": vec![message; 10_000]}).to_string();
        assert_eq!(Fields(&parse_object(body.as_bytes()).unwrap()).array("messages").unwrap().unwrap().len(), 10_000);
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
