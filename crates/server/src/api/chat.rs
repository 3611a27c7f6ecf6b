//! `/v1/chat/completions`.

use std::sync::Arc;

use kvist_text::{ChatInput, ChatTemplate, splice};

use crate::api::assembly::Prepared;
use crate::api::error::ApiError;
use crate::api::generate::{Job, Kind, params};
use crate::api::json::{Fields, parse_object};
use crate::api::overflow::{Left, OnOverflow, Text};
use crate::api::params::{Bounds, MAX_TOP};
use crate::api::tools::{ToolRequest, check_calls, shown};
use crate::app::{Caller, Serving};
use crate::config::TextParts;

/// Parses a body and tokenises its conversation. Takes time with the length of the conversation.
pub fn job(serving: &Serving, caller: &Caller, bounds: &Bounds, body: &[u8]) -> Result<Job, ApiError> {
    let map = parse_object(body)?;
    let fields = Fields(&map);
    let mut params = params(serving, fields, bounds)?;
    let logprobs = logprobs(fields)?;
    if fields.boolean("echo")? == Some(true) {
        return Err(ApiError::unsupported("echo", "the chat endpoint does not repeat the prompt"));
    }
    let input = input(fields, bounds.now)?;
    let tools = ToolRequest::parse(fields, serving, params.structured.as_ref())?;
    let template = template(&serving.text)?;
    // Rendered twice only where the body leaves a doubt.
    if body.len() > serving.most_bytes() && params.keep_last.is_none() && params.on_overflow == OnOverflow::Error {
        serving.check_length(template.render(&input)?.len())?;
    }
    let prompt = splice(&serving.text.tokenizer, template, &serving.replies, caller.tenant.domain, &input)?;
    let reading = tools.reading(serving, prompt.thinking);
    params.structured = params.structured.or_else(|| tools.structured(serving, prompt.thinking));
    let mut prepared = Prepared { spliced: prompt.spliced, key: Some(prompt.key), reading, ..Prepared::default() };
    let whole = params.keep_last.is_some() || params.prompt_logprobs.is_some();
    let overflow = serving.overflow(&caller.tenant, if whole { OnOverflow::Error } else { params.on_overflow }, true);
    let text = Text { tokenizer: &serving.text.tokenizer, template, input: &input };
    match overflow.left(text, &prompt, params.max_tokens) {
        Some(Left { dropped, carry, ids }) => {
            prepared = Prepared { ids, carry: carry.map(Arc::new), dropped, ..prepared };
        }
        None => prepared.ids = prompt.ids,
    }
    let ignored = map.unknown();
    Ok(Job { kind: Kind::Chat, params, prompts: vec![prepared], logprobs, echo_logprobs: None, ignored })
}

/// The conversation of a body, with all that its template is told. `now`: seconds since 1970.
pub fn input<'a>(fields: Fields<'a>, now: u64) -> Result<ChatInput<'a>, ApiError> {
    let Some(messages) = fields.array("messages")? else {
        return Err(ApiError::field("messages", "the field is missing"));
    };
    check_calls(messages)?;
    let continue_final_message = fields.boolean("continue_final_message")?.unwrap_or(false);
    Ok(ChatInput {
        messages,
        tools: shown(fields)?,
        add_generation_prompt: fields.boolean("add_generation_prompt")?.unwrap_or(!continue_final_message),
        continue_final_message,
        kwargs: fields.object("chat_template_kwargs")?,
        now,
    })
}

pub fn template(text: &TextParts) -> Result<&ChatTemplate, ApiError> {
    let missing = || ApiError::invalid("the model has no chat template; use /v1/completions");
    text.template.as_ref().ok_or_else(missing)
}

fn logprobs(fields: Fields) -> Result<Option<u32>, ApiError> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.int("top_logprobs", 0, MAX_TOP)?;
    match (wanted, top) {
        (true, top) => Ok(Some(top.unwrap_or(0) as u32)),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(ApiError::field("top_logprobs", "it needs `logprobs: true`")),
    }
}
