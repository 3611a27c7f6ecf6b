//! Configurations as published mean what transformers takes them for. `tools/make_config_fixture.py` wrote what that is.

use kvist_model::{Activation, Config};
use serde_json::Value;

/// Both the same number, but for the rounding to f32 of what transformers computes in it.
fn close(found: f64, expected: &Value) -> bool {
    expected.as_f64().is_some_and(|expected| (found - expected).abs() <= 1e-5 * expected.abs())
}

fn check(config: &Config, expected: &Value) -> Result<(), String> {
    let block = &config.block;
    let activation = match block.activation {
        Activation::Silu => "silu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
    };
    let exact: [(&str, Value); 15] = [
        ("vocab", config.vocab.into()),
        ("hidden", config.hidden.into()),
        ("heads", config.heads.into()),
        ("kv_heads", config.kv_heads.into()),
        ("head_dim", config.head_dim.into()),
        ("intermediate", config.intermediate.into()),
        ("context", config.context.into()),
        ("tied", config.tied.into()),
        ("biases", vec![block.qkv_bias, block.o_bias].into()),
        ("parameters", config.parameters().into()),
        ("activation", activation.into()),
        ("score_cap", block.score_cap.into()),
        ("logit_cap", block.logit_cap.into()),
        ("bos", config.bos.into()),
        ("eos", config.eos.clone().into()),
    ];
    for (name, found) in exact {
        if found != expected[name] {
            return Err(format!("{name} is {found}, transformers has {}", expected[name]));
        }
    }
    let scales = &block.scales;
    let numbers = [
        ("eps", config.norm_eps as f64),
        ("score_scale", 1.0 / scales.score_divisor),
        ("embedding_scale", scales.embedding as f64),
        ("residual_scale", scales.residual as f64),
        ("logit_divisor", scales.logit_divisor as f64),
    ];
    for (name, found) in numbers {
        if !close(found, &expected[name]) {
            return Err(format!("{name} is {found}, transformers has {}", expected[name]));
        }
    }
    let layers = expected["layers"].as_str().unwrap();
    if layers.len() != config.layers {
        return Err(format!("{} layers, transformers has {}", config.layers, layers.len()));
    }
    for (l, class) in layers.bytes().enumerate() {
        let class = &expected["classes"][(class - b'0') as usize];
        let attention = &config.attention[l];
        if Value::from(attention.window) != class["window"] {
            return Err(format!("window {:?} of layer {l}, transformers has {}", attention.window, class["window"]));
        }
        let rope = &config.ropes[attention.rope];
        let Some(rotations) = class["rope"].as_array() else {
            if rope.rotary == 0 { continue } else { return Err(format!("layer {l} rotates, not in transformers")) }
        };
        for expected in rotations {
            let found = rope.rotation(expected["context"].as_u64().unwrap() as usize);
            let n = found.frequencies.len();
            let some: Vec<f64> = [0, n / 4, n / 2, 3 * n / 4, n - 1].map(|i| found.frequencies[i]).into();
            let frequencies = expected["frequencies"].as_array().unwrap();
            let same = some.len() == frequencies.len() && some.iter().zip(frequencies).all(|(f, e)| close(*f, e));
            if n as u64 != expected["pairs"] || !same || !close(found.amplitude, &expected["amplitude"]) {
                return Err(format!("layer {l} turns by {some:?} times {}, not {expected}", found.amplitude));
            }
        }
    }
    Ok(())
}

#[test]
fn published_configurations_are_what_transformers_takes_them_for() {
    let file: Value = serde_json::from_str(include_str!("fixtures/published.json")).unwrap();
    let models = file["models"].as_array().unwrap();
    assert!(models.len() >= 60);
    let mut wrong = Vec::new();
    for model in models {
        let found = Config::parse(model["config"].to_string().as_bytes(), None)
            .map_err(|error| error.to_string())
            .and_then(|config| check(&config, &model["expected"]));
        wrong.extend(found.err().map(|error| format!("{}: {error}", model["name"])));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
