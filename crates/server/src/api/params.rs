//! The fields that both generating endpoints have in common.

use std::sync::Arc;

use kvist_base::{Micros, TokenId};
use kvist_engine::{Edits, Sampling};
use kvist_text::{TextError, Tokenizer};
use serde_json::Value;

use crate::api::error::ApiError;
use crate::api::json::{Fields, type_of};
use crate::api::overflow::OnOverflow;
use crate::api::refused::refuse_unsupported;
use crate::api::sampling::{edits, sampling, token_ids};
use crate::api::structured::{self, Structured};
use crate::app::{App, Serving};
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
    /// Without `max_tokens`, replies go to the end of the context on any endpoint.
    pub to_the_end: bool,
    pub sampling: Sampling,
    pub edits: Arc<Edits>,
    pub stops: Vec<String>,
    /// Tokens that end a choice besides the model's own.
    pub stop_tokens: Vec<TokenId>,
    /// Stop strings and the text of stop tokens are part of the answer.
    pub include_stop: bool,
    pub ignore_eos: bool,
    pub skip_special: bool,
    pub priority: i32,
    pub ttft_slo: Option<Micros>,
    pub stream: Option<StreamOptions>,
    /// What becomes of a conversation that does not fit.
    pub on_overflow: OnOverflow,
    /// Prompts are cut to their last tokens.
    pub keep_last: Option<KeepLast>,
    /// Logprobs of the prompt's tokens, with this many of the most likely ones, in vLLM's shape.
    pub prompt_logprobs: Option<u32>,
    /// The answer tells token ids besides text.
    pub return_ids: bool,
    /// Logprobs name tokens `token_id:ID` instead of by their text.
    pub tokens_as_ids: bool,
    /// What the reply must be.
    pub structured: Option<Structured>,
}

/// How many tokens of a prompt are kept (`truncate_prompt_tokens`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepLast {
    Tokens(usize),
    /// What the context has room for beside the reply.
    Room,
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
    /// Rows of the model's output.
    pub vocab: usize,
    /// Used when the request names no seed.
    pub seed: u64,
    /// From the request's headers.
    pub ttft_slo: Option<Micros>,
    /// Where the request does not say.
    pub on_overflow: OnOverflow,
    /// Seconds since 1970, for chat templates.
    pub now: u64,
}

impl Bounds {
    pub fn of(app: &App, serving: &Serving, ttft_slo: Option<Micros>) -> Bounds {
        Bounds {
            max_n: app.config.max_n,
            max_prompts: app.config.max_prompts,
            strict_model: app.config.strict_model,
            may_hurry: app.config.keys.is_none(),
            defaults: serving.model.defaults,
            vocab: serving.info.vocab,
            seed: app.next_seed(),
            ttft_slo,
            on_overflow: app.config.on_overflow,
            now: app.unix_time(),
        }
    }
}

impl Params {
    /// Every token that ends a choice.
    pub fn ends(&self, eos: &[TokenId]) -> Vec<TokenId> {
        let eos = if self.ignore_eos { &[] } else { eos };
        [&self.stop_tokens, eos].concat()
    }

    /// Turns words that must not be generated into tokens: as a text begins with them, and as they stand after a space.
    pub fn ban(&mut self, words: &[&str], tokenizer: &Tokenizer) -> Result<(), TextError> {
        let mut banned = Vec::new();
        for word in words {
            let alone = tokenizer.encode(word.trim_start(), false)?;
            let inside = tokenizer.encode(&format!(" {}", word.trim_start()), false)?;
            banned.extend([alone, inside]);
        }
        if !banned.is_empty() {
            Arc::make_mut(&mut self.edits).bad_words = banned;
        }
        Ok(())
    }

    pub fn parse(fields: Fields, bounds: &Bounds) -> Result<Params, ApiError> {
        refuse_unsupported(fields)?;
        let n = fields.int("n", 1, i64::from(bounds.max_n))?.unwrap_or(1) as u32;
        let most = most_tokens(fields)?;
        let least = if bounds.may_hurry { i32::MIN } else { 0 };
        Ok(Params {
            model: fields.string("model")?.map(str::to_owned),
            n,
            max_tokens: max_tokens(most),
            to_the_end: most == Some(-1),
            sampling: sampling(fields, bounds)?,
            edits: Arc::new(edits(fields)?),
            stops: stops(fields)?,
            stop_tokens: stop_tokens(fields, bounds)?,
            include_stop: fields.boolean("include_stop_str_in_output")?.unwrap_or(false),
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            skip_special: fields.boolean("skip_special_tokens")?.unwrap_or(true),
            priority: fields.int("priority", i64::from(least), i64::from(i32::MAX))?.unwrap_or(0) as i32,
            ttft_slo: bounds.ttft_slo,
            stream: stream(fields)?,
            on_overflow: on_overflow(fields, bounds.on_overflow)?,
            keep_last: keep_last(fields)?,
            prompt_logprobs: prompt_logprobs(fields)?,
            return_ids: fields.boolean("return_token_ids")?.unwrap_or(false),
            tokens_as_ids: fields.boolean("return_tokens_as_token_ids")?.unwrap_or(false),
            structured: structured::parse(fields)?,
        })
    }
}

