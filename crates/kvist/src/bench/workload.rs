//! What `bench engine` lets engine and executor do.

use kvist_base::{CHUNK, DomainId, Micros, TokenId};
use kvist_engine::{Effect, Request, RequestId};

use super::figures::Random;
use crate::driver::Driver;
use crate::failure::{Failure, Result};

const DOMAIN: DomainId = DomainId(1);

/// One measurement of decoding steps.
#[derive(Clone, Copy, Debug)]
pub struct Decoded {
    /// Median time of a step in microseconds.
    pub step: f64,
    pub steps: usize,
    /// Bytes of keys and values that a step read, about, and what it would have read unshared.
    pub kv_bytes: u64,
    pub kv_bytes_unshared: u64,
    /// Tokens that a row attended to on average.
    pub depth: f64,
}

/// One request that was run alone.
#[derive(Clone, Copy, Debug)]
pub struct Single {
    /// Submission to first token, or to the end if none is asked for.
    pub first: Micros,
    pub prompt: usize,
    pub cached: usize,
}

/// Drives an engine with prompts of random tokens.
pub struct Workload {
    pub driver: Driver,
    random: Random,
    vocab: usize,
}

impl Workload {
    pub fn new(driver: Driver) -> Self {
        let vocab = driver.executor.info().vocab;
        Workload { driver, random: Random(7), vocab }
    }

    pub fn tokens(&mut self, n: usize) -> Vec<TokenId> {
        (0..n).map(|_| self.random.below(self.vocab) as TokenId).collect()
    }

    /// Runs one prompt alone; the tokens that it gave are appended to it.
    pub fn single(&mut self, prompt: &mut Vec<TokenId>, max_tokens: u32) -> Result<Single> {
        let submitted = self.driver.now();
        self.submit(prompt.clone(), max_tokens)?;
        let mut first = None;
        loop {
            self.driver.step();
            let now = self.driver.now();
            for effect in self.driver.take_effects() {
                match effect {
                    Effect::Token { token, .. } => {
                        first.get_or_insert(now - submitted);
                        prompt.push(token);
                    }
                    Effect::Done { usage, .. } => {
                        let (prompt, cached) = (usage.prompt as usize, usage.cached as usize);
                        return Ok(Single { first: first.unwrap_or(now - submitted), prompt, cached });
                    }
                    _ => {}
                }
            }
        }
    }

    /// Lets all prompts decode together for about `seconds` and measures the steps in which nothing else ran.
    pub fn decode(&mut self, prompts: &[Vec<TokenId>], seconds: f64, note: &dyn Fn(&str)) -> Result<Decoded> {
        self.decode_until(prompts, MOST_TOKENS, seconds, note)
    }

    /// The same for `tokens` of each.
    pub fn decode_some(&mut self, prompts: &[Vec<TokenId>], tokens: usize, note: &dyn Fn(&str)) -> Result<Decoded> {
        self.decode_until(prompts, tokens, f64::INFINITY, note)
    }

    fn decode_until(
        &mut self,
        prompts: &[Vec<TokenId>],
        tokens: usize,
        seconds: f64,
        note: &dyn Fn(&str),
    ) -> Result<Decoded> {
        let context = self.driver.executor.info().context;
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let most = (context - longest).min(tokens) as u32;
        let ids: Vec<RequestId> =
            prompts.iter().map(|prompt| self.submit(prompt.clone(), most)).collect::<Result<_>>()?;
        let mut times = Vec::new();
        let (mut started, mut open) = (None, ids.len());
        let mut read = (0, 0);
        let mut generated = vec![0; ids.len()];
        let mut depth = 0.0;
        while open > 0 {
            let before = self.driver.engine.stats();
            let Some(step) = self.driver.step() else { break };
            if step.rows == prompts.len() && step.logits == prompts.len() && generated.iter().all(|&n| n > 0) {
                let now = self.driver.now();
                let start = *started.get_or_insert(now);
                let after = self.driver.engine.stats();
                read.0 += after.kv_bytes_read - before.kv_bytes_read;
                read.1 += after.kv_bytes_unshared - before.kv_bytes_unshared;
                let attended = prompts.iter().zip(&generated).map(|(p, n)| p.len() + n).sum::<usize>();
                depth += attended as f64 / prompts.len() as f64;
                times.push(step.took as f64);
                if times.len() >= LEAST_STEPS && (now - start) as f64 > seconds * 1e6 {
                    ids.iter().for_each(|&id| self.driver.cancel(id));
                }
            } else {
                note("computing prompts");
            }
            for effect in self.driver.take_effects() {
                match effect {
                    Effect::Token { id, .. } => {
                        let place = ids.iter().position(|&known| known == id);
                        generated[place.expect("one of these requests")] += 1;
                    }
                    Effect::Done { .. } => open -= 1,
                    _ => {}
                }
            }
        }
        let steps = times.len();
        if steps == 0 {
            return Err(Failure::new("no step ran all sequences together", "choose shorter prompts"));
        }
        let mean = |total: u64| total / steps as u64;
        Ok(Decoded {
            step: super::figures::median(&times),
            steps,
            kv_bytes: mean(read.0),
            kv_bytes_unshared: mean(read.1),
            depth: depth / steps as f64,
        })
    }

    fn submit(&mut self, prompt: Vec<TokenId>, max_tokens: u32) -> Result<RequestId> {
        let request = Request::greedy(RequestId(0), DOMAIN, prompt, max_tokens);
        self.driver.submit(request).map_err(|refusal| Failure::new(refusal.to_string(), "choose shorter prompts"))
    }
}

/// Tokens that a sequence generates at most; the pool has room for them.
pub const MOST_TOKENS: usize = 512;
const LEAST_STEPS: usize = 8;

/// Chunks for `batch` sequences of `prompt` tokens that share nothing, and as many again from before.
pub fn chunks_for(batch: usize, prompt: usize) -> u32 {
    (batch * ((prompt + MOST_TOKENS).div_ceil(CHUNK) + 1) * 2) as u32
}
