//! GGUF files: their metadata as the JSON of Hugging Face's `config.json` and `generation_config.json`, so that
//! `config.rs` stays the only place that knows families, and their tensors under Hugging Face names.
//!
//! What llama.cpp's converter does to a model, and is undone here (its scripts, build of 2026): query and key rows of
//! some families are interleaved; the norms of Gemma have 1 added; RoPE scalings become factors by which the
//! frequencies are divided, in tensors of their own; windows and activations are implied by the family.

mod keys;
mod names;
mod rope;
mod tokens;

use kvist_weights::Gguf;
use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::error::{Error, Result};
use keys::Keys;

pub(crate) use names::{Names, is_configuration};

/// What is particular to a `general.architecture`.
pub(crate) struct Architecture {
    name: &'static str,
    /// In `config.json`.
    model_type: &'static str,
    /// Query and key rows are interleaved.
    interleaved: bool,
    /// A norm follows attention and MLP, under a name of its own.
    post_norms: bool,
    /// Norm weights have 1 added.
    norms_from_one: bool,
}

const fn plain(name: &'static str) -> Architecture {
    Architecture { name, model_type: name, interleaved: false, post_norms: false, norms_from_one: false }
}

const ARCHITECTURES: [Architecture; 9] = [
    // Mistral files are of this architecture, too.
    Architecture { interleaved: true, ..plain("llama") },
    plain("qwen2"),
    plain("qwen3"),
    Architecture { post_norms: true, norms_from_one: true, ..plain("gemma2") },
    Architecture { model_type: "gemma3_text", post_norms: true, norms_from_one: true, ..plain("gemma3") },
    plain("phi3"),
    Architecture { interleaved: true, ..plain("smollm3") },
    Architecture { post_norms: true, ..plain("olmo2") },
    Architecture { interleaved: true, ..plain("granite") },
];

const SUPPORTED: &str = "GGUF files of llama (also Mistral), qwen2, qwen3, gemma2, gemma3, phi3, smollm3, olmo2 and \
                         granite";

/// Reads the configuration of a file.
pub(crate) fn config(file: &Gguf) -> Result<(Config, Names)> {
    let name = file.get("general.architecture").and_then(|v| v.as_str()).unwrap_or_default();
    let Some(architecture) = ARCHITECTURES.iter().find(|a| a.name == name) else {
        return Err(Error::Unsupported { what: format!("its architecture is {name:?}"), supported: SUPPORTED });
    };
    let keys = Keys { file, architecture };
    let config =
        Config::from_values(config_json(&keys)?, Some(tokens::generation_json(&keys))).map_err(
            |error| match error {
                Error::Config { what, .. } => bad(what),
                other => other,
            },
        )?;
    Ok((config, Names { architecture }))
}

fn bad(what: impl Into<String>) -> Error {
    Error::Config { file: "GGUF metadata", what: what.into() }
}

/// What `config.json` of the same model says.
fn config_json(keys: &Keys) -> Result<Value> {
    let family = keys.architecture.name;
    let embedding = keys.file.tensors.shape("token_embd.weight").unwrap_or_default();
    let [vocab, hidden] = *embedding else {
        return Err(bad("no tensor token_embd.weight of two dimensions"));
    };
    let heads = keys.uniform("attention.head_count")?.ok_or_else(|| bad("no attention.head_count"))?;
    let layers = keys.needed("block_count")?;
    let head_dim = match keys.count("attention.key_length")? {
        Some(n) => n,
        None => hidden as u64 / heads.max(1),
    };
    if keys.count("attention.value_length")?.is_some_and(|n| n != head_dim) {
        return Err(unsupported(
            "its keys and values differ in length",
            "heads whose keys and values are equally long",
        ));
    }
    if keys.count("expert_count")?.is_some_and(|n| n > 0) {
        return Err(unsupported("it is a mixture of experts", "dense models"));
    }
    let mut out = json!({
        "model_type": keys.architecture.model_type,
        "vocab_size": vocab,
        "hidden_size": keys.needed("embedding_length")?,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.uniform("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        "intermediate_size": keys.uniform("feed_forward_length")?.ok_or_else(|| bad("no feed_forward_length"))?,
        "max_position_embeddings": keys.needed("context_length")?,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon")?,
        "tie_word_embeddings": keys.file.tensors.shape("output.weight").is_none(),
        "attention_bias": keys.file.tensors.contains("blk.0.attn_q.bias"),
    });
    let fields = out.as_object_mut().expect("an object");
    let mut set = |name: &str, value: Value| fields.insert(name.into(), value);
    match family {
        "gemma2" | "gemma3" => {
            set("hidden_activation", "gelu_pytorch_tanh".into());
            // The file does not say; only the largest model of either family divides by something else than head_dim.
            let largest = if family == "gemma2" { 46 } else { 62 };
            let scale = if layers == largest { hidden as u64 / heads.max(1) } else { head_dim };
            set("query_pre_attn_scalar", scale.into());
            let (attention, last) = if family == "gemma2" { (json!(50.0), json!(30.0)) } else { Default::default() };
            set("attn_logit_softcapping", keys.number("attn_logit_softcapping")?.unwrap_or(attention));
            set("final_logit_softcapping", keys.number("final_logit_softcapping")?.unwrap_or(last));
        }
        "granite" => {
            let names = [
                ("embedding_multiplier", "embedding_scale"),
                ("attention_multiplier", "attention.scale"),
                ("residual_multiplier", "residual_scale"),
                ("logits_scaling", "logit_scale"),
            ];
            for (name, key) in names {
                // Those that are left out are 1 (attention: by head_dim).
                if let Some(value) = keys.number(key)? {
                    set(name, value);
                } else if name == "attention_multiplier" {
                    set(name, json!(1.0 / (head_dim as f64).sqrt()));
                }
            }
        }
        // The file does not say: every fourth layer has no positions.
        "smollm3" => drop(set("no_rope_layers", (1..=layers).map(|l| (l % 4 != 0) as u8).collect())),
        _ => {}
    }
    windows(keys, layers, fields)?;
    rope::parameters(keys, head_dim, fields)?;
    Ok(out)
}

/// Sliding windows. A window of 0 is none.
fn windows(keys: &Keys, layers: u64, out: &mut Map<String, Value>) -> Result<()> {
    let family = keys.architecture.name;
    let window = keys.count("attention.sliding_window")?.or((family == "gemma2").then_some(4096)).filter(|&w| w > 0);
    let Some(window) = window else {
        if family == "gemma3" {
            out.insert("layer_types".into(), vec!["full_attention"; layers as usize].into());
        }
        return Ok(());
    };
    out.insert("sliding_window".into(), window.into());
    let every = match family {
        "gemma2" => 2,
        "gemma3" => 6,
        "olmo2" => 4,
        // All layers alike.
        "llama" => {
            out.insert("model_type".into(), "mistral".into());
            return Ok(());
        }
        "phi3" => return Ok(()),
        _ => return Err(unsupported("it has sliding windows", "sliding windows in llama, gemma2, gemma3 and phi3")),
    };
    let sliding = keys.layers("attention.sliding_window_pattern", every, layers)?;
    let name = |sliding: bool| if sliding { "sliding_attention" } else { "full_attention" };
    out.insert("layer_types".into(), sliding.into_iter().map(name).collect());
    Ok(())
}

fn unsupported(what: &str, supported: &'static str) -> Error {
    Error::Unsupported { what: what.into(), supported }
}
