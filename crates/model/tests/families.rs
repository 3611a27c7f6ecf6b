//! Every parameter of every family shows: a model read with another value of it is far from the reference. And one
//! model gives the same logits however its files are written.

mod common;

use std::collections::HashMap;
use std::fs;

use common::{Copy, distance, fixtures, prompts};
use kvist_model::{ModelSource, OracleExecutor, testing};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

fn config(name: &str) -> Value {
    serde_json::from_slice(&fs::read(fixtures().join(name).join("config.json")).unwrap()).unwrap()
}

/// Largest error of the fixture's logits, run by the oracle in `context`, of a copy whose fields are changed; null
/// removes one.
fn error(name: &str, changes: &Value, context: Option<usize>) -> f64 {
    let copy = Copy::of(name);
    let mut fields = config(name);
    for (field, value) in changes.as_object().unwrap() {
        fields[field] = value.clone();
    }
    fs::write(copy.path().join("config.json"), fields.to_string()).unwrap();
    let mut prompts = prompts(&fixtures().join(name));
    prompts.retain(|p| p.ids.len() <= context.unwrap_or(usize::MAX));
    let mut oracle = OracleExecutor::new(&ModelSource::Dir(copy.path().into()), 16, context).unwrap();
    let vocab = oracle.config().vocab;
    let logits = common::run(&prompts, &mut oracle);
    distance(&prompts, vocab, &logits, &logits).max_abs
}

#[test]
fn each_parameter_shows() {
    let cases = [
        ("mistral", json!({"sliding_window": 78})),
        ("mistral", json!({"sliding_window": null})),
        ("gemma2", json!({"sliding_window": 41})),
        ("gemma2", json!({"layer_types": ["full_attention", "sliding_attention"]})),
        ("gemma2", json!({"attn_logit_softcapping": null})),
        ("gemma2", json!({"final_logit_softcapping": null})),
        ("gemma2", json!({"query_pre_attn_scalar": 24})),
        ("gemma2", json!({"hidden_activation": "silu"})),
        // The square root of the width as it is, not rounded to bf16.
        ("gemma2", json!({"torch_dtype": "float32"})),
        ("gemma3", json!({"rope_local_base_freq": 1e6})),
        ("gemma3", json!({"rope_theta": 1e4})),
        ("gemma3", json!({"rope_scaling": null})),
        ("gemma3", json!({"sliding_window_pattern": 3})),
        ("gemma3", json!({"sliding_window": 129})),
        ("phi3", json!({"sliding_window": 199})),
        // The short list, and no attention factor.
        ("phi3", json!({"original_max_position_embeddings": 2048})),
        ("phi4-mini", json!({"original_max_position_embeddings": 2047})),
        ("smollm3", json!({"no_rope_layers": [1, 1, 1]})),
        ("smollm3", json!({"no_rope_layers": null})),
        ("smollm3", json!({"rope_scaling": null})),
        ("granite", json!({"embedding_multiplier": 1.6})),
        ("granite", json!({"attention_multiplier": 0.25})),
        ("granite", json!({"residual_multiplier": 0.65})),
        ("granite", json!({"logits_scaling": 3.1})),
    ];
    for (name, changes) in cases {
        let found = error(name, &changes, None);
        assert!(found > 2e-3, "{name} does not notice {changes}: {found:e}");
    }
}

/// Which list of longrope counts is a matter of the context that the model runs with, not of the prompt.
#[test]
fn longrope_follows_the_context() {
    let same = json!({});
    assert!(error("phi3", &same, None) < 1e-4);
    assert!(error("phi3", &same, Some(257)) < 1e-4);
    assert!(error("phi3", &same, Some(256)) > 5e-3);
}

