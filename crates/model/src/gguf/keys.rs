use kvist_weights::{Gguf, MetaValue};
use serde_json::Value;

use super::{Architecture, bad, unsupported};
use crate::error::Result;

/// More layers than any model has: lists of them stay small.
const MAX_LAYERS: u64 = 1 << 10;

/// The metadata of a file, by the names that its architecture's keys have behind the prefix.
pub(super) struct Keys<'a> {
    pub file: &'a Gguf,
    pub architecture: &'static Architecture,
}

impl<'a> Keys<'a> {
    pub fn get(&self, key: &str) -> Option<&'a MetaValue> {
        self.file.get(&format!("{}.{key}", self.architecture.name))
    }

    fn wrong(&self, key: &str) -> crate::Error {
        bad(format!("{}.{key} is not what it should be", self.architecture.name))
    }

    pub fn count(&self, key: &str) -> Result<Option<u64>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value.as_u64().map(Some).ok_or_else(|| self.wrong(key)),
        }
    }

    pub fn needed(&self, key: &str) -> Result<u64> {
        let limit = if key == "block_count" { MAX_LAYERS } else { u64::MAX };
        let found = self.count(key)?.ok_or_else(|| bad(format!("no {}.{key}", self.architecture.name)))?;
        if found > limit { Err(bad(format!("{}.{key} is {found}", self.architecture.name))) } else { Ok(found) }
    }

    /// A number that some files give once for each layer; all must agree.
    pub fn uniform(&self, key: &str) -> Result<Option<u64>> {
        let Some(array) = self.get(key).and_then(MetaValue::as_array) else { return self.count(key) };
        let mut values = array.iter().map(|v| v.as_u64());
        let first = values.next().flatten().ok_or_else(|| self.wrong(key))?;
        if values.any(|v| v != Some(first)) {
            let what = format!("its layers differ in {key}");
            return Err(unsupported(&what, "models whose layers are alike"));
        }
        Ok(Some(first))
    }

    /// A number as JSON has it: the shortest decimal that is the f32 of the file, so that 1e-5 stays 1e-5.
    pub fn number(&self, key: &str) -> Result<Option<Value>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => decimal(value).map(Some).ok_or_else(|| self.wrong(key)),
        }
    }

    /// One truth value per layer: an array of the file, or the number n: all but every n-th.
    pub fn layers(&self, key: &str, default: u64, layers: u64) -> Result<Vec<bool>> {
        let every = match self.get(key) {
            Some(MetaValue::Array(array)) => {
                let values = (array.len() as u64 == layers).then(|| array.iter().map(|v| v.as_bool()).collect());
                return values.flatten().ok_or_else(|| self.wrong(key));
            }
            _ => self.count(key)?.unwrap_or(default),
        };
        Ok((1..=layers).map(|l| every == 0 || l % every != 0).collect())
    }
}

/// A finite number.
pub(super) fn decimal(value: &MetaValue) -> Option<Value> {
    let number = match value {
        MetaValue::F32(v) => v.to_string().parse().ok()?,
        other => other.as_f64()?,
    };
    serde_json::Number::from_f64(number).map(Value::Number)
}
