//! Tensor names of llama.cpp and of Hugging Face.

use kvist_weights::Gguf;

use super::{Architecture, rope};
use crate::config::Config;
use crate::error::Result;
use crate::parameter::Parameter;

/// (Hugging Face, GGUF).
const ONCE: [(&str, &str); 3] =
    [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

/// The same behind `model.layers.N.` and `blk.N.`.
const IN_LAYERS: [(&str, &str); 15] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// Tensors that are part of the configuration.
pub(crate) fn is_configuration(name: &str) -> bool {
    [rope::FREQS, rope::LONG, rope::SHORT].contains(&name)
}

/// Finds the tensors of an architecture by their Hugging Face names.
pub(crate) struct Names {
    pub(super) architecture: &'static Architecture,
}

impl Names {
    /// The parameter of this Hugging Face name in the order and with the values of Hugging Face.
    pub fn parameter<'a>(&self, file: &'a Gguf, config: &Config, name: &str, shape: &[usize]) -> Result<Parameter<'a>> {
        let stored = self.stored(name).unwrap_or_else(|| name.to_owned());
        let tensor = file.tensors.tensor(&stored, shape)?;
        let query_or_key = name.contains(".self_attn.q_proj.") || name.contains(".self_attn.k_proj.");
        let interleaved = (self.architecture.interleaved && query_or_key).then_some(config.head_dim);
        let shift = if self.architecture.norms_from_one && name.ends_with("norm.weight") { -1.0 } else { 0.0 };
        Ok(Parameter::reordered(name, tensor, interleaved, shift))
    }

    fn stored(&self, name: &str) -> Option<String> {
        let (stem, kind) = name.rsplit_once('.')?;
        if let Some((_, found)) = ONCE.iter().find(|(hf, _)| *hf == stem) {
            return Some(format!("{found}.{kind}"));
        }
        let (layer, part) = stem.strip_prefix("model.layers.")?.split_once('.')?;
        let found = match part {
            "post_attention_layernorm" if self.architecture.post_norms => "post_attention_norm",
            _ => IN_LAYERS.iter().find(|(hf, _)| *hf == part)?.1,
        };
        Some(format!("blk.{layer}.{found}.{kind}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::ARCHITECTURES;
    use super::*;

    #[test]
    fn names_of_each_kind() {
        let stored = |architecture: &str, name: &str| {
            let architecture = ARCHITECTURES.iter().find(|a| a.name == architecture).unwrap();
            Names { architecture }.stored(name)
        };
        for (architecture, hf, gguf) in [
            ("llama", "model.embed_tokens.weight", "token_embd.weight"),
            ("llama", "lm_head.weight", "output.weight"),
            ("llama", "model.layers.11.post_attention_layernorm.weight", "blk.11.ffn_norm.weight"),
            ("qwen2", "model.layers.0.self_attn.q_proj.bias", "blk.0.attn_q.bias"),
            ("gemma2", "model.layers.3.post_attention_layernorm.weight", "blk.3.post_attention_norm.weight"),
            ("gemma3", "model.layers.3.pre_feedforward_layernorm.weight", "blk.3.ffn_norm.weight"),
            ("olmo2", "model.layers.3.post_feedforward_layernorm.weight", "blk.3.post_ffw_norm.weight"),
            ("phi3", "model.layers.3.mlp.gate_up_proj.weight", "blk.3.ffn_up.weight"),
        ] {
            assert_eq!(stored(architecture, hf).as_deref(), Some(gguf));
        }
        for unknown in ["model.layers.0.self_attn.sinks", "rotary", "model.layers.weight", "x.weight"] {
            assert_eq!(stored("llama", unknown), None);
        }
    }
}
