//! Both dialects of RoPE configuration, defaults, and clear refusals.

use kvist_model::{Config, Error, Family, RopeScaling};
use serde_json::{Value, json};

fn base() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 1000, "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "bos_token_id": 1, "eos_token_id": 2
    })
}

/// `base` with some fields replaced; null removes one.
fn with(changes: Value) -> Value {
    let mut fields = base();
    for (name, value) in changes.as_object().unwrap() {
        fields[name] = value.clone();
    }
    fields.as_object_mut().unwrap().retain(|_, v| !v.is_null());
    fields
}

fn parse(changes: Value) -> Result<Config, Error> {
    Config::parse(with(changes).to_string().as_bytes(), None)
}

#[test]
fn families() {
    let llama = parse(json!({})).unwrap();
    assert_eq!((llama.family, llama.head_dim, llama.kv_heads, llama.tied), (Family::Llama, 16, 2, false));
    assert_eq!((llama.qkv_bias, llama.o_bias, llama.qk_norm), (false, false, false));
    assert_eq!((llama.bos, llama.eos), (Some(1), vec![2]));
    let qwen2 = parse(json!({"model_type": "qwen2", "use_sliding_window": false, "sliding_window": 4096})).unwrap();
    assert_eq!((qwen2.qkv_bias, qwen2.o_bias, qwen2.qk_norm), (true, false, false));
    let qwen3 = parse(json!({"model_type": "qwen3"})).unwrap();
    assert_eq!((qwen3.qkv_bias, qwen3.qk_norm, qwen3.head_dim), (false, true, 128));
    let biased = parse(json!({"attention_bias": true})).unwrap();
    assert!(biased.qkv_bias && biased.o_bias);
    let mha = parse(json!({"num_key_value_heads": null, "head_dim": 32, "tie_word_embeddings": true})).unwrap();
    assert_eq!((mha.kv_heads, mha.head_dim, mha.tied), (4, 32, true));
    // 2 layers, 4 kv-heads, 32 dimensions, K and V in bf16
    assert_eq!(mha.kv_layout().token_bytes(), 2 * 4 * 32 * 2 * 2);
}

#[test]
fn rope_in_both_dialects() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let old = parse(json!({"rope_theta": 500000.0, "rope_scaling": llama3})).unwrap().rope;
    let mut inside = llama3;
    inside["rope_theta"] = json!(500000.0);
    let new = parse(json!({"rope_parameters": inside})).unwrap().rope;
    assert_eq!(old, new);
    assert_eq!(old.theta, 500000.0);
    let expected =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192.0 };
    assert_eq!(old.scaling, expected);

    let plain = parse(json!({})).unwrap().rope;
    assert_eq!((plain.theta, &plain.scaling), (10000.0, &RopeScaling::None));
    let default = parse(json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}})).unwrap().rope;
    assert_eq!((default.theta, default.scaling), (1e6, RopeScaling::None));
    let linear = parse(json!({"rope_scaling": {"type": "linear", "factor": 2.0}})).unwrap().rope;
    assert_eq!(linear.scaling, RopeScaling::Linear { factor: 2.0 });
}

#[test]
fn unsupported_models_are_refused_by_what_they_need() {
    let cases = [
        (json!({"model_type": "gemma3"}), "gemma3"),
        (json!({"model_type": "mistral"}), "mistral"),
        (json!({"model_type": "qwen3_moe"}), "qwen3_moe"),
        (json!({"hidden_act": "gelu"}), "gelu"),
        (json!({"use_sliding_window": true}), "sliding"),
        (json!({"layer_types": ["full_attention", "sliding_attention"]}), "sliding"),
        (json!({"quantization_config": {"quant_method": "awq"}}), "quantised"),
        (json!({"mlp_bias": true}), "MLP"),
        (json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}), "dynamic"),
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}), "yarn"),
        (json!({"rope_scaling": {"rope_type": 3}}), "3"),
        (json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}), "per layer type"),
        (json!({"partial_rotary_factor": 0.5}), "0.5"),
        (json!({"head_dim": 17}), "17"),
        (json!({"head_dim": 512}), "512"),
    ];
    for (changes, word) in cases {
        match parse(changes.clone()) {
            Err(error @ Error::Unsupported { .. }) => {
                assert!(error.to_string().contains(word), "{changes}: {error}");
                assert!(error.hint().starts_with("supported: "), "{changes}");
            }
            other => panic!("{changes}: {other:?}"),
        }
    }
    // A family that is not supported is named even where its other fields are unknown to us.
    assert!(matches!(Config::parse(br#"{"model_type": "mamba"}"#, None), Err(Error::Unsupported { .. })));
}

#[test]
fn damaged_configurations() {
    let cases = [
        json!({"model_type": null}),
        json!({"vocab_size": null}),
        json!({"vocab_size": 0}),
        json!({"vocab_size": -1}),
        json!({"hidden_size": 1u64 << 60}),
        json!({"num_hidden_layers": 1u64 << 40}),
        json!({"num_attention_heads": 0}),
        json!({"num_key_value_heads": 3}),
        json!({"max_position_embeddings": 0}),
        json!({"rms_norm_eps": -1.0}),
        json!({"rope_theta": -5.0}),
        json!({"rope_theta": "big"}),
        json!({"rope_scaling": {"rope_type": "linear"}}),
        json!({"rope_scaling": {"rope_type": "linear", "factor": 0.0}}),
        json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}}),
    ];
    for changes in cases {
        match parse(changes.clone()) {
            Err(Error::Config { .. }) => {}
            other => panic!("{changes}: {other:?}"),
        }
    }
    for bytes in ["", "{", "[]", "null", "\u{0}"] {
        assert!(matches!(Config::parse(bytes.as_bytes(), None), Err(Error::Config { .. })), "{bytes:?}");
    }
}

#[test]
fn generation_config_wins_and_impossible_ids_are_dropped() {
    let config = with(json!({"eos_token_id": [5, 100000, 7]})).to_string();
    assert_eq!(Config::parse(config.as_bytes(), None).unwrap().eos, [5, 7]);
    let generation =
        br#"{"eos_token_id": [3, 4], "bos_token_id": 9, "do_sample": true, "temperature": 0.6, "top_k": 20,
        "transformers_version": "5"}"#;
    let parsed = Config::parse(config.as_bytes(), Some(generation)).unwrap();
    assert_eq!((parsed.bos, parsed.eos), (Some(9), vec![3, 4]));
    assert_eq!((parsed.sampling.temperature, parsed.sampling.top_k), (Some(0.6), Some(20)));
    assert_eq!((parsed.sampling.top_p, parsed.sampling.do_sample), (None, Some(true)));
    assert!(matches!(
        Config::parse(config.as_bytes(), Some(b"{")),
        Err(Error::Config { file: "generation_config.json", .. })
    ));
    let none = with(json!({"eos_token_id": null, "bos_token_id": null})).to_string();
    let none = Config::parse(none.as_bytes(), None).unwrap();
    assert_eq!((none.bos, none.eos), (None, vec![]));
}
