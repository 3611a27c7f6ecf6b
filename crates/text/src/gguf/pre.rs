//! Pre-tokenisers by the name that `tokenizer.ggml.pre` gives them, as the `tokenizer.json` of those models have them.
//!
//! GGUF records a name only. llama.cpp's converter finds it by hashing the ids of a probe text, so one name stands for
//! all models that split alike. Names whose original is not known exactly are refused.

use serde_json::{Value, json};

/// What a name says beyond the vocabulary.
pub(super) struct Pre {
    /// Sections of `tokenizer.json`.
    pub normalizer: Value,
    pub pre_tokenizer: Value,
    /// A word that is in the vocabulary is that token, whatever its merges say.
    pub ignore_merges: bool,
    /// Whether a BOS is put before a text where the file does not say.
    pub add_bos: bool,
}

/// Words by the rules of GPT-4 (cl100k), with digits in groups of up to three.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same with every digit alone.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Marks stay with their letters.
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// GPT-4o (o200k).
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// DeepSeek V3 and its distillations, after numbers and runs of CJK have been cut out.
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
/// Letters with case. Those that normalisation would replace are written by number.
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\x{1F7D}ᾀ-ᾴᾶ-ᾼ\x{1FBE}ῂ-ῄῆ-ῌῐ-\x{1FD3}ῖ-\x{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";

/// Names that share a meaning, and the meaning.
type Group = (&'static [&'static str], fn() -> Pre);

const KNOWN: &[Group] = &[
    (&["llama3", "llama-v3", "llama-bpe", "pixtral", "lfm2"], || Pre {
        ignore_merges: true,
        add_bos: true,
        ..byte_level(&[split(LLAMA3)])
    }),
    (&["smaug-bpe"], || Pre { ignore_merges: true, ..byte_level(&[split(LLAMA3)]) }),
    (&["dbrx", "glm4", "chatglm-bpe"], || byte_level(&[split(LLAMA3)])),
    (&["qwen2", "deepseek-r1-qwen", "megrez"], || Pre { normalizer: nfc(), ..byte_level(&[split(QWEN2)]) }),
    (&["stablelm2"], || byte_level(&[split(QWEN2)])),
    (&["qwen35"], || Pre { normalizer: nfc(), ..byte_level(&[split(QWEN35)]) }),
    (&["gpt-2", "phi-2", "exaone4"], || gpt2(&[])),
    (&["mpt", "olmo"], || Pre { normalizer: nfc(), ..gpt2(&[]) }),
    (&["starcoder", "refact", "smollm", "codeshell"], || gpt2(&[digits()])),
    (&["command-r"], || Pre { normalizer: nfc(), ..gpt2(&[digits()]) }),
    (&["tekken"], || Pre { ignore_merges: true, add_bos: true, ..byte_level(&[split(TEKKEN)]) }),
    (&["gpt-4o", "llama4"], || byte_level(&[split(GPT4O)])),
    (&["deepseek-llm"], || {
        byte_level(&[
            split("[\r\n]"),
            split(DEEPSEEK_LETTERS),
            split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
            split(r"\s+$"),
            split("[一-龥ࠀ-一가-퟿]+"),
            digits(),
        ])
    }),
    (&["deepseek-coder"], || {
        byte_level(&[split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[一-龥ࠀ-一가-퟿]+"), digits()])
    }),
    (&["deepseek-v3"], || byte_level(&[split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK3)])),
    // Files from before the key existed: llama.cpp's rule for them.
    (&["default", ""], || {
        let gpt2_words = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
        byte_level(&[split(r"[\p{P}\$\+<=>\^~\|]+"), split(gpt2_words), split(r"\p{N}+"), split("[0-9][0-9][0-9]")])
    }),
];

impl Pre {
    /// `None` for a name that is not known.
    pub fn named(name: &str) -> Option<Pre> {
        KNOWN.iter().find(|(names, _)| names.contains(&name)).map(|(_, make)| make())
    }

    pub fn known() -> impl Iterator<Item = &'static str> {
        KNOWN.iter().flat_map(|(names, _)| names.iter().copied()).filter(|name| !name.is_empty())
    }
}

fn split(pattern: &str) -> Value {
    json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false })
}

fn digits() -> Value {
    json!({ "type": "Digits", "individual_digits": true })
}

fn nfc() -> Value {
    json!({ "type": "NFC" })
}

/// Bytes as characters after the steps given; `use_regex` splits by GPT-2's pattern, too.
fn steps(first: &[Value], use_regex: bool) -> Pre {
    let last = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
    let steps: Vec<Value> = first.iter().cloned().chain([last]).collect();
    let pre_tokenizer = json!({ "type": "Sequence", "pretokenizers": steps });
    Pre { normalizer: Value::Null, pre_tokenizer, ignore_merges: false, add_bos: false }
}

fn byte_level(first: &[Value]) -> Pre {
    steps(first, false)
}

fn gpt2(first: &[Value]) -> Pre {
    steps(first, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pre_tokeniser_is_one() {
        for name in Pre::known() {
            let pre = Pre::named(name).unwrap();
            for step in pre.pre_tokenizer["pretokenizers"].as_array().unwrap() {
                let parsed = serde_json::from_value::<tokenizers::PreTokenizerWrapper>(step.clone());
                assert!(parsed.is_ok(), "{name}: {step} {:?}", parsed.err());
            }
        }
        assert!(Pre::named("no such name").is_none());
    }
}
