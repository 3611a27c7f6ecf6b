//! The tokenizer and the chat template that a GGUF file carries in its metadata.

mod pre;
mod spm;

use kvist_base::TokenId;
use serde_json::{Map, Value, json};
use tokenizers::models::bpe::{BPE, Merges, Vocab};

use crate::tokenizer::Parts;
use crate::{ChatTemplate, TextError, Tokenizer};
use pre::Pre;
use spm::Prefix;

/// Token types of `tokenizer.ggml.token_type`.
mod kind {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
}

/// Tokens that end a turn in some family although only `eos` may be named in the file (Llama 3, ChatML, Phi, Gemma,
/// Granite and OLMo, DeepSeek).
const END_OF_TURN: [&str; 9] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<turn|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
];

/// What `tokenizer.ggml.*` and `tokenizer.chat_template*` say.
#[derive(Clone, Debug, Default, PartialEq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GgufVocab {
    /// `general.architecture`; only `phi3` matters here, whose special tokens swallow the space after them.
    pub architecture: String,
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE), `llama` (SentencePiece BPE) or `gemma4` (the same with merges).
    pub model: String,
    /// `tokenizer.ggml.pre`, empty if absent.
    pub pre: String,
    /// One text for each id.
    pub tokens: Vec<String>,
    /// One for each token, or none. Read for `llama`.
    pub scores: Vec<f32>,
    /// One for each token, or none (all normal).
    pub token_types: Vec<i32>,
    /// Pairs separated by a space, the best first.
    pub merges: Vec<String>,
    pub bos: Option<TokenId>,
    pub eos: Option<TokenId>,
    /// `tokenizer.ggml.eot_token_id` and `eom_token_id`.
    pub eot: Option<TokenId>,
    pub eom: Option<TokenId>,
    pub unk: Option<TokenId>,
    pub pad: Option<TokenId>,
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
    /// `tokenizer.chat_template.NAME` as (NAME, template).
    pub named_templates: Vec<(String, String)>,
}

