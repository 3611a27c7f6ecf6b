//! Names of tensors in Hugging Face checkpoints.

use crate::config::{Block, Config, NormPlace, QkNorm};

/// A matrix of a layer: the stored matrices, (name, outputs) each, whose rows it consists of.
pub(crate) struct Stack {
    pub parts: Vec<(&'static str, usize)>,
    pub inputs: usize,
    pub bias: bool,
    /// The first half of the outputs are gates of the second.
    pub gated: bool,
}

/// What a layer consists of, below `model.layers.N.`.
pub(crate) struct LayerNames {
    pub qkv: Stack,
    pub o: Stack,
    pub gate_up: Stack,
    pub down: Stack,
    /// Names of the norms before and after the attention, before and after the MLP.
    pub norms: [Option<&'static str>; 4],
    /// Widths of the norms on q and k.
    pub qk_norm: Option<[usize; 2]>,
}

impl LayerNames {
    pub fn of(config: &Config) -> LayerNames {
        let Config { hidden, heads, kv_heads, head_dim, intermediate, .. } = *config;
        let Block { qkv_bias, o_bias, qk_norm, norms, fused, .. } = config.block;
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let (qkv, gate_up) = if fused {
            (vec![("self_attn.qkv_proj", q + 2 * kv)], vec![("mlp.gate_up_proj", 2 * intermediate)])
        } else {
            (
                vec![("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)],
                vec![("mlp.gate_proj", intermediate), ("mlp.up_proj", intermediate)],
            )
        };
        const IN: &str = "input_layernorm";
        const ATTENTION: &str = "post_attention_layernorm";
        const PRE_MLP: &str = "pre_feedforward_layernorm";
        const POST_MLP: &str = "post_feedforward_layernorm";
        LayerNames {
            qkv: Stack { parts: qkv, inputs: hidden, bias: qkv_bias, gated: false },
            o: Stack { parts: vec![("self_attn.o_proj", hidden)], inputs: q, bias: o_bias, gated: false },
            gate_up: Stack { parts: gate_up, inputs: hidden, bias: false, gated: true },
            down: Stack { parts: vec![("mlp.down_proj", hidden)], inputs: intermediate, bias: false, gated: false },
            norms: match norms {
                // What follows the attention there is the norm before the MLP.
                NormPlace::Before => [Some(IN), None, Some(ATTENTION), None],
                NormPlace::After => [None, Some(ATTENTION), None, Some(POST_MLP)],
                NormPlace::Around => [Some(IN), Some(ATTENTION), Some(PRE_MLP), Some(POST_MLP)],
            },
            qk_norm: match qk_norm {
                QkNorm::None => None,
                QkNorm::Head => Some([head_dim; 2]),
                QkNorm::Row => Some([q, kv]),
            },
        }
    }
}

pub(crate) const QK_NORMS: [&str; 2] = ["self_attn.q_norm", "self_attn.k_norm"];

/// Name of a tensor of layer `l`.
pub(crate) fn in_layer(l: usize, part: &str, kind: &str) -> String {
    format!("model.layers.{l}.{part}.{kind}")
}

/// Name and shape of every tensor of a model.
pub(crate) fn parameters(config: &Config) -> impl Iterator<Item = (String, Vec<usize>)> + use<> {
    let Config { hidden, vocab, layers, .. } = *config;
    let mut once =
        vec![("model.embed_tokens.weight".into(), vec![vocab, hidden]), ("model.norm.weight".into(), vec![hidden])];
    if !config.tied {
        once.push(("lm_head.weight".into(), vec![vocab, hidden]));
    }
    let names = LayerNames::of(config);
    let in_layers = (0..layers).flat_map(move |l| {
        let mut all = Vec::new();
        for Stack { parts, inputs, bias, .. } in [&names.qkv, &names.o, &names.gate_up, &names.down] {
            for &(part, outputs) in parts {
                all.push((in_layer(l, part, "weight"), vec![outputs, *inputs]));
                if *bias {
                    all.push((in_layer(l, part, "bias"), vec![outputs]));
                }
            }
        }
        all.extend(names.norms.iter().flatten().map(|norm| (in_layer(l, norm, "weight"), vec![hidden])));
        let widths = names.qk_norm.iter().flatten();
        all.extend(QK_NORMS.iter().zip(widths).map(|(norm, &width)| (in_layer(l, norm, "weight"), vec![width])));
        all
    });
    once.into_iter().chain(in_layers)
}

/// Where the tensors of a text model stand in a file: what `model.` and the prefix of `lm_head` are called there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Roots {
    model: &'static str,
    head: &'static str,
}

/// By itself, and within a model that also sees: as older and as newer exporters write it.
const ROOTS: [Roots; 3] = [
    Roots { model: "model.", head: "" },
    Roots { model: "language_model.model.", head: "language_model." },
    Roots { model: "model.language_model.", head: "" },
];

/// Prefixes of the parts of such a model that text does not need.
const OTHER_PARTS: [&str; 2] = ["vision_tower.", "multi_modal_projector."];

impl Roots {
    /// The roots under which a file with these tensors has its embedding.
    pub fn find(has: impl Fn(&str) -> bool) -> Roots {
        ROOTS.into_iter().find(|roots| has(&roots.stored("model.embed_tokens.weight"))).unwrap_or(ROOTS[0])
    }

    /// The name in the file of what [`parameters`] calls `name`.
    pub fn stored(self, name: &str) -> String {
        match name.strip_prefix("model.") {
            Some(rest) => format!("{}{rest}", self.model),
            None => format!("{}{name}", self.head),
        }
    }

    /// Whether `stored` is in a part that text does not need.
    pub fn is_other_part(self, stored: &str) -> bool {
        let within = stored.strip_prefix("model.").unwrap_or(stored);
        self != ROOTS[0] && OTHER_PARTS.iter().any(|part| within.starts_with(part))
    }
}
