//! The tokenizer against Hugging Face `tokenizers`, and the detokenizer against decoding everything at once.

mod common;

use common::{fixture, ids, tokenizer, tokenizers};
use kvist_text::{Detokenizer, Tokenizer};
use proptest::prelude::*;

fn fnv(values: impl IntoIterator<Item = u32>) -> u64 {
    common::fnv(values.into_iter().flat_map(u32::to_le_bytes))
}

#[test]
fn encodes_and_decodes_as_hugging_face() {
    let file = fixture("tokenizers.json");
    let texts: Vec<&str> = file["texts"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    assert!(texts.len() > 2500);
    for case in file["cases"].as_array().unwrap() {
        let name = &case["name"];
        let tokenizer = tokenizer(case);
        assert_eq!(tokenizer.vocab_size() as u64, case["vocab"].as_u64().unwrap(), "{name}");

        let written = case["ids"].as_array().unwrap();
        let hashes = case["hashes"].as_array().unwrap();
        assert_eq!(hashes.len(), texts.len());
        let mut with_special = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            let got = tokenizer.encode(text, false).unwrap();
            if let Some(want) = written.get(i) {
                assert_eq!(got, ids(want), "{name} {text:?}");
            }
            let hash = format!("{:016x}", fnv(got.iter().copied()));
            assert_eq!(&hash[8..], hashes[i].as_str().unwrap(), "{name} {text:?} {got:?}");
            let got = tokenizer.encode(text, true).unwrap();
            with_special.push(got.len() as u32);
            with_special.extend(got);
        }
        assert_eq!(format!("{:016x}", fnv(with_special)), case["special_hash"].as_str().unwrap(), "{name}");

        for sequence in case["decode"].as_array().unwrap() {
            let ids = ids(&sequence[0]);
            assert_eq!(tokenizer.decode(&ids, false), sequence[1].as_str().unwrap(), "{name} {ids:?}");
            assert_eq!(tokenizer.decode(&ids, true), sequence[2].as_str().unwrap(), "{name} {ids:?}");
        }
    }
}

#[test]
fn special_tokens_and_names() {
    for (name, tokenizer) in tokenizers() {
        let special = tokenizer.special_ids();
        assert!(special.len() >= 3, "{name}");
        for &id in &special {
            let spelt = String::from_utf8(tokenizer.token_bytes(id)).unwrap();
            assert_eq!(tokenizer.id_of(&spelt), Some(id), "{name}");
            assert_eq!(tokenizer.encode(&spelt, false).unwrap(), [id], "{name}");
            assert_eq!(tokenizer.decode(&[id], true), "");
        }
        assert_eq!(tokenizer.id_of("no such token"), None);
        assert_eq!(tokenizer.token_bytes(u32::MAX), b"");
        assert!(!tokenizer.is_special(u32::MAX));
    }
    let qwen = &tokenizers().into_iter().find(|(name, _)| name == "qwen2").unwrap().1;
    assert!(!qwen.is_special(qwen.id_of("<think>").unwrap()), "added, but part of a reply's text");
}

#[test]
fn broken_files_are_errors() {
    for broken in ["", "{", "[]", "{}", "3", r#"{"model":{"type":"BPE"}}"#, r#"{"decoder":{"type":"CTC"}}"#] {
        assert!(Tokenizer::from_bytes(broken.as_bytes()).is_err(), "{broken}");
    }
    // The library would panic on these.
    for merges in [serde_json::json!([["▁the", "▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁"]]), serde_json::json!(["▁the ▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁"])]
    {
        let mut file = fixture("spm.json");
        file["model"]["merges"] = merges;
        let long = Tokenizer::from_bytes(file.to_string().as_bytes()).err().unwrap().to_string();
        assert!(long.contains("longer than any"), "{long}");
    }
    let mut file = fixture("spm.json");
    file["model"]["continuing_subword_prefix"] = "##".into();
    assert!(Tokenizer::from_bytes(file.to_string().as_bytes()).is_err());
    let mut file = fixture("spm.json");
    file["post_processor"]["special_tokens"] = serde_json::json!({});
    let undefined = Tokenizer::from_bytes(file.to_string().as_bytes()).err().unwrap().to_string();
    assert!(undefined.contains("<s>"), "{undefined}");
    let missing = Tokenizer::from_file("no/such/tokenizer.json".as_ref()).err().unwrap().to_string();
    assert!(missing.contains("no/such/tokenizer.json"), "{missing}");
}

