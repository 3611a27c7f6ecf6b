//! What a request's next token is drawn from, computed anew from all its tokens: the reference for the engine's
//! incremental way.

use kvist_base::TokenId;
use kvist_engine::Request;

/// `row` after the masks, biases and penalties that `request` asks for, when `output` follows its prompt.
pub fn adjusted(mut row: Vec<f32>, request: &Request, output: &[TokenId]) -> Vec<f32> {
    let edits = &request.edits;
    for (i, x) in row.iter_mut().enumerate() {
        let token = i as TokenId;
        let ends_bad_word = |word: &Vec<TokenId>| [output, &[token]].concat().ends_with(word) && !word.is_empty();
        let early = output.len() < edits.min_tokens as usize && request.stop_tokens.contains(&token);
        let foreign = edits.allowed.as_ref().is_some_and(|a| !a.contains(&token));
        if early || foreign || edits.bad_words.iter().any(ends_bad_word) {
            *x = f32::NEG_INFINITY;
        }
        *x += edits.bias.iter().filter(|b| b.0 == token).map(|b| b.1).sum::<f32>();
        let s = &request.sampling;
        if request.prompt.contains(&token) || output.contains(&token) {
            *x = if *x > 0.0 { *x / s.repetition_penalty } else { *x * s.repetition_penalty };
        }
        let drawn = output.iter().filter(|&&t| t == token).count();
        if drawn > 0 {
            *x -= s.frequency_penalty * drawn as f32;
            *x -= s.presence_penalty;
        }
    }
    row
}
