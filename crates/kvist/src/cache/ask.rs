//! A prompt on the command line, as a request's body and as tokens.

use std::io::Read;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::ArgMatches;
use kvist_server::explain::Asked;
use kvist_server::{Carried, OnOverflow, Overflow, Owner, TextParts, recall};
use kvist_store::Store;
use kvist_text::ReplyTable;
use serde_json::{Value, json};

use super::place::Place;
use crate::failure::{Failure, Result};
use crate::settings::Settings;
use crate::settings::keys::{REASONING, REPLY_RAM, TOOL_FORMAT};

/// The request that `--prompt` or `--messages` stands for.
pub fn body(matches: &ArgMatches) -> Result<Value> {
    let text = |name: &str| matches.get_one::<String>(name);
    if let Some(prompt) = text("prompt") {
        let prompt = if prompt == "-" { read(prompt)? } else { prompt.clone() };
        return Ok(json!({"prompt": prompt}));
    }
    let file = text("messages").map_or("-", String::as_str);
    let hint = "a list of messages, or a body of /v1/chat/completions: [{\"role\": \"user\", \"content\": \"..\"}]";
    let wrong = |what: String| Failure::usage(format!("--messages {file}: {what}"), hint);
    match serde_json::from_str(&read(file)?).map_err(|e| wrong(e.to_string()))? {
        Value::Array(messages) => Ok(json!({"messages": messages})),
        Value::Object(body) if body.contains_key("messages") => Ok(Value::Object(body)),
        _ => Err(wrong("there are no messages in it".into())),
    }
}

fn read(file: &str) -> Result<String> {
    let mut text = String::new();
    let read = match file {
        "-" => std::io::stdin().read_to_string(&mut text).map(|_| ()),
        file => std::fs::read_to_string(file).map(|read| text = read),
    };
    read.map_err(|e| Failure::usage(format!("{file}: {e}"), "name a file of text, or - for standard input"))?;
    Ok(text)
}

/// Renders and tokenises a body as the server would, with the replies that the store remembers of the domain.
pub fn tokens(
    place: &Place,
    settings: &Settings,
    store: &Store,
    owner: Owner,
    on: OnOverflow,
    body: &Value,
) -> Result<(TextParts, Asked)> {
    let text = place.chosen.text()?;
    let mut text = TextParts { tokenizer: text.tokenizer, template: text.template.ok() };
    if let Some(template) = &mut text.template {
        let tools = settings.text(&TOOL_FORMAT).unwrap_or_default().parse().unwrap_or_default();
        template.learn_dialect(tools, settings.text(&REASONING) != Some("off"));
    }
    let replies = ReplyTable::new(settings.count(&REPLY_RAM));
    recall(&replies, store, owner.domain);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (room, carried) = (place.context, &Carried::default());
    let overflow = Overflow { on, room, owner, carried, store: Some(store), make: false };
    let asked = Asked::read(&text, &replies, overflow, now, body.to_string().as_bytes())
        .map_err(|what| Failure::usage(what, "give what a request would give"))?;
    if asked.ids.is_empty() {
        return Err(Failure::usage("the prompt is empty", "give some text"));
    }
    Ok((text, asked))
}
