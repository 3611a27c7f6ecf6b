//! A small trace with what the large ones have: conversations that go on or end, documents pasted and dropped again,
//! requests that never come back, system prompts that all share.

use kvist_base::Micros;

use crate::random::Random;
use crate::replay::trace::{BLOCK, Trace};

/// Conversations to make up.
#[derive(Clone, Copy, Debug)]
pub struct Conversations {
    pub count: usize,
    /// Mean time between two beginnings, in microseconds.
    pub gap: Micros,
    /// Mean time between an answer and the next turn, in microseconds.
    pub think: Micros,
}

/// A trace from a seed. The same on every platform, but for the last bits of logarithms.
pub fn generate(conversations: Conversations, seed: u64) -> Trace {
    let mut random = Random::new(seed);
    let mut rows: Vec<(Micros, u32, u32, Vec<u32>)> = Vec::new();
    let (mut start, mut fresh) = (0.0, 4);
    for _ in 0..conversations.count {
        start += exponential(&mut random, conversations.gap);
        // Each turn makes another more likely: 3 in 10 after the first, 8 in 10 in the end.
        let single = random.chance(15);
        let mut blocks = vec![random.below(4) as u32];
        let mut partial = 0;
        let mut at = start;
        for turn in 0.. {
            let tokens = if single { 100 } else { 200 + exponential(&mut random, 4000) as u32 };
            let document = !single && random.chance(15);
            let kept = blocks.len();
            grow(&mut blocks, &mut partial, tokens + if document { 8000 } else { 0 }, &mut fresh);
            let mut asked = blocks.clone();
            let prompt = asked.len() as u32 * BLOCK + partial;
            if partial > 0 {
                asked.push(fresh);
                fresh += 1;
            }
            let reply = if single { 10 } else { 50 + exponential(&mut random, 300) as u32 };
            rows.push((at as Micros, prompt, reply, asked));
            if document {
                blocks.truncate(kept);
            }
            grow(&mut blocks, &mut partial, reply, &mut fresh);
            if single || !random.chance([30, 40, 50, 60, 70, 80][turn.min(5)]) {
                break;
            }
            at += 5e6 + exponential(&mut random, conversations.think);
        }
    }
    rows.sort_by_key(|row| row.0);
    let mut trace = Trace::default();
    for (at, prompt, reply, blocks) in rows {
        trace.push(at, prompt, reply, blocks);
    }
    trace.number();
    trace
}

fn grow(blocks: &mut Vec<u32>, partial: &mut u32, tokens: u32, fresh: &mut u32) {
    *partial += tokens;
    while *partial >= BLOCK {
        *partial -= BLOCK;
        blocks.push(*fresh);
        *fresh += 1;
    }
}

fn exponential(random: &mut Random, mean: Micros) -> f64 {
    let uniform = (random.word() >> 11) as f64 / (1u64 << 53) as f64;
    -(1.0 - uniform).ln() * mean as f64
}
