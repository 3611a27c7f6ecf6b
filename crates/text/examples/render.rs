//! Rendered conversations for the comparison with `apply_chat_template` (`tools/compare_templates.py`).
//!
//!     render FILE < conversations > answers
//!
//! FILE is JSON: `template`, `special` (tokens by name), `now` (seconds since 1970). Each line of input has `messages`, and
//! may have `tools`, `kwargs`, `mode` (`prompt`, `plain`, `continue`). Each line of output is `["text", TEXT]`,
//! `["raised", MESSAGE]` for a template that refused, or `["error", MESSAGE]`.

use std::io::{BufWriter, Write, stdin, stdout};

use kvist_text::{ChatInput, ChatTemplate, TextError};
use serde_json::Value;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: render FILE < conversations > answers")?;
    let file: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let source = file["template"].as_str().ok_or("no template")?.to_owned();
    let special = file["special"].as_object().cloned().unwrap_or_default();
    let template = ChatTemplate::new(vec![("default".to_owned(), source)], special)?;
    let mut out = BufWriter::new(stdout().lock());
    for line in stdin().lines() {
        let case: Value = serde_json::from_str(&line?)?;
        let input = ChatInput {
            messages: case["messages"].as_array().map_or(&[], Vec::as_slice),
            tools: case["tools"].as_array().map(Vec::as_slice),
            add_generation_prompt: case["mode"] == "prompt",
            continue_final_message: case["mode"] == "continue",
            kwargs: case["kwargs"].as_object(),
            now: file["now"].as_u64().unwrap_or(0),
        };
        let answer = match template.render(&input) {
            Ok(text) => ("text", text),
            Err(TextError::Raised(message)) => ("raised", message),
            Err(other) => ("error", other.to_string()),
        };
        serde_json::to_writer(&mut out, &answer)?;
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}