/// How long a reply may get, as the body says; negative: up to the end of the context.
pub fn most_tokens(fields: Fields) -> Result<Option<i64>, ApiError> {
    let mut most = None;
    // No limit is a negative number in llama-server's own field only: elsewhere it is more likely a mistake.
    for (name, least) in [("max_completion_tokens", 0), ("max_tokens", 0), ("n_predict", -1)] {
        let value = fields.int(name, least, i64::from(i32::MAX))?;
        most = most.or(value);
    }
    Ok(most)
}

pub fn max_tokens(most: Option<i64>) -> Option<u32> {
    most.and_then(|n| u32::try_from(n).ok())
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

fn stop_tokens(fields: Fields, bounds: &Bounds) -> Result<Vec<TokenId>, ApiError> {
    let tokens = token_ids(fields, "stop_token_ids", MAX_STOP_TOKENS)?.unwrap_or_default();
    match tokens.iter().find(|&&t| t as usize >= bounds.vocab) {
        None => Ok(tokens),
        Some(t) => {
            let message = format!("token {t} is outside the vocabulary of {}", bounds.vocab);
            Err(ApiError::field("stop_token_ids", message))
        }
    }
}

fn keep_last(fields: Fields) -> Result<Option<KeepLast>, ApiError> {
    match fields.int("truncate_prompt_tokens", -1, i64::from(i32::MAX))? {
        None => Ok(None),
        Some(-1) => Ok(Some(KeepLast::Room)),
        Some(0) => Err(ApiError::field("truncate_prompt_tokens", "nothing would be left of the prompt")),
        Some(n) => Ok(Some(KeepLast::Tokens(n as usize))),
    }
}

/// `truncation` as in OpenAI's Responses API, and in this server's own words; `exact` belongs to it.
pub fn on_overflow(fields: Fields, default: OnOverflow) -> Result<OnOverflow, ApiError> {
    let exact = fields.boolean("exact")?;
    let asked = match fields.string("truncation")? {
        None => default,
        Some("auto" | "truncate") => OnOverflow::Truncate { exact: false },
        Some("disabled" | "error") => OnOverflow::Error,
        Some(other) => {
            let message = format!("{other:?} is none of auto, disabled, truncate, error");
            return Err(ApiError::field("truncation", message));
        }
    };
    Ok(match (asked, exact) {
        (OnOverflow::Truncate { .. }, Some(exact)) => OnOverflow::Truncate { exact },
        (asked, _) => asked,
    })
}

fn prompt_logprobs(fields: Fields) -> Result<Option<u32>, ApiError> {
    let top = fields.int("prompt_logprobs", 0, MAX_TOP)?;
    if top.is_some() && fields.boolean("stream")? == Some(true) {
        return Err(ApiError::field("prompt_logprobs", "they are told in whole answers only, not in a stream"));
    }
    Ok(top.map(|n| n as u32))
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
        on_overflow: OnOverflow::Error,
        now: 0,
        vocab: 100,
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

    /// Clients of llama-server send `seed: -1` with every request: each regenerated reply was the same. Its
    /// `repeat_penalty` was ignored, and `n_predict: -1` refused.
    #[test]
    fn llama_server_spellings() {
        let p = parse(r#"{"seed":-1,"repeat_penalty":1.5,"n_predict":-1}"#).unwrap();
        assert_eq!((p.sampling.seed, p.sampling.repetition_penalty), (99, 1.5));
        assert_eq!((p.max_tokens, p.to_the_end), (None, true));
        let p = parse(r#"{"repeat_penalty":1.5,"repetition_penalty":1.2,"n_predict":-1,"max_tokens":4}"#).unwrap();
        assert_eq!((p.sampling.repetition_penalty, p.max_tokens, p.to_the_end), (1.2, Some(4), false));
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
            ("n_predict", "-2"),
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
            ("stop_token_ids", "[100]"),
            ("truncate_prompt_tokens", "0"),
            ("truncate_prompt_tokens", "-2"),
            ("truncation", "\"maybe\""),
            ("truncation", "1"),
            ("exact", "1"),
            ("prompt_logprobs", "21"),
            ("return_token_ids", "1"),
            ("return_tokens_as_token_ids", "\"yes\""),
            ("include_stop_str_in_output", "0"),
        ] {
            let error = parse(&format!("{{\"{field}\":{value}}}")).unwrap_err();
            assert_eq!((error.param.as_deref(), error.status.as_u16()), (Some(field), 400), "{field} = {value}");
        }
        let error = parse(r#"{"stream":true,"stream_options":{"include_usage":1}}"#).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("stream_options.include_usage"));
        assert!(error.message.starts_with("`stream_options.include_usage`: "), "{}", error.message);
    }
}
