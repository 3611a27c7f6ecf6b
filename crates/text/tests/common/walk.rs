//! Ways through a grammar: random ones, and that of a given text.

use kvist_base::{Constraint, TokenId};
use kvist_text::Tokenizer;
use kvist_text::grammar::Grammar;

/// splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

pub fn allowed_tokens(state: &mut dyn Constraint, tokenizer: &Tokenizer) -> Result<(Vec<TokenId>, bool), String> {
    let allowed = state.allowed()?;
    let tokens = (0..tokenizer.vocab_size() as TokenId).filter(|&t| allowed.contains(t)).collect();
    Ok((tokens, allowed.end))
}

/// A text of tokens drawn evenly from those that may come; `None` if it came to no end within `most` tokens. From half
/// of them on, tokens that close something are preferred.
pub fn random_walk(
    tokenizer: &Tokenizer,
    grammar: &Grammar,
    most: usize,
    random: &mut Random,
) -> Result<Option<String>, String> {
    let mut state = grammar.fork();
    let mut bytes = Vec::new();
    for drawn in 0..most {
        let (tokens, end) = allowed_tokens(state.as_mut(), tokenizer)?;
        if end && (tokens.is_empty() || random.below(4) == 0) {
            return whole(bytes);
        }
        let closes = |&&t: &&TokenId| tokenizer.token_bytes(t).iter().all(|b| b"\"}]0123456789".contains(b));
        let closing: Vec<TokenId> = tokens.iter().filter(closes).copied().collect();
        let hurry = drawn * 2 > most && !closing.is_empty() && random.below(2) == 0;
        let from = if hurry { &closing } else { &tokens };
        let token = *from.get(random.below(from.len().max(1))).ok_or("nothing may follow")?;
        bytes.extend(tokenizer.token_bytes(token));
        state.accept(token)?;
        if state.is_complete() {
            return whole(bytes);
        }
    }
    Ok(None)
}

fn whole(bytes: Vec<u8>) -> Result<Option<String>, String> {
    String::from_utf8(bytes).map(Some).map_err(|e| e.to_string())
}

/// Whether the text, in the tokenizer's own spelling, may be generated and end there.
pub fn accepts(tokenizer: &Tokenizer, grammar: &Grammar, text: &str) -> bool {
    let mut state = grammar.fork();
    let ids = tokenizer.encode(text, false).expect("it encodes");
    ids.iter().all(|&id| state.allowed().is_ok_and(|a| a.contains(id)) && state.accept(id).is_ok())
        && state.allowed().is_ok_and(|a| a.end)
}
