//! Fixtures made by `tools/make_text_fixtures.py` and `tools/make_gguf_text_fixtures.py`.
#![allow(dead_code)] // each test file uses a part

use std::path::{Path, PathBuf};

use kvist_text::Tokenizer;
use serde_json::Value;

pub fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The tokenizer of a case: a base file with some sections replaced.
pub fn tokenizer(case: &Value) -> Tokenizer {
    let base = case["base"].as_str().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path: PathBuf = match base.strip_prefix("assets/") {
        Some(asset) => root.join("../../assets").join(asset),
        None => root.join("tests/fixtures").join(base),
    };
    let mut file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for (section, value) in case["patch"].as_object().unwrap() {
        file[section] = value.clone();
    }
    Tokenizer::from_bytes(&serde_json::to_vec(&file).unwrap()).unwrap()
}

/// All tokenizers of the fixtures, by name.
pub fn tokenizers() -> Vec<(String, Tokenizer)> {
    let file = fixture("tokenizers.json");
    let cases = file["cases"].as_array().unwrap();
    cases.iter().map(|case| (case["name"].as_str().unwrap().to_owned(), tokenizer(case))).collect()
}

pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// FNV-1a, 64 bits.
pub fn fnv(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
