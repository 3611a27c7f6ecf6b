//! Random requests that share prefixes at every depth, with lengths where bugs live.

use std::sync::Arc;

use kvist_base::{DomainId, Micros, TokenId};
use kvist_engine::{Edits, Request, RequestId, Sampling};

use crate::constraint::SimConstraint;
use crate::random::Random;

/// A request and when it comes.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub at: Micros,
    pub request: Request,
}

/// Bounds of a random workload.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    pub requests: usize,
    pub domains: u32,
    pub vocab: usize,
    /// Prompt and generated tokens together stay below this.
    pub context: usize,
    pub max_n: u32,
    /// Mean time between arrivals.
    pub gap: Micros,
    /// Constraints carry a deliberate bug.
    pub broken_constraints: bool,
}

/// Lengths around every border that the tree and the kernels have.
const LENGTHS: [usize; 12] = [1, 2, 63, 64, 65, 127, 128, 129, 20, 200, 511, 513];

impl Workload {
    pub fn generate(&self, random: &mut Random) -> Vec<Arrival> {
        let mut at = 0;
        let mut prompts: Vec<Vec<TokenId>> = Vec::new();
        (0..self.requests)
            .map(|id| {
                at += random.below(2 * self.gap as usize + 1) as Micros;
                let prompt = self.prompt(random, &prompts);
                prompts.push(prompt.clone());
                let most = self.context - prompt.len();
                let max_tokens = random.pick(&[0, 1, 2, 5, 40, 70, 130]).min(most) as u32;
                let request = Request {
                    carry: None,
                    id: RequestId(id as u64),
                    domain: DomainId(2 + random.below(self.domains as usize) as u32),
                    prompt,
                    n: if random.chance(80) { 1 } else { 1 + random.below(self.max_n as usize) as u32 },
                    max_tokens,
                    sampling: Sampling {
                        temperature: random.pick(&[0.0, 0.0, 0.8]),
                        top_k: random.pick(&[0, 5]),
                        top_p: random.pick(&[1.0, 0.9]),
                        min_p: random.pick(&[0.0, 0.0, 0.1]),
                        repetition_penalty: random.pick(&[1.0, 1.0, 1.0, 1.3]),
                        presence_penalty: random.pick(&[0.0, 0.0, 0.0, 0.5]),
                        frequency_penalty: random.pick(&[0.0, 0.0, 0.0, -0.2]),
                        seed: random.word(),
                    },
                    edits: edits(random),
                    stop_tokens: if random.chance(40) { vec![] } else { vec![0] },
                    constraint: random
                        .chance(30)
                        .then(|| Box::new(SimConstraint::new(random.word(), self.broken_constraints)) as _),
                    logprobs: random.pick(&[None, Some(2)]),
                    prompt_logprobs: if random.chance(10) { Some(1) } else { None },
                    priority: if random.chance(20) { random.below(3) as i32 - 1 } else { 0 },
                    ttft_slo: if random.chance(10) { Some(200_000) } else { None },
                };
                Arrival { at, request }
            })
            .collect()
    }

    fn prompt(&self, random: &mut Random, earlier: &[Vec<TokenId>]) -> Vec<TokenId> {
        let mut prompt = Vec::new();
        if !earlier.is_empty() && random.chance(75) {
            let base = &earlier[random.below(earlier.len())];
            let keep = if random.chance(30) { base.len() } else { random.pick(&LENGTHS).min(base.len()) };
            prompt.extend_from_slice(&base[..keep]);
        }
        let more = if random.chance(20) { 0 } else { random.pick(&LENGTHS) };
        prompt.extend((0..more).map(|_| random.below(self.vocab) as TokenId));
        prompt.truncate(self.context * 3 / 4);
        if prompt.is_empty() {
            prompt.push(random.below(self.vocab) as TokenId);
        }
        prompt
    }
}

/// Mostly none. Whatever is masked, tokens 2 to 4 can be drawn.
fn edits(random: &mut Random) -> Arc<Edits> {
    let some = |random: &mut Random| random.chance(15);
    Arc::new(Edits {
        bias: if some(random) { vec![(0, 3.0), (1, -100.0), (2, 0.5)] } else { vec![] },
        allowed: some(random).then(|| vec![5, 4, 3, 2, 1, 0]),
        bad_words: if some(random) { vec![vec![1], vec![2, 5], vec![5, 5, 5]] } else { vec![] },
        min_tokens: if some(random) { random.pick(&[1, 3, 50]) } else { 0 },
    })
}
