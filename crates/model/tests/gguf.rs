//! GGUF files made by llama.cpp's own converter are the same models as the directories that they were made from.

mod common;

use common::{fixtures, prompts};
use kvist_model::testing::logits;
use kvist_model::{Checkpoint, Config, ModelSource, OracleExecutor};

/// (directory, file).
fn pairs() -> Vec<(String, ModelSource, ModelSource)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(fixtures().join("gguf")).unwrap().flatten() {
        let file = entry.path();
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        if file.extension().is_some_and(|e| e == "gguf") && fixtures().join(&name).exists() {
            found.push((name.clone(), directory(&name), ModelSource::Gguf(file)));
        }
    }
    assert!(found.len() >= 4, "no GGUF files below {}", fixtures().display());
    found
}

/// What GGUF does not say, as a reader has to take it: which layers of SmolLM3 have no positions (every fourth), and by
/// what Gemma's scores are divided (the root of head_dim), which layers of Gemma 3 have no windows (every sixth);
/// that Mistral has windows at all is lost, and what Phi's
/// attention factor is if it is not by the formula.
const IMPLIED: [(&str, &str, &str); 7] = [
    ("phi4-mini", "/rope_scaling/attention_factor", "1.0"),
    ("mistral", "/model_type", r#""llama""#),
    ("mistral", "/sliding_window", "null"),
    ("smollm3", "/no_rope_layers", "[1, 1, 1]"),
    ("gemma2", "/query_pre_attn_scalar", "24"),
    ("gemma3", "/query_pre_attn_scalar", "16"),
    ("gemma3", "/sliding_window_pattern", "6"),
];

/// The reference model, with what is implied.
fn directory(name: &str) -> ModelSource {
    let implied: Vec<_> = IMPLIED.iter().filter(|(of, ..)| *of == name).collect();
    if implied.is_empty() {
        return common::dir(name);
    }
    let read = |file: &str| std::fs::read(fixtures().join(name).join(file)).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&read("config.json")).unwrap();
    for (_, field, value) in implied {
        *config.pointer_mut(field).unwrap() = serde_json::from_str(value).unwrap();
    }
    ModelSource::Embedded {
        config: config.to_string().into_bytes().leak(),
        generation_config: Some(read("generation_config.json").leak()),
        weights: read("model.safetensors").leak(),
    }
}

/// Everything but what only the file's vocabulary says.
#[test]
fn the_same_configuration() {
    for (name, dir, file) in pairs() {
        let expected = Checkpoint::open(&dir).unwrap();
        let found = Checkpoint::open(&file).unwrap();
        assert!(found.metadata().unwrap().contains_key("tokenizer.ggml.tokens"));
        let (expected, found) = (expected.config(), found.config());
        // The file keeps llama3's scaling as what it does to each frequency, in f32.
        for (expected, found) in expected.ropes.iter().zip(&found.ropes) {
            for context in [64, 2048, 1 << 17] {
                let (expected, found) = (expected.rotation(context), found.rotation(context));
                let close = |e: f64, f: f64| (e - f).abs() <= 1e-6 * e.abs();
                assert!(close(expected.amplitude, found.amplitude), "{name}");
                assert_eq!(expected.frequencies.len(), found.frequencies.len());
                for (e, f) in expected.frequencies.into_iter().zip(found.frequencies) {
                    assert!(close(e, f), "{name}: {e} {f}");
                }
            }
        }
        let last = expected.vocab as u32 - 1;
        assert_eq!((found.bos, found.eos.first()), (expected.bos, expected.eos.first()), "{name}");
        assert_eq!(found.eos.last(), Some(&last), "{name}: the vocabulary's <|im_end|>");
        let same = Config {
            eos: found.eos.clone(),
            sampling: found.sampling.clone(),
            ropes: found.ropes.clone(),
            ..expected.clone()
        };
        assert_eq!(found, &same, "{name}");
    }
}

#[test]
fn the_same_logits() {
    for (name, dir, file) in pairs() {
        let prompts = prompts(&fixtures().join(&name));
        let ids = &prompts.iter().find(|p| (65..=200).contains(&p.ids.len())).unwrap().ids;
        let run = |source| logits(&mut OracleExecutor::new(source, 4, None).unwrap(), ids, &[], 0);
        let (expected, found) = (run(&dir), run(&file));
        let error = expected.iter().zip(&found).map(|(e, f)| (e - f).abs()).fold(0.0, f32::max);
        println!("{name}: {error:e}");
        assert!(error <= 1e-4, "{name}: {error}");
    }
}