impl GgufVocab {
    /// Ids at which a reply ends, ascending: EOS, EOT, EOM, and what is known by name to end a turn.
    pub fn end_ids(&self) -> Vec<TokenId> {
        let named =
            (0..self.tokens.len()).filter(|&i| self.is_added(i) && END_OF_TURN.contains(&self.tokens[i].as_str()));
        let mut ids: Vec<TokenId> = named.map(|i| i as TokenId).collect();
        ids.extend([self.eos(), self.eot, self.eom].into_iter().flatten().filter(|&id| self.text(id).is_some()));
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// The token put before every text, if there is one.
    pub fn bos(&self) -> Option<TokenId> {
        self.bos.or(self.spm_default(1))
    }

    pub fn eos(&self) -> Option<TokenId> {
        self.eos.or(self.spm_default(2))
    }

    fn unk(&self) -> Option<TokenId> {
        self.unk.or(self.spm_default(0))
    }

    /// SentencePiece's `<unk>`, `<s>`, `</s>` in files that do not name them.
    fn spm_default(&self, id: TokenId) -> Option<TokenId> {
        let marked = matches!(self.kind(id as usize), kind::UNKNOWN | kind::CONTROL);
        (self.model == "llama" && marked && self.text(id).is_some()).then_some(id)
    }

    fn text(&self, id: TokenId) -> Option<&str> {
        self.tokens.get(id as usize).map(String::as_str)
    }

    fn kind(&self, index: usize) -> i32 {
        self.token_types.get(index).copied().unwrap_or(kind::NORMAL)
    }

    /// Whether the token's text is recognised as a whole before anything else is done.
    fn is_added(&self, index: usize) -> bool {
        match self.kind(index) {
            // Some files mark padding as unknown, too.
            kind::UNKNOWN => self.unk() == Some(index as TokenId),
            kind::CONTROL => true,
            kind::USER_DEFINED => !self.is_space_run(index),
            _ => false,
        }
    }

    /// Gemma's tokens for runs of spaces. As spaces become metaspaces first, runs are found by merges.
    fn is_space_run(&self, index: usize) -> bool {
        let text = &self.tokens[index];
        self.is_spm() && self.kind(index) == kind::USER_DEFINED && text.chars().all(|c| matches!(c, ' ' | '▁'))
    }

    fn is_spm(&self) -> bool {
        self.model != "gpt2"
    }

    fn check(&self) -> Result<(), TextError> {
        let size = self.tokens.len();
        if size == 0 {
            return Err(refuse("the file has no tokens"));
        }
        if size > Tokenizer::MAX_SIZE {
            return Err(refuse(format!("{size} tokens are more than {}", Tokenizer::MAX_SIZE)));
        }
        for (what, len) in [("scores", self.scores.len()), ("token types", self.token_types.len())] {
            if len != 0 && len != size {
                return Err(refuse(format!("{len} {what} for {size} tokens")));
            }
        }
        if let Some(i) = self.scores.iter().position(|score| score.is_nan()) {
            return Err(refuse(format!("the score of token {i} is not a number")));
        }
        let ids = [("bos", self.bos), ("eos", self.eos), ("eot", self.eot), ("eom", self.eom), ("unknown", self.unk)];
        for (what, id) in ids {
            if let Some(id) = id.filter(|&id| self.text(id).is_none()) {
                return Err(refuse(format!("the {what} token is {id}, but there are {size} tokens")));
            }
        }
        Ok(())
    }

    /// The text by which the tokenizer knows a token. Added tokens are matched in the text as it comes, before spaces
    /// are replaced.
    fn spelling(&self, index: usize) -> String {
        let text = &self.tokens[index];
        match self.is_spm() && self.kind(index) == kind::USER_DEFINED {
            true if self.is_space_run(index) => text.replace(' ', "▁"),
            true => text.replace('▁', " "),
            false => text.clone(),
        }
    }

    fn vocabulary(&self) -> Result<Vocab, TextError> {
        let mut vocab = Vocab::default();
        for index in 0..self.tokens.len() {
            let spelling = self.spelling(index);
            if spelling.is_empty() {
                continue;
            }
            if let Some(first) = vocab.insert(spelling, index as u32) {
                return Err(refuse(format!("tokens {first} and {index} are both {:?}", self.tokens[index])));
            }
        }
        Ok(vocab)
    }

    /// The merges of the file, all of whose parts and results must be tokens.
    fn given_merges(&self, vocab: &Vocab) -> Result<Merges, TextError> {
        let mut merges = Merges::with_capacity(self.merges.len());
        for (rank, merge) in self.merges.iter().enumerate() {
            let after_first = merge.chars().next().map_or(0, char::len_utf8);
            let Some((left, right)) =
                merge[after_first..].split_once(' ').map(|(head, right)| (&merge[..after_first + head.len()], right))
            else {
                return Err(refuse(format!("merge {rank} ({merge:?}) is not two tokens separated by a space")));
            };
            let joined = [left, right].concat();
            if let Some(missing) = [left, right, &joined].into_iter().find(|text| !vocab.contains_key(*text)) {
                return Err(refuse(format!(
                    "merge {rank} ({merge:?}) needs the token {missing:?}, which there is not"
                )));
            }
            merges.push((left.to_owned(), right.to_owned()));
        }
        Ok(merges)
    }

    fn spm_merges(&self) -> Merges {
        let pieces = (0..self.tokens.len()).filter_map(|i| match self.kind(i) {
            kind::NORMAL => Some((self.spelling(i), self.scores.get(i).copied().unwrap_or(0.0))),
            _ => self.is_space_run(i).then(|| (self.spelling(i), f32::INFINITY)),
        });
        spm::merges(&pieces.collect::<Vec<_>>())
    }

    /// Where a SentencePiece text is given a space.
    fn prefix(&self) -> Prefix {
        // Mistral's files with `[INST]` as a token came after `transformers` had stopped (`legacy: false`) giving a
        // space to what follows a special token.
        let mistral = || (0..self.tokens.len()).any(|i| self.kind(i) == kind::CONTROL && self.tokens[i] == "[INST]");
        match self.add_space_prefix {
            Some(false) => Prefix::Never,
            None if self.model != "llama" => Prefix::Never,
            _ if mistral() => Prefix::First,
            _ => Prefix::EverySegment,
        }
    }

    fn added_tokens(&self) -> impl Iterator<Item = tokenizers::AddedToken> {
        (0..self.tokens.len()).filter(|&i| self.is_added(i)).map(|i| {
            let special = self.kind(i) != kind::USER_DEFINED;
            // As Phi-3's `added_tokens.json` has it; GGUF has no place for it.
            let spared = ["<unk>", "<s>", "<|endoftext|>"].contains(&self.tokens[i].as_str());
            let swallows = self.architecture == "phi3" && self.is_spm() && !spared;
            tokenizers::AddedToken::from(self.spelling(i), special).normalized(false).rstrip(swallows)
        })
    }

    fn post_processor(&self, add_bos: bool) -> Result<Value, TextError> {
        let around = |add: bool, id: Option<TokenId>, what: &str| match (add, id) {
            (false, _) => Ok(None),
            (true, Some(id)) => Ok(Some(id)),
            (true, None) => Err(refuse(format!("a text shall get {what}, but the file names none"))),
        };
        let bos = around(add_bos, self.bos(), "a BOS token")?;
        let eos = around(self.add_eos == Some(true), self.eos(), "an EOS token")?;
        if bos.is_none() && eos.is_none() {
            return Ok(Value::Null);
        }
        let mut table = Map::new();
        let mut name = |id: TokenId| {
            let text = self.spelling(id as usize);
            table.insert(text.clone(), json!({ "id": text, "ids": [id], "tokens": [text] }));
            json!({ "SpecialToken": { "id": text, "type_id": 0 } })
        };
        let (bos, eos) = (bos.map(&mut name), eos.map(&mut name));
        let sequence = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
        let whole = |ids: &[&str]| -> Vec<Value> {
            let texts = ids.iter().map(|id| sequence(id));
            bos.iter().cloned().chain(texts).chain(eos.iter().cloned()).collect()
        };
        let (single, pair) = (whole(&["A"]), whole(&["A", "B"]));
        Ok(json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": table }))
    }
}

impl Tokenizer {
    /// From the metadata of a GGUF file: the same ids as the `tokenizer.json` that the file was converted from, as far
    /// as the metadata tells. What it does not tell: whether special tokens swallow spaces beside them (known for
    /// Phi-3), and what other pre-tokenisers than the known ones do.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`] for kinds of vocabularies and pre-tokenisers that are not known, naming those that are,
    /// and for tables that contradict each other.
    pub fn from_gguf(gguf: &GgufVocab) -> Result<Self, TextError> {
        gguf.check()?;
        let vocab = gguf.vocabulary()?;
        let parts = match gguf.model.as_str() {
            "gpt2" => byte_level(gguf, vocab)?,
            "llama" | "gemma4" => sentencepiece(gguf, vocab)?,
            other => {
                let hint = "known are gpt2 (byte-level BPE), llama (SentencePiece BPE) and gemma4";
                return Err(refuse(format!("the vocabulary is of kind {other:?}; {hint}")));
            }
        };
        Tokenizer::from_parts(parts, gguf.added_tokens())
    }
}

fn byte_level(gguf: &GgufVocab, vocab: Vocab) -> Result<Parts, TextError> {
    let Some(pre) = Pre::named(&gguf.pre) else {
        let known: Vec<&str> = Pre::known().collect();
        let hint = "put the model's tokenizer.json beside the file";
        return Err(refuse(format!("unknown pre-tokeniser {:?}; {hint}. Known: {}", gguf.pre, known.join(", "))));
    };
    let merges = gguf.given_merges(&vocab)?;
    if merges.is_empty() && vocab.len() > 256 + gguf.added_tokens().count() {
        return Err(refuse("a vocabulary of kind gpt2 needs merges, but the file has none"));
    }
    let model = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(pre.ignore_merges);
    Ok(Parts {
        model: model.build().map_err(refuse)?,
        normalizer: pre.normalizer,
        pre_tokenizer: pre.pre_tokenizer,
        post_processor: gguf.post_processor(gguf.add_bos.unwrap_or(pre.add_bos))?,
        decoder: json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true }),
    })
}

