//! Text to tokens and back, without generating: vLLM's `/tokenize` and `/detokenize`, which take llama-server's fields
//! too, and llama-server's `/apply-template`.

use kvist_base::TokenId;
use kvist_text::{Tokenizer, splice};
use serde_json::{Value, json};

use crate::api::chat::{input, template};
use crate::api::error::ApiError;
use crate::api::json::{Fields, parse_object};
use crate::api::params::Bounds;
use crate::api::sampling::token_ids;
use crate::app::{Caller, Serving};

/// Tokens that are turned into text at once, if the context is not longer: bounds the answer.
const MOST_TOKENS: usize = 1 << 16;

/// `prompt` (a text) or `messages` in vLLM's form, `content` in llama-server's. Of messages the ids are those that the
/// chat endpoint would use for this caller, spliced replies included.
pub fn tokenize(serving: &Serving, caller: &Caller, bounds: &Bounds, body: &[u8]) -> Result<Value, ApiError> {
    let map = parse_object(body)?;
    let fields = Fields(&map);
    serving.check_model(fields.string("model")?, bounds)?;
    let tokenizer = &serving.text.tokenizer;
    let forms = ["prompt", "messages", "content"].map(|name| fields.get(name).is_some());
    if forms.iter().filter(|&&there| there).count() != 1 {
        return Err(ApiError::field("prompt", "one of `prompt`, `messages` and `content` is needed"));
    }
    if let Some(text) = fields.string("content")? {
        return pieces(tokenizer, fields, text);
    }
    let ids = match fields.string("prompt")? {
        Some(text) => tokenizer.encode(text, fields.boolean("add_special_tokens")?.unwrap_or(true))?,
        None => {
            let (input, template) = (input(fields, bounds.now)?, template(&serving.text)?);
            let text = template.render(&input)?;
            serving.check_length(text.len())?;
            match fields.boolean("add_special_tokens")? {
                Some(true) => tokenizer.encode(&text, true)?,
                _ => splice(tokenizer, template, &serving.replies, caller.tenant.domain, &input)?.ids,
            }
        }
    };
    let spelt = |ids: &[TokenId]| ids.iter().map(|&id| tokenizer.piece(id)).collect::<Vec<_>>();
    let token_strs = fields.boolean("return_token_strs")?.unwrap_or(false).then(|| spelt(&ids));
    Ok(json!({"count": ids.len(), "max_model_len": serving.room, "tokens": ids, "token_strs": token_strs}))
}

/// llama-server's answer: ids, or with `with_pieces` each with its text, or its bytes where they are none.
fn pieces(tokenizer: &Tokenizer, fields: Fields, text: &str) -> Result<Value, ApiError> {
    if fields.boolean("parse_special")? == Some(false) {
        let message = "this version of kvist reads the names of special tokens as those tokens always";
        return Err(ApiError::unsupported("parse_special", message));
    }
    let ids = tokenizer.encode(text, fields.boolean("add_special")?.unwrap_or(false))?;
    if !fields.boolean("with_pieces")?.unwrap_or(false) {
        return Ok(json!({"tokens": ids}));
    }
    let piece = |id: TokenId| match String::from_utf8(tokenizer.token_bytes(id)) {
        Ok(text) => json!({"id": id, "piece": text}),
        Err(broken) => json!({"id": id, "piece": broken.into_bytes()}),
    };
    Ok(json!({"tokens": ids.into_iter().map(piece).collect::<Vec<_>>()}))
}

/// The text of `tokens`, special ones included, under both servers' names.
pub fn detokenize(serving: &Serving, _: &Caller, bounds: &Bounds, body: &[u8]) -> Result<Value, ApiError> {
    let map = parse_object(body)?;
    let fields = Fields(&map);
    serving.check_model(fields.string("model")?, bounds)?;
    let ids = token_ids(fields, "tokens", serving.room.max(MOST_TOKENS))?;
    let ids = ids.ok_or_else(|| ApiError::field("tokens", "the field is missing"))?;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= bounds.vocab) {
        let message = format!("token {id} is outside the vocabulary of {}", bounds.vocab);
        return Err(ApiError::field("tokens", message));
    }
    let text = serving.text.tokenizer.decode(&ids, false);
    Ok(json!({"prompt": text, "content": text}))
}

/// The text that the chat endpoint would tokenise.
pub fn apply_template(serving: &Serving, _: &Caller, bounds: &Bounds, body: &[u8]) -> Result<Value, ApiError> {
    let map = parse_object(body)?;
    let fields = Fields(&map);
    serving.check_model(fields.string("model")?, bounds)?;
    Ok(json!({"prompt": template(&serving.text)?.render(&input(fields, bounds.now)?)?}))
}
