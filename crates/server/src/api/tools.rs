//! What a chat request says of tools, and how replies to it are read.

use kvist_text::{ReplyParser, ToolFormat};
use serde_json::Value;

use crate::api::error::ApiError;
use crate::api::json::{Fields, type_of};
use crate::api::reading::Reading;
use crate::app::Serving;

/// Functions of a request, and bytes of a name, at most.
const MAX_TOOLS: usize = 1024;
const MAX_NAME: usize = 256;

/// The tools of a request, checked.
pub struct ToolRequest {
    /// How calls are looked for; `None` for not at all.
    format: Option<ToolFormat>,
    names: Vec<String>,
    /// One reply may make several calls.
    parallel: bool,
    show_reasoning: bool,
}

/// The tools that the template is shown. Also with `tool_choice: none`, so that the prompt begins as it did in other turns.
pub fn shown(fields: Fields<'_>) -> Result<Option<&[Value]>, ApiError> {
    let tools = fields.array("tools")?.filter(|tools| !tools.is_empty());
    names(tools.unwrap_or_default())?;
    Ok(tools)
}

impl ToolRequest {
    pub fn parse(fields: Fields, serving: &Serving) -> Result<Self, ApiError> {
        let names = names(shown(fields)?.unwrap_or_default())?;
        let wanted = wanted(fields, &names)? && !names.is_empty();
        Ok(ToolRequest {
            format: serving.dialect().tools.filter(|_| wanted),
            names,
            parallel: fields.boolean("parallel_tool_calls")?.unwrap_or(true),
            show_reasoning: fields.boolean("include_reasoning")?.unwrap_or(true),
        })
    }

    /// How a reply is read; with `thinking` the prompt has opened the reasoning. `None`: all of it is content.
    pub fn reading(self, serving: &Serving, thinking: bool) -> Option<Reading> {
        let tags = serving.dialect().reasoning;
        (self.format.is_some() || tags.is_some()).then(|| Reading {
            parser: ReplyParser::new(self.format, tags, self.names, thinking),
            format: self.format,
            parallel: self.parallel,
            show_reasoning: self.show_reasoning,
        })
    }
}

fn names(tools: &[Value]) -> Result<Vec<String>, ApiError> {
    if tools.len() > MAX_TOOLS {
        return Err(ApiError::field("tools", format!("{} tools; at most {MAX_TOOLS} are allowed", tools.len())));
    }
    let mut names: Vec<String> = Vec::with_capacity(tools.len());
    for (i, tool) in tools.iter().enumerate() {
        let wrong = |part: &str, message: &str| Err(ApiError::field(format!("tools[{i}]{part}"), message));
        match tool.get("type").map(Value::as_str) {
            Some(Some("function")) => {}
            Some(Some(kind)) => {
                let message = format!("tools of type `{kind}` are not supported; `function` is");
                return Err(ApiError::unsupported(format!("tools[{i}].type"), message));
            }
            _ => return wrong(".type", "it must be `function`"),
        }
        let function = &tool["function"];
        let Some(name) = function["name"].as_str().filter(|n| !n.is_empty() && n.len() <= MAX_NAME) else {
            return wrong(".function.name", "a name is needed, of at most 256 bytes");
        };
        if !matches!(function["parameters"], Value::Null | Value::Object(_)) {
            return wrong(".function.parameters", "a JSON schema is an object");
        }
        if names.iter().any(|n| n == name) {
            return wrong(".function.name", "another function has this name");
        }
        names.push(name.to_owned());
    }
    Ok(names)
}

/// Whether calls are wanted.
fn wanted(fields: Fields, names: &[String]) -> Result<bool, ApiError> {
    let wrong = |message: &str| Err(ApiError::field("tool_choice", message));
    let demanded = || ApiError::unsupported("tool_choice", "this version of kvist supports `auto` and `none` only");
    match fields.get("tool_choice") {
        None => Ok(true),
        Some(Value::String(choice)) => match choice.as_str() {
            "auto" => Ok(true),
            "none" => Ok(false),
            "required" if names.is_empty() => wrong("it needs `tools`"),
            "required" => Err(demanded()),
            _ => wrong("it is `auto`, `none`, `required`, or names a function"),
        },
        Some(choice @ Value::Object(_)) => match choice["function"]["name"].as_str() {
            Some(name) if choice["type"] == "function" => match names.iter().any(|n| n == name) {
                true => Err(demanded()),
                false => wrong("no tool has the name of this function"),
            },
            _ => wrong("{\"type\": \"function\", \"function\": {\"name\": ..}} is needed"),
        },
        Some(other) => wrong(&format!("a string or an object is needed, not {}", type_of(other))),
    }
}

/// Checks the calls in a conversation's messages, which templates read without a second look.
pub fn check_calls(messages: &[Value]) -> Result<(), ApiError> {
    for (i, message) in messages.iter().enumerate() {
        let calls = match message.get("tool_calls") {
            None | Some(Value::Null) => continue,
            Some(Value::Array(calls)) => calls,
            Some(other) => {
                let message = format!("a list is needed, not {}", type_of(other));
                return Err(ApiError::field(format!("messages[{i}].tool_calls"), message));
            }
        };
        for (k, call) in calls.iter().enumerate() {
            let function = &call["function"];
            let wrong = |part: &str, message: &str| {
                Err(ApiError::field(format!("messages[{i}].tool_calls[{k}].function.{part}"), message))
            };
            if !function["name"].is_string() {
                return wrong("name", "a string is needed");
            }
            if !matches!(function["arguments"], Value::Null | Value::String(_) | Value::Object(_)) {
                return wrong("arguments", "JSON in a string, or an object, is needed");
            }
        }
    }
    Ok(())
}
