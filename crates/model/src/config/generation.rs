//! Tokens that end a reply, and the sampling that a model's makers propose.

use kvist_base::TokenId;
use serde_json::Value;

use super::fields::Fields;
use crate::error::{Error, Result};

/// What `generation_config.json` proposes. Every number is one that a sampler can use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingDefaults {
    pub do_sample: Option<bool>,
    /// Finite, 0 or more.
    pub temperature: Option<f32>,
    /// Above 0, 1 at most.
    pub top_p: Option<f32>,
    /// 0 or less: off.
    pub top_k: Option<i64>,
    /// Finite, above 0.
    pub repetition_penalty: Option<f32>,
}

impl SamplingDefaults {
    pub(super) fn read(fields: &Fields) -> Result<SamplingDefaults> {
        let number = |name: &'static str, valid: fn(f32) -> bool, kind: &str| match fields.get(name) {
            None => Ok(None),
            Some(value) => match value.as_f64().map(|v| v as f32).filter(|v| v.is_finite() && valid(*v)) {
                Some(v) => Ok(Some(v)),
                None => Err(bad(format!("{name} is {value}, must be {kind}"))),
            },
        };
        let top_k = fields.get("top_k").map(|value| {
            // Some exporters write 50.0.
            let whole = |v: f64| (v.fract() == 0.0 && v.abs() < 9e15).then_some(v as i64);
            let k = value.as_i64().or_else(|| value.as_f64().and_then(whole));
            k.ok_or_else(|| bad(format!("top_k is {value}, must be a whole number")))
        });
        let do_sample = fields
            .get("do_sample")
            .map(|value| value.as_bool().ok_or_else(|| bad(format!("do_sample is {value}, must be true or false"))));
        Ok(SamplingDefaults {
            do_sample: do_sample.transpose()?,
            temperature: number("temperature", |v| v >= 0.0, "a number from 0")?,
            top_p: number("top_p", |v| v > 0.0 && v <= 1.0, "above 0 and at most 1")?,
            top_k: top_k.transpose()?,
            repetition_penalty: number("repetition_penalty", |v| v > 0.0, "a number above 0")?,
        })
    }
}

/// The ids in the field `name` of the first of `sources` that has any: one id, or a list of them. Ids outside the
/// vocabulary can never be generated and do not count.
pub(super) fn ids(name: &str, sources: [&Fields; 2], vocab: usize) -> Vec<TokenId> {
    let valid = |value: &Value| value.as_u64().filter(|&id| id < vocab as u64).map(|id| id as TokenId);
    let read = |fields: &Fields| match fields.get(name) {
        Some(Value::Array(values)) => values.iter().filter_map(valid).collect(),
        Some(one) => valid(one).into_iter().collect(),
        None => Vec::new(),
    };
    sources.into_iter().map(read).find(|ids| !ids.is_empty()).unwrap_or_default()
}

fn bad(what: String) -> Error {
    Error::Config { file: "generation_config.json", what }
}
