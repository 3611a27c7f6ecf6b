//! What `generation_config.json` of the same model says.

use kvist_weights::MetaValue;
use serde_json::{Map, Value};

use super::keys::{Keys, decimal};

/// Texts of tokens that end a reply or a turn, whatever the file says: files name one, models use several.
const ENDS: [&str; 10] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<EOT>",
];

/// Tokens with such texts at most: a vocabulary has each once.
const MAX_ENDS: usize = 32;

/// `token_type` of tokens that are no text.
const CONTROL: u64 = 3;

pub(super) fn generation_json(keys: &Keys) -> Value {
    let id = |name: &str| keys.file.get(&format!("tokenizer.ggml.{name}_token_id")).and_then(MetaValue::as_u64);
    let mut out = Map::new();
    if let Some(bos) = id("bos") {
        out.insert("bos_token_id".into(), bos.into());
    }
    let mut eos: Vec<u64> = ["eos", "eot", "eom"].into_iter().filter_map(id).collect();
    let tokens = keys.file.get("tokenizer.ggml.tokens").and_then(MetaValue::as_strings);
    let types = keys.file.get("tokenizer.ggml.token_type").and_then(MetaValue::as_array);
    if let (Some(tokens), Some(types)) = (tokens, types) {
        let control = |i: usize| types.get(i).and_then(|t| t.as_u64()) == Some(CONTROL);
        let ends = tokens.iter().enumerate().filter(|(i, text)| ENDS.contains(text) && control(*i)).take(MAX_ENDS);
        eos.extend(ends.map(|(i, _)| i as u64));
    }
    let mut seen = Vec::new();
    eos.retain(|id| {
        !seen.contains(id) && {
            seen.push(*id);
            true
        }
    });
    if !eos.is_empty() {
        out.insert("eos_token_id".into(), eos.into());
    }
    for (key, name) in [("temp", "temperature"), ("top_p", "top_p"), ("top_k", "top_k")] {
        let value = keys.file.get(&format!("general.sampling.{key}"));
        let value = match value {
            Some(value) if name == "top_k" => value.as_i64().map(Value::from),
            Some(value) => decimal(value),
            None => None,
        };
        if let Some(value) = value {
            out.insert(name.into(), value);
        }
    }
    Value::Object(out)
}
