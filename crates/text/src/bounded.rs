//! JSON of strangers as values, in memory that is bounded: `[0]` takes 3 bytes to send and 300 to hold.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Bytes that a key and its value take in a map, beyond the value and the key's text: key, hash, two index entries.
const ENTRY: usize = 56;
/// Entries that a map makes room for with its first.
const FIRST_ENTRIES: usize = 4;

/// Bytes of memory that values may yet take. What they take is estimated, rather too high than too low.
#[derive(Debug)]
pub struct Budget(Cell<Option<usize>>);

impl Budget {
    pub fn of(bytes: usize) -> Budget {
        Budget(Cell::new(Some(bytes)))
    }

    /// Whether more was asked for than there was.
    pub fn overdrawn(&self) -> bool {
        self.0.get().is_none()
    }

    /// Takes some of it, or fails.
    pub fn spend<E: Error>(&self, bytes: usize) -> Result<(), E> {
        self.0.set(self.0.get().and_then(|left| left.checked_sub(bytes)));
        if self.overdrawn() { Err(E::custom("its values take too much memory")) } else { Ok(()) }
    }
}

/// Reads a value as `serde_json` does, at the cost of the budget.
#[derive(Clone, Copy, Debug)]
pub struct Bounded<'a> {
    pub budget: &'a Budget,
    /// Refuses objects with the same key twice, since readers disagree about which one counts; else the last does.
    pub unique: bool,
}

/// Memory that a file of a model may take as a value, beside twice its length.
const FILE: usize = 32 << 20;

/// Reads a JSON file of a model as a value.
pub fn read_file(json: &[u8]) -> serde_json::Result<Value> {
    Bounded { budget: &Budget::of(FILE + 2 * json.len()), unique: false }.read(json)
}

/// A part of a model's file.
pub(crate) fn section<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    /// One of several.
    const SECTION: usize = FILE / 4;
    Bounded { budget: &Budget::of(SECTION), unique: false }.deserialize(deserializer)
}

impl Bounded<'_> {
    /// The one value that a text holds.
    pub fn read(self, json: &[u8]) -> serde_json::Result<Value> {
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let value = self.deserialize(&mut deserializer)?;
        deserializer.end().map(|()| value)
    }
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
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

    fn visit_str<E: Error>(self, v: &str) -> Result<Value, E> {
        // Texts take as much as they did in the input, which is bounded already.
        Ok(Value::String(v.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = seq.next_element_seed(self)? {
            if list.len() == list.capacity() {
                // It doubles, and is moved.
                self.budget.spend((2 * list.len()).max(4) * size_of::<Value>())?;
            }
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        let mut room = 0;
        while let Some(key) = access.next_key::<String>()? {
            let value = access.next_value_seed(self)?;
            if self.unique && map.contains_key(&key) {
                return Err(twice(&key));
            }
            if map.len() == room {
                room = (2 * room).max(FIRST_ENTRIES);
                self.budget.spend(room * (size_of::<Value>() + ENTRY))?;
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// The refusal of a key that is there already.
pub fn twice<E: Error>(key: &str) -> E {
    // It may be any text of the client, so it is cut.
    let shown: String = key.chars().take(64).collect();
    E::custom(format!("the key `{shown}` appears twice"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `tokenizer_config.json` of `[0],[0],..` took a hundred times its size.
    #[test]
    fn files_are_bounded_in_memory() {
        let of = |n: usize| format!("{{\"normalizer\":[{}0]}}", "[0],".repeat(n));
        assert!(read_file(of(1000).as_bytes()).is_ok());
        let error = read_file(of(1 << 18).as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("its values take too much memory at line 1 column "), "{error}");
        let error = crate::Tokenizer::from_bytes(of(1 << 16).as_bytes()).err().unwrap().to_string();
        assert!(error.contains("its values take too much memory"), "{error}");
    }

    #[test]
    fn the_same_values_as_serde_json() {
        for text in
            ["null", " [1, -2, 2.5, 1e3, 18446744073709551615, \"a\\n\", [], {}, true] ", "{\"b\":1,\"a\":2,\"b\":3}"]
        {
            assert_eq!(read_file(text.as_bytes()).unwrap(), serde_json::from_str::<Value>(text).unwrap());
        }
        for text in ["", "[1", "1e999", "[] []", "{\"a\"}", "\"\\ud800\""] {
            let expected = serde_json::from_str::<Value>(text).unwrap_err().to_string();
            assert_eq!(read_file(text.as_bytes()).unwrap_err().to_string(), expected);
        }
    }
}
