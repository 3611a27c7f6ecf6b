//! The fields that both generating endpoints have in common.

use std::sync::Arc;

use kvist_base::{Micros, TokenId};
use kvist_engine::{Edits, Sampling};
use serde_json::Value;

use crate::api::error::ApiError;
use crate::api::json::{Fields, type_of};
use crate::config::SamplingDefaults;

/// Stop strings of a request at most, and bytes of each.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;
const MAX_STOP_TOKENS: usize = 256;
/// Most likely tokens that logprobs list at most.
pub const MAX_TOP: i64 = 20;

/// How an answer is generated and told.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    pub model: Option<String>,
    pub n: u32,
    pub max_tokens: Option<u32>,
    pub sampling: Sampling,
    pub edits: Arc<Edits>,
    pub stops: Vec<String>,
    /// Tokens that end a choice besides the model's own.
    pub stop_tokens: Vec<TokenId>,
    pub ignore_eos: bool,
    pub skip_special: bool,
    pub priority: i32,
    pub ttft_slo: Option<Micros>,
    pub stream: Option<StreamOptions>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// A last chunk with the usage.
    pub include_usage: bool,
    /// The usage so far in every chunk.
    pub continuous_usage: bool,
}

/// What a request's body is checked against and completed with.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub max_n: u32,
    pub max_prompts: usize,
    /// Another model name than the served one is an error.
    pub strict_model: bool,
    /// Whether the caller may put its requests before others'.
    pub may_hurry: bool,
    pub defaults: SamplingDefaults,
    /// Used when the request names no seed.
    pub seed: u64,
    /// From the request's headers.
    pub ttft_slo: Option<Micros>,
    /// Seconds since 1970, for chat templates.
    pub now: u64,
}

impl Params {
    /// Every token that ends a choice.
    pub fn ends(&self, eos: &[TokenId]) -> Vec<TokenId> {
        let eos = if self.ignore_eos { &[] } else { eos };
        [&self.stop_tokens, eos].concat()
    }

    pub fn parse(fields: Fields, bounds: &Bounds) -> Result<Params, ApiError> {
        refuse_unsupported(fields)?;
        let n = fields.int("n", 1, i64::from(bounds.max_n))?.unwrap_or(1) as u32;
        let mut max_tokens = None;
        for name in ["max_completion_tokens", "max_tokens", "n_predict"] {
            let value = fields.int(name, 0, i64::from(i32::MAX))?;
            max_tokens = max_tokens.or(value.map(|v| v as u32));
        }
        let defaults = bounds.defaults;
        // OpenAI's and vLLM's ranges, where they have one.
        let penalty = |name: &str| fields.float(name, -2.0, 2.0).map(|p| p.unwrap_or(0.0) as f32);
        let sampling = Sampling {
            temperature: fields.float("temperature", 0.0, 100.0)?.map_or(defaults.temperature, |t| t as f32),
            top_k: fields.int("top_k", -1, i64::from(i32::MAX))?.map_or(defaults.top_k, |k| k.max(0) as u32),
            // 0 stands for "the most likely token only".
            top_p: fields.float("top_p", 0.0, 1.0)?.map_or(defaults.top_p, |p| (p as f32).max(f32::MIN_POSITIVE)),
            min_p: fields.float("min_p", 0.0, 1.0)?.map_or(defaults.min_p, |p| p as f32),
            repetition_penalty: fields
                .float("repetition_penalty", 0.01, 100.0)?
                .map_or(defaults.repetition_penalty, |p| p as f32),
            presence_penalty: penalty("presence_penalty")?,
            frequency_penalty: penalty("frequency_penalty")?,
            seed: fields.int("seed", i64::MIN, i64::MAX)?.map_or(bounds.seed, |s| s as u64),
        };
        let least = if bounds.may_hurry { i32::MIN } else { 0 };
        Ok(Params {
            model: fields.string("model")?.map(str::to_owned),
            n,
            max_tokens,
            sampling,
            edits: Arc::new(edits(fields)?),
            stops: stops(fields)?,
            stop_tokens: token_ids(fields, "stop_token_ids", MAX_STOP_TOKENS)?.unwrap_or_default(),
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            skip_special: fields.boolean("skip_special_tokens")?.unwrap_or(true),
            priority: fields.int("priority", i64::from(least), i64::from(i32::MAX))?.unwrap_or(0) as i32,
            ttft_slo: bounds.ttft_slo,
            stream: stream(fields)?,
        })
    }
}

fn edits(fields: Fields) -> Result<Edits, ApiError> {
    Ok(Edits {
        bias: logit_bias(fields)?,
        allowed: token_ids(fields, "allowed_token_ids", usize::MAX)?.map(|mut ids| {
            ids.sort_unstable();
            ids.dedup();
            ids
        }),
        min_tokens: fields.int("min_tokens", 0, i64::from(i32::MAX))?.unwrap_or(0) as u32,
        ..Edits::default()
    })
}

