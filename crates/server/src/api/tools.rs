//! What a chat request says of tools, and how replies to it are read.

use std::collections::BTreeSet;

use kvist_text::{Function, ReplyParser, Thinking};
use serde_json::Value;

use crate::api::error::ApiError;
use crate::api::json::{Fields, type_of};
use crate::api::reading::Reading;
use crate::api::structured::Structured;
use crate::app::Serving;

/// Functions of a request, and bytes of a name, at most.
const MAX_TOOLS: usize = 1024;
const MAX_NAME: usize = 256;

/// What a request wants of its tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice<'a> {
    None,
    Auto,
    /// One call at least.
    Required,
    /// A call of this function.
    Named(&'a str),
}

/// The tools of a request, checked.
pub struct ToolRequest<'a> {
    tools: &'a [Value],
    choice: Choice<'a>,
    /// One reply may make several calls.
    parallel: bool,
    show_reasoning: bool,
}

/// The tools that the template is shown. Also with `tool_choice: none`, so that the prompt begins as it did in other turns.
pub fn shown(fields: Fields<'_>) -> Result<Option<&[Value]>, ApiError> {
    let tools = fields.array("tools")?.filter(|tools| !tools.is_empty());
    check(tools.unwrap_or_default())?;
    Ok(tools)
}

impl<'a> ToolRequest<'a> {
    /// `structured` says what else the reply must be.
    pub fn parse(fields: Fields<'a>, serving: &Serving, structured: Option<&Structured>) -> Result<Self, ApiError> {
        let tools = shown(fields)?.unwrap_or_default();
        let choice = choice(fields, tools)?;
        if let Choice::Required | Choice::Named(_) = choice
            && serving.dialect().tools.is_none()
        {
            let message = "replies are not searched for calls: the server was started with --tool-format none";
            return Err(ApiError::unsupported("tool_choice", message));
        }
        if let Some(structured) = structured.filter(|_| choice != Choice::None) {
            let message = "it cannot be combined with tools that may be called; set `tool_choice` to `none`";
            return Err(ApiError::unsupported(&structured.field, message));
        }
        Ok(ToolRequest {
            tools,
            choice,
            parallel: fields.boolean("parallel_tool_calls")?.unwrap_or(true),
            show_reasoning: fields.boolean("include_reasoning")?.unwrap_or(true),
        })
    }

    /// What the reply must be for the sake of the calls that it makes.
    pub fn structured(&self, serving: &Serving, thinking: Thinking) -> Option<Structured> {
        let mut functions: Vec<Function> = self.tools.iter().map(|tool| function(&tool["function"])).collect();
        let (demanded, many) = match self.choice {
            Choice::None => return None,
            Choice::Auto if functions.iter().any(|f| f.strict) => (false, self.parallel),
            Choice::Auto => return None,
            Choice::Required => (true, self.parallel),
            Choice::Named(name) => {
                functions.retain(|f| f.name == name);
                (true, false)
            }
        };
        let tokenizer = &serving.text.tokenizer;
        let source = serving.dialect().calls(tokenizer, &functions, demanded, many, thinking)?;
        Some(Structured { source, field: "tools".into() })
    }

    /// How a reply is read. `None`: all of it is content.
    pub fn reading(&self, serving: &Serving, thinking: Thinking) -> Option<Reading> {
        let dialect = serving.dialect();
        let format = dialect.tools.filter(|_| self.choice != Choice::None);
        let names = self.tools.iter().filter_map(|tool| tool["function"]["name"].as_str());
        (format.is_some() || dialect.reasoning.is_some()).then(|| Reading {
            parser: ReplyParser::new(format, dialect.reasoning, names.map(str::to_owned).collect(), thinking),
            format,
            parallel: self.parallel,
            show_reasoning: self.show_reasoning,
        })
    }
}

fn function(function: &Value) -> Function {
    Function {
        name: function["name"].as_str().unwrap_or_default().to_owned(),
        parameters: function.get("parameters").filter(|p| !p.is_null()).cloned(),
        strict: function["strict"] == true,
    }
}

fn check(tools: &[Value]) -> Result<(), ApiError> {
    if tools.len() > MAX_TOOLS {
        return Err(ApiError::field("tools", format!("{} tools; at most {MAX_TOOLS} are allowed", tools.len())));
    }
    let mut names = BTreeSet::new();
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
        if !matches!(function["strict"], Value::Null | Value::Bool(_)) {
            return wrong(".function.strict", "true or false is needed");
        }
        if !names.insert(name) {
            return wrong(".function.name", "another function has this name");
        }
    }
    Ok(())
}

fn choice<'a>(fields: Fields<'a>, tools: &[Value]) -> Result<Choice<'a>, ApiError> {
    let wrong = |message: &str| Err(ApiError::field("tool_choice", message));
    let auto = if tools.is_empty() { Choice::None } else { Choice::Auto };
    match fields.get("tool_choice") {
        None => Ok(auto),
        Some(Value::String(choice)) => match choice.as_str() {
            "auto" => Ok(auto),
            "none" => Ok(Choice::None),
            "required" if tools.is_empty() => wrong("it needs `tools`"),
            "required" => Ok(Choice::Required),
            _ => wrong("it is `auto`, `none`, `required`, or names a function"),
        },
        Some(choice @ Value::Object(_)) => match choice["function"]["name"].as_str() {
            Some(name) if choice["type"] == "function" => match tools.iter().any(|t| t["function"]["name"] == name) {
                true => Ok(Choice::Named(name)),
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