#[test]
fn other_ways_to_write_a_configuration() {
    let cases = [
        ("mistral", json!({"layer_types": ["sliding_attention", "sliding_attention"]})),
        ("gemma2", json!({"layer_types": ["sliding_attention", "full_attention"], "tie_word_embeddings": true})),
        (
            "gemma3",
            json!({"rope_scaling": null, "rope_theta": null, "rope_local_base_freq": null,
                "sliding_window_pattern": null,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                    "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0}}}),
        ),
        ("smollm3", json!({"no_rope_layers": null, "no_rope_layer_interval": 2})),
        // A window that nothing is outside of.
        (
            "qwen3",
            json!({"use_sliding_window": true, "sliding_window": 600, "max_window_layers": 0, "layer_types": null}),
        ),
    ];
    for (name, changes) in cases {
        let found = error(name, &changes, None);
        assert!(found < 1e-4, "{name} with {changes}: {found:e}");
    }
    let windowed =
        json!({"use_sliding_window": true, "sliding_window": 100, "max_window_layers": 1, "layer_types": null});
    assert!(error("qwen3", &windowed, None) > 5e-3);
}

/// Some exporters store the output matrix of a tied model; it counts where it is not the embedding.
#[test]
fn an_output_matrix_beside_the_embedding_that_it_should_be() {
    let bytes = fs::read(fixtures().join("qwen3/model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let embedding = tensors.tensor("model.embed_tokens.weight").unwrap();
    assert!(config("qwen3")["tie_word_embeddings"] == true && !tensors.names().contains(&"lm_head.weight"));
    let logits = |head: &[u8], tied: bool| {
        let copy = Copy::of("qwen3");
        let mut fields = config("qwen3");
        fields["tie_word_embeddings"] = tied.into();
        fs::write(copy.path().join("config.json"), fields.to_string()).unwrap();
        let head = TensorView::new(embedding.dtype(), embedding.shape().to_vec(), head).unwrap();
        let mut all: HashMap<_, _> = tensors.tensors().into_iter().collect();
        all.insert("lm_head.weight".into(), head);
        safetensors::serialize_to_file(&all, None, &copy.path().join("model.safetensors")).unwrap();
        let mut oracle = OracleExecutor::new(&ModelSource::Dir(copy.path().into()), 4, None).unwrap();
        (oracle.config().tied, testing::logits(&mut oracle, &(0..70).collect::<Vec<_>>(), &[], 0))
    };
    let (same, (_, untied)) = (logits(embedding.data(), true), logits(embedding.data(), false));
    assert!(same.0 && same.1 == untied);
    let mut other = embedding.data().to_vec();
    other.rotate_left(128);
    let (kept, (_, expected)) = (logits(&other, true), logits(&other, false));
    assert!(!kept.0 && kept.1 == expected && kept.1 != untied);
}

/// The text model inside a model that also sees, with the names of older and newer exporters.
#[test]
fn a_text_model_within_another() {
    let bytes = fs::read(fixtures().join("gemma3/model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let ids: Vec<u32> = (0..150).collect();
    let logits = |source| testing::logits(&mut OracleExecutor::new(&source, 4, None).unwrap(), &ids, &[], 0);
    let expected = logits(common::dir("gemma3"));
    for (prefix, vision) in
        [("language_model.model.", "vision_tower.x"), ("model.language_model.", "model.vision_tower.x")]
    {
        let copy = Copy::of("gemma3");
        let mut text = config("gemma3");
        let whole = json!({"model_type": "gemma3", "eos_token_id": [1, 106], "vision_config": {"hidden_size": 8},
            "vocab_size": null, "torch_dtype": text["torch_dtype"].take(), "text_config": text});
        fs::write(copy.path().join("config.json"), whole.to_string()).unwrap();
        let rename = |name: &str| name.replacen("model.", prefix, 1);
        let mut renamed: HashMap<_, _> = tensors.tensors().into_iter().map(|(n, t)| (rename(&n), t)).collect();
        renamed.insert(vision.into(), tensors.tensor("model.norm.weight").unwrap());
        let write = |tensors: &HashMap<_, _>| {
            safetensors::serialize_to_file(tensors, None, &copy.path().join("model.safetensors")).unwrap()
        };
        write(&renamed);
        assert!(logits(ModelSource::Dir(copy.path().into())) == expected, "{prefix}");
        // What is not known to be needless is not passed over.
        renamed.insert("audio_tower.x".into(), tensors.tensor("model.norm.weight").unwrap());
        write(&renamed);
        assert!(OracleExecutor::new(&ModelSource::Dir(copy.path().into()), 4, None).is_err());
    }
}
