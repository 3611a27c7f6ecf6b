//! Tools for models whose template knows none: a prompt of our own describes them, and calls and results stand in
//! ordinary messages.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::json::{Style, dumps};

/// The message that the description of the tools is put into: a system message, or the first of the user where the
/// template takes no system messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Instructions {
    System,
    User,
}

const BEFORE: &str = "You can call these functions, each described by its JSON schema:";
const AFTER: &str = "To call a function, answer with nothing but one JSON object on a line of its own:\n\
    {\"name\": \"the function's name\", \"arguments\": {the arguments}}\n\
    Several functions can be called at once, one on each line. The next message brings the results. If no function is \
    needed, answer in plain text.";

/// Messages (normalised) as a template without tools can show them: the tools are described in the first message, calls
/// are written into the assistant's text as the model itself writes them, and results come from the user.
pub(crate) fn in_plain_messages(messages: &[Value], tools: Option<&[Value]>, place: Instructions) -> Vec<Value> {
    let mut names = BTreeMap::new();
    let mut out: Vec<Value> = Vec::with_capacity(messages.len() + 1);
    let mut after_results = false;
    for message in messages {
        let results = message["role"] == "tool";
        let mut message = message.clone();
        if let Some(calls) = message.as_object_mut().and_then(|m| m.remove("tool_calls")) {
            write_calls(&mut message, &calls, &mut names);
        }
        if results {
            message = json!({"role": "user", "content": result(&message, &names)});
        }
        // Templates want user and assistant to take turns.
        match out.last_mut() {
            Some(last) if after_results && message["role"] == "user" => append(last, text(&message)),
            _ => out.push(message),
        }
        after_results = results;
    }
    if let Some(tools) = tools.filter(|t| !t.is_empty()) {
        let described = description(tools);
        let role = match place {
            Instructions::System => "system",
            Instructions::User => "user",
        };
        match out.iter_mut().find(|m| m["role"] == role) {
            Some(message) if place == Instructions::System => append(message, &described),
            Some(message) => {
                let content = format!("{described}\n\n{}", text(message));
                message["content"] = content.into();
            }
            None => out.insert(0, json!({"role": role, "content": described})),
        }
    }
    out
}

fn text(message: &Value) -> &str {
    message["content"].as_str().unwrap_or_default()
}

fn append(message: &mut Value, more: &str) {
    let before = text(message);
    let content = if before.is_empty() { more.to_owned() } else { format!("{before}\n\n{more}") };
    message["content"] = content.into();
}

fn line(value: &Value) -> String {
    dumps(value, &Style::one_line())
}

fn description(tools: &[Value]) -> String {
    let mut out = BEFORE.to_owned();
    for tool in tools {
        out.push('\n');
        out.push_str(&line(tool.get("function").unwrap_or(tool)));
    }
    out + "\n\n" + AFTER
}

fn write_calls(message: &mut Value, calls: &Value, names: &mut BTreeMap<String, String>) {
    let mut content = text(message).to_owned();
    for call in calls.as_array().into_iter().flatten() {
        let function = call.get("function").unwrap_or(call);
        let name = function["name"].as_str().unwrap_or_default();
        if let Some(id) = call["id"].as_str() {
            names.insert(id.to_owned(), name.to_owned());
        }
        if !content.is_empty() {
            content.push('\n');
        }
        let arguments = function.get("arguments").cloned().unwrap_or_else(|| Map::new().into());
        content.push_str(&line(&json!({"name": name, "arguments": arguments})));
    }
    message["content"] = content.into();
}

fn result(message: &Value, names: &BTreeMap<String, String>) -> String {
    let id = message["tool_call_id"].as_str().unwrap_or_default();
    match message["name"].as_str().or_else(|| names.get(id).map(String::as_str)) {
        Some(name) => format!("Result of {name}: {}", text(message)),
        None => format!("Result: {}", text(message)),
    }
}
