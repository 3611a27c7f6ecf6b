//! SentencePiece BPE as merges.
//!
//! SentencePiece has no list of merges: it joins the neighbours whose union has the highest score, the leftmost of
//! equals. Merges ranked by the score of what they make do the same, as in the converters of `transformers`.

use std::collections::HashSet;

use serde_json::{Value, json};

/// Merges for pieces that may be joined, with their scores: not control, user-defined, byte, unused tokens, which only
/// stand for themselves.
///
/// Of one piece's splits the one with the longest left part comes first. Two of them meet in a text only where they
/// share their middle (`ab|a|ba`), and there that is the leftmost.
pub(super) fn merges(pieces: &[(String, f32)]) -> Vec<(String, String)> {
    let known: HashSet<&str> = pieces.iter().map(|(text, _)| text.as_str()).collect();
    let mut found: Vec<(f32, usize, &str, &str)> = Vec::new();
    for (text, score) in pieces {
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if known.contains(left) && known.contains(right) {
                found.push((*score, at, left, right));
            }
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
    found.into_iter().map(|(.., left, right)| (left.to_owned(), right.to_owned())).collect()
}

/// Where a text is given a space that it does not have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefix {
    Never,
    /// At the start of a text and after each special token (Llama 2, Mistral 7B v0.1, Phi-3).
    EverySegment,
    /// At the start of a text only (Mistral's vocabularies with `[INST]` as a token).
    First,
}

/// The normalizer, pre_tokenizer and decoder sections.
pub(super) fn sections(prefix: Prefix) -> (Value, Value, Value) {
    let spaces = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let (normalizer, pre_tokenizer) = match prefix {
        Prefix::Never => (spaces, Value::Null),
        Prefix::EverySegment => {
            let prepend = json!({ "type": "Prepend", "prepend": "▁" });
            (json!({ "type": "Sequence", "normalizers": [prepend, spaces] }), Value::Null)
        }
        Prefix::First => {
            let first = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false });
            (Value::Null, first)
        }
    };
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix != Prefix::Never {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    (normalizer, pre_tokenizer, json!({ "type": "Sequence", "decoders": decoders }))
}
