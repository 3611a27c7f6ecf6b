//! Where schemas stand in a schema.

use std::io::Write;

use serde_json::{Map, Value};

/// The schemas directly below a schema, with the path to them.
pub fn subschemas(schema: &mut Map<String, Value>) -> Vec<(String, &mut Value)> {
    let mut found = Vec::new();
    for (key, value) in schema {
        match (key.as_str(), value) {
            (
                "properties" | "patternProperties" | "$defs" | "definitions" | "dependentSchemas" | "dependencies",
                Value::Object(map),
            ) => {
                let schemas = map.iter_mut().filter(|(_, v)| v.is_object() || v.is_boolean());
                found.extend(schemas.map(|(name, schema)| (format!("{key}/{name}"), schema)));
            }
            ("allOf" | "anyOf" | "oneOf" | "prefixItems" | "items", Value::Array(list)) => {
                found.extend(list.iter_mut().enumerate().map(|(i, schema)| (format!("{key}/{i}"), schema)));
            }
            (
                "items"
                | "additionalItems"
                | "additionalProperties"
                | "not"
                | "if"
                | "then"
                | "else"
                | "contains"
                | "propertyNames"
                | "unevaluatedItems"
                | "unevaluatedProperties"
                | "contentSchema",
                value,
            ) => found.push((key.clone(), value)),
            _ => {}
        }
    }
    found
}

/// What stands at a path of unescaped segments.
pub fn at<'a>(root: &'a Value, path: &str) -> Option<&'a Value> {
    let Some(segments) = path.strip_prefix("#/") else { return (path == "#").then_some(root) };
    segments.split('/').try_fold(root, |value, segment| match value {
        Value::Array(list) => list.get(segment.parse::<usize>().ok()?),
        value => value.get(segment),
    })
}

/// Whether a value has so many levels and values at most (one that holds no other has one of each). Takes memory for the
/// levels only, so that nothing is copied or recursed over before this is known.
pub fn fits(value: &Value, levels: usize, values: usize) -> bool {
    let mut open = vec![Children::One(Some(value))];
    let mut seen = 0;
    while let Some(last) = open.last_mut() {
        let Some(value) = last.next() else {
            open.pop();
            continue;
        };
        seen += 1;
        if open.len() > levels || seen > values {
            return false;
        }
        match value {
            Value::Array(list) => open.push(Children::Array(list.iter())),
            Value::Object(map) => open.push(Children::Object(map.values())),
            _ => {}
        }
    }
    true
}

enum Children<'a> {
    One(Option<&'a Value>),
    Array(std::slice::Iter<'a, Value>),
    Object(serde_json::map::Values<'a>),
}

impl<'a> Iterator for Children<'a> {
    type Item = &'a Value;

    fn next(&mut self) -> Option<&'a Value> {
        match self {
            Children::One(value) => value.take(),
            Children::Array(list) => list.next(),
            Children::Object(map) => map.next(),
        }
    }
}

/// Bytes of a value as compact JSON, without writing it down.
pub fn bytes(value: &Value) -> usize {
    struct Count(usize);
    impl Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // Counting fails at nothing, and every value can be written.
    serde_json::to_writer(&mut count, value).map_or(usize::MAX, |()| count.0)
}

/// All strings and names in a value.
pub fn strings(value: &Value) -> Vec<&str> {
    let mut open = vec![value];
    let mut found = Vec::new();
    while let Some(value) = open.pop() {
        match value {
            Value::String(text) => found.push(text.as_str()),
            Value::Array(list) => open.extend(list),
            Value::Object(map) => {
                found.extend(map.keys().map(String::as_str));
                open.extend(map.values());
            }
            _ => {}
        }
    }
    found
}
