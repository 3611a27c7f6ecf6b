//! The fields that say how tokens are drawn.

use kvist_base::TokenId;
use kvist_engine::{Edits, Sampling};
use serde_json::Value;

use crate::api::error::ApiError;
use crate::api::json::{Fields, TokenLists};
use crate::api::params::Bounds;

/// Bad words of a request at most, and bytes of each.
const MAX_BAD_WORDS: usize = 256;
const MAX_BAD_WORD_BYTES: usize = 256;

pub const NO_TOKEN_ID: &str = "a token id is an integer of 0 or more";

/// Ranges are OpenAI's and vLLM's where they have one.
pub fn sampling(fields: Fields, bounds: &Bounds) -> Result<Sampling, ApiError> {
    let defaults = bounds.defaults;
    let float = |name, min, max, default| fields.float(name, min, max).map(|v| v.map_or(default, |v| v as f32));
    // llama-server's name; the other one wins.
    let repetition_penalty = float("repeat_penalty", 0.01, 100.0, defaults.repetition_penalty)?;
    Ok(Sampling {
        temperature: float("temperature", 0.0, 100.0, defaults.temperature)?,
        top_k: fields.int("top_k", -1, i64::from(i32::MAX))?.map_or(defaults.top_k, |k| k.max(0) as u32),
        // 0 stands for "the most likely token only".
        top_p: float("top_p", 0.0, 1.0, defaults.top_p)?.max(f32::MIN_POSITIVE),
        min_p: float("min_p", 0.0, 1.0, defaults.min_p)?,
        repetition_penalty: float("repetition_penalty", 0.01, 100.0, repetition_penalty)?,
        presence_penalty: float("presence_penalty", -2.0, 2.0, 0.0)?,
        frequency_penalty: float("frequency_penalty", -2.0, 2.0, 0.0)?,
        // -1 stands for none, as in vLLM and llama-server, whose clients send it unasked.
        seed: fields.int("seed", i64::MIN, i64::MAX)?.filter(|s| *s != -1).map_or(bounds.seed, |s| s as u64),
    })
}

/// All but `bad_words`, which are text yet.
pub fn edits(fields: Fields) -> Result<Edits, ApiError> {
    let allowed = token_ids(fields, "allowed_token_ids", usize::MAX)?;
    Ok(Edits {
        bias: logit_bias(fields)?,
        allowed: allowed.map(|mut ids| {
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

pub fn bad_words<'a>(fields: Fields<'a>) -> Result<Vec<&'a str>, ApiError> {
    let wrong = |message: String| Err(ApiError::field("bad_words", message));
    let Some(list) = fields.array("bad_words")? else { return Ok(vec![]) };
    if list.len() > MAX_BAD_WORDS {
        return wrong(format!("{} words; at most {MAX_BAD_WORDS} are allowed", list.len()));
    }
    let words: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
    if words.len() < list.len() || words.iter().any(|w| w.trim().is_empty()) {
        return wrong("a list of words is needed".into());
    }
    if words.iter().any(|w| w.len() > MAX_BAD_WORD_BYTES) {
        return wrong(format!("a word is longer than {MAX_BAD_WORD_BYTES} bytes"));
    }
    Ok(words)
}

/// A list of token ids, of at most `most`.
pub fn token_ids(fields: Fields, name: &str, most: usize) -> Result<Option<Vec<TokenId>>, ApiError> {
    let long = |n: usize| match n > most {
        true => Err(ApiError::field(name, format!("{n} token ids; at most {most} are allowed"))),
        false => Ok(()),
    };
    if let Some(TokenLists::One(ids)) = fields.tokens(name) {
        return long(ids.len()).map(|()| Some(ids.clone()));
    }
    let Some(list) = fields.array(name)? else { return Ok(None) };
    long(list.len())?;
    let id = |v: &Value| v.as_u64().and_then(|id| TokenId::try_from(id).ok());
    let ids = list.iter().map(|v| id(v).ok_or_else(|| ApiError::field(name, NO_TOKEN_ID)));
    ids.collect::<Result<_, _>>().map(Some)
}
