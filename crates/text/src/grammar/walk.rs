//! Where schemas stand in a schema.

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

/// Levels of a value; one that holds no other has one.
pub fn depth(value: &Value) -> usize {
    let mut open = vec![(value, 1)];
    let mut deepest = 0;
    while let Some((value, depth)) = open.pop() {
        deepest = deepest.max(depth);
        match value {
            Value::Array(list) => open.extend(list.iter().map(|v| (v, depth + 1))),
            Value::Object(map) => open.extend(map.values().map(|v| (v, depth + 1))),
            _ => {}
        }
    }
    deepest
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
