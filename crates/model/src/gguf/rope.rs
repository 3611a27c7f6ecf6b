//! RoPE, in the dialect of `rope_parameters`.

use kvist_weights::MetaValue;
use serde_json::{Map, Value, json};

use super::keys::Keys;
use super::{bad, shown, unsupported};
use crate::config::check_head_dim;
use crate::error::Result;

pub(super) const FREQS: &str = "rope_freqs.weight";
pub(super) const LONG: &str = "rope_factors_long.weight";
pub(super) const SHORT: &str = "rope_factors_short.weight";

pub(super) fn parameters(keys: &Keys, head_dim: u64, out: &mut Map<String, Value>) -> Result<()> {
    let rotated = keys.count("rope.dimension_count")?.unwrap_or(head_dim);
    // A list of factors may be as long as the file, and each takes much more as JSON.
    check_head_dim(head_dim)?;
    if rotated > head_dim {
        return Err(bad(format!("rope.dimension_count is {rotated}, more than the {head_dim} elements of a head")));
    }
    let mut global = scaling(keys, rotated)?;
    global.insert("rope_theta".into(), keys.number("rope.freq_base")?.unwrap_or(json!(10_000.0)));
    if rotated != head_dim {
        let mut partial = rotated as f64 / head_dim as f64;
        // The product with head_dim is cut to an integer; it must not be rounded to just below.
        if ((head_dim as f64 * partial) as u64) < rotated {
            partial = partial.next_up();
        }
        let partial = json!(partial);
        global.insert("partial_rotary_factor".into(), partial.clone());
        out.insert("partial_rotary_factor".into(), partial);
    }
    if let Some(original) = global.get("original_max_position_embeddings") {
        out.insert("original_max_position_embeddings".into(), original.clone());
    }
    let all = if keys.architecture.name == "gemma3" {
        let local = keys.number("rope.freq_base_swa")?.unwrap_or(json!(10_000.0));
        json!({
            "full_attention": global,
            "sliding_attention": { "rope_type": "default", "rope_theta": local },
        })
    } else {
        Value::Object(global)
    };
    out.insert("rope_parameters".into(), all);
    Ok(())
}

/// Everything but theta.
fn scaling(keys: &Keys, rotated: u64) -> Result<Map<String, Value>> {
    let factors =
        |name: &str| -> Result<Vec<f32>> { Ok(keys.file.tensors.tensor(name, &[(rotated / 2) as usize])?.to_f32()?) };
    let original = match keys.count("rope.scaling.original_context_length")? {
        Some(n) => n,
        None => keys.needed("context_length")?,
    };
    let mut out = Map::new();
    let mut set = |name: &str, value: Value| drop(out.insert(name.into(), value));
    if keys.file.tensors.contains(FREQS) {
        // Llama 3.1: by what each frequency is divided. The same as longrope whose two sets are equal, unscaled.
        let factors = json!(factors(FREQS)?);
        set("rope_type", "longrope".into());
        set("long_factor", factors.clone());
        set("short_factor", factors);
        set("attention_factor", json!(1.0));
        set("original_max_position_embeddings", original.into());
        return Ok(out);
    }
    let kind = match keys.get("rope.scaling.type") {
        None => None,
        Some(value) => Some(value.as_str().ok_or_else(|| bad("rope.scaling.type is not a string"))?),
    };
    let factor = keys.number("rope.scaling.factor")?.or(keys.number("rope.scale_linear")?);
    match kind {
        _ if keys.file.tensors.contains(LONG) => {
            set("rope_type", "longrope".into());
            set("long_factor", json!(factors(LONG)?));
            set("short_factor", json!(factors(SHORT)?));
            set("original_max_position_embeddings", original.into());
            if let Some(value) = keys.number("rope.scaling.attn_factor")? {
                set("attention_factor", value);
            }
        }
        Some("yarn") => {
            set("rope_type", "yarn".into());
            set("factor", factor.unwrap_or(json!(1.0)));
            set("original_max_position_embeddings", original.into());
            let names = [
                ("yarn_beta_fast", "beta_fast"),
                ("yarn_beta_slow", "beta_slow"),
                ("yarn_attn_factor", "attention_factor"),
            ];
            for (key, name) in names {
                if let Some(value) = keys.number(&format!("rope.scaling.{key}"))? {
                    set(name, value);
                }
            }
        }
        // A file that names no type but has a factor means linear.
        None | Some("linear") => match factor {
            Some(factor) if factor.as_f64().is_some_and(|f| f != 1.0 && f != 0.0) => {
                set("rope_type", "linear".into());
                set("factor", factor);
            }
            _ => set("rope_type", "default".into()),
        },
        Some("none") => set("rope_type", "default".into()),
        // What the converter makes of models that are not Phi's.
        Some("longrope") => {
            return Err(unsupported("it uses longrope, but its factors are missing", "longrope in phi3"));
        }
        Some(other) => {
            return Err(unsupported(
                &format!("it uses RoPE of type {}", shown(other)),
                "types none, linear, yarn, longrope",
            ));
        }
    }
    if keys.get("rope.scaling.finetuned") == Some(&MetaValue::Bool(false)) && keys.architecture.name == "granite" {
        return Err(unsupported("it has no positions", "models with RoPE"));
    }
    Ok(out)
}
