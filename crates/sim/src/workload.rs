//! Random requests that share prefixes at every depth, with lengths where bugs live.

use kvist_base::{DomainId, Micros, TokenId};
use kvist_engine::{Request, RequestId, Sampling};

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
                    id: RequestId(id as u64),
                    domain: DomainId(2 + random.below(self.domains as usize) as u32),
                    prompt,
                    n: if random.chance(80) { 1 } else { 1 + random.below(self.max_n as usize) as u32 },
                    max_tokens,
                    sampling: Sampling {
                        temperature: random.pick(&[0.0, 0.0, 0.8]),
                        top_k: random.pick(&[0, 5]),
                        top_p: random.pick(&[1.0, 0.9]),
                        seed: random.word(),
                    },
                    stop_tokens: vec![0],
                    ignore_eos: random.chance(40),
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
