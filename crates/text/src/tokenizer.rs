use std::path::Path;
use std::sync::Arc;

use kvist_base::TokenId;
use serde_json::Value;

use crate::decoder::{Decoder, Lead};
use crate::file::File;
use crate::{Detokenizer, TextError, growth};

/// A `tokenizer.json` (Hugging Face `tokenizers` format). Cheap to clone; all clones share one vocabulary.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    hf: tokenizers::Tokenizer,
    /// Bytes of every token, one after the other; token `i` is `bytes[ends[i - 1]..ends[i]]`.
    bytes: Vec<u8>,
    ends: Vec<u32>,
    special: Vec<bool>,
    decoder: Decoder,
    lead: Lead,
    /// The start of a text (or of what follows a special token) is given a space that the text does not have.
    adds_prefix: bool,
}

type BpeTokenizer = tokenizers::TokenizerImpl<
    tokenizers::models::bpe::BPE,
    tokenizers::NormalizerWrapper,
    tokenizers::PreTokenizerWrapper,
    tokenizers::PostProcessorWrapper,
    tokenizers::DecoderWrapper,
>;

/// A BPE model and what surrounds it: the sections of a `tokenizer.json` by their names there, null where there is none.
pub(crate) struct Parts {
    pub model: tokenizers::models::bpe::BPE,
    pub normalizer: Value,
    pub pre_tokenizer: Value,
    pub post_processor: Value,
    pub decoder: Value,
}

impl Tokenizer {
    pub fn from_file(path: &Path) -> Result<Self, TextError> {
        let bytes = std::fs::read(path).map_err(|e| TextError::Tokenizer(format!("{}: {e}", path.display())))?;
        Self::from_bytes(&bytes)
    }

    /// Highest number of ids. Ids may have gaps but a table of four thousand million entries is no vocabulary.
    pub(crate) const MAX_SIZE: usize = 1 << 22;

    /// Parses the contents of a `tokenizer.json`. Its truncation and padding are switched off.
    pub fn from_bytes(json: &[u8]) -> Result<Self, TextError> {
        let file = File::parse(json)?;
        let mut hf = if file.is_bpe() {
            // The model's type is known, so its vocabulary and merges are read straight into their tables. Left to find
            // the type out, the library first makes a tree of JSON values of them, many times as large as the file.
            serde_json::from_slice::<BpeTokenizer>(json).map_err(refuse)?.into()
        } else {
            tokenizers::Tokenizer::from_bytes(json).map_err(refuse)?
        };
        hf.with_truncation(None).map_err(refuse)?;
        hf.with_padding(None);
        Self::new(hf, &file.normalizer, &file.pre_tokenizer, &file.decoder)
    }

    /// From a model and the sections that a `tokenizer.json` would have beside it.
    pub(crate) fn from_parts(
        parts: Parts,
        added: impl Iterator<Item = tokenizers::AddedToken>,
    ) -> Result<Self, TextError> {
        let mut hf = tokenizers::Tokenizer::new(parts.model);
        hf.with_normalizer(section::<tokenizers::NormalizerWrapper>(&parts.normalizer)?).map_err(refuse)?;
        hf.with_pre_tokenizer(section::<tokenizers::PreTokenizerWrapper>(&parts.pre_tokenizer)?);
        hf.with_post_processor(section::<tokenizers::PostProcessorWrapper>(&parts.post_processor)?);
        hf.with_decoder(section::<tokenizers::DecoderWrapper>(&parts.decoder)?);
        hf.add_tokens(added).map_err(refuse)?;
        Self::new(hf, &parts.normalizer, &parts.pre_tokenizer, &parts.decoder)
    }

