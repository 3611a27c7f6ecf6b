//! How much longer a tokenizer may make a text. Steps multiply, so a file of a few hundred bytes can ask for gigabytes.

use serde::Serialize;
use serde_json::Value;

use crate::TextError;

/// Bytes for each byte of a text. Unicode's compatibility forms and byte-level spelling of the result are 44.
const MAX_GROWTH: usize = 256;
/// Tokens around a text.
const MAX_ADDED: usize = 1024;

/// Refuses a tokenizer whose steps, each the worst case of the one before, make a text more than [`MAX_GROWTH`] times as
/// long, or put more than [`MAX_ADDED`] tokens around it.
pub(crate) fn check(hf: &tokenizers::Tokenizer) -> Result<(), TextError> {
    let growth = growth(&described(hf.get_normalizer())?).saturating_mul(growth(&described(hf.get_pre_tokenizer())?));
    if growth > MAX_GROWTH {
        let message = format!("its normalizer and pre-tokenizer may make a text {growth} times as long");
        return Err(TextError::Tokenizer(format!("{message}, the limit is {MAX_GROWTH}")));
    }
    let (copies, tokens) = added(&described(hf.get_post_processor())?);
    if copies > 1 || tokens > MAX_ADDED {
        let message = format!("its post-processor repeats a text {copies} times and adds {tokens} tokens");
        return Err(TextError::Tokenizer(format!("{message}, the limits are 1 and {MAX_ADDED}")));
    }
    Ok(())
}

/// The step as the library understood it: files of old versions leave types out.
fn described(step: Option<&impl Serialize>) -> Result<Value, TextError> {
    serde_json::to_value(step).map_err(|e| TextError::Tokenizer(e.to_string()))
}

/// Most bytes for one byte after a normalizer or pre-tokenizer. What is put before every piece may meet pieces of one byte.
fn growth(step: &Value) -> usize {
    let bytes = |key: &str| step[key].as_str().map_or(0, str::len);
    match step["type"].as_str().unwrap_or_default() {
        "Sequence" => {
            let steps = ["normalizers", "pretokenizers"].into_iter().filter_map(|key| step[key].as_array()).flatten();
            steps.map(growth).fold(1, usize::saturating_mul)
        }
        "ByteLevel" => 2 + 2 * usize::from(step["add_prefix_space"] == true),
        "Metaspace" => 1 + bytes("replacement"),
        "Prepend" => 1 + bytes("prepend"),
        "Replace" => match step["pattern"]["String"].as_str().map_or(0, str::len) {
            // A regular expression may match nothing, before and after every character.
            0 => 1 + 2 * bytes("content"),
            pattern => bytes("content").div_ceil(pattern).max(1),
        },
        // Unicode Standard Annex 15 and the FAQ on normalization: the worst cases in UTF-8.
        "NFC" | "NFD" => 3,
        "NFKC" | "NFKD" => 11,
        "Lowercase" => 2,
        "BertNormalizer" => 6,
        "Precompiled" => longest_replacement(step["precompiled_charsmap"].as_str().unwrap_or_default()),
        _ => 1,
    }
}

/// SentencePiece's map of characters, in base64: the length of a table in four bytes, the table, replacements ended by NUL.
fn longest_replacement(map: &str) -> usize {
    let digits = map.bytes().filter_map(|b| match b {
        b'A'..=b'Z' => Some(b - b'A'),
        b'a'..=b'z' => Some(b - b'a' + 26),
        b'0'..=b'9' => Some(b - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    });
    let (mut bits, mut held, mut map) = (0u32, 0, Vec::with_capacity(map.len() / 4 * 3));
    for digit in digits {
        (bits, held) = (bits << 6 | u32::from(digit), held + 6);
        if held >= 8 {
            held -= 8;
            map.push((bits >> held) as u8);
        }
    }
    let Some((table, rest)) = map.split_first_chunk() else { return 1 };
    let replacements = rest.get(u32::from_le_bytes(*table) as usize..).unwrap_or(rest);
    replacements.split(|&b| b == 0).map(<[u8]>::len).max().unwrap_or(0).max(1)
}

/// How often a post-processor puts the text into its result, and how many tokens it adds.
fn added(step: &Value) -> (usize, usize) {
    match step["type"].as_str().unwrap_or_default() {
        "Sequence" => {
            step["processors"].as_array().into_iter().flatten().map(added).fold(
                (1usize, 0usize),
                |(copies, tokens), (c, t)| {
                    (copies.saturating_mul(c), tokens.saturating_mul(c.max(1)).saturating_add(t))
                },
            )
        }
        "TemplateProcessing" => {
            let (mut copies, mut tokens) = (0, 0);
            for piece in step["single"].as_array().into_iter().flatten() {
                match piece["SpecialToken"]["id"].as_str() {
                    Some(id) => tokens += step["special_tokens"][id]["ids"].as_array().map_or(0, Vec::len),
                    None => copies += 1,
                }
            }
            (copies, tokens)
        }
        "BertProcessing" | "RobertaProcessing" => (1, 2),
        _ => (1, 0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn steps_multiply() {
        let replace = |pattern: &str, content: &str| json!({"type": "Replace", "pattern": {"String": pattern}, "content": content});
        let sequence = |steps: Value| json!({"type": "Sequence", "normalizers": steps});
        assert_eq!(growth(&Value::Null), 1);
        assert_eq!(growth(&sequence(json!([{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")]))), 12, "Llama 2");
        assert_eq!(growth(&sequence(json!([replace("aa", "a"), replace("ab", "cde")]))), 2);
        assert_eq!(growth(&json!({"type": "Replace", "pattern": {"Regex": "x*"}, "content": "abc"})), 7);
        let doubling = sequence(Value::Array(vec![replace("a", "aa"); 100]));
        assert_eq!(growth(&doubling), usize::MAX);
    }

    #[test]
    fn replacements_of_a_map() {
        // A table of four bytes, then "ab", "cdefg" and "h".
        assert_eq!(longest_replacement("BAAAAAAAAABhYgBjZGVmZwBoAA=="), 5);
        assert_eq!(longest_replacement("/////w=="), 1);
        assert_eq!(longest_replacement(""), 1);
    }

    #[test]
    fn post_processors_chain() {
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let bos = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
        let template = |single: Value| json!({"type": "TemplateProcessing", "single": single, "special_tokens": {"<s>": {"ids": [1, 2]}}});
        assert_eq!(added(&template(json!([bos, text]))), (1, 2));
        let twice = template(json!([bos, text, text]));
        assert_eq!(added(&json!({"type": "Sequence", "processors": [twice, twice]})), (4, 6));
        assert_eq!(added(&json!({"type": "ByteLevel"})), (1, 0));
    }
}