fn sentencepiece(gguf: &GgufVocab, vocab: Vocab) -> Result<Parts, TextError> {
    if gguf.model == "llama" && gguf.merges.is_empty() && gguf.scores.is_empty() {
        return Err(refuse("a vocabulary of kind llama needs scores or merges, but the file has neither"));
    }
    // Merges say exactly what scores say only up to ties.
    let merges = if gguf.merges.is_empty() { gguf.spm_merges() } else { gguf.given_merges(&vocab)? };
    let fallback = (0..=255).all(|byte| vocab.contains_key(&format!("<0x{byte:02X}>")));
    let mut model = BPE::builder().vocab_and_merges(vocab, merges).fuse_unk(true).byte_fallback(fallback);
    if let Some(unk) = gguf.unk() {
        model = model.unk_token(gguf.spelling(unk as usize));
    } else if !fallback {
        return Err(refuse("text outside the vocabulary has no tokens: neither bytes nor an unknown token"));
    }
    let (normalizer, pre_tokenizer, decoder) = spm::sections(gguf.prefix());
    Ok(Parts {
        model: model.build().map_err(refuse)?,
        normalizer,
        pre_tokenizer,
        post_processor: gguf.post_processor(gguf.add_bos.unwrap_or(true))?,
        decoder,
    })
}

impl ChatTemplate {
    /// From the metadata of a GGUF file. [`TextError::NoTemplate`] for a file without any.
    pub fn from_gguf(gguf: &GgufVocab) -> Result<Self, TextError> {
        let mut templates = gguf.named_templates.clone();
        templates.extend(gguf.chat_template.clone().map(|source| ("default".to_owned(), source)));
        if templates.is_empty() {
            let message = "the GGUF file has no `tokenizer.chat_template`; use the completions API";
            return Err(TextError::NoTemplate(message.into()));
        }
        let names =
            [("bos_token", gguf.bos()), ("eos_token", gguf.eos()), ("unk_token", gguf.unk()), ("pad_token", gguf.pad)];
        let special = names.into_iter().filter_map(|(name, id)| Some((name.to_owned(), gguf.text(id?)?.into())));
        ChatTemplate::new(templates, special.collect())
    }
}

fn refuse(what: impl ToString) -> TextError {
    TextError::Tokenizer(what.to_string())
}
