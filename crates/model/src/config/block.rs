//! In what the decoder blocks of the families differ.

pub use kvist_kernels::Activation;

use super::{Fields, bad};
use crate::error::{Error, Result};

/// The parameters of the one decoder block. The default is Llama's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Block {
    pub qkv_bias: bool,
    pub o_bias: bool,
    pub qk_norm: QkNorm,
    pub norms: NormPlace,
    /// The norms' weights are stored less 1.
    pub norm_less_one: bool,
    /// Queries, keys and values are stored as one matrix, gate and up as another.
    pub fused: bool,
    pub activation: Activation,
    pub scales: Scales,
    /// Attention scores go through `cap * tanh(score / cap)`.
    pub score_cap: Option<f32>,
    /// Logits do.
    pub logit_cap: Option<f32>,
}

/// RMSNorm on queries and keys, before the rotation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QkNorm {
    #[default]
    None,
    /// On each head by itself.
    Head,
    /// On all heads of a row together.
    Row,
}

/// Where the norms of a layer stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NormPlace {
    /// On the input of the attention and of the MLP.
    #[default]
    Before,
    /// On their output, before it is added to the residual stream.
    After,
    Around,
}

/// Numbers that parts of the block are multiplied or divided by.
#[derive(Clone, Debug, PartialEq)]
pub struct Scales {
    pub embedding: f32,
    /// Attention scores are q k over this.
    pub score_divisor: f64,
    /// What attention and MLP add to the residual stream is multiplied by this.
    pub residual: f32,
    pub logit_divisor: f32,
}

impl Default for Scales {
    fn default() -> Scales {
        Scales { embedding: 1.0, score_divisor: 1.0, residual: 1.0, logit_divisor: 1.0 }
    }
}

/// What the attention of a layer sees, and how it turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attention {
    /// Sees keys less than so many tokens before the query; `None`: all.
    pub window: Option<u32>,
    /// Index into [`super::Config::ropes`].
    pub rope: usize,
}

impl Block {
    /// What attention and MLP give is added to the residual stream as it is.
    pub fn adds_directly(&self) -> bool {
        self.norms == NormPlace::Before && self.scales.residual == 1.0
    }

    pub(super) fn check(&self) -> Result<()> {
        let Scales { embedding, score_divisor, residual, logit_divisor } = self.scales;
        let numbers = [embedding, score_divisor as f32, residual, logit_divisor];
        if !numbers.into_iter().chain(self.score_cap).chain(self.logit_cap).all(|v| v.is_normal() && v > 0.0) {
            return Err(bad("a scale or soft-cap is not a positive number"));
        }
        Ok(())
    }
}

pub(super) fn activation(name: &str) -> Result<Activation> {
    match name {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
        _ => Err(Error::Unsupported {
            what: format!("its hidden_act is {name:?}"),
            supported: "silu and gelu_pytorch_tanh",
        }),
    }
}

/// What no family computes yet.
pub(super) fn refuse_the_rest(fields: &Fields) -> Result<()> {
    if fields.get("quantization_config").is_some() {
        return Err(Error::Unsupported {
            what: "its weights are quantised".into(),
            supported: "safetensors in F32, F16 or BF16",
        });
    }
    if fields.flag("mlp_bias")? == Some(true) {
        return Err(Error::Unsupported { what: "its MLP has biases".into(), supported: "biases on attention" });
    }
    if fields.flag("use_bidirectional_attention")? == Some(true) {
        return Err(Error::Unsupported { what: "it attends in both directions".into(), supported: "causal attention" });
    }
    Ok(())
}
