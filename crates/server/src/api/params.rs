//! The fields that both generating endpoints have in common.

use kvist_base::Micros;
use kvist_engine::Sampling;
use serde_json::Value;

use crate::api::error::ApiError;
use crate::api::json::{Fields, type_of};
use crate::config::SamplingDefaults;

/// Stop strings of a request at most, and bytes of each.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;
/// Most likely tokens that logprobs list at most.
pub const MAX_TOP: i64 = 20;

/// How an answer is generated and told.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    pub model: Option<String>,
    pub n: u32,
    pub max_tokens: Option<u32>,
    pub sampling: Sampling,
    pub stops: Vec<String>,
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
    pub fn parse(fields: Fields, bounds: &Bounds) -> Result<Params, ApiError> {
        refuse_unsupported(fields)?;
        let n = fields.int("n", 1, i64::from(bounds.max_n))?.unwrap_or(1) as u32;
        let mut max_tokens = None;
        for name in ["max_completion_tokens", "max_tokens", "n_predict"] {
            let value = fields.int(name, 0, i64::from(i32::MAX))?;
            max_tokens = max_tokens.or(value.map(|v| v as u32));
        }
        let defaults = bounds.defaults;
        let sampling = Sampling {
            temperature: fields.float("temperature", 0.0, 100.0)?.map_or(defaults.temperature, |t| t as f32),
            top_k: fields.int("top_k", -1, i64::from(i32::MAX))?.map_or(defaults.top_k, |k| k.max(0) as u32),
            // 0 stands for "the most likely token only".
            top_p: fields.float("top_p", 0.0, 1.0)?.map_or(defaults.top_p, |p| (p as f32).max(f32::MIN_POSITIVE)),
            seed: fields.int("seed", i64::MIN, i64::MAX)?.map_or(bounds.seed, |s| s as u64),
        };
        let least = if bounds.may_hurry { i32::MIN } else { 0 };
        Ok(Params {
            model: fields.string("model")?.map(str::to_owned),
            n,
            max_tokens,
            sampling,
            stops: stops(fields)?,
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            skip_special: fields.boolean("skip_special_tokens")?.unwrap_or(true),
            priority: fields.int("priority", i64::from(least), i64::from(i32::MAX))?.unwrap_or(0) as i32,
            ttft_slo: bounds.ttft_slo,
            stream: stream(fields)?,
        })
    }
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
    let number = |v: &Value, neutral: f64| v.as_f64() == Some(neutral);
    for (names, neutral, is_neutral) in [
        (
            &["presence_penalty", "frequency_penalty", "min_p", "min_tokens"][..],
            "0",
            &(|v: &Value| number(v, 0.0)) as &dyn Fn(&Value) -> bool,
        ),
        (&["repetition_penalty", "typical_p", "length_penalty"], "1", &|v| number(v, 1.0)),
        (
            &["logit_bias", "stop_token_ids", "bad_words", "allowed_token_ids", "documents", "functions"],
            "empty",
            &empty,
        ),
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
        defaults: SamplingDefaults { temperature: 0.7, top_k: 5, top_p: 0.9 },
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
        assert_eq!(p.sampling, Sampling { temperature: 0.7, top_k: 5, top_p: 0.9, seed: 99 });
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
            ("presence_penalty", "0.5"),
            ("frequency_penalty", "-1"),
            ("repetition_penalty", "1.1"),
            ("repetition_penalty", "\"1\""),
            ("min_p", "0.05"),
            ("min_tokens", "3"),
            ("logit_bias", "{\"1\":5}"),
            ("stop_token_ids", "[2]"),
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
        ] {
            let error = parse(&format!("{{\"{field}\":{value}}}")).unwrap_err();
            assert_eq!((error.param.as_deref(), error.status.as_u16()), (Some(field), 400), "{field} = {value}");
        }
        let error = parse(r#"{"stream":true,"stream_options":{"include_usage":1}}"#).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("stream_options.include_usage"));
        assert!(error.message.starts_with("`stream_options.include_usage`: "), "{}", error.message);
    }
}
