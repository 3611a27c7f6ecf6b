//! Cold = warm = any batch, bit for bit: each case draws prompts that share prefixes, a cache too small or not, batch
//! mates, arrival order, step sizes, threads, cancels, preemption and lost slices, and compares every row of logits
//! and every full chunk of KV with lone cold runs of the same requests.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use kvist_base::{CHUNK, ChunkId, DomainId, Executor, Gone, Residency, StepOutput, TokenId};
use kvist_engine::{Effect, Engine, EngineConfig, Finish, Request, RequestId, Sampling};
use kvist_sim::{Manners, Random, SimTier};

use crate::carried;
use crate::recorder::{Bits, Recorder};

/// Something that makes executors for one model on one ISA path.
pub trait Subject {
    fn name(&self) -> String;
    fn vocab(&self) -> usize;
    fn context(&self) -> usize;
    /// Cost of a case relative to a small model; expensive subjects get fewer and shorter cases.
    fn heavy(&self) -> bool;
    /// Whether sealed chunks are encoded.
    fn encodes(&self) -> bool;
    /// `open`: slabs for open chunks, where sealed ones are encoded.
    fn executor(&self, chunks: u32, open: u32, threads: usize) -> Box<dyn Executor>;
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    pub cases: u64,
    /// Rows of logits and chunks of KV compared.
    pub compared: u64,
    pub with_hits: u64,
    pub with_evictions: u64,
    pub with_cancels: u64,
    pub with_preemptions: u64,
    pub with_losses: u64,
    /// Cases in which rows of sealed chunks were computed again.
    pub with_reopens: u64,
    /// Cases in which chunks came from a tier.
    pub with_loads: u64,
    /// Conversations beside the cases whose KV was carried over cuts.
    pub with_cuts: u64,
}

impl Report {
    pub fn add(&mut self, o: &Report) {
        self.cases += o.cases;
        self.compared += o.compared;
        self.with_hits += o.with_hits;
        self.with_evictions += o.with_evictions;
        self.with_cancels += o.with_cancels;
        self.with_preemptions += o.with_preemptions;
        self.with_losses += o.with_losses;
        self.with_reopens += o.with_reopens;
        self.with_loads += o.with_loads;
        self.with_cuts += o.with_cuts;
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let share = |n: u64| 100.0 * n as f64 / self.cases.max(1) as f64;
        write!(
            f,
            "{} cases, {} bit patterns compared; cases with hits {:.1} %, evictions {:.1} %, cancels {:.1} %, \
             preemptions {:.1} %, lost slices {:.1} %, chunks reopened {:.1} %, loads from a tier {:.1} %; \
             {} conversations over cuts",
            self.cases,
            self.compared,
            share(self.with_hits),
            share(self.with_evictions),
            share(self.with_cancels),
            share(self.with_preemptions),
            share(self.with_losses),
            share(self.with_reopens),
            share(self.with_loads),
            self.with_cuts
        )
    }
}

/// Lengths around every border of chunks and segments.
const LENGTHS: [usize; 13] = [0, 1, 63, 64, 65, 127, 128, 129, 511, 512, 513, 30, 200];

/// Loses a slice now and then, in any layer.
struct Flaky {
    per_myriad: u64,
    counter: AtomicU64,
}

impl Residency for Flaky {
    fn fill(&self, layer: usize, chunk: ChunkId, _: &mut [u8]) -> Result<bool, Gone> {
        let n = self.counter.fetch_add(1, Ordering::Relaxed);
        let lost = Random::new(n ^ (layer as u64) << 40).word() % 10_000 < self.per_myriad;
        if lost { Err(Gone(chunk)) } else { Ok(false) }
    }
}

struct Case {
    requests: Vec<Request>,
    /// Step before which each request comes.
    arrivals: Vec<u64>,
    /// (step, request) to cancel.
    cancels: Vec<(u64, usize)>,
    config: EngineConfig,
    chunks: u32,
    open: u32,
    threads: usize,
    per_myriad: u64,
    publish: bool,
    /// Everything comes twice, the second time to a new engine over what the first has saved.
    tier: Option<Manners>,
}

/// Runs the case of `seed` on `subject`, and beside every seventh one a conversation that outgrows its context.
pub fn run(seed: u64, subject: &dyn Subject) -> Result<Report, String> {
    let mut report = batch(seed, subject)?;
    if seed % 7 == 3 {
        report.add(&carried::run(seed, subject)?);
    }
    Ok(report)
}

