//! Both dialects of RoPE configuration, defaults, and clear refusals.

use kvist_model::{Activation, Config, Error, Family, QkNorm, Rope, RopeScaling, SamplingDefaults};
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

/// The only rotation of a model.
fn rope(changes: Value) -> Result<Rope, Error> {
    let mut ropes = parse(changes)?.ropes;
    assert_eq!(ropes.len(), 1);
    Ok(ropes.remove(0))
}

fn parse(changes: Value) -> Result<Config, Error> {
    Config::parse(with(changes).to_string().as_bytes(), None)
}

#[test]
fn families() {
    let llama = parse(json!({})).unwrap();
    assert_eq!((llama.family, llama.head_dim, llama.kv_heads, llama.tied), (Family::Llama, 16, 2, false));
    let block = |c: &Config| (c.block.qkv_bias, c.block.o_bias, c.block.qk_norm);
    assert_eq!(block(&llama), (false, false, QkNorm::None));
    assert_eq!((llama.bos, llama.eos), (Some(1), vec![2]));
    let qwen2 = parse(json!({"model_type": "qwen2", "use_sliding_window": false, "sliding_window": 4096})).unwrap();
    assert_eq!(block(&qwen2), (true, false, QkNorm::None));
    assert!(qwen2.attention.iter().all(|a| a.window.is_none()));
    let qwen3 = parse(json!({"model_type": "qwen3"})).unwrap();
    assert_eq!((block(&qwen3), qwen3.head_dim), ((false, false, QkNorm::Head), 128));
    let biased = parse(json!({"attention_bias": true})).unwrap();
    assert_eq!(block(&biased), (true, true, QkNorm::None));
    let mha = parse(json!({"num_key_value_heads": null, "head_dim": 32, "tie_word_embeddings": true})).unwrap();
    assert_eq!((mha.kv_heads, mha.head_dim, mha.tied), (4, 32, true));
    // 2 layers, 4 kv-heads, K and V of 32 dimensions and a scale in 16 bits
    assert_eq!(mha.kv_layout().token_bytes(), 2 * 4 * 2 * (32 + 1) * 2);
}

/// The defaults of the classes in transformers 5.23: what a file may leave out.
#[test]
fn what_files_leave_out() {
    // (model_type, kv-heads of 32, head_dim, windows of 2 layers, eps, theta, tied)
    let (none, all) = ([None; 2], [Some(4096); 2]);
    let cases = [
        ("llama", 32, 16, none, 1e-6, 1e4, false),
        ("mistral", 8, 16, all, 1e-6, 1e4, false),
        ("qwen2", 32, 16, all, 1e-6, 1e4, false),
        ("qwen3", 32, 128, all, 1e-6, 1e4, false),
        ("gemma2", 4, 256, [Some(4096), None], 1e-6, 1e4, true),
        ("gemma3_text", 4, 256, all, 1e-6, 1e6, true),
        ("phi3", 32, 16, none, 1e-5, 1e4, false),
        ("smollm3", 4, 16, none, 1e-6, 2e6, true),
        ("olmo2", 32, 16, none, 1e-5, 1e4, false),
        ("granite", 32, 16, none, 1e-6, 1e4, false),
    ];
    for (name, kv_heads, head_dim, windows, eps, theta, tied) in cases {
        let used = name.starts_with("qwen").then_some(true);
        let config = parse(json!({"model_type": name, "num_attention_heads": 32, "hidden_size": 512,
            "num_key_value_heads": null, "max_position_embeddings": 8192, "rms_norm_eps": null,
            "use_sliding_window": used, "max_window_layers": used.map(|_| 0)}));
        let config = config.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((config.kv_heads, config.head_dim, config.tied), (kv_heads, head_dim, tied), "{name}");
        assert_eq!(config.attention.iter().map(|a| a.window).collect::<Vec<_>>(), windows, "{name}");
        assert_eq!((config.norm_eps, config.ropes[0].theta), (eps, theta), "{name}");
    }
    let factors = json!({"type": "longrope", "short_factor": vec![1; 8], "long_factor": vec![2; 8]});
    match rope(json!({"model_type": "phi3", "max_position_embeddings": 131_072, "rope_scaling": factors})).unwrap() {
        Rope { scaling: RopeScaling::LongRope { original_context, .. }, .. } => assert_eq!(original_context, 4096.0),
        other => panic!("{other:?}"),
    }
    // A null is not left out.
    let mut mistral = with(json!({"model_type": "mistral", "max_position_embeddings": 8192}));
    mistral["sliding_window"] = Value::Null;
    let mistral = Config::parse(mistral.to_string().as_bytes(), None).unwrap();
    assert!(mistral.attention.iter().all(|a| a.window.is_none()));
    // The name of a function that Gemma does not read need not be known.
    let gate = json!({"model_type": "gemma2", "hidden_act": "gelu", "hidden_activation": "silu"});
    assert_eq!(parse(gate).unwrap().block.activation, Activation::Silu);
    // Gemma 3 has a field that nothing computes, and one that is.
    let caps = json!({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0});
    let block = parse(caps).unwrap().block;
    assert_eq!((block.score_cap, block.logit_cap), (None, Some(30.0)));
}

