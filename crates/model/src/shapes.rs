//! Shapes of well-known models by name, for benchmarks with random weights.

use crate::config::{Config, Family, SamplingDefaults};
use crate::error::{Error, Result};
use crate::rope::{Rope, RopeScaling};

pub const NAMES: [&str; 2] = ["llama-3.2-1b", "qwen2.5-0.5b"];

/// The configuration of a shape in [`NAMES`].
pub fn by_name(name: &str) -> Result<Config> {
    match name {
        "llama-3.2-1b" => Ok(Config {
            family: Family::Llama,
            vocab: 128_256,
            hidden: 2048,
            layers: 16,
            heads: 32,
            kv_heads: 8,
            head_dim: 64,
            intermediate: 8192,
            context: 131_072,
            norm_eps: 1e-5,
            rope: Rope {
                theta: 500_000.0,
                scaling: RopeScaling::Llama3 {
                    factor: 32.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original_context: 8192.0,
                },
            },
            tied: true,
            qkv_bias: false,
            o_bias: false,
            qk_norm: false,
            bos: Some(128_000),
            eos: vec![128_001, 128_008, 128_009],
            sampling: SamplingDefaults::default(),
        }),
        "qwen2.5-0.5b" => Ok(Config {
            family: Family::Qwen2,
            vocab: 151_936,
            hidden: 896,
            layers: 24,
            heads: 14,
            kv_heads: 2,
            head_dim: 64,
            intermediate: 4864,
            context: 32_768,
            norm_eps: 1e-6,
            rope: Rope { theta: 1_000_000.0, scaling: RopeScaling::None },
            tied: true,
            qkv_bias: true,
            o_bias: false,
            qk_norm: false,
            bos: Some(151_643),
            eos: vec![151_645, 151_643],
            sampling: SamplingDefaults::default(),
        }),
        _ => Err(Error::Shape { name: name.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_published_models() {
        assert_eq!(by_name("llama-3.2-1b").unwrap().parameters(), 1_235_814_400);
        assert_eq!(by_name("qwen2.5-0.5b").unwrap().parameters(), 494_032_768);
        assert_eq!(by_name("llama-3.2-1b").unwrap().kv_layout().token_bytes(), 32 << 10);
        for name in NAMES {
            by_name(name).unwrap();
        }
        assert!(matches!(by_name("llama"), Err(Error::Shape { .. })));
    }
}
