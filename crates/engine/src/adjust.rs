//! What is done to a row of logits before a token is drawn from it. The order is vLLM's:
//!
//! 1. masks: `allowed`, `bad_words`, and the stop tokens until `min_tokens` are drawn;
//! 2. `bias`;
//! 3. penalties: repetition (over prompt and output), frequency and presence (over the output);
//! 4. in [`crate::sample`]: temperature, `min_p`, `top_k`, `top_p`.
//!
//! Masks set a logit to minus infinity, which no later step changes.

use std::collections::BTreeMap;

use kvist_base::TokenId;

use crate::request::{Refusal, Request, Sampling};

/// Changes to logits that a request asks for token by token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edits {
    /// Added to the logits of these tokens, each listed once.
    pub bias: Vec<(TokenId, f32)>,
    /// Nothing else is drawn.
    pub allowed: Option<Vec<TokenId>>,
    /// Sequences that are not drawn: the last token of each is masked where the others were just drawn.
    pub bad_words: Vec<Vec<TokenId>>,
    /// Tokens of output below which no stop token is drawn.
    pub min_tokens: u32,
}

impl Edits {
    /// Every id must be one of the vocabulary, since a list that says nothing is a mistake, and something must be left
    /// to draw (`bad_words` of several tokens may still leave nothing later; then the choice ends with an error).
    pub(crate) fn check(&self, vocab: usize, stop_tokens: &[TokenId]) -> Result<(), Refusal> {
        let biased = self.bias.iter().map(|b| ("logit_bias", b.0));
        let allowed = self.allowed.iter().flatten().map(|&t| ("allowed_token_ids", t));
        let bad = self.bad_words.iter().flatten().map(|&t| ("bad_words", t));
        if let Some((field, t)) = biased.chain(allowed).chain(bad).find(|n| n.1 as usize >= vocab) {
            let message = format!("token {t} is outside the vocabulary of {vocab}");
            return Err(Refusal::Invalid { field, message });
        }
        let invalid = |field, message: &str| Err(Refusal::Invalid { field, message: message.into() });
        if self.bias.iter().any(|b| !b.1.is_finite()) {
            return invalid("logit_bias", "a bias is not a number");
        }
        let early = if self.min_tokens > 0 { stop_tokens } else { &[] };
        let open = |t: TokenId| !early.contains(&t) && !self.bad_words.iter().any(|word| *word == [t]);
        match &self.allowed {
            Some(allowed) if !allowed.iter().any(|&t| open(t)) => {
                invalid("allowed_token_ids", "no token could be drawn")
            }
            None if !(0..vocab as TokenId).any(open) => invalid("bad_words", "no token could be drawn"),
            _ => Ok(()),
        }
    }

    /// Whether the next token after `drawn` tokens of output is drawn from other logits than the model's.
    pub(crate) fn apply_after(&self, drawn: usize) -> bool {
        let listed = !self.bias.is_empty() || self.allowed.is_some() || !self.bad_words.is_empty();
        listed || drawn < self.min_tokens as usize
    }
}

/// The tokens that a choice's penalties look at: each with how often it was drawn, 0 for one that only the prompt has.
/// A function of the choice's tokens, kept up token by token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen(BTreeMap<TokenId, u32>);

impl Seen {
    /// What the penalties of `sampling` need to know of `tokens`, the first `prompt` of which are the prompt's; `None`
    /// if it has no penalties.
    pub fn new(sampling: &Sampling, tokens: &[TokenId], prompt: usize) -> Option<Seen> {
        if !sampling.penalises() {
            return None;
        }
        let repetition = sampling.repetition_penalty != 1.0;
        let (prompt, output) = tokens.split_at(prompt);
        let prompt = if repetition { prompt } else { &[] };
        let mut seen = Seen(prompt.iter().map(|&t| (t, 0)).collect());
        output.iter().for_each(|&t| seen.push(t));
        Some(seen)
    }

    pub fn push(&mut self, token: TokenId) {
        *self.0.entry(token).or_default() += 1;
    }

    fn penalise(&self, sampling: &Sampling, row: &mut [f32]) {
        for (&token, &drawn) in &self.0 {
            let Some(x) = row.get_mut(token as usize) else { continue };
            let r = sampling.repetition_penalty;
            if r != 1.0 {
                // Overflow must not look like a broken model.
                *x = if *x > 0.0 { (*x / r).min(f32::MAX) } else { *x * r };
            }
            if drawn > 0 {
                *x -= sampling.frequency_penalty * drawn as f32;
                *x -= sampling.presence_penalty;
            }
        }
    }
}

/// The logits that the next token is drawn from: `row` itself where the request asks for no change, else a changed
/// copy in `scratch`. `output` is what the choice has drawn, `seen` as [`Seen::new`] makes it.
pub fn adjust<'a>(
    row: &'a [f32],
    request: &Request,
    output: &[TokenId],
    seen: Option<&Seen>,
    scratch: &'a mut Vec<f32>,
) -> &'a [f32] {
    let edits = &*request.edits;
    if seen.is_none() && !edits.apply_after(output.len()) {
        return row;
    }
    scratch.clear();
    match &edits.allowed {
        None => scratch.extend_from_slice(row),
        Some(allowed) => {
            scratch.resize(row.len(), f32::NEG_INFINITY);
            for &t in allowed {
                if let Some(&x) = row.get(t as usize) {
                    scratch[t as usize] = x;
                }
            }
        }
    }
    let mut mask = |token: TokenId| {
        if let Some(x) = scratch.get_mut(token as usize) {
            *x = f32::NEG_INFINITY;
        }
    };
    for word in &edits.bad_words {
        if let Some((&last, before)) = word.split_last()
            && output.ends_with(before)
        {
            mask(last);
        }
    }
    if output.len() < edits.min_tokens as usize {
        request.stop_tokens.iter().for_each(|&t| mask(t));
    }
    for &(token, bias) in &edits.bias {
        if let Some(x) = scratch.get_mut(token as usize) {
            *x += bias;
        }
    }
    if let Some(seen) = seen {
        seen.penalise(&request.sampling, scratch);
    }
    scratch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_that_cannot_be_meant_are_refused_by_field() {
        let field = |edits: Edits| match edits.check(8, &[0, 1]) {
            Err(Refusal::Invalid { field, .. }) => field,
            _ => "",
        };
        let of = Edits::default;
        assert_eq!(field(Edits { min_tokens: 9, ..of() }), "");
        assert_eq!(field(Edits { bias: vec![(7, -100.0)], allowed: Some(vec![0, 7]), ..of() }), "");
        assert_eq!(field(Edits { bias: vec![(8, 1.0)], ..of() }), "logit_bias");
        assert_eq!(field(Edits { bias: vec![(7, f32::NAN)], ..of() }), "logit_bias");
        assert_eq!(field(Edits { allowed: Some(vec![]), ..of() }), "allowed_token_ids");
        assert_eq!(field(Edits { allowed: Some(vec![8]), ..of() }), "allowed_token_ids");
        assert_eq!(field(Edits { allowed: Some(vec![0, 1]), ..of() }), "");
        assert_eq!(field(Edits { allowed: Some(vec![0, 1]), min_tokens: 1, ..of() }), "allowed_token_ids");
        assert_eq!(field(Edits { bad_words: vec![vec![1, 8]], ..of() }), "bad_words");
        assert_eq!(field(Edits { bad_words: (0..8).map(|t| vec![t]).collect(), ..of() }), "bad_words");
        assert_eq!(field(Edits { bad_words: (0..8).map(|t| vec![t, t]).collect(), ..of() }), "");
    }
}
