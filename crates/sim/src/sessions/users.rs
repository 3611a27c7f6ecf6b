//! Users who talk, wait for the answer, think, and talk again. In the proportions of ShareGPT as AttentionStore reports
//! them: 73 % of conversations have several turns, 5.75 turns on average; lengths are a quarter of the real ones.

use kvist_base::{Micros, TokenId};

use crate::random::{Random, mix};

/// Tokens that a conversation consists of.
pub const VOCAB: usize = 256;

#[derive(Clone, Copy, Debug)]
pub struct Users {
    /// Users at the same time, each of whom begins another conversation when one has ended; or, with `arrive`, all of them.
    pub count: usize,
    /// Mean time between users who come for one conversation.
    pub arrive: Option<Micros>,
    /// Mean time between an answer and the next turn.
    pub think: Micros,
    /// Mean tokens that a user says, and that are answered.
    pub says: u32,
    pub hears: u32,
    /// A conversation ends before it gets longer.
    pub context: usize,
}

impl Default for Users {
    fn default() -> Users {
        Users { count: 400, arrive: None, think: 60_000_000, says: 25, hears: 64, context: 1024 }
    }
}

/// A conversation: its own random numbers, and what was said.
pub struct Conversation {
    random: Random,
    pub tokens: Vec<TokenId>,
    turns: u32,
}

/// What a user says next.
pub struct Turn {
    pub think: Micros,
    pub reply: u32,
}

impl Users {
    pub fn begin(&self, seed: u64) -> Conversation {
        let mut random = Random::new(mix(seed));
        // 1 / 5.5 ends a conversation of two turns or more after each turn: 0.27 + 0.73 * (2 + 5.5) = 5.75.
        let mut turns = 1;
        if random.chance(73) {
            turns = 2;
            while random.below(13) >= 2 {
                turns += 1;
            }
        }
        Conversation { random, tokens: Vec::new(), turns }
    }

    /// Adds what the user says; `None` when the conversation is over.
    pub fn speak(&self, conversation: &mut Conversation) -> Option<Turn> {
        let random = &mut conversation.random;
        let says = 4 + exponential(random, self.says.saturating_sub(4).into()) as usize;
        let reply = 8 + exponential(random, self.hears.saturating_sub(8).into()) as u32;
        let think = exponential(random, self.think);
        if conversation.turns == 0 || conversation.tokens.len() + says + reply as usize > self.context {
            return None;
        }
        conversation.turns -= 1;
        conversation.tokens.extend((0..says).map(|_| random.below(VOCAB) as TokenId));
        Some(Turn { think, reply })
    }
}

pub(super) fn exponential(random: &mut Random, mean: u64) -> u64 {
    let uniform = (random.word() >> 11) as f64 / (1u64 << 53) as f64;
    (-(1.0 - uniform).ln() * mean as f64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversations_have_the_reported_turns() {
        let users = Users { context: usize::MAX, ..Users::default() };
        let (mut turns, mut many, mut says, n) = (0, 0, 0, 20_000);
        for seed in 0..n {
            let mut conversation = users.begin(seed);
            let mut own = 0;
            while users.speak(&mut conversation).is_some() {
                own += 1;
            }
            turns += own;
            many += u64::from(own > 1);
            says += conversation.tokens.len() as u64;
        }
        let (mean, many, says) = (turns as f64 / n as f64, many as f64 / n as f64, says as f64 / turns as f64);
        assert!((mean - 5.75).abs() < 0.1 && (many - 0.73).abs() < 0.01, "{mean} turns, {many} of several");
        assert!((says - 25.0).abs() < 1.0, "{says} tokens a turn");
    }
}
