//! What kvist itself reads of a `tokenizer.json`, and what it refuses because the library would panic on it.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::{TextError, bounded};

/// The sections that say what a text goes through; the vocabulary is passed over.
#[derive(Deserialize)]
pub(crate) struct File {
    #[serde(default, deserialize_with = "bounded::section")]
    pub normalizer: Value,
    #[serde(default, deserialize_with = "bounded::section")]
    pub pre_tokenizer: Value,
    #[serde(default, deserialize_with = "bounded::section")]
    pub post_processor: Value,
    #[serde(default, deserialize_with = "bounded::section")]
    pub decoder: Value,
    #[serde(default)]
    model: Model,
}

#[derive(Default, Deserialize)]
struct Model {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    vocab: Longest,
    #[serde(default)]
    merges: Longest,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
}

impl File {
    pub fn parse(json: &[u8]) -> Result<File, TextError> {
        let refuse = |what: String| Err(TextError::Tokenizer(what));
        let file: File = match serde_json::from_slice(json) {
            Ok(file) => file,
            Err(e) => return refuse(format!("tokenizer.json: {e}")),
        };
        if let Some(name) = unknown_special(&file.post_processor) {
            return refuse(format!("the post-processor adds {name}, which it does not define"));
        }
        if file.model.merges.0 > file.model.vocab.0 {
            return refuse("a merge makes a token longer than any in the vocabulary".to_owned());
        }
        if file.model.merges.0 > 0 && file.model.continuing_subword_prefix.as_ref().is_some_and(|p| !p.is_empty()) {
            return refuse("BPE with a `continuing_subword_prefix` is not supported".to_owned());
        }
        Ok(file)
    }

    /// Says of itself that it is byte-pair encoding.
    pub fn is_bpe(&self) -> bool {
        self.model.kind.as_deref() == Some("BPE")
    }
}

/// A token that a template of the post-processor names without an entry in its table.
fn unknown_special(section: &Value) -> Option<String> {
    let nested = section["processors"].as_array().into_iter().flatten().find_map(unknown_special);
    let steps = ["single", "pair"].into_iter().filter_map(|key| section[key].as_array()).flatten();
    let mut names = steps.filter_map(|step| step["SpecialToken"]["id"].as_str());
    nested.or_else(|| names.find(|name| section["special_tokens"].get(name).is_none()).map(str::to_owned))
}

/// Length in bytes of the longest token in a vocabulary (an object, or a list of lists), or of the longest result of a
/// merge (a list of pairs, or of strings with a space): read without keeping them.
#[derive(Default)]
struct Longest(usize);

impl<'de> Deserialize<'de> for Longest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Tokens)
    }
}

struct Tokens;

impl<'de> Visitor<'de> for Tokens {
    type Value = Longest;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a vocabulary or a list of merges")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Longest, A::Error> {
        let mut longest = 0;
        while let Some((key, IgnoredAny)) = map.next_entry::<Length, _>()? {
            longest = longest.max(key.bytes);
        }
        Ok(Longest(longest))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Longest, A::Error> {
        let mut longest = 0;
        while let Some(entry) = seq.next_element::<Length>()? {
            // A merge as one string has a space between its parts.
            longest = longest.max(entry.bytes - usize::from(entry.string && entry.bytes > 0));
        }
        Ok(Longest(longest))
    }

    fn visit_unit<E>(self) -> Result<Longest, E> {
        Ok(Longest(0))
    }
}

/// Bytes of a string, or of all strings in a list.
#[derive(Default)]
struct Length {
    bytes: usize,
    string: bool,
}

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Strings)
    }
}

struct Strings;

impl<'de> Visitor<'de> for Strings {
    type Value = Length;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a token, a pair of tokens, or a token and its score")
    }

    fn visit_str<E>(self, text: &str) -> Result<Length, E> {
        Ok(Length { bytes: text.len(), string: true })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Length, A::Error> {
        let mut bytes = 0;
        while let Some(part) = seq.next_element::<Length>()? {
            bytes += part.bytes;
        }
        Ok(Length { bytes, string: false })
    }

    fn visit_i64<E>(self, _: i64) -> Result<Length, E> {
        Ok(Length::default())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Length, E> {
        Ok(Length::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Length, E> {
        Ok(Length::default())
    }
}
