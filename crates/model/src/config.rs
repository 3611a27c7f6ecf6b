//! `config.json` and `generation_config.json` of a Hugging Face directory. A family is a configuration of the one
//! decoder block; what the block does not compute is refused by name.

use kvist_base::{ChunkLayout, Dtype, LayerKind, TokenId};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::rope::{Rope, RopeScaling};

const FAMILIES: &str = "llama (Llama 2 and 3.x, TinyLlama, SmolLM2), qwen2 (Qwen2, Qwen2.5), qwen3 (dense)";

/// Bytes of a configuration file at most.
pub(crate) const MAX_CONFIG: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Llama,
    Qwen2,
    Qwen3,
}

/// A decoder-only transformer: RMSNorm before each part, grouped-query attention with rotary positions, SwiGLU.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub family: Family,
    pub vocab: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub intermediate: usize,
    /// Tokens in a sequence at most.
    pub context: usize,
    pub norm_eps: f32,
    pub rope: Rope,
    /// The output projection is the embedding table.
    pub tied: bool,
    pub qkv_bias: bool,
    pub o_bias: bool,
    /// RMSNorm on each head of q and k, before the rotation.
    pub qk_norm: bool,
    pub bos: Option<TokenId>,
    /// Every token that ends a reply.
    pub eos: Vec<TokenId>,
    pub sampling: SamplingDefaults,
}

/// What `generation_config.json` proposes.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct SamplingDefaults {
    pub do_sample: Option<bool>,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    /// 0 or less: off.
    pub top_k: Option<i64>,
}

#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Map<String, Value>>,
    rope_parameters: Option<Map<String, Value>>,
    partial_rotary_factor: Option<f64>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    use_sliding_window: Option<bool>,
    layer_types: Option<Vec<String>>,
    quantization_config: Option<Value>,
    bos_token_id: Option<Value>,
    eos_token_id: Option<Value>,
}

#[derive(Default, Deserialize)]
struct RawGeneration {
    bos_token_id: Option<Value>,
    eos_token_id: Option<Value>,
    #[serde(flatten)]
    sampling: SamplingDefaults,
}

impl Config {
    /// Parses `config.json` and, if there is one, `generation_config.json`.
    pub fn parse(config: &[u8], generation: Option<&[u8]>) -> Result<Config> {
        let fields: Value = json("config.json", config)?;
        if let Some(family) = fields.get("model_type").and_then(Value::as_str)
            && family_of(family).is_none()
        {
            return Err(unsupported(format!("its family is {family:?}")));
        }
        let raw: Raw = serde_json::from_value(fields).map_err(|e| bad(e.to_string()))?;
        let generation: RawGeneration = match generation {
            Some(bytes) => json("generation_config.json", bytes)?,
            None => RawGeneration::default(),
        };
        let family = raw.model_type.as_deref().and_then(family_of).ok_or_else(|| bad("no model_type"))?;
        raw.refuse_the_rest()?;

        let heads = raw.num_attention_heads;
        let attention_bias = raw.attention_bias.unwrap_or(false);
        let config = Config {
            family,
            vocab: raw.vocab_size,
            hidden: raw.hidden_size,
            layers: raw.num_hidden_layers,
            heads,
            kv_heads: raw.num_key_value_heads.unwrap_or(heads),
            head_dim: raw.head_dim.unwrap_or(match family {
                Family::Qwen3 => 128,
                Family::Llama | Family::Qwen2 => raw.hidden_size.checked_div(heads).unwrap_or(0),
            }),
            intermediate: raw.intermediate_size,
            context: raw.max_position_embeddings,
            norm_eps: raw.rms_norm_eps.unwrap_or(1e-6) as f32,
            rope: raw.rope()?,
            tied: raw.tie_word_embeddings.unwrap_or(false),
            qkv_bias: attention_bias || family == Family::Qwen2,
            o_bias: attention_bias && family != Family::Qwen2,
            qk_norm: family == Family::Qwen3,
            bos: ids(&generation.bos_token_id, raw.vocab_size)
                .or(ids(&raw.bos_token_id, raw.vocab_size))
                .and_then(|ids| ids.first().copied()),
            eos: ids(&generation.eos_token_id, raw.vocab_size)
                .or(ids(&raw.eos_token_id, raw.vocab_size))
                .unwrap_or_default(),
            sampling: generation.sampling,
        };
        config.check()?;
        Ok(config)
    }

