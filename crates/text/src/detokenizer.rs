use std::sync::Arc;

use kvist_base::TokenId;

use crate::Tokenizer;
use crate::decoder::Lead;

/// Text of a stream of token ids, piece by piece. What a token leaves incomplete in UTF-8 waits for the next one.
#[derive(Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// Special tokens that are not left out.
    kept: Arc<[TokenId]>,
    lead: Lead,
    /// Bytes not given out yet: a proper prefix of a UTF-8 sequence.
    held: Vec<u8>,
}

impl Detokenizer {
    /// For ids that start a text: as [`Tokenizer::decode`] does, a leading space that the tokenizer adds to every text
    /// is dropped.
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        let (lead, kept) = (tokenizer.lead(), Arc::default());
        Detokenizer { tokenizer: tokenizer.clone(), skip_special, kept, lead, held: Vec::new() }
    }

    /// For ids that continue a prompt: their text, put after the prompt's, is the text of all of them. A reply is
    /// decoded so, else the reply and the next turn's prompt would differ by a space.
    pub fn after_prompt(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        Detokenizer { lead: Lead::Nothing, ..Self::new(tokenizer, skip_special) }
    }

    /// Shows these special tokens even where others are left out.
    pub fn keeping(self, kept: &Arc<[TokenId]>) -> Self {
        Detokenizer { kept: kept.clone(), ..self }
    }

    /// The text that became certain with this token; often empty, never ends inside a character.
    pub fn push(&mut self, id: TokenId) -> String {
        if self.skip_special && self.tokenizer.is_special(id) && !self.kept.contains(&id) {
            return String::new();
        }
        match self.lead {
            Lead::Nothing => self.held.extend_from_slice(self.tokenizer.bytes_of(id)),
            Lead::FirstPiece => {
                if self.tokenizer.has(id) {
                    self.held.extend(self.tokenizer.first_bytes_of(id));
                    self.lead = Lead::Nothing;
                }
            }
            Lead::Strip { byte, count } => {
                let bytes = self.tokenizer.bytes_of(id);
                let cut = bytes.iter().take(count).take_while(|&&b| b == byte).count();
                self.held.extend_from_slice(&bytes[cut..]);
                let more = cut == bytes.len() && cut < count;
                self.lead = if more { Lead::Strip { byte, count: count - cut } } else { Lead::Nothing };
            }
        }
        self.certain()
    }

    /// What is left at the end: U+FFFD if the last character never became whole.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        rest
    }

    /// Takes all of `held` but an incomplete sequence at its end.
    fn certain(&mut self) -> String {
        let mut text = String::new();
        let mut at = 0;
        loop {
            match std::str::from_utf8(&self.held[at..]) {
                Ok(rest) => {
                    text.push_str(rest);
                    at = self.held.len();
                    break;
                }
                Err(e) => {
                    let (valid, _) = self.held[at..].split_at(e.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    at += e.valid_up_to();
                    let Some(broken) = e.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    at += broken;
                }
            }
        }
        self.held.drain(..at);
        text
    }
}