#[test]
fn rope_in_both_dialects() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let old = rope(json!({"rope_theta": 500000.0, "rope_scaling": llama3})).unwrap();
    let mut inside = llama3;
    inside["rope_theta"] = json!(500000.0);
    let new = rope(json!({"rope_parameters": inside})).unwrap();
    assert_eq!(old, new);
    assert_eq!(old.theta, 500000.0);
    let expected =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192.0 };
    assert_eq!(old.scaling, expected);

    let plain = rope(json!({})).unwrap();
    assert_eq!((plain.theta, &plain.scaling), (10000.0, &RopeScaling::None));
    let default = rope(json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}})).unwrap();
    assert_eq!((default.theta, default.scaling), (1e6, RopeScaling::None));
    let linear = rope(json!({"rope_scaling": {"type": "linear", "factor": 2.0}})).unwrap();
    assert_eq!(linear.scaling, RopeScaling::Linear { factor: 2.0 });
}

#[test]
fn rope_dialects_may_be_mixed_but_not_contradict() {
    let linear = Rope { theta: 1e6, rotary: 16, scaling: RopeScaling::Linear { factor: 4.0 } };
    let same = [
        json!({"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 4}}),
        json!({"rope_parameters": {"rope_theta": 1e6}, "rope_scaling": {"type": "linear", "factor": 4}}),
        json!({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0},
            "rope_scaling": {"type": "linear", "factor": 4}}),
        json!({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0}, "rope_scaling": {}}),
        // Nulls are not there.
        json!({"rope_theta": 1e6, "rope_parameters": {"rope_type": null, "rope_theta": null, "factor": null},
            "rope_scaling": {"rope_type": "linear", "type": null, "factor": 4.0, "low_freq_factor": null}}),
    ];
    for changes in same {
        assert_eq!(rope(changes.clone()).unwrap(), linear, "{changes}");
    }
    let wrong = [
        json!({"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 4}}),
        json!({"rope_parameters": {"rope_theta": 1e6, "factor": 2.0}, "rope_scaling": {"type": "linear", "factor": 4}}),
        // Scaling without saying how.
        json!({"rope_scaling": {"factor": 4.0}}),
        json!({"rope_parameters": {"rope_theta": 1e6, "low_freq_factor": 1.0}}),
        json!({"rope_parameters": {"rope_theta": 1e6}, "rope_scaling": {"factor": 4.0}}),
        json!({"rope_parameters": [1]}),
        // Angles that are not finite.
        json!({"rope_scaling": {"type": "linear", "factor": 1e-308}}),
        json!({"rope_scaling": {"type": "llama3", "factor": 1e-308, "low_freq_factor": 1e-300, "high_freq_factor": 1e300,
            "original_max_position_embeddings": 8192}}),
        json!({"rope_scaling": {"type": "yarn", "factor": 1e-308, "original_max_position_embeddings": 512}}),
    ];
    for changes in wrong {
        match rope(changes.clone()) {
            Err(Error::Config { file: "config.json", .. }) => {}
            other => panic!("{changes}: {other:?}"),
        }
    }
}

/// Against the numbers of transformers 5.23 (`ROPE_INIT_FUNCTIONS`) for the published configurations.
#[test]
fn yarn_and_longrope() {
    let qwen = json!({"head_dim": 128, "rope_theta": 1e6, "max_position_embeddings": 32768,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}});
    // The page of Qwen2.5 says so, and means a context of four times 32768: --ctx 131072 was refused.
    assert_eq!(parse(qwen.clone()).unwrap().context, 131_072);
    let rotation = rope(qwen).unwrap().rotation(32768);
    assert!((rotation.amplitude - 1.138_629_436_111_989).abs() < 1e-12);
    for (pair, expected) in YARN {
        assert!((rotation.frequencies[pair] / expected - 1.0).abs() < 1e-5, "{pair}: {}", rotation.frequencies[pair]);
    }
    let factors = |n: usize, of: f64| (0..n).map(|i| 1.0 + of * i as f64).collect::<Vec<_>>();
    let phi4 = |context: usize| {
        json!({"model_type": "phi3", "head_dim": 32, "partial_rotary_factor": 0.75,
        "max_position_embeddings": context, "original_max_position_embeddings": 4096, "sliding_window": 262144,
        "rope_scaling": {"type": "longrope", "short_factor": factors(12, 0.0), "long_factor": factors(12, 0.5)}})
    };
    let long = rope(phi4(131_072)).unwrap();
    assert_eq!(long.rotary, 24);
    assert!((long.rotation(131_072).amplitude - 1.190_238_071_423_808_3).abs() < 1e-12);
    assert!(long.rotation(131_072).frequencies[2] < long.rotation(4096).frequencies[2]);
    assert_eq!(rope(phi4(4096)).unwrap().rotation(4096).amplitude, 1.0);
    for name in ["short_factor", "long_factor"] {
        for list in [json!(null), json!([1.0]), json!(vec!["1.0"; 12]), json!(vec![0.0; 12]), json!(1.0)] {
            let mut changes = phi4(131_072);
            changes["rope_scaling"][name] = list;
            assert!(matches!(rope(changes), Err(Error::Config { .. })));
        }
    }
}

/// (pair, inverse frequency)
const YARN: [(usize, f64); 5] = [
    (0, 1.0),
    (20, 0.013_335_214_927_792_55),
    (30, 0.001_064_360_956_661_402_3),
    (35, 0.000_246_258_394_327_014_7),
    (63, 3.102_344_408_034_696e-7),
];

#[test]
fn windows() {
    let of = |changes: Value| parse(changes).unwrap().attention.iter().map(|a| a.window).collect::<Vec<_>>();
    let mistral = |window: Value| json!({"model_type": "mistral", "sliding_window": window});
    assert_eq!(of(mistral(json!(512))), [Some(512); 2]);
    assert_eq!(of(mistral(json!(null))), [None; 2]);
    // One that nothing is outside of.
    assert_eq!(of(mistral(json!(2048))), [None; 2]);
    assert_eq!(of(mistral(json!(1u64 << 40))), [None; 2]);
    let qwen = json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 7, "max_window_layers": 1});
    assert_eq!(of(qwen.clone()), [None, Some(7)]);
    assert_eq!(parse(qwen).unwrap().kv_layout().windows, [None, Some(7)]);
    // The layers of Gemma 3 that slide turn in their own way.
    let gemma = parse(json!({"model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window": 9})).unwrap();
    let ropes: Vec<_> = gemma.attention.iter().map(|a| (a.window, gemma.ropes[a.rope].theta)).collect();
    assert_eq!(ropes[4..], [(Some(9), 1e4), (None, 1e6), (Some(9), 1e4)]);
    for changes in [
        mistral(json!(0)),
        mistral(json!(-1)),
        mistral(json!("big")),
        json!({"model_type": "smollm3", "layer_types": ["sliding_attention", "full_attention"]}),
        json!({"model_type": "mistral", "layer_types": ["full_attention"]}),
        json!({"model_type": "mistral", "layer_types": [1, 2]}),
        json!({"model_type": "smollm3", "no_rope_layers": [1]}),
        json!({"model_type": "gemma3"}),
        json!({"model_type": "gemma2", "attn_logit_softcapping": 0.0}),
        json!({"model_type": "gemma2", "final_logit_softcapping": 1e39}),
        json!({"model_type": "granite", "logits_scaling": 0}),
        json!({"model_type": "granite", "attention_multiplier": 1e-320}),
    ] {
        assert!(matches!(parse(changes.clone()), Err(Error::Config { .. })), "{changes}");
    }
}