fn batch(seed: u64, subject: &dyn Subject) -> Result<Report, String> {
    let case = draw(seed, subject);
    let told = |e: String| format!("seed {seed}, {}: {e}", subject.name());
    let mut truth = Recorder::new(subject.executor(case.chunks.max(64), 80, 1));
    let mut alone = BTreeMap::new();
    for request in &case.requests {
        // A new engine knows no prefix: the pool is reused, its contents are not.
        let config = EngineConfig { max_step_rows: 4096, ..EngineConfig::default() };
        let mut engine = Engine::new(config, truth.info().clone());
        engine.submit(0, request.clone()).map_err(|e| told(e.to_string()))?;
        let mut output = StepOutput::default();
        while let Some(plan) = engine.plan(0) {
            truth.step(plan, &kvist_base::AllResident, &mut output);
            engine.complete(0, &output);
        }
        collect(&mut engine, &mut alone);
    }
    if let Some(clash) = truth.clash.take() {
        return Err(told(format!("lone cold runs contradict each other: {clash}")));
    }
    let mut report = Report { cases: 1, ..Report::default() };
    let tier = case.tier.map(|manners| SimTier::new(&truth.info().layout.clone(), manners));
    for _ in 0..1 + usize::from(tier.is_some()) {
        let (bits, streams, stats) = together(&case, subject, tier.as_ref()).map_err(&told)?;
        report.compared += truth.bits.covers(&bits).map_err(&told)? as u64;
        for (key, (tokens, end)) in &streams {
            let (expected, expected_end) = &alone[key];
            let whole = *end != Some(Finish::Cancelled);
            if !expected.starts_with(tokens) || (whole && (tokens != expected || end != expected_end)) {
                return Err(told(format!("{key:?}: {tokens:?} {end:?}, alone {expected:?} {expected_end:?}")));
            }
        }
        report.with_hits |= u64::from(stats.cached_tokens > 0);
        report.with_evictions |= u64::from(stats.cache.evictions > 0);
        report.with_cancels |= u64::from(streams.values().any(|s| s.1 == Some(Finish::Cancelled)));
        report.with_preemptions |= u64::from(stats.preemptions > 0);
        report.with_losses |= u64::from(stats.lost_rows > 0);
        report.with_reopens |= u64::from(stats.cache.reopened > 0);
        report.with_loads |= u64::from(stats.tier.loads > 0);
    }
    Ok(report)
}

type Streams = BTreeMap<(RequestId, u32), (Vec<TokenId>, Option<Finish>)>;

fn collect(engine: &mut Engine, streams: &mut Streams) {
    for effect in engine.take_effects() {
        match effect {
            Effect::Token { id, choice, token, .. } => streams.entry((id, choice)).or_default().0.push(token),
            Effect::Finished { id, choice, reason } => streams.entry((id, choice)).or_default().1 = Some(reason),
            Effect::PromptLogprobs { .. } | Effect::Done { .. } => {}
        }
    }
}

/// All requests through one engine and one pool.
fn together(
    case: &Case,
    subject: &dyn Subject,
    tier: Option<&SimTier>,
) -> Result<(Bits, Streams, kvist_engine::EngineStats), String> {
    let tier = tier.map(SimTier::restarted);
    let mut executor = Recorder::new(subject.executor(case.chunks, case.open, case.threads)).with_tier(tier.clone());
    let mut engine = Engine::new(case.config.clone(), executor.info().clone());
    if let Some(tier) = &tier {
        engine = engine.with_tier(Box::new(tier.clone()));
    }
    let flaky = Flaky { per_myriad: case.per_myriad, counter: AtomicU64::new(case.requests[0].sampling.seed) };
    let mut streams = Streams::new();
    let mut output = StepOutput::default();
    for step in 0..100_000 {
        for (request, _) in case.requests.iter().zip(&case.arrivals).filter(|(_, at)| **at == step) {
            engine.submit(step, request.clone()).map_err(|e| e.to_string())?;
        }
        for (_, request) in case.cancels.iter().filter(|(at, _)| *at == step) {
            engine.cancel(step, case.requests[*request].id);
        }
        if case.publish && step == 6 {
            engine.publish(case.requests[0].domain, &case.requests[0].prompt);
        }
        if let Some(plan) = engine.plan(step) {
            let residency: &dyn Residency = tier.as_ref().map_or(&flaky, |tier| tier);
            executor.step(plan, residency, &mut output);
            engine.complete(step, &output);
            if let Some(tier) = &tier {
                tier.save_all(&mut engine, &executor);
            }
        } else if case.arrivals.iter().all(|&at| at <= step) && engine.is_idle() {
            engine.check_integrity()?;
            collect(&mut engine, &mut streams);
            if let Some(clash) = executor.clash {
                return Err(clash);
            }
            return Ok((executor.bits, streams, engine.stats()));
        }
    }
    Err("no end in sight after 100,000 steps".into())
}

