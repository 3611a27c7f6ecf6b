//! The families: each maps its fields of `config.json` onto the parameters of the decoder block.

mod gemma;
mod granite;
mod llama;
mod mistral;
mod olmo2;
mod phi3;
mod qwen;
mod smollm3;

use crate::config::{Config, Fields, bad};
use crate::error::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gemma2,
    Gemma3,
    Phi3,
    SmolLm3,
    Olmo2,
    Granite,
}

const SUPPORTED: &str = "llama (Llama 2 and 3.x, TinyLlama, SmolLM2), mistral and ministral, qwen2 (Qwen2, Qwen2.5), qwen3 (dense), \
    gemma2, gemma3 and gemma3_text, phi3 (Phi-3, Phi-3.5, Phi-4-mini, Phi-4), smollm3, olmo2, granite";

impl Family {
    /// The family that a `model_type` names.
    pub(crate) fn of(model_type: &str) -> Result<Family> {
        Ok(match model_type {
            "llama" => Family::Llama,
            "mistral" | "ministral" => Family::Mistral,
            "qwen2" => Family::Qwen2,
            "qwen3" => Family::Qwen3,
            "gemma2" => Family::Gemma2,
            "gemma3" | "gemma3_text" => Family::Gemma3,
            "phi3" => Family::Phi3,
            "smollm3" => Family::SmolLm3,
            "olmo2" => Family::Olmo2,
            "granite" => Family::Granite,
            _ => {
                let what = format!("its family is {model_type:?}");
                return Err(Error::Unsupported { what, supported: SUPPORTED });
            }
        })
    }

    /// The fields with what the family's files leave out where it is the default of its class in transformers.
    pub(crate) fn fields(self, fields: Fields) -> Result<Fields> {
        let defaults: &[(&str, u64)] = match self {
            Family::Gemma3 => return gemma::gemma3_fields(fields),
            Family::Gemma2 => &[
                ("num_key_value_heads", 4),
                ("head_dim", 256),
                ("sliding_window", 4096),
                ("bos_token_id", 2),
                ("eos_token_id", 1),
            ],
            Family::Mistral => {
                &[("num_key_value_heads", 8), ("sliding_window", 4096), ("bos_token_id", 1), ("eos_token_id", 2)]
            }
            Family::Qwen2 => &[("num_key_value_heads", 32), ("sliding_window", 4096)],
            Family::Qwen3 => &[("num_key_value_heads", 32), ("head_dim", 128), ("sliding_window", 4096)],
            Family::Phi3 => {
                &[("original_max_position_embeddings", 4096), ("bos_token_id", 1), ("eos_token_id", 32_000)]
            }
            Family::SmolLm3 => &[("num_key_value_heads", 4), ("bos_token_id", 128_000), ("eos_token_id", 128_001)],
            Family::Olmo2 => &[("eos_token_id", 50_279)],
            Family::Llama | Family::Granite => &[("bos_token_id", 1), ("eos_token_id", 2)],
        };
        Ok(fields.with_defaults(defaults))
    }

    /// The name of the gate's function. Gemma's has a field of its own; the other one, where it is there, counts for
    /// nothing.
    pub(crate) fn activation(self, fields: &Fields) -> Result<&str> {
        match self {
            Family::Gemma2 | Family::Gemma3 => Ok(fields.text("hidden_activation")?.unwrap_or("gelu_pytorch_tanh")),
            _ => Ok(fields.text("hidden_act")?.unwrap_or("silu")),
        }
    }

    /// Sets in `config`, which has its sizes and is Llama's otherwise, what this family does in another way.
    pub(crate) fn configure(self, fields: &Fields, config: &mut Config) -> Result<()> {
        match self {
            Family::Llama => llama::configure(fields, config),
            Family::Mistral => mistral::configure(fields, config),
            Family::Qwen2 => qwen::qwen2(fields, config),
            Family::Qwen3 => qwen::qwen3(fields, config),
            Family::Gemma2 => gemma::gemma2(fields, config),
            Family::Gemma3 => gemma::gemma3(fields, config),
            Family::Phi3 => phi3::configure(fields, config),
            Family::SmolLm3 => smollm3::configure(fields, config),
            Family::Olmo2 => olmo2::configure(fields, config),
            Family::Granite => granite::configure(fields, config),
        }
    }
}

/// The field `sliding_window`, in tokens.
fn window(fields: &Fields) -> Result<Option<u32>> {
    match fields.size("sliding_window")? {
        Some(0) => Err(bad("sliding_window is 0")),
        window => Ok(window.map(|w| u32::try_from(w).unwrap_or(u32::MAX))),
    }
}

/// Which layers slide: what `layer_types` says, or else what `default` says of a layer.
fn sliding_layers(fields: &Fields, layers: usize, default: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
    let Some(types) = fields.list("layer_types", |v| v.as_str().map(str::to_owned))? else {
        return Ok((0..layers).map(default).collect());
    };
    if types.len() != layers {
        return Err(bad(format!("layer_types has {} entries for {layers} layers", types.len())));
    }
    let slides = |kind: &String| match kind.as_str() {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        other => Err(Error::Unsupported {
            what: format!("it has layers of type {other:?}"),
            supported: "full_attention and sliding_attention",
        }),
    };
    types.iter().map(slides).collect()
}

/// Gives the layers that slide their window. One that is never shorter than what a row sees is none.
fn set_windows(config: &mut Config, window: Option<u32>, sliding: &[bool]) -> Result<()> {
    if window.is_none() && sliding.contains(&true) {
        return Err(bad("layers slide, but there is no sliding_window"));
    }
    let window = window.filter(|&w| (w as usize) < config.context);
    for (attention, &slides) in config.attention.iter_mut().zip(sliding) {
        attention.window = window.filter(|_| slides);
    }
    Ok(())
}

/// For families whose layers all see everything.
fn refuse_windows(fields: &Fields, config: &Config) -> Result<()> {
    let slides = sliding_layers(fields, config.layers, |_| false)?.contains(&true);
    if slides || fields.flag("use_sliding_window")? == Some(true) {
        return Err(Error::Unsupported {
            what: "it uses sliding windows".into(),
            supported: "full attention in this family",
        });
    }
    Ok(())
}
