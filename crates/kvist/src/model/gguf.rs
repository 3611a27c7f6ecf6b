//! Tokenizer and chat template of a GGUF file: what lies beside it wins over its metadata.

use std::collections::BTreeMap;
use std::path::Path;

use kvist_base::TokenId;
use kvist_text::{ChatTemplate, GgufVocab, Tokenizer};
use kvist_weights::MetaValue;

use super::{Text, damaged, optional, read};
use crate::failure::{Failure, Result};

const TEMPLATE: &str = "tokenizer.chat_template";

pub fn text(path: &Path, metadata: &BTreeMap<String, MetaValue>) -> Result<Text> {
    let dir = path.parent().unwrap_or(Path::new(""));
    let vocab = vocab(metadata);
    let json = dir.join("tokenizer.json");
    let tokenizer = if json.exists() {
        Tokenizer::from_bytes(&read(&json)?).map_err(|e| damaged(e.to_string()))?
    } else {
        Tokenizer::from_gguf(&vocab).map_err(|e| {
            Failure::new(format!("{}: {e}", path.display()), "put the model's tokenizer.json beside the file")
        })?
    };
    let beside = super::template(&optional(dir, "tokenizer_config.json")?, &optional(dir, "chat_template.jinja")?)?;
    // A configuration without a template says nothing about it.
    let template = match beside {
        Ok(template) => Ok(template),
        Err(_) => ChatTemplate::from_gguf(&vocab),
    };
    Ok(Text { tokenizer, template })
}

/// Tokens that end a reply.
pub fn ends(metadata: &BTreeMap<String, MetaValue>) -> Vec<TokenId> {
    vocab(metadata).end_ids()
}

/// `tokenizer.*` as the tokenizer reads it. What is not of its type is as if it were not there: the tokenizer says what
/// it lacks.
fn vocab(metadata: &BTreeMap<String, MetaValue>) -> GgufVocab {
    let get = |name: &str| metadata.get(&format!("tokenizer.ggml.{name}"));
    let text = |value: Option<&MetaValue>| value.and_then(MetaValue::as_str).unwrap_or_default().to_owned();
    let texts = |name: &str| -> Vec<String> {
        get(name).and_then(MetaValue::as_strings).map(|all| all.iter().map(str::to_owned).collect()).unwrap_or_default()
    };
    let array = |name: &str| get(name).and_then(MetaValue::as_array);
    let id = |name: &str| -> Option<TokenId> { get(&format!("{name}_token_id"))?.as_u64()?.try_into().ok() };
    let flag = |name: &str| get(name).and_then(MetaValue::as_bool);
    let named = metadata.iter().filter_map(|(key, value)| {
        let name = key.strip_prefix(TEMPLATE)?.strip_prefix('.')?;
        Some((name.to_owned(), value.as_str()?.to_owned()))
    });
    GgufVocab {
        architecture: text(metadata.get("general.architecture")),
        model: text(get("model")),
        pre: text(get("pre")),
        tokens: texts("tokens"),
        scores: array("scores").map_or(vec![], |all| all.iter().filter_map(|v| Some(v.as_f64()? as f32)).collect()),
        token_types: array("token_type").map_or(vec![], |all| {
            all.iter().map(|v| v.as_i64().and_then(|v| v.try_into().ok()).unwrap_or(0)).collect()
        }),
        merges: texts("merges"),
        bos: id("bos"),
        eos: id("eos"),
        eot: id("eot"),
        eom: id("eom"),
        unk: id("unknown"),
        pad: id("padding"),
        add_bos: flag("add_bos_token"),
        add_eos: flag("add_eos_token"),
        add_space_prefix: flag("add_space_prefix"),
        chat_template: metadata.get(TEMPLATE).and_then(MetaValue::as_str).map(str::to_owned),
        named_templates: named.collect(),
    }
}