fn draw(seed: u64, subject: &dyn Subject) -> Case {
    let mut random = Random::new(seed.wrapping_mul(0x9e37_79b9).wrapping_add(17));
    let light = !subject.heavy();
    let lengths: &[usize] = if light { &LENGTHS } else { &LENGTHS[..9] };
    // Three softmax segments and more, where the order in which they are folded matters.
    let deep = light && random.chance(20);
    let context = subject.context().min(if deep { 1800 } else { 1024 });
    let mut prompts: Vec<Vec<TokenId>> = Vec::new();
    for _ in 0..2 + random.below(if light && !deep { 6 } else { 3 }) {
        let mut prompt = Vec::new();
        if prompts.is_empty() && deep {
            let n = random.pick(&[1023, 1024, 1025, 1100, 1500, 1537]);
            prompt.extend((0..n).map(|_| random.below(subject.vocab()) as TokenId));
        }
        if !prompts.is_empty() && random.chance(80) {
            let base = &prompts[random.below(prompts.len())];
            // Whole (a fully matched prompt), at a border, or anywhere.
            let keep = match random.below(4) {
                0 => base.len(),
                1 => random.below(base.len() + 1),
                _ => random.pick(lengths).min(base.len()),
            };
            prompt.extend_from_slice(&base[..keep]);
        }
        if prompt.is_empty() || random.chance(70) {
            let more = random.pick(lengths);
            prompt.extend((0..more).map(|_| random.below(subject.vocab()) as TokenId));
        }
        prompt.truncate(context - 140);
        if prompt.is_empty() {
            prompt.push(random.below(subject.vocab()) as TokenId);
        }
        prompts.push(prompt);
    }
    let tight = random.chance(40);
    let saves = random.chance(40);
    let requests: Vec<Request> = prompts
        .into_iter()
        .enumerate()
        .map(|(id, prompt)| Request {
            id: RequestId(id as u64),
            domain: DomainId(if random.chance(85) { 2 } else { 3 }),
            prompt,
            n: if random.chance(if tight { 50 } else { 80 }) { 1 } else { 2 + random.below(2) as u32 },
            max_tokens: if light { random.pick(&[1, 2, 4, 10, 70]) } else { random.pick(&[1, 3, 10]) },
            sampling: Sampling {
                temperature: random.pick(&[0.0, 0.8]),
                top_k: 0,
                top_p: random.pick(&[1.0, 0.9]),
                seed: random.word(),
                ..Sampling::GREEDY
            },
            edits: Default::default(),
            stop_tokens: if random.chance(70) { vec![] } else { vec![0, 1] },
            constraint: None,
            logprobs: None,
            prompt_logprobs: if random.chance(8) { Some(0) } else { None },
            priority: 0,
            ttft_slo: None,
            carry: None,
        })
        .collect();
    let need = |r: &Request| (r.prompt.len() + r.max_tokens as usize).div_ceil(CHUNK) as u32 + 1;
    let largest = requests.iter().map(need).max().expect("some");
    let all: u32 = requests.iter().map(|r| need(r) * r.n).sum();
    let cancels =
        if random.chance(18) { vec![(random.below(12) as u64, random.below(requests.len()))] } else { vec![] };
    let spread = random.pick(&[1, 4, 30]);
    let max_step_rows = random.pick(&[5, 33, 64, 100, 512]);
    // Many small steps over a long path ask often: losses must leave room to get through.
    let per_myriad = if random.chance(70) {
        0
    } else if max_step_rows < 64 || deep {
        1
    } else {
        random.pick(&[2, 10])
    };
    Case {
        arrivals: requests.iter().map(|_| random.below(spread) as u64).collect(),
        cancels,
        config: EngineConfig {
            max_batch: random.pick(&[4, 8, 64]),
            max_step_rows,
            max_logit_rows: random.pick(&[4, 64]),
            min_prefill_rows: random.pick(&[1, 16]),
            ask_residency: true,
            saves,
            ..EngineConfig::default()
        },
        chunks: if tight { largest + random.below(4) as u32 } else { all + 8 },
        threads: if deep { 2 + random.below(7) } else { 1 + random.below(8) },
        per_myriad,
        publish: random.chance(20),
        tier: saves.then(|| Manners {
            seed: random.word(),
            room: random.pick(&[2, 1000]),
            pace: random.pick(&[30, 70, 100]),
            layer: random.pick(&[0, 0, 1]),
            slower: 1,
            lost: per_myriad,
            missed: random.pick(&[0, 0, 200]),
            capacity: u64::MAX,
        }),
        open: if !subject.encodes() {
            0
        } else if tight {
            2 + random.below(4) as u32
        } else {
            random.pick(&[3, 8, 60])
        },
        requests,
    }
}
