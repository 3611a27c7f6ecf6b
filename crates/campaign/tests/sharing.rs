//! Sharing is real: what is computed, held and read for many requests on one prefix, on the embedded model.

use std::collections::BTreeMap;

use kvist_base::{AllResident, CHUNK, DomainId, Executor, StepOutput, TokenId};
use kvist_campaign::subjects;
use kvist_engine::{Effect, Engine, EngineConfig, Request, RequestId, Usage};
use kvist_kernels::Isa;

struct Rig {
    engine: Engine,
    executor: Box<dyn Executor>,
    output: StepOutput,
    usage: BTreeMap<RequestId, Usage>,
    /// (rows, KV bytes read, the same unshared) of each step.
    steps: Vec<(usize, u64, u64)>,
}

fn rig(chunks: u32) -> Rig {
    let executor = subjects::embedded().into_executor(chunks, None, Isa::detect(), 4).expect("room for the pool");
    let engine = Engine::new(EngineConfig::default(), executor.info().clone());
    let output = StepOutput::default();
    Rig { engine, executor: Box::new(executor), output, usage: BTreeMap::new(), steps: Vec::new() }
}

fn request(id: u64, prompt: Vec<TokenId>, max_tokens: u32) -> Request {
    Request::greedy(RequestId(id), DomainId(2), prompt, max_tokens)
}

/// Token ids that are no special tokens, different for each seed.
fn words(seed: u32, n: usize) -> Vec<TokenId> {
    (0..n as u32)
        .map(|i| 3 + (seed.wrapping_mul(2_654_435_761).wrapping_add(i.wrapping_mul(40_503)) >> 7) % 4000)
        .collect()
}

impl Rig {
    /// One step; false when there is nothing to do.
    fn step(&mut self, now: u64) -> bool {
        let Some(plan) = self.engine.plan(now) else { return false };
        let rows = plan.rows.len();
        self.executor.step(plan, &AllResident, &mut self.output);
        let counters = self.output.counters;
        self.steps.push((rows, counters.kv_bytes_read, counters.kv_bytes_unshared));
        self.engine.complete(now + 1, &self.output);
        for effect in self.engine.take_effects() {
            if let Effect::Done { id, usage } = effect {
                self.usage.insert(id, usage);
            }
        }
        true
    }

    fn run(&mut self) {
        let mut now = self.steps.len() as u64;
        while self.step(now) {
            now += 1;
        }
    }

    fn computed(&self) -> u64 {
        self.usage.values().map(|u| u64::from(u.prompt - u.cached)).sum()
    }
}

#[test]
fn sixty_four_clients_on_one_system_prompt() {
    const SYSTEM: usize = 2000;
    const OWN: usize = 20;
    let mut rig = rig(400);
    let system = words(1, SYSTEM);
    for id in 0..64 {
        let prompt = [system.clone(), words(100 + id as u32, OWN)].concat();
        rig.engine.submit(0, request(id, prompt, 24)).expect("it fits");
    }
    rig.run();
    assert_eq!(rig.usage.len(), 64);
    assert!(rig.computed() <= (SYSTEM + 64 * (OWN + 63)) as u64, "{} prompt tokens computed", rig.computed());
    // In truth nobody computes a token that another has: not even the part of the chunk in which they diverge.
    assert_eq!(rig.computed(), (SYSTEM + 64 * OWN) as u64);

    // What is held follows from the tree: 31 whole chunks once, then one open chunk for each (2,000 = 31 x 64 + 16,
    // and 16 + 20 + 24 tokens fit into one chunk).
    let stats = rig.engine.stats().cache;
    assert_eq!(stats.slabs - stats.free, 31 + 64);

    // What a decode step reads: the shared chunks once and 64 open ones, against 64 times 32 chunks by themselves.
    let chunk = rig.executor.info().layout.bytes as u64;
    let decode = rig.steps.iter().rfind(|s| s.0 == 64).expect("a step of 64 decode rows");
    assert_eq!(decode.1, (31 + 64) * chunk);
    assert_eq!(decode.2, 64 * 32 * chunk);
}

#[test]
fn ten_identical_prompts_at_once_are_computed_once() {
    let mut rig = rig(200);
    let prompt = words(7, 1000);
    for id in 0..10 {
        rig.engine.submit(0, request(id, prompt.clone(), 20)).expect("it fits");
    }
    rig.run();
    // Each of the other nine runs the row of the last token for its own logits; its KV is there already.
    assert_eq!(rig.computed(), 1000 + 9);
    // Greedy twins share their replies, too: 1,000 + 19 tokens of KV in 16 chunks, for all ten.
    let stats = rig.engine.stats().cache;
    assert_eq!(stats.slabs - stats.free, 16);
}

/// The request that was computing is cancelled: a waiter takes over where it stopped.
#[test]
fn a_waiter_takes_over() {
    let mut rig = rig(200);
    let prompt = words(9, 1500);
    for id in 0..3 {
        rig.engine.submit(0, request(id, prompt.clone(), 4)).expect("it fits");
    }
    assert!(rig.step(0));
    rig.engine.cancel(1, RequestId(0));
    rig.run();
    assert_eq!(rig.usage.len(), 3);
    assert_eq!(rig.engine.stats().prompt_rows, 1500 + 1);
    assert_eq!(rig.usage[&RequestId(0)].generated, 0);
}

/// A second turn that extends the first one's reply computes its own tokens and the last of the reply.
#[test]
fn the_next_turn_hits_up_to_the_last_token() {
    let mut rig = rig(200);
    let first = words(11, 333);
    rig.engine.submit(0, request(0, first.clone(), 50)).expect("it fits");
    let mut reply = Vec::new();
    while let Some(plan) = rig.engine.plan(0) {
        rig.executor.step(plan, &AllResident, &mut rig.output);
        rig.engine.complete(1, &rig.output);
        reply.extend(rig.engine.take_effects().into_iter().filter_map(|e| match e {
            Effect::Token { token, .. } => Some(token),
            _ => None,
        }));
    }
    assert_eq!(reply.len(), 50);
    let own = words(12, 17);
    rig.engine.submit(2, request(1, [first, reply, own.clone()].concat(), 3)).expect("it fits");
    rig.run();
    // The reply's last token was drawn, but nothing ran on it.
    assert_eq!(rig.computed(), own.len() as u64 + 1);
    assert!(rig.engine.stats().cache.slabs as usize * CHUNK > 400);
}
