//! GGUF files: their metadata as the JSON of Hugging Face's `config.json` and `generation_config.json`, so that
//! `config.rs` stays the only place that knows families, and their tensors under Hugging Face names.
//!
//! What llama.cpp's converter does to a model, and is undone here (its scripts, build of 2026): query and key rows of
//! some families are interleaved; the norms of Gemma have 1 added; RoPE scalings become factors by which the
//! frequencies are divided, in tensors of their own; windows and activations are implied by the family.

mod keys;
mod names;
mod rope;
mod tokens;

use kvist_weights::Gguf;
use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::error::{Error, Result};
use keys::Keys;

pub(crate) use names::{Names, is_configuration};

/// What is particular to a `general.architecture`.
pub(crate) struct Architecture {
    name: &'static str,
    /// In `config.json`.
    model_type: &'static str,
    /// Query and key rows are interleaved.
    interleaved: bool,
    /// A norm follows attention and MLP, under a name of its own.
    post_norms: bool,
    /// Norm weights have 1 added.
    norms_from_one: bool,
}

const fn plain(name: &'static str) -> Architecture {
    Architecture { name, model_type: name, interleaved: false, post_norms: false, norms_from_one: false }
}

const ARCHITECTURES: [Architecture; 9] = [
    // Mistral files are of this architecture, too.
    Architecture { interleaved: true, ..plain("llama") },
    plain("qwen2"),
    plain("qwen3"),
    Architecture { post_norms: true, norms_from_one: true, ..plain("gemma2") },
    Architecture { model_type: "gemma3_text", post_norms: true, norms_from_one: true, ..plain("gemma3") },
    plain("phi3"),
    Architecture { interleaved: true, ..plain("smollm3") },
    Architecture { post_norms: true, ..plain("olmo2") },
    Architecture { interleaved: true, ..plain("granite") },
];

const SUPPORTED: &str = "GGUF files of llama (also Mistral), qwen2, qwen3, gemma2, gemma3, phi3, smollm3, olmo2 and \
                         granite";

/// Reads the configuration of a file.
pub(crate) fn config(file: &Gguf) -> Result<(Config, Names)> {
    let name = file.get("general.architecture").and_then(|v| v.as_str()).unwrap_or_default();
    let Some(architecture) = ARCHITECTURES.iter().find(|a| a.name == name) else {
        return Err(Error::Unsupported { what: format!("its architecture is {}", shown(name)), supported: SUPPORTED });
    };
    let keys = Keys { file, architecture };
    let config =
        Config::from_values(config_json(&keys)?, Some(tokens::generation_json(&keys))).map_err(
            |error| match error {
                Error::Config { what, .. } => bad(what),
                other => other,
            },
        )?;
    Ok((config, Names { architecture }))
}

fn bad(what: impl Into<String>) -> Error {
    Error::Config { file: "the GGUF file", what: what.into() }
}