/// As published: most of the sizes of Gemma 3 are left out. Its text part may name one token that ends a reply where the
/// whole names two: with the first alone, chats ran past <end_of_turn>.
#[test]
fn gemma3_within_a_model_that_sees() {
    let config = json!({"model_type": "gemma3", "eos_token_id": [1, 106], "torch_dtype": "bfloat16",
        "vision_config": {"hidden_size": 1152},
        "text_config": {"model_type": "gemma3_text", "eos_token_id": 1, "hidden_size": 2560, "intermediate_size": 10240,
            "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}});
    let gemma = Config::parse(config.to_string().as_bytes(), None).unwrap();
    assert_eq!(
        (gemma.vocab, gemma.heads, gemma.kv_heads, gemma.head_dim, gemma.context),
        (262_208, 8, 4, 256, 131_072)
    );
    assert_eq!((gemma.eos.as_slice(), gemma.tied), (&[1, 106][..], true));
    // sqrt(2560) = 50.596, rounded to bf16.
    assert_eq!((gemma.block.scales.embedding, gemma.block.scales.score_divisor), (50.5, 16.0));
    assert_eq!((gemma.block.score_cap, gemma.block.logit_cap), (None, None));
    assert_eq!(gemma.ropes[0].scaling, RopeScaling::Linear { factor: 8.0 });
    assert_eq!(gemma.ropes[1].scaling, RopeScaling::None);
    assert_eq!(gemma.attention.iter().filter(|a| a.window.is_none()).count(), 5);
    assert_eq!(gemma.parameters(), 3_880_263_168);
}

#[test]
fn head_sizes_and_activations() {
    for head_dim in [2, 4, 6, 256] {
        assert_eq!(parse(json!({"head_dim": head_dim})).unwrap().head_dim, head_dim);
    }
    let silu = parse(json!({"hidden_act": "silu"})).unwrap().block;
    assert_eq!(parse(json!({"hidden_act": "swish"})).unwrap().block, silu);
    assert_ne!(parse(json!({"hidden_act": "gelu_pytorch_tanh"})).unwrap().block, silu);
}

#[test]
fn unsupported_models_are_refused_by_what_they_need() {
    let cases = [
        (json!({"model_type": "gemma3n"}), "gemma3n"),
        (json!({"model_type": "mixtral"}), "mixtral"),
        (json!({"model_type": "qwen3_moe"}), "qwen3_moe"),
        (json!({"hidden_act": "gelu"}), "gelu"),
        (json!({"use_sliding_window": true}), "sliding"),
        (json!({"layer_types": ["full_attention", "sliding_attention"]}), "sliding"),
        (json!({"quantization_config": {"quant_method": "awq"}}), "quantised"),
        (json!({"mlp_bias": true}), "MLP"),
        (json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}), "dynamic"),
        (json!({"rope_scaling": {"rope_type": "mrope", "factor": 2.0}}), "mrope"),
        (
            json!({"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"full_attention": {}}}),
            "per layer type",
        ),
        (json!({"model_type": "phi3", "partial_rotary_factor": 0.9375}), "15 elements"),
        (json!({"model_type": "phi3", "partial_rotary_factor": 1.5}), "1.5"),
        (json!({"model_type": "mistral", "layer_types": ["full_attention", "linear_attention"]}), "linear_attention"),
        (json!({"model_type": "gemma3_text", "use_bidirectional_attention": true}), "both directions"),
        (json!({"rope_scaling": {"rope_type": 3}}), "3"),
        (json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}), "per layer type"),
        (json!({"partial_rotary_factor": 0.5}), "0.5"),
        (json!({"head_dim": 17}), "17"),
        (json!({"head_dim": 512}), "512"),
        (json!({"head_dim": 0}), "0"),
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
    let deep = format!("{{\"hidden_size\": [{}0]}}", "[[0]],".repeat(50_000));
    assert!(parse(json!({})).is_ok());
    for bytes in ["", "{", "[]", "null", "\u{0}", &deep] {
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
    // What cannot be generated does not end a reply, so it does not stand for what does.
    for eos in [json!([]), json!([100_000]), json!(100_000), json!(null), json!(-1)] {
        let generation = json!({"eos_token_id": eos, "bos_token_id": eos}).to_string();
        let parsed = Config::parse(config.as_bytes(), Some(generation.as_bytes())).unwrap();
        assert_eq!((parsed.bos, parsed.eos), (Some(1), vec![5, 7]), "{eos}");
    }
    // Those of Llama's class, unless the file says that there are none.
    let default = parse(json!({"eos_token_id": null, "bos_token_id": null})).unwrap();
    assert_eq!((default.bos, default.eos), (Some(1), vec![2]));
    let mut none = base();
    none["eos_token_id"] = Value::Null;
    none["bos_token_id"] = Value::Null;
    let none = Config::parse(none.to_string().as_bytes(), None).unwrap();
    assert_eq!((none.bos, none.eos), (None, vec![]));
}

#[test]
fn sampling_that_cannot_be_is_refused() {
    let config = base().to_string();
    let parse = |generation: &str| Config::parse(config.as_bytes(), Some(generation.as_bytes())).map(|c| c.sampling);
    for empty in ["", " \n", "{}"] {
        assert_eq!(parse(empty).unwrap(), SamplingDefaults::default(), "{empty:?}");
    }
    let given = parse(r#"{"temperature": 0, "top_p": 1, "top_k": 50.0, "repetition_penalty": 1.1}"#).unwrap();
    assert_eq!((given.temperature, given.top_p, given.top_k), (Some(0.0), Some(1.0), Some(50)));
    assert_eq!(given.repetition_penalty, Some(1.1));
    let nulls = r#"{"temperature": null, "top_p": null, "top_k": null, "repetition_penalty": null, "do_sample": null}"#;
    assert_eq!(parse(nulls).unwrap(), SamplingDefaults::default());
    assert_eq!(parse(r#"{"top_k": -1}"#).unwrap().top_k, Some(-1));
    for wrong in [
        r#"{"temperature": -0.1}"#,
        r#"{"temperature": 1e39}"#,
        r#"{"temperature": "hot"}"#,
        r#"{"top_p": 0}"#,
        r#"{"top_p": 1.01}"#,
        r#"{"top_p": 1e-60}"#,
        r#"{"top_p": true}"#,
        r#"{"top_k": 1.5}"#,
        r#"{"top_k": 1e300}"#,
        r#"{"top_k": "all"}"#,
        r#"{"repetition_penalty": 0}"#,
        r#"{"repetition_penalty": -1.0}"#,
        r#"{"repetition_penalty": []}"#,
        r#"{"do_sample": 1}"#,
        "[]",
        "{",
    ] {
        match parse(wrong) {
            Err(Error::Config { file: "generation_config.json", .. }) => {}
            other => panic!("{wrong}: {other:?}"),
        }
    }
}
