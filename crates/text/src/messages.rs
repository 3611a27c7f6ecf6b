//! Chat messages as clients send them, made into what Hugging Face templates read.

use serde_json::{Map, Value};

use crate::{Bounded, Budget, TextError};

/// Memory that the arguments of a conversation's calls may take as objects.
const ARGUMENTS: usize = 12 << 20;
/// Names under which clients send a reply's reasoning; the first is the one that templates read.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Checks the messages and brings them into the form that templates expect: content parts of type `text` are joined to
/// one string, arguments of tool calls are objects (clients send them as JSON in a string), keys that are null are left
/// out, reasoning is found under `reasoning_content`. Everything else is passed on as it is.
pub(crate) fn normalise(messages: &[Value]) -> Result<Vec<Value>, TextError> {
    if messages.is_empty() {
        return Err(TextError::invalid("messages", "at least one message is needed"));
    }
    let budget = arguments_budget();
    let one = |(i, message)| normalise_one(message, &format!("messages[{i}]"), &budget);
    messages.iter().enumerate().map(one).collect()
}

fn normalise_one(message: &Value, field: &str, budget: &Budget) -> Result<Value, TextError> {
    let Value::Object(message) = message else {
        return Err(TextError::invalid(field, "a message is an object with `role` and `content`"));
    };
    if !message.get("role").is_some_and(Value::is_string) {
        return Err(TextError::invalid(format!("{field}.role"), "a string is needed"));
    }
    // Many templates print `None` for a key that is there but null.
    let mut out: Map<String, Value> = message.clone().into_iter().filter(|(_, value)| !value.is_null()).collect();
    match message.get("content") {
        None | Some(Value::Null | Value::String(_)) => {}
        Some(Value::Array(parts)) => {
            out["content"] = Value::String(join_parts(parts, &format!("{field}.content"))?);
        }
        Some(_) => return Err(TextError::invalid(format!("{field}.content"), "a string or a list of parts is needed")),
    }
    if let Some(Value::Array(calls)) = out.get_mut("tool_calls") {
        calls.iter_mut().for_each(|call| parse_arguments(call, budget));
    }
    if let Some(reasoning) = REASONING.iter().find_map(|name| message.get(*name).filter(|value| !value.is_null())) {
        out.entry("thinking").or_insert_with(|| reasoning.clone());
        out.insert(REASONING[0].to_owned(), reasoning.clone());
    }
    Ok(Value::Object(out))
}

fn join_parts(parts: &[Value], field: &str) -> Result<String, TextError> {
    let mut text = String::new();
    for (i, part) in parts.iter().enumerate() {
        match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
            (Some("text"), Some(s)) => text.push_str(s),
            (Some("text"), None) => {
                return Err(TextError::invalid(format!("{field}[{i}].text"), "a string is needed"));
            }
            (Some(kind), _) => {
                let message = format!("parts of type `{kind}` are not supported by this model; send `text` parts");
                return Err(TextError::invalid(format!("{field}[{i}].type"), message));
            }
            _ => return Err(TextError::invalid(format!("{field}[{i}].type"), "a content part needs a type")),
        }
    }
    Ok(text)
}

fn parse_arguments(call: &mut Value, budget: &Budget) {
    let arguments = if call.get("function").is_some() { &mut call["function"] } else { call }.get_mut("arguments");
    if let Some(arguments) = arguments
        && let Some(object) = arguments.as_str().and_then(|text| read_arguments(text, budget))
    {
        *arguments = object;
    }
}

pub(crate) fn arguments_budget() -> Budget {
    Budget::of(ARGUMENTS)
}

/// The object that a call's arguments are; `None` for what is none, or too large to be one.
pub(crate) fn read_arguments(text: &str, budget: &Budget) -> Option<Value> {
    Bounded { budget, unique: false }.read(text.as_bytes()).ok().filter(Value::is_object)
}

/// The string content of a message.
pub(crate) fn text_of(message: &Value) -> Option<&str> {
    message.get("content").and_then(Value::as_str)
}
