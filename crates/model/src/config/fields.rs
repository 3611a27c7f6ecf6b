//! The fields of a JSON configuration, read by name and type. A null is a field that is not there.

use serde_json::{Map, Value};

use super::bad;
use crate::error::{Error, Result};

#[derive(Clone, Debug, Default)]
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    pub fn new(fields: Value) -> Result<Fields> {
        match fields {
            Value::Object(map) => Ok(Fields(map)),
            _ => Err(bad("not an object")),
        }
    }

    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// Whether the field is written, be it null.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The fields that are there.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.0.iter().filter(|(_, value)| !value.is_null())
    }

    /// These fields, and those of `other` that are missing here.
    pub fn or(mut self, other: Fields) -> Fields {
        for (name, value) in other.0.into_iter().filter(|(_, value)| !value.is_null()) {
            let mine = self.0.entry(name).or_insert(Value::Null);
            if mine.is_null() {
                *mine = value;
            }
        }
        self
    }

    /// The fields of these names.
    pub fn only(&self, names: &[&str]) -> Fields {
        let named = self.iter().filter(|(name, _)| names.contains(&name.as_str()));
        Fields(named.map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    /// These fields, and those of `other` in their place.
    pub fn with(mut self, other: Fields) -> Fields {
        self.0.extend(other.0);
        self
    }

    /// Adds sizes and ids that a family leaves out where they are its default. A null stays: it may say that there is none.
    pub fn with_defaults(mut self, defaults: &[(&str, u64)]) -> Fields {
        for &(name, value) in defaults {
            self.0.entry(name).or_insert_with(|| value.into());
        }
        self
    }

    pub fn object(&self, name: &str) -> Result<Option<Fields>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields(map.clone()))),
            Some(other) => Err(wrong(name, other, "an object")),
        }
    }

    pub fn size(&self, name: &str) -> Result<Option<usize>> {
        self.typed(name, "a whole number", |v| v.as_u64().and_then(|v| usize::try_from(v).ok()))
    }

    pub fn needed_size(&self, name: &str) -> Result<usize> {
        self.size(name)?.ok_or_else(|| bad(format!("no {name}")))
    }

    pub fn flag(&self, name: &str) -> Result<Option<bool>> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub fn text(&self, name: &str) -> Result<Option<&str>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, other, "a string")),
        }
    }

    pub fn number(&self, name: &str) -> Result<Option<f64>> {
        self.typed(name, "a number", Value::as_f64)
    }

    /// A number above 0.
    pub fn positive(&self, name: &str) -> Result<Option<f64>> {
        self.typed(name, "a number above 0", |v| v.as_f64().filter(|v| v.is_finite() && *v > 0.0))
    }

    pub fn list<T>(&self, name: &str, each: impl Fn(&Value) -> Option<T>) -> Result<Option<Vec<T>>> {
        self.typed(name, "a list of the right kind", |v| v.as_array()?.iter().map(each).collect())
    }

    fn typed<T>(&self, name: &str, kind: &str, read: impl FnOnce(&Value) -> Option<T>) -> Result<Option<T>> {
        self.get(name).map(|value| read(value).ok_or_else(|| wrong(name, value, kind))).transpose()
    }
}

fn wrong(name: &str, value: &Value, kind: &str) -> Error {
    let mut shown = value.to_string();
    if shown.len() > 60 {
        shown = shown.chars().take(60).chain("...".chars()).collect();
    }
    bad(format!("{name} is {shown}, must be {kind}"))
}
