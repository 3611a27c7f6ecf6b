//! Gemma 2 and 3 (text): norms around attention and MLP with weights stored less 1, scaled embeddings, a GELU gate, and
//! layers with sliding windows between those that see everything. Gemma 2 has soft-caps, Gemma 3 norms on each head of
//! q and k, and a rotation of their own for the layers that slide.

use kvist_weights::{bf16_from_f32, bf16_to_f32};
use serde_json::json;

use super::{set_windows, sliding_layers, window};
use crate::config::{Config, Fields, NormPlace, QkNorm, bad, rope};
use crate::error::Result;

/// What the files of Gemma 3 leave out where it is this.
const DEFAULTS: [(&str, u64); 8] = [
    ("vocab_size", 262_208),
    ("num_attention_heads", 8),
    ("num_key_value_heads", 4),
    ("head_dim", 256),
    ("max_position_embeddings", 131_072),
    ("sliding_window", 4096),
    ("bos_token_id", 2),
    ("eos_token_id", 1),
];

/// Ids are those of the whole, which may say more ([1, 106]) than its text part (1).
const IDS: [&str; 2] = ["bos_token_id", "eos_token_id"];

/// The text model of a file that may describe a vision model, too.
pub(super) fn gemma3_fields(fields: Fields) -> Result<Fields> {
    let text = match fields.object("text_config")? {
        Some(text) => text.with(fields.only(&IDS)).or(fields),
        None if fields.text("model_type")? == Some("gemma3") => return Err(bad("no text_config")),
        None => fields,
    };
    Ok(text.with_defaults(&DEFAULTS))
}

pub(super) fn gemma2(fields: &Fields, config: &mut Config) -> Result<()> {
    config.ropes = vec![rope::read(fields, config.rope_defaults(10_000.0))?];
    common(fields, config, 2)?;
    // A null turns a cap off; a file without the field means the default.
    let cap = |name: &str, default: f64| -> Result<Option<f32>> {
        let cap = if fields.has(name) { fields.positive(name)? } else { Some(default) };
        Ok(cap.map(|cap| cap as f32))
    };
    config.block.score_cap = cap("attn_logit_softcapping", 50.0)?;
    config.block.logit_cap = cap("final_logit_softcapping", 30.0)?;
    Ok(())
}

pub(super) fn gemma3(fields: &Fields, config: &mut Config) -> Result<()> {
    let defaults = config.rope_defaults(1_000_000.0);
    let global = rope::read(fields, rope::Defaults { layer_type: Some("full_attention"), ..defaults })?;
    let local = rope::read(&local_rope(fields)?, rope::Defaults { theta: 10_000.0, ..defaults })?;
    config.ropes = vec![global, local];
    let sliding = common(fields, config, 6)?;
    for (attention, slides) in config.attention.iter_mut().zip(sliding) {
        attention.rope = slides as usize;
    }
    config.block.qk_norm = QkNorm::Head;
    // The files have `attn_logit_softcapping`, too, but nothing computes it.
    config.block.logit_cap = fields.positive("final_logit_softcapping")?.map(|cap| cap as f32);
    Ok(())
}

/// What the layers that slide say of their rotation: an object of their own in the new dialect, a base in the old one.
fn local_rope(fields: &Fields) -> Result<Fields> {
    let own = fields.get("rope_parameters").and_then(|parameters| parameters.get("sliding_attention"));
    Fields::new(json!({"rope_parameters": own, "rope_theta": fields.get("rope_local_base_freq")}))
}

/// Every `pattern`-th layer sees everything, the others slide. Returns which.
fn common(fields: &Fields, config: &mut Config, pattern: usize) -> Result<Vec<bool>> {
    let block = &mut config.block;
    block.norms = NormPlace::Around;
    block.norm_less_one = true;
    block.scales.score_divisor = fields.positive("query_pre_attn_scalar")?.unwrap_or(256.0).sqrt();
    // The models were trained in bf16, with the factor rounded to it, and run so unless they are stored in another type
    // (f16 has eight times the precision: nothing to be seen).
    let root = (config.hidden as f32).sqrt();
    let stored = fields.text("dtype")?.or(fields.text("torch_dtype")?).unwrap_or("bfloat16");
    block.scales.embedding = if stored == "bfloat16" { bf16_to_f32(bf16_from_f32(root)) } else { root };
    config.tied = fields.flag("tie_word_embeddings")?.unwrap_or(true);
    let pattern = fields.size("sliding_window_pattern")?.unwrap_or(pattern).max(1);
    let sliding = sliding_layers(fields, config.layers, |layer| !(layer + 1).is_multiple_of(pattern))?;
    set_windows(config, window(fields)?, &sliding)?;
    Ok(sliding)
}
