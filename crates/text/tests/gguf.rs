//! Vocabularies and templates from GGUF metadata, against Hugging Face `tokenizers` and SentencePiece
//! (`tools/make_gguf_text_fixtures.py`).

mod common;

use common::{fixture, fnv};
use kvist_text::{ChatInput, ChatTemplate, GgufVocab, TextError, Tokenizer};
use serde_json::{Value, json};

/// The metadata of a case; byte-level ones share a vocabulary.
fn vocab(file: &Value, case: &Value) -> GgufVocab {
    let mut fields = case["vocab"].clone();
    if fields["model"] == "gpt2" {
        for (key, value) in file["bytes"].as_object().unwrap() {
            fields[key] = value.clone();
        }
    }
    serde_json::from_value(fields).unwrap()
}

fn named(name: &str) -> GgufVocab {
    let file = fixture("gguf.json");
    let case = file["cases"].as_array().unwrap().iter().find(|case| case["name"] == name).unwrap();
    vocab(&file, case)
}

#[test]
fn the_ids_of_the_originals() {
    let file = fixture("gguf.json");
    let others = fixture("tokenizers.json");
    let texts: Vec<&str> = [&others, &file]
        .into_iter()
        .flat_map(|f| f["texts"].as_array().unwrap())
        .map(|t| t.as_str().unwrap())
        .collect();
    assert!(texts.len() > 3900);
    let chunk = file["chunk"].as_u64().unwrap() as usize;
    for case in file["cases"].as_array().unwrap() {
        let tokenizer = Tokenizer::from_gguf(&vocab(&file, case)).unwrap();
        let hashes = case["hashes"].as_array().unwrap();
        assert_eq!(hashes.len(), texts.len().div_ceil(chunk));
        for (texts, hash) in texts.chunks(chunk).zip(hashes) {
            let mut ids = Vec::new();
            for (text, special) in [false, true].into_iter().flat_map(|special| texts.iter().map(move |t| (t, special)))
            {
                let got = tokenizer.encode(text, special).unwrap();
                ids.push(got.len() as u32);
                ids.extend(got);
            }
            let got = format!("{:016x}", fnv(ids.into_iter().flat_map(u32::to_le_bytes)));
            assert_eq!(hash.as_str(), Some(got.as_str()), "{} in one of {texts:?}", case["name"]);
        }
    }
}

#[test]
fn special_tokens_and_ends() {
    let llama = named("llama");
    let tokenizer = Tokenizer::from_gguf(&llama).unwrap();
    assert_eq!((llama.bos(), llama.eos(), llama.end_ids()), (Some(1), Some(2), vec![2]));
    assert_eq!(tokenizer.special_ids(), [0, 1, 2]);
    assert_eq!(tokenizer.encode("</s>", true).unwrap(), [1, 2]);
    assert_eq!(tokenizer.decode(&tokenizer.encode(" a  b", true).unwrap(), true), " a  b");

    let phi = named("phi3");
    let tokenizer = Tokenizer::from_gguf(&phi).unwrap();
    let id = |text: &str| tokenizer.id_of(text).unwrap();
    assert_eq!(phi.end_ids(), [2, id("<|end|>"), id("<|endoftext|>")]);
    assert_eq!(tokenizer.encode("<|user|> \n<|end|>", false).unwrap(), [id("<|user|>"), id("<|end|>")]);
    assert!(!tokenizer.is_special(id("<think>")), "added, but part of a reply's text");

    let both = GgufVocab { add_eos: Some(true), eos: Some(2), ..llama.clone() };
    assert_eq!(Tokenizer::from_gguf(&both).unwrap().encode("", true).unwrap(), [1, 2]);
    let neither = GgufVocab { add_bos: Some(false), ..llama };
    assert_eq!(Tokenizer::from_gguf(&neither).unwrap().encode("", true).unwrap(), [0u32; 0]);
}

