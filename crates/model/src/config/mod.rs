//! `config.json` and `generation_config.json` of a Hugging Face directory. A family is a configuration of the one
//! decoder block; what the block does not compute is refused by name.

mod block;
mod fields;
mod generation;
pub(crate) mod rope;

use kvist_base::{ChunkLayout, Codec, LayerKind, TokenId};
use serde_json::Value;

pub use block::{Activation, Attention, Block, NormPlace, QkNorm, Scales};
pub(crate) use fields::Fields;
pub use generation::SamplingDefaults;

use crate::error::{Error, Result};
use crate::family::Family;
use crate::rope::Rope;

/// Bytes of a configuration file at most. Real ones have a few thousand; as a tree of JSON values, a hostile one takes
/// more than a hundred times its size.
pub(crate) const MAX_CONFIG: u64 = 256 << 10;

/// A decoder-only transformer: RMSNorm, grouped-query attention with rotary positions, a gated MLP.
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
    /// The output projection is the embedding table.
    pub tied: bool,
    pub block: Block,
    /// The rotations that the layers choose from.
    pub ropes: Vec<Rope>,
    /// One per layer.
    pub attention: Vec<Attention>,
    pub bos: Option<TokenId>,
    /// Every token that ends a reply.
    pub eos: Vec<TokenId>,
    pub sampling: SamplingDefaults,
}

impl Config {
    /// Parses `config.json` and, if there is one, `generation_config.json`; an empty one is none.
    pub fn parse(config: &[u8], generation: Option<&[u8]>) -> Result<Config> {
        let json = |file, bytes: &[u8]| {
            if bytes.len() as u64 > MAX_CONFIG {
                return Err(Error::Config { file, what: format!("larger than {MAX_CONFIG} bytes") });
            }
            serde_json::from_slice(bytes).map_err(|e: serde_json::Error| Error::Config { file, what: e.to_string() })
        };
        let generation = generation.filter(|bytes| !bytes.trim_ascii().is_empty());
        let generation = generation.map(|bytes| json("generation_config.json", bytes)).transpose()?;
        Config::from_values(json("config.json", config)?, generation)
    }

    /// The same from values.
    pub fn from_values(config: Value, generation: Option<Value>) -> Result<Config> {
        let fields = Fields::new(config)?;
        let generation = match generation {
            None => Fields::default(),
            Some(value) => Fields::new(value)
                .map_err(|_| Error::Config { file: "generation_config.json", what: "not an object".into() })?,
        };
        let family = Family::of(fields.text("model_type")?.ok_or_else(|| bad("no model_type"))?)?;
        let fields = family.fields(fields)?;
        block::refuse_the_rest(&fields)?;

        let heads = fields.needed_size("num_attention_heads")?;
        let hidden = fields.needed_size("hidden_size")?;
        let vocab = fields.needed_size("vocab_size")?;
        let attention_bias = fields.flag("attention_bias")?.unwrap_or(false);
        let mut config = Config {
            family,
            vocab,
            hidden,
            layers: fields.needed_size("num_hidden_layers")?,
            heads,
            kv_heads: fields.size("num_key_value_heads")?.unwrap_or(heads),
            head_dim: fields.size("head_dim")?.unwrap_or(hidden.checked_div(heads).unwrap_or(0)),
            intermediate: fields.needed_size("intermediate_size")?,
            context: fields.needed_size("max_position_embeddings")?.max(rope::stretched_context(&fields)?),
            norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            tied: fields.flag("tie_word_embeddings")?.unwrap_or(false),
            block: Block {
                qkv_bias: attention_bias,
                o_bias: attention_bias,
                activation: block::activation(family.activation(&fields)?)?,
                ..Block::default()
            },
            ropes: Vec::new(),
            attention: Vec::new(),
            bos: generation::ids("bos_token_id", [&generation, &fields], vocab).first().copied(),
            eos: generation::ids("eos_token_id", [&generation, &fields], vocab),
            sampling: SamplingDefaults::read(&generation)?,
        };
        config.check_sizes()?;
        config.block.scales.score_divisor = (config.head_dim as f64).sqrt();
        config.attention = vec![Attention { window: None, rope: 0 }; config.layers];
        family.configure(&fields, &mut config)?;
        if config.ropes.is_empty() {
            config.ropes = vec![rope::read(&fields, config.rope_defaults(10_000.0))?];
        }
        config.check()?;
        Ok(config)
    }

    /// What [`rope::read`] needs to know of a family with one rotation, on whole heads.
    pub(crate) fn rope_defaults(&self, theta: f64) -> rope::Defaults<'static> {
        let Config { head_dim, context, .. } = *self;
        rope::Defaults { theta, layer_type: None, partial: false, head_dim, context }
    }

    /// Sizes that everything below relies on. The limits are far above every known model and keep products of three
    /// sizes inside 64 bits.
    fn check_sizes(&self) -> Result<()> {
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
        check_head_dim(self.head_dim as u64)
    }

    /// Numbers that everything below relies on.
    fn check(&self) -> Result<()> {
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return Err(bad("rms_norm_eps is not a small positive number"));
        }
        self.block.check()?;
        for rope in &self.ropes {
            // Both ends of the context, for a rotation may depend on it.
            for rotation in [rope.rotation(1), rope.rotation(self.context)] {
                let angles = rotation.frequencies.iter().map(|f| f * self.context as f64);
                if !angles.chain([rotation.amplitude]).all(f64::is_finite) {
                    return Err(bad("RoPE has angles that are not finite"));
                }
            }
        }
        Ok(())
    }

    /// A row's queries, keys and values side by side.
    pub(crate) fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Layout of a chunk of KV in 16 bits.
    pub fn kv_layout(&self) -> ChunkLayout {
        self.layout_of(Codec::Kv16)
    }

    /// The same in another form.
    pub fn layout_of(&self, codec: impl Into<Codec>) -> ChunkLayout {
        let kind = LayerKind::Gqa { heads: self.kv_heads, dk: self.head_dim, dv: self.head_dim };
        ChunkLayout::with_windows(codec, self.attention.iter().map(|attention| (kind, attention.window)))
    }

    /// Number of weights.
    pub fn parameters(&self) -> u64 {
        crate::names::parameters(self).map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
    }
}

pub(crate) fn check_head_dim(head_dim: u64) -> Result<()> {
    if head_dim.is_multiple_of(2) && (2..=256).contains(&head_dim) {
        return Ok(());
    }
    Err(Error::Unsupported { what: format!("its head_dim is {head_dim}"), supported: "even head_dim from 2 to 256" })
}

pub(crate) fn bad(what: impl Into<String>) -> Error {
    Error::Config { file: "config.json", what: what.into() }
}
