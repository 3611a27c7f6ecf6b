//! What the server says of itself: llama-server's `/props`, vLLM's `/version` and `/tokenizer_info`. Nothing of the
//! machine, its files or other callers.

use serde_json::{Value, json};

use crate::api::shapes::number;
use crate::app::Serving;

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub fn version() -> Value {
    json!({"version": VERSION})
}

pub fn props(serving: &Serving) -> Value {
    let d = serving.model.defaults;
    let params = json!({
        "temperature": number(d.temperature),
        "top_k": d.top_k,
        "top_p": number(d.top_p),
        "min_p": number(d.min_p),
        "repeat_penalty": number(d.repetition_penalty),
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "n_predict": -1,
    });
    json!({
        "default_generation_settings": {"n_ctx": serving.room, "params": params},
        "model_alias": serving.model.id,
        "model_path": serving.model.id,
        "modalities": {"vision": false, "audio": false},
        "chat_template": template(serving),
        "bos_token": special(serving, "bos_token"),
        "eos_token": eos(serving),
        "build_info": format!("kvist {VERSION}"),
    })
}

/// As much of `tokenizer_config.json` as a client needs to count tokens by `/tokenize`.
pub fn tokenizer_info(serving: &Serving) -> Value {
    json!({
        "tokenizer_class": "kvist",
        "bos_token": special(serving, "bos_token"),
        "eos_token": eos(serving),
        "pad_token": special(serving, "pad_token"),
        "unk_token": special(serving, "unk_token"),
        "model_max_length": serving.room,
        "chat_template": template(serving),
    })
}

fn template(serving: &Serving) -> Option<String> {
    serving.text.template.as_ref().and_then(|t| t.source())
}

fn special<'a>(serving: &'a Serving, name: &str) -> Option<&'a str> {
    serving.text.template.as_ref().and_then(|t| t.special(name))
}

/// By name, or else the first token that ends a reply.
fn eos(serving: &Serving) -> Option<String> {
    let first = || serving.model.eos.first().and_then(|&id| serving.text.tokenizer.piece(id));
    special(serving, "eos_token").map(str::to_owned).or_else(first)
}