/// Padding that some converters mark as unknown is not looked for in texts.
#[test]
fn padding_is_text() {
    let mut llama = named("llama");
    llama.tokens.push("[PAD620]".into());
    llama.scores.push(-1000.0);
    llama.token_types.push(2);
    let tokenizer = Tokenizer::from_gguf(&llama).unwrap();
    let ids = tokenizer.encode("[PAD620]", false).unwrap();
    assert!(ids.len() > 1);
    assert_eq!(tokenizer.decode(&ids, false), "[PAD620]");
}

#[test]
fn merges_that_are_given_are_used() {
    let llama = named("llama");
    // Without any merge every character stays alone: what is given replaces what the scores say.
    let tokens = llama.tokens.clone();
    let pair = tokens.iter().find(|t| t.chars().count() == 2 && t.starts_with('▁')).unwrap();
    let (left, right) = pair.split_at('▁'.len_utf8());
    let one = GgufVocab { merges: vec![format!("{left} {right}")], ..llama };
    let tokenizer = Tokenizer::from_gguf(&one).unwrap();
    let pieces = tokenizer.encode("the tree", false).unwrap();
    assert!(pieces.len() >= "the tree".len(), "{pieces:?}");
}

#[test]
fn contradictions_are_errors() {
    let (llama, gpt) = (named("llama"), named("gpt-2"));
    let refused = |vocab: &GgufVocab, what: &str| match Tokenizer::from_gguf(vocab) {
        Err(TextError::Tokenizer(message)) => assert!(message.contains(what), "{what}: {message}"),
        Err(other) => panic!("{what}: {other}"),
        Ok(_) => panic!("{what}: no error"),
    };
    refused(&GgufVocab::default(), "no tokens");
    refused(&GgufVocab { model: "bert".into(), ..llama.clone() }, "\"bert\"");
    refused(&GgufVocab { pre: "falcon".into(), ..gpt.clone() }, "llama-bpe");
    refused(&GgufVocab { merges: vec![], ..gpt.clone() }, "needs merges");
    refused(&GgufVocab { scores: vec![], ..llama.clone() }, "neither");
    refused(&GgufVocab { scores: vec![0.0], ..llama.clone() }, "1 scores");
    refused(&GgufVocab { token_types: vec![1], ..llama.clone() }, "1 token types");
    refused(&GgufVocab { bos: Some(1 << 30), ..llama.clone() }, "the bos token is 1073741824");
    refused(&GgufVocab { add_eos: Some(true), ..gpt.clone() }, "EOS");
    for (merge, what) in
        [("ab", "two tokens"), ("", "two tokens"), ("a \u{10FFFF}", "needs the token"), ("Ġ", "two tokens")]
    {
        refused(&GgufVocab { merges: vec![merge.into()], ..gpt.clone() }, what);
    }
    let mut twice = llama.clone();
    twice.tokens[300] = twice.tokens[301].clone();
    refused(&twice, "tokens 300 and 301");
    let mut nan = llama.clone();
    nan.scores[5] = f32::NAN;
    refused(&nan, "token 5");
    let mut no_fallback = llama;
    (no_fallback.token_types[0], no_fallback.tokens[10]) = (1, "[removed]".into());
    refused(&no_fallback, "neither bytes nor an unknown token");
}

#[test]
fn the_template() {
    let messages = [json!({ "role": "user", "content": "x" })];
    let input = ChatInput { messages: &messages, ..ChatInput::default() };
    let llama = named("llama");
    assert!(matches!(ChatTemplate::from_gguf(&llama), Err(TextError::NoTemplate(_))));
    let source = |name: &str| format!("{name} {{{{ bos_token }}}}{{{{ eos_token }}}}{{{{ messages[0].content }}}}");
    let with = GgufVocab { chat_template: Some(source("plain")), ..llama };
    assert_eq!(ChatTemplate::from_gguf(&with).unwrap().render(&input).as_deref(), Ok("plain <s></s>x"));
    let named = GgufVocab { named_templates: vec![("tool_use".into(), source("tools"))], ..with };
    let template = ChatTemplate::from_gguf(&named).unwrap();
    assert_eq!(template.render(&input).as_deref(), Ok("plain <s></s>x"));
    let tools = ChatInput { tools: Some(&messages), ..input };
    assert_eq!(template.render(&tools).as_deref(), Ok("tools <s></s>x"));
}
