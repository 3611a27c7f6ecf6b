//! `/v1/chat/completions`.

use kvist_text::{ChatInput, ChatTemplate, Prompt, splice};

use crate::api::assembly::Prepared;
use crate::api::error::ApiError;
use crate::api::generate::{Job, Kind, params};
use crate::api::json::{Fields, parse_object};
use crate::api::params::{Bounds, MAX_TOP};
use crate::api::tools::{ToolRequest, check_calls, shown};
use crate::app::{Caller, Serving};

/// Parses a body and tokenises its conversation. Takes time with the length of the conversation.
pub fn job(serving: &Serving, caller: &Caller, bounds: &Bounds, body: &[u8]) -> Result<Job, ApiError> {
    let map = parse_object(body)?;
    let fields = Fields(&map);
    let mut params = params(serving, fields, bounds)?;
    let logprobs = logprobs(fields)?;
    if fields.boolean("echo")? == Some(true) {
        return Err(ApiError::unsupported("echo", "the chat endpoint does not repeat the prompt"));
    }
    let input = input(fields, bounds)?;
    let tools = ToolRequest::parse(fields, serving, params.structured.as_ref())?;
    let template = template(serving)?;
    // Rendered twice only where the body leaves a doubt.
    if body.len() > serving.most_bytes() && params.keep_last.is_none() {
        serving.check_length(template.render(&input)?.len())?;
    }
    let prompt = splice(&serving.text.tokenizer, template, &serving.replies, caller.tenant.domain, &input)?;
    let reading = tools.reading(serving, prompt.thinking);
    params.structured = params.structured.or_else(|| tools.structured(serving, prompt.thinking));
    let Prompt { ids, spliced, key, .. } = prompt;
    let prepared = Prepared { ids, spliced, key: Some(key), reading, ..Prepared::default() };
    let ignored = map.unknown();
    Ok(Job { kind: Kind::Chat, params, prompts: vec![prepared], logprobs, echo_logprobs: None, ignored })
}

/// The conversation of a body, with all that its template is told.
pub fn input<'a>(fields: Fields<'a>, bounds: &Bounds) -> Result<ChatInput<'a>, ApiError> {
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
        now: bounds.now,
    })
}

pub fn template(serving: &Serving) -> Result<&ChatTemplate, ApiError> {
    let missing = || ApiError::invalid("the model has no chat template; use /v1/completions");
    serving.text.template.as_ref().ok_or_else(missing)
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