/// A map from token ids, written as strings since JSON has no other keys, to what is added to their logits.
fn logit_bias(fields: Fields) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let wrong = |message: &str| ApiError::field("logit_bias", message);
    let map = fields.object("logit_bias")?.into_iter().flatten();
    map.map(|(key, bias)| {
        // Written as no other number is, so that each token is there once.
        let token = key.parse::<TokenId>().ok().filter(|id| id.to_string() == *key);
        let token = token.ok_or_else(|| wrong("its keys are token ids"))?;
        let bias = bias.as_f64().filter(|b| (-100.0..=100.0).contains(b));
        Ok((token, bias.ok_or_else(|| wrong("its values are numbers between -100 and 100"))? as f32))
    })
    .collect()
}

/// A list of token ids, of at most `most`.
pub fn token_ids(fields: Fields, name: &str, most: usize) -> Result<Option<Vec<TokenId>>, ApiError> {
    let Some(list) = fields.array(name)? else { return Ok(None) };
    if list.len() > most {
        return Err(ApiError::field(name, format!("{} token ids; at most {most} are allowed", list.len())));
    }
    let id = |v: &Value| v.as_u64().and_then(|id| TokenId::try_from(id).ok());
    let wrong = || ApiError::field(name, "a token id is an integer of 0 or more");
    list.iter().map(|v| id(v).ok_or_else(wrong)).collect::<Result<_, _>>().map(Some)
}

fn stops(fields: Fields) -> Result<Vec<String>, ApiError> {
    let list: Vec<&str> = match fields.get("stop") {
        None => vec![],
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(list)) => {
            if !list.iter().all(Value::is_string) {
                return Err(ApiError::field("stop", "a list of strings is needed"));
            }
            list.iter().filter_map(Value::as_str).collect()
        }
        Some(other) => {
            let message = format!("a string or a list of strings is needed, not {}", type_of(other));
            return Err(ApiError::field("stop", message));
        }
    };
    if list.len() > MAX_STOPS {
        return Err(ApiError::field("stop", format!("{} strings; at most {MAX_STOPS} are allowed", list.len())));
    }
    if list.iter().any(|s| s.len() > MAX_STOP_BYTES) {
        return Err(ApiError::field("stop", format!("a string is longer than {MAX_STOP_BYTES} bytes")));
    }
    Ok(list.into_iter().filter(|s| !s.is_empty()).map(str::to_owned).collect())
}

fn stream(fields: Fields) -> Result<Option<StreamOptions>, ApiError> {
    let stream = fields.boolean("stream")?.unwrap_or(false);
    let options = match fields.object("stream_options")? {
        None => StreamOptions::default(),
        Some(map) => {
            let flag = |name: &str| match map.get(name) {
                None | Some(Value::Null) => Ok(false),
                Some(Value::Bool(on)) => Ok(*on),
                Some(other) => {
                    let message = format!("true or false is needed, not {}", type_of(other));
                    Err(ApiError::field(format!("stream_options.{name}"), message))
                }
            };
            StreamOptions { include_usage: flag("include_usage")?, continuous_usage: flag("continuous_usage_stats")? }
        }
    };
    Ok(stream.then_some(options))
}