/// Steps of a tokenizer multiply: a file of a few hundred bytes with thirty byte-level steps made gigabytes of a short text.
#[test]
fn steps_that_multiply_a_text_are_refused() {
    use serde_json::{Value, json};
    let refused = |section: &str, value: Value| {
        let mut file = fixture("bytes.json");
        file[section] = value;
        let message = Tokenizer::from_bytes(file.to_string().as_bytes()).err().unwrap().to_string();
        assert!(message.contains("the limit"), "{message}");
    };
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    refused("pre_tokenizer", json!({"type": "Sequence", "pretokenizers": vec![bytes; 30]}));
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    refused("pre_tokenizer", json!({"type": "Sequence", "pretokenizers": vec![metaspace; 5]}));
    let steps = [
        json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}),
        json!({"type": "Replace", "pattern": {"Regex": "a*"}, "content": "aa"}),
        json!({"type": "Prepend", "prepend": "▁"}),
        json!({"type": "NFKD"}),
        json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
            "lowercase": true}),
        json!({"type": "Lowercase"}),
        json!({"type": "ByteLevel"}),
    ];
    for step in steps {
        refused("normalizer", json!({"type": "Sequence", "normalizers": vec![step; 10]}));
    }
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let template = json!({"type": "TemplateProcessing", "single": [text, text], "pair": [], "special_tokens": {}});
    refused("post_processor", json!({"type": "Sequence", "processors": vec![template; 30]}));
}

/// Broken UTF-8 in byte tokens: one U+FFFD for each maximal broken part, as everywhere else.
#[test]
fn broken_byte_fallback() {
    let tokenizer = &tokenizers().into_iter().find(|(name, _)| name == "llama2").unwrap().1;
    let byte = |b: u8| tokenizer.id_of(&format!("<0x{b:02X}>")).unwrap();
    let mut ids: Vec<u32> = "€".bytes().map(byte).collect();
    ids.extend([byte(0xE2), byte(0x82), byte(b'a'), byte(0xFF), byte(0xF0)]);
    assert_eq!(tokenizer.decode(&ids, false), "€\u{FFFD}a\u{FFFD}\u{FFFD}");
    let mut stream = Detokenizer::after_prompt(tokenizer, false);
    let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
    assert_eq!(pieces, ["", "", "€", "", "", "\u{FFFD}a", "\u{FFFD}", ""]);
    assert_eq!(stream.finish(), "\u{FFFD}");
    assert_eq!(stream.finish(), "");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Against the plain definition: the bytes of all tokens put together, decoded lossily at once.
    #[test]
    fn streaming_is_decoding(seed in prop::collection::vec((any::<u32>(), 0..8u8), 0..60), skip in any::<bool>()) {
        for (name, tokenizer) in TOKENIZERS.with(Clone::clone) {
            let size = tokenizer.vocab_size() as u32;
            // Mostly bytes of their own, which is where UTF-8 breaks.
            let ids: Vec<u32> = seed
                .iter()
                .map(|&(n, kind)| match kind {
                    0 => n % (size + 3),
                    1 => n % 3,
                    _ => 3 + n % 256,
                })
                .collect();
            let bytes: Vec<u8> = ids
                .iter()
                .filter(|&&id| !(skip && tokenizer.is_special(id)))
                .flat_map(|&id| tokenizer.token_bytes(id))
                .collect();
            let want = String::from_utf8_lossy(&bytes);

            let mut stream = Detokenizer::after_prompt(&tokenizer, skip);
            let mut text = String::new();
            for &id in &ids {
                text += &stream.push(id);
            }
            text += &stream.finish();
            prop_assert_eq!(&text, &want, "{}", name);

            // At the start of a text at most spaces are missing in front.
            let whole = tokenizer.decode(&ids, skip);
            prop_assert!(want.ends_with(whole.as_str()), "{}: {:?} {:?}", name, whole, want);
            prop_assert_eq!(want[..want.len() - whole.len()].trim_matches(' '), "");
            let byte_level = !name.contains("llama2") && name != "metaspace";
            prop_assert!(!byte_level || whole == want);
        }
    }

    /// Byte-level tokenizers without normalizer lose nothing of any text.
    #[test]
    fn round_trip(text in any::<String>()) {
        for (name, tokenizer) in TOKENIZERS.with(Clone::clone) {
            if name == "embedded" || name == "llama3" {
                let ids = tokenizer.encode(&text, false).unwrap();
                prop_assert_eq!(tokenizer.decode(&ids, false), text.as_str());
            }
        }
    }
}

thread_local! {
    static TOKENIZERS: Vec<(String, Tokenizer)> = tokenizers();
}
