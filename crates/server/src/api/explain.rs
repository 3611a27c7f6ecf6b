//! `/v1/kvist/explain`: what a request would find in the cache, without doing it.

use serde_json::{Value, json};

use crate::api::error::ApiError;
use crate::api::json::{Fields, parse_object};
use crate::api::params::Bounds;
use crate::app::{Caller, Serving};
use crate::explain::{Asked, Explained, nearest};
use crate::runner::Unavailable;

/// Takes a body of the chat or of the completions endpoint. Takes time with its length.
pub fn asked(serving: &Serving, caller: &Caller, bounds: &Bounds, body: &[u8]) -> Result<Asked, ApiError> {
    let map = parse_object(body)?;
    let fields = Fields(&map);
    serving.check_model(fields.string("model")?, bounds)?;
    let check = |bytes| serving.check_length(bytes);
    let overflow = serving.overflow(&caller.tenant, bounds.on_overflow, false);
    let asked = Asked::parse(&serving.text, &serving.replies, overflow, bounds.now, &check, fields)?;
    if asked.ids.is_empty() {
        return Err(ApiError::field("prompt", "it is empty"));
    }
    if let Some(id) = asked.ids.iter().find(|&&id| id as usize >= bounds.vocab) {
        let message = format!("token {id} is outside the vocabulary of {}", bounds.vocab);
        return Err(ApiError::field("prompt", message));
    }
    if asked.ids.len() > serving.room {
        let (room, tokens) = (serving.room, asked.ids.len());
        return Err(ApiError::context_length(format!(
            "the context is {room} tokens, but the prompt alone has {tokens}"
        )));
    }
    Ok(asked)
}

/// Tells of the caller's own domain and of public prefixes, and of nothing else.
pub async fn answer(serving: &Serving, caller: &Caller, asked: Asked) -> Result<Value, ApiError> {
    let domain = caller.tenant.domain;
    let stopped = || ApiError::unavailable("the engine has stopped");
    let prospect = serving.runner.prospect(domain, asked.ids.clone(), asked.carry.clone()).map_err(|e| match e {
        Unavailable::Busy => ApiError::busy("too many requests arrived at once"),
        Unavailable::Gone => stopped(),
    })?;
    let prospect = prospect.await.map_err(|_| stopped())?;
    let stored = serving.tier.as_ref().and_then(|tier| nearest(tier.store(), domain, &asked));
    let explained = Explained::new(&serving.text.tokenizer, &asked, &prospect, true, stored.as_ref());
    let disk_rate = serving.tier.as_ref().map(|tier| tier.sums().rate);
    let mut told = serde_json::to_value(&explained).map_err(|e| ApiError::internal(e.to_string()))?;
    told["object"] = json!("kvist.explanation");
    told["model"] = json!(serving.model.id);
    told["disk_bytes_per_second"] = json!(disk_rate);
    Ok(told)
}
