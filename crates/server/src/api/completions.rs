//! `/v1/completions`.

use kvist_base::TokenId;
use serde_json::Value;

use crate::api::assembly::Prepared;
use crate::api::error::ApiError;
use crate::api::generate::{Job, Kind, params};
use crate::api::json::{Fields, TokenLists, parse_object, type_of};
use crate::api::params::{Bounds, MAX_TOP};
use crate::api::sampling::NO_TOKEN_ID;
use crate::app::{Caller, Serving};

/// Parses a body and tokenises its prompts. Takes time with their length.
pub fn job(serving: &Serving, _: &Caller, bounds: &Bounds, body: &[u8]) -> Result<Job, ApiError> {
    let map = parse_object(body)?;
    let fields = Fields(&map);
    let params = params(serving, fields, bounds)?;
    let logprobs = fields.int("logprobs", 0, MAX_TOP)?.map(|n| n as u32);
    let echo = fields.boolean("echo")?.unwrap_or(false);
    let add_special = fields.boolean("add_special_tokens")?.unwrap_or(true);
    if fields.string("suffix")?.is_some_and(|s| !s.is_empty()) {
        return Err(ApiError::unsupported("suffix", "this version of kvist does not fill in text"));
    }
    if fields.int("best_of", 1, i64::from(bounds.max_n))?.is_some_and(|b| b != i64::from(params.n)) {
        return Err(ApiError::unsupported("best_of", "this version of kvist supports it only when equal to `n`"));
    }
    let mut prompts = Vec::new();
    for prompt in parse_prompts(fields, bounds.max_prompts)? {
        let ids = match prompt {
            Prompt::Text(text) => {
                if params.keep_last.is_none() {
                    serving.check_length(text.len())?;
                }
                serving.text.tokenizer.encode(text, add_special)?
            }
            Prompt::Ids(ids) => ids.to_vec(),
        };
        prompts.push(Prepared { ids, echo, ..Prepared::default() });
    }
    let echo_logprobs = if echo { logprobs } else { None };
    Ok(Job { kind: Kind::Text, params, prompts, logprobs, echo_logprobs, ignored: map.unknown() })
}

#[derive(Debug, PartialEq)]
pub enum Prompt<'a> {
    Text(&'a str),
    Ids(&'a [TokenId]),
}

/// `prompt` is a string, a list of strings, a list of token ids, or a list of such lists.
pub fn parse_prompts(fields: Fields<'_>, most: usize) -> Result<Vec<Prompt<'_>>, ApiError> {
    let prompts = match fields.tokens("prompt") {
        Some(TokenLists::One(ids)) if !ids.is_empty() => vec![Prompt::Ids(ids)],
        Some(TokenLists::Many(lists)) => lists.iter().map(|ids| Prompt::Ids(ids)).collect(),
        _ => texts(fields)?,
    };
    if prompts.len() > most {
        let message = format!("{} prompts; at most {most} are allowed", prompts.len());
        return Err(ApiError::field("prompt", message));
    }
    Ok(prompts)
}

fn texts(fields: Fields<'_>) -> Result<Vec<Prompt<'_>>, ApiError> {
    let wrong = |message: &str| Err(ApiError::field("prompt", message));
    let list = match fields.get("prompt") {
        None => return wrong("the field is missing"),
        Some(Value::String(text)) => return Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(list)) => list,
        Some(other) => return wrong(&format!("a string or a list is needed, not {}", type_of(other))),
    };
    match list.iter().map(|p| p.as_str().map(Prompt::Text)).collect() {
        _ if list.is_empty() => wrong("it is empty"),
        Some(texts) => Ok(texts),
        None if list[0].is_number() || list.iter().all(Value::is_array) => wrong(NO_TOKEN_ID),
        None => wrong("the list must hold strings only, token ids only, or lists of token ids only"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(prompt: &str) -> Result<Vec<Prompt<'static>>, ApiError> {
        let map = parse_object(format!("{{\"prompt\":{prompt}}}").as_bytes())?;
        parse_prompts(Fields(Box::leak(Box::new(map))), 3)
    }

    #[test]
    fn all_forms_of_a_prompt() {
        use Prompt::{Ids, Text};
        assert_eq!(parse("\"a\"").unwrap(), [Text("a")]);
        assert_eq!(parse("[\"a\",\"b\"]").unwrap(), [Text("a"), Text("b")]);
        assert_eq!(parse("[1,2]").unwrap(), [Ids(&[1, 2])]);
        assert_eq!(parse("[[1],[2,3]]").unwrap(), [Ids(&[1]), Ids(&[2, 3])]);
        for wrong in [
            "null",
            "3",
            "{}",
            "[]",
            "[1,\"a\"]",
            "[\"a\",1]",
            "[[1],2]",
            "[[1],\"a\"]",
            "[-1]",
            "[1.5]",
            "[4294967296]",
            "[true]",
            "[[true]]",
            "[{}]",
            "[\"1\",\"2\",\"3\",\"4\"]",
        ] {
            assert_eq!(parse(wrong).unwrap_err().param.as_deref(), Some("prompt"), "{wrong}");
        }
    }
}
