//! Shapes of well-known models by name, for benchmarks with random weights.

use serde_json::json;

use crate::config::Config;
use crate::error::{Error, Result};

pub const NAMES: [&str; 2] = ["llama-3.2-1b", "qwen2.5-0.5b"];

/// The configuration of a shape in [`NAMES`].
pub fn by_name(name: &str) -> Result<Config> {
    let fields = match name {
        "llama-3.2-1b" => json!({
            "model_type": "llama", "vocab_size": 128_256, "hidden_size": 2048, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 8192,
            "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192
            },
            "bos_token_id": 128_000, "eos_token_id": [128_001, 128_008, 128_009]
        }),
        "qwen2.5-0.5b" => json!({
            "model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 896, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864,
            "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
            "rope_theta": 1_000_000.0, "bos_token_id": 151_643, "eos_token_id": [151_645, 151_643]
        }),
        _ => return Err(Error::Shape { name: name.into() }),
    };
    Config::from_values(fields, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_published_models() {
        assert_eq!(by_name("llama-3.2-1b").unwrap().parameters(), 1_235_814_400);
        assert_eq!(by_name("qwen2.5-0.5b").unwrap().parameters(), 494_032_768);
        assert_eq!(by_name("llama-3.2-1b").unwrap().kv_layout().token_bytes(), (32 << 10) + 512);
        for name in NAMES {
            by_name(name).unwrap();
        }
        assert!(matches!(by_name("llama"), Err(Error::Shape { .. })));
    }
}
