//! What those who decode notice of a long prompt, on machines that are not as linear as the budget believes.

use kvist_base::{AllResident, DomainId, Executor, Micros, StepOutput, StepPlan};
use kvist_engine::{Effect, Engine, EngineConfig, Request, RequestId};
use kvist_sim::{CostModel, SimExecutor, SimModel};

const STREAMS: u64 = 4;
const PROMPT: usize = 8192;

/// Times in microseconds, shares of 1.
#[derive(Clone, Copy, Debug)]
struct Machine {
    /// Reading the weights once.
    weights: f64,
    /// Multiplying one row by them; rows go in blocks of eight, and few of them hide behind the reading.
    row: f64,
    /// Attention of a row to a thousand tokens.
    kilotoken: f64,
    /// Times are up to this much longer, evenly.
    noise: f64,
    /// One step in so many takes twice as long.
    hiccup: u64,
}

impl Machine {
    fn step(&self, plan: &StepPlan, random: &mut impl FnMut() -> f64) -> Micros {
        let rows = plan.rows.len().next_multiple_of(8) as f64;
        let attended: f64 = plan.rows.iter().map(|row| f64::from(row.position + 1)).sum();
        let time = self.weights.max(rows * self.row) + self.kilotoken * attended / 1000.0 + 300.0;
        let hiccup = if random() * (self.hiccup as f64) < 1.0 { 2.0 } else { 1.0 };
        (time * (1.0 + self.noise * random()) * hiccup) as Micros
    }
}

/// (p99 of the time between two tokens while the prompt was computed, target, time of the prompt alone, time it took).
fn arrive(machine: Machine, seed: u64) -> (Micros, Micros, f64, f64) {
    let mut state = seed;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    let model = SimModel { vocab: 24, seed: 5 };
    let cost = CostModel { step: 0, row: 0, kilotoken: 0 };
    let mut executor = SimExecutor::new(model, cost, 800, 16_384);
    // Twice what a step of theirs takes alone.
    let target = 2 * machine.weights.max(8.0 * machine.row) as Micros;
    let config = EngineConfig { itl_target: target, ..EngineConfig::default() };
    let mut engine = Engine::new(config, executor.info().clone());
    let prompt = |id: u64, n: usize| (0..n as u64).map(|i| ((i * 7 + id * i / 3 + id) % 24) as u32).collect();
    for id in 0..STREAMS {
        engine.submit(0, Request::greedy(RequestId(id), DomainId(2), prompt(id, 128), 6000)).unwrap();
    }
    let (mut now, mut output) = (0, StepOutput::default());
    let (mut arrived, mut last, mut latencies) = (None, 0, Vec::new());
    for step in 0.. {
        assert!(step < 5000, "the prompt is stuck");
        if step == 60 {
            engine.submit(now, Request::greedy(RequestId(9), DomainId(2), prompt(9, PROMPT), 1)).unwrap();
            (arrived, last) = (Some(now), now);
        }
        let plan = engine.plan(now).expect("there is work");
        executor.step(plan, &AllResident, &mut output);
        now += machine.step(plan, &mut random);
        engine.complete(now, &output);
        if arrived.is_some() {
            latencies.push(now - last);
            last = now;
        }
        if engine.take_effects().iter().any(|e| matches!(e, Effect::Token { id: RequestId(9), .. })) {
            break;
        }
    }
    assert_eq!(executor.violations, Vec::<String>::new());
    latencies.sort_unstable();
    let p99 = latencies[((latencies.len() - 1) as f64 * 0.99).ceil() as usize];
    let attention = machine.kilotoken * (PROMPT * PROMPT / 2) as f64 / 1000.0;
    let alone = PROMPT as f64 * machine.row + attention;
    (p99, target, alone, (now - arrived.unwrap()) as f64)
}

/// p99 <= 1.5 x target, and the prompt is not starved for it: of twice the time of a step, it gets a good half.
#[test]
fn streams_keep_their_pace_beside_a_long_prompt() {
    let laptop = Machine { weights: 30_000.0, row: 5_000.0, kilotoken: 100.0, noise: 0.1, hiccup: 1000 };
    let fast = Machine { weights: 20_000.0, row: 600.0, kilotoken: 30.0, noise: 0.2, hiccup: 300 };
    let steep = Machine { weights: 25_000.0, row: 900.0, kilotoken: 300.0, noise: 0.1, hiccup: 400 };
    let noisy = Machine { noise: 0.6, ..fast };
    for (name, machine) in [("laptop", laptop), ("fast", fast), ("steep", steep), ("noisy", noisy)] {
        for seed in 1..4 {
            let (p99, target, alone, took) = arrive(machine, seed);
            println!(
                "{name}: p99 {:.2} of the target, {:.2} of the time alone",
                p99 as f64 / target as f64,
                took / alone
            );
            assert!(2 * p99 <= 3 * target, "{name}, seed {seed}: p99 {p99}, target {target}");
            assert!(took < 5.0 * alone, "{name}, seed {seed}: {took} us instead of {alone}");
        }
    }
}
