use std::fmt;

use crate::TokenId;

/// What may be generated next, for one choice of a request. A state that moves with each token.
///
/// The work is in [`Constraint::prepare`], so that it can be done beside a step: which tokens may follow is known as
/// soon as the last token is drawn, long before the logits that it will be applied to.
pub trait Constraint: Send {
    /// Works out what may come next, unless that is known. Calling it is never necessary and never changes a result.
    fn prepare(&mut self);

    /// What may come next, prepared or not. An error ends the choice.
    fn allowed(&mut self) -> Result<Allowed<'_>, String>;

    /// Moves past a token that was allowed. An error ends the choice.
    fn accept(&mut self, token: TokenId) -> Result<(), String>;

    /// Whether the text is whole and nothing may follow it.
    fn is_complete(&self) -> bool;

    /// The same state, to move by itself.
    fn fork(&self) -> Box<dyn Constraint>;
}

/// The tokens that may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed<'a> {
    /// Token `t` may come if bit `t % 32` of word `t / 32` is set; beyond the last word none may.
    pub tokens: &'a [u32],
    /// The text may end here: a stop token may come, too.
    pub end: bool,
}

impl Allowed<'_> {
    pub fn contains(&self, token: TokenId) -> bool {
        self.tokens.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Self {
        self.fork()
    }
}

impl fmt::Debug for dyn Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Constraint")
    }
}