/// What `config.json` of the same model says.
fn config_json(keys: &Keys) -> Result<Value> {
    let family = keys.architecture.name;
    let embedding = keys.file.tensors.shape("token_embd.weight").unwrap_or_default();
    let [vocab, hidden] = *embedding else {
        return Err(bad("no tensor token_embd.weight of two dimensions"));
    };
    let heads = keys.uniform("attention.head_count")?.ok_or_else(|| bad("no attention.head_count"))?;
    let layers = keys.needed("block_count")?;
    let head_dim = match keys.count("attention.key_length")? {
        Some(n) => n,
        None => hidden as u64 / heads.max(1),
    };
    if keys.count("attention.value_length")?.is_some_and(|n| n != head_dim) {
        return Err(unsupported(
            "its keys and values differ in length",
            "heads whose keys and values are equally long",
        ));
    }
    if keys.count("expert_count")?.is_some_and(|n| n > 0) {
        return Err(unsupported("it is a mixture of experts", "dense models"));
    }
    let mut out = json!({
        "model_type": keys.architecture.model_type,
        "vocab_size": vocab,
        "hidden_size": keys.needed("embedding_length")?,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.uniform("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        "intermediate_size": keys.uniform("feed_forward_length")?.ok_or_else(|| bad("no feed_forward_length"))?,
        "max_position_embeddings": keys.needed("context_length")?,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon")?,
        "tie_word_embeddings": keys.file.tensors.shape("output.weight").is_none(),
        "attention_bias": keys.file.tensors.contains("blk.0.attn_q.bias"),
        // Those of the vocabulary, if it has any: see `tokens`.
        "bos_token_id": null,
        "eos_token_id": null,
    });
    let fields = out.as_object_mut().expect("an object");
    let mut set = |name: &str, value: Value| fields.insert(name.into(), value);
    match family {
        "gemma2" | "gemma3" => {
            // The file does not say; only the largest model of either family divides by something else than head_dim.
            let largest = if family == "gemma2" { 46 } else { 62 };
            let scale = if layers == largest { hidden as u64 / heads.max(1) } else { head_dim };
            set("query_pre_attn_scalar", scale.into());
            let (attention, last) = if family == "gemma2" { (json!(50.0), json!(30.0)) } else { Default::default() };
            set("attn_logit_softcapping", keys.number("attn_logit_softcapping")?.unwrap_or(attention));
            set("final_logit_softcapping", keys.number("final_logit_softcapping")?.unwrap_or(last));
        }
        "granite" => {
            let names = [
                ("embedding_multiplier", "embedding_scale"),
                ("attention_multiplier", "attention.scale"),
                ("residual_multiplier", "residual_scale"),
                ("logits_scaling", "logit_scale"),
            ];
            for (name, key) in names {
                // Those that are left out are 1 (attention: by head_dim).
                if let Some(value) = keys.number(key)? {
                    set(name, value);
                } else if name == "attention_multiplier" {
                    set(name, json!(1.0 / (head_dim as f64).sqrt()));
                }
            }
        }
        // The file does not say: every fourth layer has no positions.
        "smollm3" => drop(set("no_rope_layers", (1..=layers).map(|l| (l % 4 != 0) as u8).collect())),
        _ => {}
    }
    windows(keys, layers, fields)?;
    rope::parameters(keys, head_dim, fields)?;
    Ok(out)
}

/// Sliding windows. A window of 0 is none.
fn windows(keys: &Keys, layers: u64, out: &mut Map<String, Value>) -> Result<()> {
    let family = keys.architecture.name;
    let window = keys.count("attention.sliding_window")?.or((family == "gemma2").then_some(4096)).filter(|&w| w > 0);
    let Some(window) = window else {
        if family == "gemma3" {
            out.insert("layer_types".into(), vec!["full_attention"; layers as usize].into());
        }
        return Ok(());
    };
    out.insert("sliding_window".into(), window.into());
    let every = match family {
        "gemma2" => 2,
        "gemma3" => 6,
        "olmo2" => 4,
        // All layers alike.
        "llama" => {
            out.insert("model_type".into(), "mistral".into());
            return Ok(());
        }
        "phi3" => return Ok(()),
        _ => return Err(unsupported("it has sliding windows", "sliding windows in llama, gemma2, gemma3 and phi3")),
    };
    let sliding = keys.layers("attention.sliding_window_pattern", every, layers)?;
    let name = |sliding: bool| if sliding { "sliding_attention" } else { "full_attention" };
    out.insert("layer_types".into(), sliding.into_iter().map(name).collect());
    Ok(())
}

/// A text of the file for a message. It may be as long as the file; its beginning is enough.
fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(60).collect::<String>())
}

fn unsupported(what: &str, supported: &'static str) -> Error {
    Error::Unsupported { what: what.into(), supported }
}

#[cfg(test)]
mod tests {
    use kvist_weights::testing::GgufBuilder;
    use kvist_weights::{MetaArray, MetaValue};