/// Fields that change the answer and are not implemented: anything but the value that changes nothing is an error,
/// since an answer that silently ignores them is a wrong answer.
fn refuse_unsupported(fields: Fields) -> Result<(), ApiError> {
    let empty = |v: &Value| match v {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    for (names, neutral, is_neutral) in [
        (&["typical_p", "length_penalty"][..], "1", &(|v: &Value| v.as_f64() == Some(1.0)) as &dyn Fn(&Value) -> bool),
        (&["documents", "functions"], "empty", &empty),
        (
            &["use_beam_search", "include_stop_str_in_output", "return_token_ids", "return_tokens_as_token_ids"],
            "false",
            &|v| v == false,
        ),
        (
            &[
                "guided_json",
                "guided_regex",
                "guided_choice",
                "guided_grammar",
                "structured_outputs",
                "grammar",
                "json_schema",
                "cache_salt",
                "truncate_prompt_tokens",
                "prompt_logprobs",
                "prompt_embeds",
                "chat_template",
                "audio",
            ],
            "left out",
            &|_| false,
        ),
        (&["response_format"], "of type `text`", &|v| v["type"] == "text"),
        (&["modalities"], "[\"text\"]", &|v| v.as_array().is_some_and(|l| l.iter().all(|m| m == "text"))),
    ] {
        for name in names {
            if let Some(value) = fields.get(name)
                && !is_neutral(value)
            {
                let message = format!("this version of kvist supports it only when {neutral}");
                return Err(ApiError::unsupported(*name, message));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::json::parse_object;

    const BOUNDS: Bounds = Bounds {
        max_n: 16,
        max_prompts: 8,
        strict_model: false,
        may_hurry: false,
        defaults: SamplingDefaults { temperature: 0.7, top_k: 5, top_p: 0.9, min_p: 0.02, repetition_penalty: 1.1 },
        seed: 99,
        ttft_slo: None,
        now: 0,
    };

    fn parse(body: &str) -> Result<Params, ApiError> {
        Params::parse(Fields(&parse_object(body.as_bytes()).unwrap()), &BOUNDS)
    }

    #[test]
    fn defaults_are_the_models() {
        let p = parse("{}").unwrap();
        let expected = Sampling {
            temperature: 0.7,
            top_k: 5,
            top_p: 0.9,
            min_p: 0.02,
            repetition_penalty: 1.1,
            seed: 99,
            ..Sampling::GREEDY
        };
        assert_eq!(p.sampling, expected);
        assert_eq!((p.n, p.max_tokens, p.stream, p.ignore_eos), (1, None, None, false));
    }

    #[test]
    fn every_spelling_of_the_known_fields() {
        let p = parse(
            r#"{"model":"m","n":2,"max_completion_tokens":7,"max_tokens":9,"temperature":0,"top_k":-1,"top_p":0,
               "seed":-3,"stop":["a","","b"],"stream":true,"stream_options":{"include_usage":true},"ignore_eos":true,
               "presence_penalty":0,"frequency_penalty":0.0,"repetition_penalty":1.0,"logit_bias":{},"min_p":0,
               "response_format":{"type":"text"},"user":"u","whatever":[1],"stop_token_ids":[],"min_tokens":0}"#,
        )
        .unwrap();
        assert_eq!((p.n, p.max_tokens), (2, Some(7)));
        assert_eq!((p.sampling.top_k, p.sampling.seed), (0, -3i64 as u64));
        assert!(p.sampling.top_p > 0.0);
        assert_eq!(p.stops, ["a", "b"]);
        assert_eq!(p.stream, Some(StreamOptions { include_usage: true, continuous_usage: false }));
    }

    #[test]
    fn what_is_not_implemented_is_refused_by_name() {
        for (field, value) in [
            ("typical_p", "0.9"),
            ("response_format", "{\"type\":\"json_object\"}"),
            ("response_format", "3"),
            ("guided_regex", "\"a*\""),
            ("cache_salt", "\"x\""),
            ("chat_template", "\"x\""),
            ("include_stop_str_in_output", "true"),
            ("modalities", "[\"audio\"]"),
        ] {
            let error = parse(&format!("{{\"{field}\":{value}}}")).unwrap_err();
            assert_eq!((error.param.as_deref(), error.code), (Some(field), Some("unsupported_parameter")));
        }
    }

    #[test]
    fn wrong_types_and_ranges_name_the_field() {
        for (field, value) in [
            ("model", "3"),
            ("n", "0"),
            ("n", "17"),
            ("n", "\"2\""),
            ("n", "1.5"),
            ("max_tokens", "-1"),
            ("max_tokens", "9223372036854775808"),
            ("max_completion_tokens", "true"),
            ("temperature", "-0.1"),
            ("temperature", "\"hot\""),
            ("temperature", "1e300"),
            ("top_p", "1.1"),
            ("top_k", "-2"),
            ("seed", "9223372036854775808"),
            ("stop", "5"),
            ("stop", "[1]"),
            (
                "stop",
                "[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"10\",\"11\",\"12\",\"13\",\"14\",\"15\",\"16\",\"17\"]",
            ),
            ("stream", "\"yes\""),
            ("stream_options", "[]"),
            ("ignore_eos", "1"),
            ("priority", "-1"),
            ("presence_penalty", "2.1"),
            ("frequency_penalty", "-2.1"),
            ("repetition_penalty", "0"),
            ("repetition_penalty", "\"1\""),
            ("min_p", "1.5"),
            ("min_tokens", "-3"),
            ("logit_bias", "[5]"),
            ("logit_bias", "{\"1\":101}"),
            ("logit_bias", "{\"1\":null}"),
            ("logit_bias", "{\"01\":5}"),
            ("logit_bias", "{\"a\":5}"),
            ("logit_bias", "{\"4294967296\":5}"),
            ("stop_token_ids", "[-2]"),
            ("stop_token_ids", "3"),
            ("allowed_token_ids", "[1.5]"),
        ] {
            let error = parse(&format!("{{\"{field}\":{value}}}")).unwrap_err();
            assert_eq!((error.param.as_deref(), error.status.as_u16()), (Some(field), 400), "{field} = {value}");
        }
        let error = parse(r#"{"stream":true,"stream_options":{"include_usage":1}}"#).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("stream_options.include_usage"));
        assert!(error.message.starts_with("`stream_options.include_usage`: "), "{}", error.message);
    }
}