    /// Sizes that everything below relies on. The limits are far above every known model and keep products of three
    /// sizes inside 64 bits.
    fn check(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab, 1 << 22),
            ("hidden_size", self.hidden, 1 << 16),
            ("num_hidden_layers", self.layers, 1 << 10),
            ("num_attention_heads", self.heads, 1 << 10),
            ("num_key_value_heads", self.kv_heads, 1 << 10),
            ("intermediate_size", self.intermediate, 1 << 20),
            ("max_position_embeddings", self.context, 1 << 26),
        ];
        for (name, size, limit) in sizes {
            if size == 0 || size > limit {
                return Err(bad(format!("{name} is {size}, must be 1 to {limit}")));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(bad(format!("{} heads cannot share {} kv-heads evenly", self.heads, self.kv_heads)));
        }
        if !self.head_dim.is_multiple_of(2) || !(16..=256).contains(&self.head_dim) {
            return Err(Error::Unsupported {
                what: format!("its head_dim is {}", self.head_dim),
                supported: "even head_dim from 16 to 256",
            });
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return Err(bad("rms_norm_eps is not a small positive number"));
        }
        Ok(())
    }

    /// A row's queries, keys and values side by side.
    pub(crate) fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Layout of a chunk of KV in bf16.
    pub fn kv_layout(&self) -> ChunkLayout {
        self.layout_of(Dtype::Bf16)
    }

    pub(crate) fn layout_of(&self, dtype: Dtype) -> ChunkLayout {
        let kind = LayerKind::Gqa { heads: self.kv_heads, dk: self.head_dim, dv: self.head_dim };
        ChunkLayout::new(dtype, &vec![kind; self.layers])
    }

    /// Number of weights.
    pub fn parameters(&self) -> u64 {
        crate::weights::parameters(self).map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
    }
}

impl Raw {
    fn refuse_the_rest(&self) -> Result<()> {
        if let Some(act) = self.hidden_act.as_deref().filter(|&act| act != "silu") {
            return Err(Error::Unsupported { what: format!("its hidden_act is {act:?}"), supported: "silu" });
        }
        let windows = self.layer_types.iter().flatten().any(|t| t != "full_attention");
        if self.use_sliding_window == Some(true) || windows {
            return Err(Error::Unsupported { what: "it uses sliding windows".into(), supported: "full attention" });
        }
        if self.quantization_config.is_some() {
            return Err(Error::Unsupported {
                what: "its weights are quantised".into(),
                supported: "safetensors in F32, F16 or BF16",
            });
        }
        if self.mlp_bias == Some(true) {
            return Err(Error::Unsupported { what: "its MLP has biases".into(), supported: "biases on attention" });
        }
        Ok(())
    }

    /// Old dialect: `rope_theta` beside `rope_scaling`. New dialect: both inside `rope_parameters`.
    fn rope(&self) -> Result<Rope> {
        let empty = Map::new();
        let fields = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref()).unwrap_or(&empty);
        let number = |name: &str| match fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(v) if v.is_finite() && v > 0.0 => Ok(Some(v)),
                _ => Err(bad(format!("RoPE {name} is {value}"))),
            },
        };
        let needed = |name: &str| number(name)?.ok_or_else(|| bad(format!("RoPE {name} is missing")));

        if fields.values().any(Value::is_object) {
            return Err(refuse_rope("a configuration per layer type"));
        }
        let partial = number("partial_rotary_factor")?.or(self.partial_rotary_factor).unwrap_or(1.0);
        if partial != 1.0 {
            return Err(refuse_rope(&format!("on {partial} of each head")));
        }
        let theta = number("rope_theta")?.or(self.rope_theta).unwrap_or(10_000.0);
        if !(theta.is_finite() && theta >= 1.0) {
            return Err(bad(format!("RoPE theta is {theta}")));
        }
        let kind = fields.get("rope_type").or(fields.get("type")).unwrap_or(&Value::Null);
        let scaling = match kind.as_str() {
            None if kind.is_null() => RopeScaling::None,
            Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear { factor: needed("factor")? },
            Some("llama3") => {
                let (low_freq_factor, high_freq_factor) = (needed("low_freq_factor")?, needed("high_freq_factor")?);
                if low_freq_factor >= high_freq_factor {
                    return Err(bad("RoPE low_freq_factor is not below high_freq_factor"));
                }
                let original_context = needed("original_max_position_embeddings")?;
                RopeScaling::Llama3 { factor: needed("factor")?, low_freq_factor, high_freq_factor, original_context }
            }
            _ => return Err(refuse_rope(&format!("of type {kind}"))),
        };
        Ok(Rope { theta, scaling })
    }
}

fn family_of(model_type: &str) -> Option<Family> {
    match model_type {
        "llama" => Some(Family::Llama),
        "qwen2" => Some(Family::Qwen2),
        "qwen3" => Some(Family::Qwen3),
        _ => None,
    }
}

/// One id or a list of ids; those outside the vocabulary can never be generated and are dropped.
fn ids(value: &Option<Value>, vocab: usize) -> Option<Vec<TokenId>> {
    let values = match value.as_ref()? {
        Value::Array(values) => values.as_slice(),
        Value::Null => return None,
        one => std::slice::from_ref(one),
    };
    Some(values.iter().filter_map(Value::as_u64).filter(|&id| id < vocab as u64).map(|id| id as TokenId).collect())
}

fn json<T: DeserializeOwned>(file: &'static str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::Config { file, what: e.to_string() })
}

fn bad(what: impl Into<String>) -> Error {
    Error::Config { file: "config.json", what: what.into() }
}

fn unsupported(what: String) -> Error {
    Error::Unsupported { what, supported: FAMILIES }
}

fn refuse_rope(what: &str) -> Error {
    Error::Unsupported { what: format!("it uses RoPE {what}"), supported: "RoPE of type default, linear and llama3" }
}