    use super::*;

    /// The configuration of a file with these keys beside those that all have: 6 layers, 4 heads of 8.
    fn json_of(architecture: &str, keys: &[(&str, MetaValue)]) -> Result<Value> {
        let common = [
            ("context_length", MetaValue::U32(4096)),
            ("embedding_length", MetaValue::U64(32)),
            ("block_count", MetaValue::U32(6)),
            ("feed_forward_length", MetaValue::U32(48)),
            ("attention.head_count", MetaValue::U32(4)),
            ("attention.layer_norm_rms_epsilon", MetaValue::F32(1e-5)),
        ];
        let mut file = GgufBuilder::default()
            .value("general.architecture", MetaValue::String(architecture.into()))
            .f32("token_embd.weight", &[3, 32], &[0.0; 96]);
        let given = |key: &str| keys.iter().any(|(k, _)| *k == key);
        for (key, value) in common.into_iter().filter(|(k, _)| !given(k)).chain(keys.iter().cloned()) {
            file = file.value(&format!("{architecture}.{key}"), value);
        }
        let file = Gguf::from_bytes(file.build()).expect("a sound file");
        let architecture = ARCHITECTURES.iter().find(|a| a.name == architecture).expect("known");
        config_json(&Keys { file: &file, architecture })
    }

    #[test]
    fn what_all_families_have() {
        let found = json_of("qwen2", &[("attention.head_count_kv", MetaValue::Array(MetaArray::I32(vec![2; 6])))]);
        let expected = json!({
            "model_type": "qwen2", "vocab_size": 3, "hidden_size": 32, "num_hidden_layers": 6,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
            "attention_bias": false, "bos_token_id": null, "eos_token_id": null, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        });
        assert_eq!(found.unwrap(), expected);
    }

    #[test]
    fn what_only_the_family_says() {
        let window = ("attention.sliding_window", MetaValue::U32(512));
        let sliding = |json: &Value| {
            let types = json["layer_types"].as_array().expect("a list");
            types.iter().map(|t| t == "sliding_attention").collect::<Vec<_>>()
        };
        let found = json_of("gemma3", std::slice::from_ref(&window)).unwrap();
        assert_eq!(sliding(&found), [true, true, true, true, true, false]);
        assert_eq!(found["query_pre_attn_scalar"], 8);
        assert_eq!(found["rope_parameters"]["sliding_attention"]["rope_theta"], 10_000.0);
        let found = json_of("gemma3", &[]).unwrap();
        assert_eq!(sliding(&found), [false; 6]);
        let found = json_of("gemma2", &[]).unwrap();
        assert_eq!(sliding(&found), [true, false, true, false, true, false]);
        assert_eq!((&found["sliding_window"], &found["attn_logit_softcapping"]), (&json!(4096), &json!(50.0)));
        // The largest of the family.
        let found = json_of(
            "gemma2",
            &[
                ("block_count", MetaValue::U32(46)),
                ("attention.key_length", MetaValue::U32(16)),
                ("attention.value_length", MetaValue::U32(16)),
            ],
        );
        assert_eq!(found.unwrap()["query_pre_attn_scalar"], 8);
        let pattern = MetaValue::Array(MetaArray::Bool(vec![false, true, true, false, false, false]));
        let found = json_of("gemma3", &[window.clone(), ("attention.sliding_window_pattern", pattern)]).unwrap();
        assert_eq!(sliding(&found), [false, true, true, false, false, false]);

        assert_eq!(json_of("smollm3", &[]).unwrap()["no_rope_layers"], json!([1, 1, 1, 0, 1, 1]));
        let found = json_of("llama", std::slice::from_ref(&window)).unwrap();
        assert_eq!((&found["model_type"], &found["sliding_window"]), (&json!("mistral"), &json!(512)));
        let found = json_of("phi3", &[window.clone(), ("rope.dimension_count", MetaValue::U32(6))]).unwrap();
        assert_eq!((&found["sliding_window"], &found["partial_rotary_factor"]), (&json!(512), &json!(0.75)));
        let found = json_of("granite", &[("embedding_scale", MetaValue::F32(12.0))]).unwrap();
        assert_eq!((&found["embedding_multiplier"], found["residual_multiplier"].is_null()), (&json!(12.0), true));
        assert!((found["attention_multiplier"].as_f64().unwrap() - 0.125f64.sqrt()).abs() < 1e-12);
        assert!(json_of("qwen3", &[window]).is_err());
    }

