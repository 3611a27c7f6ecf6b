//! What `bench engine` lets engine and executor do.

use std::collections::BTreeSet;

use kvist_base::{DomainId, Micros, TokenId};
use kvist_engine::{Effect, EngineConfig, Request, RequestId};

use super::cases::{ALONE, OWN, SKIMMED_ROWS, STEPS, STREAM_PROMPT, most_tokens};
use super::figures::{Random, median};
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
    /// Submission to first token.
    pub first: Micros,
    pub prompt: usize,
    pub cached: usize,
}

/// What those who decode notice of a prompt that arrives.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// What they were promised, in microseconds: twice the time of a step of theirs alone.
    pub target: Micros,
    /// Time between two tokens while the prompt was computed, ascending.
    pub latencies: Vec<Micros>,
    /// Submission of the prompt to its first token.
    pub first: Micros,
}

impl Arrival {
    /// The latency that a share of them does not exceed.
    pub fn percentile(&self, share: f64) -> Micros {
        let last = self.latencies.len() - 1;
        self.latencies[((last as f64 * share).ceil() as usize).min(last)]
    }
}

/// Drives an engine with prompts of random tokens. Each measurement starts with an empty tree.
pub struct Workload {
    driver: Driver,
    config: EngineConfig,
    random: Random,
    vocab: usize,
}

impl Workload {
    pub fn new(driver: Driver, config: EngineConfig) -> Self {
        let vocab = driver.executor.info().vocab;
        Workload { driver, config, random: Random(7), vocab }
    }

    fn tokens(&mut self, n: usize) -> Vec<TokenId> {
        (0..n).map(|_| self.random.below(self.vocab) as TokenId).collect()
    }

    /// Nobody waits for prompts, unless they shall.
    fn restart(&mut self, itl_target: Micros) {
        self.driver.restart_with(EngineConfig { itl_target, ..self.config.clone() });
    }

    /// Computes a prompt.
    pub fn prefill(&mut self, tokens: usize) -> Result<Single> {
        self.restart(Micros::MAX);
        let prompt = self.tokens(tokens);
        self.first_token(prompt)
    }

    /// Computes `new` tokens after `history`, which is in memory.
    pub fn turn(&mut self, history: usize, new: usize) -> Result<Single> {
        self.restart(Micros::MAX);
        let mut conversation = self.tokens(history);
        self.submit(conversation.clone(), 1)?;
        while self.driver.skim() {}
        self.driver.take_effects();
        conversation.extend(self.tokens(new));
        self.first_token(conversation)
    }

    fn first_token(&mut self, prompt: Vec<TokenId>) -> Result<Single> {
        let submitted = self.driver.now();
        self.submit(prompt, 1)?;
        while self.driver.step().is_some() {}
        let first = self.driver.now() - submitted;
        let usage = self.driver.take_effects().into_iter().find_map(|effect| match effect {
            Effect::Done { usage, .. } => Some(usage),
            _ => None,
        });
        let usage = usage.ok_or_else(|| Failure::new("a prompt did not end", "report this"))?;
        Ok(Single { first, prompt: usage.prompt as usize, cached: usage.cached as usize })
    }

    /// Lets sequences decode together for [`STEPS`] steps. Their prompts are in memory, but are not computed.
    pub fn decode(&mut self, sequences: usize, prompt: usize, shared: bool) -> Result<Decoded> {
        let itl_target = Micros::MAX;
        self.driver.restart_with(EngineConfig { itl_target, max_step_rows: SKIMMED_ROWS, ..self.config.clone() });
        let root = self.tokens(if shared { prompt - OWN } else { 0 });
        let most = most_tokens(sequences, prompt) as u32;
        for _ in 0..sequences {
            let own = self.tokens(prompt - root.len());
            self.submit([root.clone(), own].concat(), most)?;
        }
        let (mut drawn, mut started) = (0, BTreeSet::new());
        while started.len() < sequences && self.driver.skim() {
            for effect in self.driver.take_effects() {
                if let Effect::Token { id, .. } = effect {
                    drawn += 1;
                    started.insert(id);
                }
            }
        }
        let before = self.driver.engine.stats();
        let mut times = Vec::new();
        while times.len() < STEPS
            && let Some(step) = self.driver.step()
        {
            if step.rows == sequences && step.logits == sequences {
                times.push(step.took as f64);
            }
        }
        self.driver.take_effects();
        let (after, steps) = (self.driver.engine.stats(), times.len());
        if steps == 0 {
            return Err(Failure::new("no step ran all sequences together", "run it again"));
        }
        let mean = |from: u64, to: u64| (to - from) / steps as u64;
        Ok(Decoded {
            step: median(&times),
            steps,
            kv_bytes: mean(before.kv_bytes_read, after.kv_bytes_read),
            kv_bytes_unshared: mean(before.kv_bytes_unshared, after.kv_bytes_unshared),
            depth: prompt as f64 + drawn as f64 / sequences as f64 + (steps as f64 - 1.0) / 2.0,
        })
    }

    /// Lets a prompt arrive while `streams` sequences decode. All is computed, since the engine learns from it.
    pub fn arrival(&mut self, streams: usize, prompt: usize) -> Result<Arrival> {
        self.restart(Micros::MAX);
        let alone = self.streams(streams, ALONE)?;
        let target = 2 * median(&alone) as Micros;
        self.restart(target);
        self.streams(streams, prompt)?;
        let arriving = self.tokens(prompt);
        let submitted = self.driver.now();
        let id = self.submit(arriving, 1)?;
        let (mut latencies, mut last) = (Vec::new(), submitted);
        while self.driver.step().is_some() {
            let now = self.driver.now();
            latencies.push(now - last);
            last = now;
            if self.driver.take_effects().iter().any(|e| matches!(e, Effect::Token { id: of, .. } if *of == id)) {
                break;
            }
        }
        latencies.sort_unstable();
        Ok(Arrival { target, latencies, first: last - submitted })
    }

    /// Starts sequences that may generate `tokens` and more, and lets them decode. Times of the steps.
    fn streams(&mut self, streams: usize, tokens: usize) -> Result<Vec<f64>> {
        for _ in 0..streams {
            let prompt = self.tokens(STREAM_PROMPT);
            self.submit(prompt, (ALONE + tokens) as u32)?;
        }
        let mut times = Vec::new();
        while times.len() < ALONE
            && let Some(step) = self.driver.step()
        {
            if step.logits == streams && step.rows == streams {
                times.push(step.took as f64);
            }
            self.driver.take_effects();
        }
        Ok(times)
    }

    fn submit(&mut self, prompt: Vec<TokenId>, max_tokens: u32) -> Result<RequestId> {
        let request = Request::greedy(RequestId(0), DOMAIN, prompt, max_tokens);
        self.driver.submit(request).map_err(|refusal| Failure::new(refusal.to_string(), "choose another case"))
    }
}