    fn new(
        hf: tokenizers::Tokenizer,
        normalizer: &Value,
        pre_tokenizer: &Value,
        decoder: &Value,
    ) -> Result<Self, TextError> {
        growth::check(&hf)?;
        let (decoder, lead) = Decoder::parse(Some(decoder)).map_err(refuse)?;
        let adds_prefix = adds_prefix(normalizer) || adds_prefix(pre_tokenizer);
        let size = hf.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        if size > Self::MAX_SIZE {
            return Err(refuse(format!("token id {} is out of range", size - 1)));
        }
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(size));
        for id in 0..size as TokenId {
            if let Some(piece) = hf.id_to_token(id) {
                bytes.extend(decoder.bytes(&piece));
            }
            ends.push(bytes.len() as u32);
        }
        let mut special = vec![false; size];
        for (id, token) in hf.get_added_tokens_decoder() {
            special[id as usize] = token.special;
        }
        Ok(Tokenizer(Arc::new(Inner { hf, bytes, ends, special, decoder, lead, adds_prefix })))
    }

    /// Token ids of `text`. Names of special tokens in the text become those tokens; with `add_special` the
    /// post-processor adds what the model expects around a text (a BOS as a rule).
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, TextError> {
        let encoding = self.0.hf.encode_fast(text, add_special).map_err(|e| TextError::Encode(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids of a text that stands in the middle of another one, so that nothing is put before it. `None` if that cannot
    /// be had from this tokenizer.
    pub(crate) fn encode_inside(&self, text: &str) -> Result<Option<Vec<TokenId>>, TextError> {
        if text.is_empty() {
            return Ok(Some(Vec::new()));
        }
        if !self.0.adds_prefix {
            return self.encode(text, false).map(Some);
        }
        // A line feed takes the space; as it merges with nothing that follows, the rest is the text's own.
        let ids = self.encode(&format!("\n{text}"), false)?;
        let mut head = Vec::new();
        for (i, &id) in ids.iter().enumerate() {
            head.extend_from_slice(self.bytes_of(id));
            if head.ends_with(b"\n") {
                let alone = head.len() <= 2;
                return Ok(alone.then(|| ids[i + 1..].to_vec()));
            }
        }
        Ok(None)
    }

    /// Text of `ids`. Equal to what a [`Detokenizer`] gives piece by piece.
    ///
    /// Bytes that are no UTF-8 become U+FFFD, one for each maximal broken part, however the bytes were spelt in tokens.
    /// Ids outside the vocabulary have no text.
    pub fn decode(&self, ids: &[TokenId], skip_special: bool) -> String {
        let mut detokenizer = Detokenizer::new(self, skip_special);
        let mut text = String::new();
        for &id in ids {
            text.push_str(&detokenizer.push(id));
        }
        text.push_str(&detokenizer.finish());
        text
    }

    /// The exact bytes that a token stands for inside a text: not always UTF-8 by themselves, empty for an id outside
    /// the vocabulary.
    pub fn token_bytes(&self, id: TokenId) -> Vec<u8> {
        self.bytes_of(id).to_vec()
    }

    pub(crate) fn bytes_of(&self, id: TokenId) -> &[u8] {
        let i = id as usize;
        let Some(&end) = self.0.ends.get(i) else { return &[] };
        let start = if i == 0 { 0 } else { self.0.ends[i - 1] };
        &self.0.bytes[start as usize..end as usize]
    }

    /// Bytes of a token that is the first of a text, where that differs by piece.
    pub(crate) fn first_bytes_of(&self, id: TokenId) -> Vec<u8> {
        self.0.hf.id_to_token(id).map(|piece| self.0.decoder.first_bytes(&piece)).unwrap_or_default()
    }

    pub(crate) fn lead(&self) -> Lead {
        match self.0.decoder {
            Decoder::Joined => Lead::Strip { byte: b' ', count: 1 },
            _ => self.0.lead,
        }
    }

    /// Highest id plus one. A model's embedding may have more rows than that.
    pub fn vocab_size(&self) -> usize {
        self.0.ends.len()
    }

    /// Whether the token is marked special: left out of a reply's text.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.0.special.get(id as usize).copied().unwrap_or(false)
    }

    /// Ids of all special tokens, ascending.
    pub fn special_ids(&self) -> Vec<TokenId> {
        (0..self.vocab_size() as TokenId).filter(|&id| self.is_special(id)).collect()
    }

    /// Whether the id names a token.
    pub fn has(&self, id: TokenId) -> bool {
        self.0.hf.id_to_token(id).is_some()
    }

    /// How the vocabulary spells a token (`Ġthe`, `▁the`, `<0x0A>`).
    pub fn piece(&self, id: TokenId) -> Option<String> {
        self.0.hf.id_to_token(id)
    }

    /// Id of the token spelt exactly `token` in the vocabulary.
    pub fn id_of(&self, token: &str) -> Option<TokenId> {
        self.0.hf.token_to_id(token)
    }
}

fn refuse(what: impl ToString) -> TextError {
    TextError::Tokenizer(what.to_string())
}

fn section<T: serde::de::DeserializeOwned>(value: &Value) -> Result<Option<T>, TextError> {
    serde_json::from_value(value.clone()).map_err(refuse)
}

/// Whether a normalizer or pre-tokenizer section puts a space before a text.
fn adds_prefix(section: &Value) -> bool {
    match section {
        Value::Array(list) => list.iter().any(adds_prefix),
        Value::Object(map) => match section["type"].as_str() {
            Some("Prepend") => true,
            Some("Metaspace") => map.get("prepend_scheme").is_none_or(|s| s != "never"),
            Some("ByteLevel") => map.get("add_prefix_space").is_some_and(|b| b == true),
            Some("Sequence") => ["normalizers", "pretokenizers"].iter().any(|key| adds_prefix(&section[*key])),
            _ => false,
        },
        _ => false,
    }
}