    #[test]
    fn rope_scalings() {
        let rope = |keys: &[(&str, MetaValue)]| json_of("llama", keys).map(|json| json["rope_parameters"].clone());
        let text = |v: &str| MetaValue::String(v.into());
        let factor = ("rope.scaling.factor", MetaValue::F32(4.0));
        let linear = json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0});
        assert_eq!(rope(std::slice::from_ref(&factor)).unwrap(), linear);
        assert_eq!(rope(&[factor.clone(), ("rope.scaling.type", text("linear"))]).unwrap(), linear);
        assert_eq!(rope(&[("rope.scale_linear", MetaValue::F32(4.0))]).unwrap(), linear);
        let yarn = rope(&[
            factor.clone(),
            ("rope.scaling.type", text("yarn")),
            ("rope.scaling.original_context_length", MetaValue::U32(1024)),
            ("rope.scaling.yarn_beta_fast", MetaValue::F32(16.0)),
            ("rope.freq_base", MetaValue::F32(500_000.0)),
        ]);
        let expected = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024,
                              "beta_fast": 16.0, "rope_theta": 500_000.0});
        assert_eq!(yarn.unwrap(), expected);
        assert_eq!(rope(&[factor, ("rope.scaling.type", text("none"))]).unwrap()["rope_type"], "default");
        assert!(rope(&[("rope.scaling.type", text("spiral"))]).is_err());
        // It was taken for no scaling at all.
        assert!(rope(&[("rope.scaling.type", text("longrope"))]).is_err());
        assert!(rope(&[("rope.scaling.type", MetaValue::U8(1))]).is_err());
        assert!(rope(&[("rope.freq_base", MetaValue::F32(f32::NAN))]).is_err());
    }

    /// Layers that differ, and models that are something else.
    #[test]
    fn refusals() {
        let differ = MetaValue::Array(MetaArray::U32(vec![4, 4, 4, 4, 4, 8]));
        for (key, value) in [
            ("attention.head_count", differ.clone()),
            ("feed_forward_length", differ),
            ("attention.value_length", MetaValue::U32(4)),
            ("expert_count", MetaValue::U32(2)),
            ("block_count", MetaValue::U32(4000)),
            ("context_length", MetaValue::I32(-1)),
            // Such a file may have a list of as many factors for RoPE: it took a hundred times its size.
            ("attention.key_length", MetaValue::U32(1 << 20)),
            ("rope.dimension_count", MetaValue::U32(1 << 20)),
            ("attention.layer_norm_rms_epsilon", MetaValue::F32(f32::INFINITY)),
            ("attention.head_count", MetaValue::Array(MetaArray::U32(vec![]))),
        ] {
            let error = json_of("llama", &[(key, value.clone())]).expect_err("refused");
            assert!(!error.hint().is_empty(), "{key} {value:?}: {error}");
        }
        // What is refused by its name is not repeated at any length.
        let long = || MetaValue::String("\u{1}".repeat(1_000_000));
        let file = GgufBuilder::default().value("general.architecture", long()).build();
        let architecture = config(&Gguf::from_bytes(file).expect("a sound file")).err().expect("refused");
        let rope = json_of("llama", &[("rope.scaling.type", long())]).expect_err("refused");
        for error in [architecture, rope] {
            assert!(error.to_string().len() < 500, "{} bytes", error.to_string().len());
        }
    }
}
