//! The scheduler under random load, cancels, lost chunks, broken steps, publishing and a pool that is too small, each
//! run from one seed. Every request must end exactly once with exactly the tokens that it would get alone.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use kvist_base::{AllResident, ChunkId, DomainId, Executor, Gone, Micros, Residency, StepOutput, Tier, TokenId};
use kvist_engine::{Effect, Engine, EngineConfig, Finish, Refusal, Request, RequestId, Usage, sample};

use crate::executor::{CostModel, SimExecutor, SimModel};
use crate::naive::adjusted;
use crate::random::{Random, mix};
use crate::tier::{Manners, SimTier};
use crate::workload::{Arrival, Workload};

/// What happened in one or many runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    pub runs: u64,
    pub requests: u64,
    pub steps: u64,
    pub finished: u64,
    pub cancelled: u64,
    pub refused: u64,
    pub preemptions: u64,
    pub cached_tokens: u64,
    pub prompt_tokens: u64,
    pub lost_rows: u64,
    pub aborted_steps: u64,
    pub evictions: u64,
    /// Sealed chunks whose rows were computed again.
    pub reopened: u64,
    pub overdue: u64,
    /// Requests with a constraint, and choices that theirs ended.
    pub constrained: u64,
    pub complete: u64,
    /// Loads from the tier, those for requests that still waited, those dropped, and chunks that did not come.
    pub loads: u64,
    pub read_ahead: u64,
    pub dropped: u64,
    pub missed: u64,
    /// Requests behind a cut, and tokens that were carried over one, copied or loaded.
    pub behind_cuts: u64,
    pub carried: u64,
}

impl Report {
    pub fn add(&mut self, o: &Report) {
        self.runs += o.runs;
        self.requests += o.requests;
        self.steps += o.steps;
        self.finished += o.finished;
        self.cancelled += o.cancelled;
        self.refused += o.refused;
        self.preemptions += o.preemptions;
        self.cached_tokens += o.cached_tokens;
        self.prompt_tokens += o.prompt_tokens;
        self.lost_rows += o.lost_rows;
        self.aborted_steps += o.aborted_steps;
        self.evictions += o.evictions;
        self.reopened += o.reopened;
        self.overdue += o.overdue;
        self.constrained += o.constrained;
        self.complete += o.complete;
        self.loads += o.loads;
        self.read_ahead += o.read_ahead;
        self.dropped += o.dropped;
        self.missed += o.missed;
        self.behind_cuts += o.behind_cuts;
        self.carried += o.carried;
    }
}

/// A deliberate bug, to show that the campaign would notice it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Canary {
    None,
    /// A token is told twice.
    TwiceTold,
    /// A lost row is reported as computed.
    HiddenLoss,
    /// A cancel is swallowed.
    DeafCancel,
    /// The choices of a request share the state of its constraint.
    SharedConstraint,
    /// Chunks on their way are taken for arrived.
    NoWaiting,
    /// A request wants what the tier holds for ever.
    StaleWant,
}

/// Gives up on a chunk now and then.
struct Flaky {
    permille: u64,
    counter: AtomicU64,
}

impl Residency for Flaky {
    fn fill(&self, _: usize, chunk: ChunkId, _: &mut [u8]) -> Result<bool, Gone> {
        let n = self.counter.fetch_add(1, Ordering::Relaxed);
        if mix(n) % 1000 < self.permille { Err(Gone(chunk)) } else { Ok(false) }
    }
}

/// What is known of a request from outside.
struct Seen {
    request: Request,
    submitted: Micros,
    tokens: Vec<Vec<TokenId>>,
    /// The model's state after each choice's tokens.
    states: Vec<u64>,
    finished: Vec<Option<Finish>>,
    done: Option<Usage>,
    cancelled: bool,
    scored: bool,
}

/// Runs `seed`. `Err` names the first broken promise.
pub fn run(seed: u64, canary: Canary) -> Result<Report, String> {
    let mut random = Random::new(mix(seed ^ 0x5c4e_d01e));
    let model = SimModel { vocab: 24, seed: random.word() };
    let cost = CostModel { step: 500, row: random.pick(&[20, 200]), kilotoken: 10 };
    let context = random.pick(&[640, 1024]);
    let chunks = random.pick(&[18, 24, 40, 200]);
    let config = EngineConfig {
        max_batch: random.pick(&[2, 5, 16, 64]),
        max_queue: random.pick(&[4, 40, 512]),
        max_step_rows: random.pick(&[16, 64, 100, 512]),
        max_logit_rows: 16,
        itl_target: random.pick(&[2_000, 20_000]),
        overdue: random.pick(&[200_000, 5_000_000]),
        ask_residency: random.chance(40),
        ..EngineConfig::default()
    };
    let faults = Faults {
        lost: if config.ask_residency { random.pick(&[0, 1, 5]) } else { 0 },
        abort: random.pick(&[0, 0, 3]),
        cancel: random.pick(&[0, 2, 10]),
        publish: random.pick(&[0, 3]),
    };
    let workload = Workload {
        requests: 10 + random.below(40),
        domains: random.pick(&[1, 3]),
        vocab: random.pick(&[2, 24]),
        context: context.min((chunks as usize - 2) * 64),
        max_n: (config.max_batch as u32).min(5),
        gap: random.pick(&[0, 5_000, 100_000]),
        broken_constraints: canary == Canary::SharedConstraint,
        carried: [0, 0, 40][seed as usize / 2 % 3],
    };
    let arrivals = workload.generate(&mut random);
    // Sealed chunks encoded, with hardly any room for open ones, or with enough.
    let open = (seed % 2 == 1).then(|| random.pick(&[2, 3, 5, 12, 80]));
    let executor = SimExecutor::new(model, cost, chunks, context);
    let executor = open.map_or(executor.clone(), |open| executor.clone().with_open(open));
    let manners = Manners {
        seed: random.word(),
        room: random.pick(&[1, 3, 40]),
        pace: random.pick(&[3, 50, 100]),
        layer: random.pick(&[1, 100, 10_000]),
        slower: random.pick(&[1, 1, 100]),
        lost: random.pick(&[0, 0, 30]),
        capacity: random.pick(&[0, 10, u64::MAX]),
        missed: random.pick(&[0, 300, 2000]),
    };
    let tier = random.chance(50).then(|| SimTier::new(&executor.info().layout, manners));
    let config = EngineConfig { saves: tier.is_some(), ..config };
    let overdue = config.overdue;
    let bounds = (config.max_step_rows, config.max_batch, config.max_logit_rows);
    let mut report = Report { runs: 1, ..Report::default() };
    // Over a tier everything comes twice: the second time to a new engine, as after a restart.
    for _ in 0..1 + usize::from(tier.is_some()) {
        let engine = Engine::new(config.clone(), executor.info().clone());
        let tier = tier.as_ref().map(SimTier::restarted);
        let mut run = Run {
            engine: match &tier {
                Some(tier) => engine.with_tier(Box::new(tier.clone())),
                None => engine,
            },
            executor: executor.clone(),
            tier,
            now: 0,
            seen: BTreeMap::new(),
            random: Random::new(random.word()),
            faults,
            canary,
            report: Report::default(),
            flaky: Flaky { permille: faults.lost, counter: AtomicU64::new(seed) },
            bounds,
        };
        run.drive(arrivals.clone()).map_err(|e| format!("seed {seed}: {e}"))?;
        run.check_end(model).map_err(|e| format!("seed {seed}: {e}"))?;
        run.check_waiting(overdue).map_err(|e| format!("seed {seed}: {e}"))?;
        report.add(&run.report);
    }
    Ok(report)
}

#[derive(Clone, Copy)]
struct Faults {
    lost: u64,
    abort: usize,
    cancel: usize,
    publish: usize,
}

struct Run {
    engine: Engine,
    executor: SimExecutor,
    tier: Option<SimTier>,
    now: Micros,
    seen: BTreeMap<RequestId, Seen>,
    random: Random,
    faults: Faults,
    canary: Canary,
    report: Report,
    flaky: Flaky,
    /// Rows of a step, sequences, and scored prompt tokens of a step, at most.
    bounds: (usize, usize, usize),
}

impl Run {
    fn drive(&mut self, arrivals: Vec<Arrival>) -> Result<(), String> {
        let mut arrivals = arrivals.into_iter().peekable();
        let mut output = StepOutput::default();
        let mut waits = 0;
        loop {
            while let Some(a) = arrivals.next_if(|a| a.at <= self.now) {
                self.submit(a.request)?;
            }
            self.disturb();
            self.engine.check_integrity()?;
            if let Some(tier) = &mut self.tier {
                if self.canary == Canary::StaleWant && self.random.chance(2) {
                    tier.want(1 << 50, DomainId(2), &[], 0);
                }
                let (told, want) = (tier.wants(), self.engine.wants());
                if told != want {
                    return Err(format!("{want} sequences want what the tier holds, it was told of {told}"));
                }
            }
            let planned = self.engine.plan(self.now).is_some();
            if planned {
                self.step(&mut output)?;
            } else if let Some(next) = arrivals.peek() {
                self.now = self.now.max(next.at);
            } else if self.engine.is_idle() {
                self.collect()?;
                return Ok(());
            } else if self.engine.is_loading() {
                self.now += 1_000;
                waits += 1;
                if waits > 100_000 {
                    return Err("what is loading never arrives".into());
                }
            } else {
                return Err("requests are waiting, but nothing is planned".into());
            }
            self.collect()?;
            if self.report.steps > 300_000 {
                return Err("no end in sight after 300,000 steps".into());
            }
        }
    }

    fn submit(&mut self, request: Request) -> Result<(), String> {
        self.report.requests += 1;
        let n = request.n as usize;
        match self.engine.submit(self.now, request.clone()) {
            Ok(()) => {
                let seen = Seen {
                    submitted: self.now,
                    tokens: vec![vec![]; n],
                    states: vec![after(self.executor.model, &request.prompt); n],
                    finished: vec![None; n],
                    done: None,
                    cancelled: false,
                    scored: false,
                    request,
                };
                self.seen.insert(seen.request.id, seen);
                Ok(())
            }
            Err(Refusal::QueueFull { .. }) => {
                self.report.refused += 1;
                Ok(())
            }
            Err(other) => Err(format!("request {} refused: {other}", request.id.0)),
        }
    }

    /// Cancels, publishing and the like, between steps.
    fn disturb(&mut self) {
        if self.random.chance(self.faults.cancel) && !self.seen.is_empty() {
            let pick = self.random.below(self.seen.len());
            let (&id, seen) = self.seen.iter_mut().nth(pick).expect("in range");
            if seen.done.is_none() {
                seen.cancelled = true;
                if self.canary == Canary::DeafCancel {
                    seen.finished.fill(Some(Finish::Cancelled));
                } else if self.random.chance(50) {
                    self.engine.cancel_choice(self.now, id, self.random.below(seen.request.n as usize) as u32);
                } else {
                    self.engine.cancel(self.now, id);
                }
            }
        }
        if self.random.chance(self.faults.publish) && !self.seen.is_empty() {
            let pick = self.random.below(self.seen.len());
            let seen = self.seen.values().nth(pick).expect("in range");
            let (domain, tokens) = (seen.request.domain, seen.request.prompt.clone());
            if self.random.chance(60) {
                self.engine.publish(domain, &tokens);
            } else {
                self.engine.unpublish(&tokens);
            }
        }
    }

    fn step(&mut self, output: &mut StepOutput) -> Result<(), String> {
        self.report.steps += 1;
        let plan = self.engine.planned();
        let logits = plan.rows.iter().filter(|r| r.logits).count();
        let (rows, batch, scored) = self.bounds;
        if plan.rows.len() > rows || logits > batch + scored || self.engine.stats().running > batch {
            return Err(format!("{} rows, {logits} of logits: beyond {:?}", plan.rows.len(), self.bounds));
        }
        let aborts = self.random.chance(self.faults.abort);
        if aborts && self.random.chance(50) {
            // It breaks before anything is prepared.
            self.report.aborted_steps += 1;
            self.engine.abort_step(self.now);
            return Ok(());
        }
        // Prepared beside the step, or not: that must change nothing.
        let (plan, constraints) = self.engine.in_step();
        constraints.into_iter().filter(|_| self.random.chance(50)).for_each(|c| c.prepare());
        let residency: &dyn Residency = match &self.tier {
            Some(_) if self.canary == Canary::NoWaiting => &AllResident,
            Some(tier) => tier,
            None => &self.flaky,
        };
        self.executor.step(plan, residency, output);
        if let Some(violation) = self.executor.violations.first() {
            return Err(violation.clone());
        }
        self.now += self.executor.took;
        // While the step runs, a cancel may come in.
        if self.random.chance(self.faults.cancel) {
            let pick = self.random.below(self.seen.len());
            let (&id, seen) = self.seen.iter_mut().nth(pick).expect("in range");
            seen.cancelled = true;
            self.engine.cancel(self.now, id);
        }
        if aborts {
            self.report.aborted_steps += 1;
            self.engine.abort_step(self.now);
            return Ok(());
        }
        if self.canary == Canary::HiddenLoss {
            for outcome in &mut output.outcomes {
                if matches!(outcome, kvist_base::RowOutcome::Lost(_)) {
                    *outcome = kvist_base::RowOutcome::Done;
                }
            }
        }
        self.engine.complete(self.now, output);
        self.executor.forget_lost();
        if let Some(tier) = &self.tier
            && self.random.chance(80)
        {
            tier.save_all(&mut self.engine, &self.executor);
        }
        Ok(())
    }

    fn collect(&mut self) -> Result<(), String> {
        let mut effects = self.engine.take_effects();
        if self.canary == Canary::TwiceTold && self.random.chance(2) {
            effects.extend(effects.first().cloned());
        }
        for effect in effects {
            let (Effect::Token { id, .. }
            | Effect::PromptLogprobs { id, .. }
            | Effect::Finished { id, .. }
            | Effect::Done { id, .. }) = effect;
            let seen = self.seen.get_mut(&id).ok_or("an effect of an unknown request")?;
            if seen.done.is_some() {
                return Err(format!("request {}: an effect after its end", id.0));
            }
            match effect {
                Effect::Token { choice, token, logprobs, .. } => {
                    if seen.finished[choice as usize].is_some() {
                        return Err(format!("request {}: a token after the end of choice {choice}", id.0));
                    }
                    let state = &mut seen.states[choice as usize];
                    let mut row = Vec::new();
                    self.executor.model.logits(*state, &mut row);
                    *state = self.executor.model.state(*state, token);
                    // What a carried path leads to depends on what of it was carried.
                    let known = seen.request.logprobs.filter(|_| seen.request.carry.is_none());
                    let expected = known.map(|top| kvist_engine::logprobs(&row, token, top as usize));
                    if logprobs != expected {
                        return Err(format!("request {}: logprobs {logprobs:?}, alone {expected:?}", id.0));
                    }
                    seen.tokens[choice as usize].push(token);
                }
                Effect::PromptLogprobs { logprobs, .. } => {
                    if seen.scored || logprobs != scores(self.executor.model, &seen.request) {
                        return Err(format!("request {}: prompt logprobs {logprobs:?}", id.0));
                    }
                    seen.scored = true;
                }
                Effect::Finished { choice, reason, .. } => {
                    if seen.finished[choice as usize].replace(reason).is_some() {
                        return Err(format!("request {}: choice {choice} finished twice", id.0));
                    }
                }
                Effect::Done { usage, .. } => seen.done = Some(usage),
            }
        }
        Ok(())
    }

    /// After the last request: nothing is held, and everybody got what a lone cold run gives.
    fn check_end(&mut self, model: SimModel) -> Result<(), String> {
        self.engine.check_integrity()?;
        let stats = self.engine.stats();
        if stats.known != 0 || stats.cache.pinned != 0 {
            return Err(format!("{} requests known and {} chunks pinned at the end", stats.known, stats.cache.pinned));
        }
        self.report.preemptions += stats.preemptions;
        self.report.lost_rows += stats.lost_rows;
        self.report.evictions += stats.cache.evictions;
        self.report.reopened += stats.cache.reopened;
        self.report.loads += stats.tier.loads;
        self.report.read_ahead += stats.tier.read_ahead;
        self.report.dropped += stats.tier.dropped;
        self.report.missed += stats.tier.lost;
        self.report.carried += stats.carried_tokens;
        if self.tier.as_ref().is_some_and(|tier| tier.loading() > 0) {
            return Err("chunks are on their way at the end".into());
        }
        if self.tier.as_ref().is_some_and(|tier| tier.wants() > 0) {
            return Err("somebody wants what the tier holds at the end".into());
        }
        for (id, seen) in &self.seen {
            let usage = seen.done.ok_or(format!("request {} never ended", id.0))?;
            let asked = &seen.request;
            self.report.prompt_tokens += u64::from(usage.prompt);
            self.report.cached_tokens += u64::from(usage.cached);
            if usage.prompt as usize != asked.prompt.len() || usage.cached > usage.prompt {
                return Err(format!("request {}: {usage:?}", id.0));
            }
            if usage.generated as usize != seen.tokens.iter().map(Vec::len).sum::<usize>() {
                return Err(format!("request {}: {} tokens told, {usage:?}", id.0, seen.tokens.len()));
            }
            self.report.constrained += u64::from(asked.constraint.is_some());
            self.report.behind_cuts += u64::from(asked.carry.is_some());
            let mut whole = true;
            for (choice, tokens) in seen.tokens.iter().enumerate() {
                let (expected, end) = match asked.carry {
                    Some(_) => (tokens.clone(), Finish::Length),
                    None => alone(model, asked, choice as u32),
                };
                let all = asked.carry.is_none() || tokens.len() == asked.max_tokens as usize;
                let reason = seen.finished[choice].as_ref().ok_or("a choice without end")?;
                self.report.complete += u64::from(*reason == Finish::Complete);
                match reason {
                    Finish::Cancelled if seen.cancelled => whole = false,
                    Finish::Error(_) if self.faults.abort > 0 => whole = false,
                    reason if *reason == end && *tokens == expected && all => {}
                    _ => {
                        return Err(format!(
                            "request {} choice {choice}: {tokens:?} {reason:?}, alone {expected:?} {end:?}",
                            id.0
                        ));
                    }
                }
                if !expected.starts_with(tokens) {
                    return Err(format!("request {} choice {choice}: {tokens:?} is no prefix of {expected:?}", id.0));
                }
            }
            if whole && seen.scored != asked.prompt_logprobs.is_some() {
                return Err(format!("request {}: prompt logprobs missing or unasked for", id.0));
            }
            if whole { self.report.finished += 1 } else { self.report.cancelled += 1 }
        }
        Ok(())
    }

    /// Bounded waiting: once a request is overdue, nobody of its domain who came later is admitted before it.
    fn check_waiting(&mut self, overdue: Micros) -> Result<(), String> {
        let admitted: Vec<(Micros, Micros, u64)> = self
            .seen
            .iter()
            .filter(|(_, s)| {
                let ended = |f: &Option<Finish>| matches!(f, Some(Finish::Length | Finish::Stop(_) | Finish::Complete));
                s.finished.iter().all(ended)
            })
            .map(|(id, s)| (s.submitted, s.submitted + s.done.map_or(0, |u| u.timings.queued), id.0))
            .collect();
        for &(submitted, at, id) in &admitted {
            if at - submitted > overdue {
                self.report.overdue += 1;
                let domain = |id: u64| self.seen[&RequestId(id)].request.domain;
                let ahead = admitted
                    .iter()
                    .find(|o| domain(o.2) == domain(id) && o.2 > id && o.1 >= submitted + overdue && o.1 < at);
                if let Some(ahead) = ahead {
                    return Err(format!("request {id}, overdue, waited behind the younger {}", ahead.2));
                }
            }
        }
        Ok(())
    }
}

/// The model's state after `tokens`.
fn after(model: SimModel, tokens: &[TokenId]) -> u64 {
    tokens.iter().fold(model.start(), |state, &token| model.state(state, token))
}

/// The prompt logprobs that a request gets alone.
fn scores(model: SimModel, request: &Request) -> Vec<Option<kvist_engine::TokenLogprobs>> {
    let top = request.prompt_logprobs.unwrap_or(0) as usize;
    let mut state = model.start();
    let mut out = vec![None];
    for pair in request.prompt.windows(2) {
        state = model.state(state, pair[0]);
        let mut row = Vec::new();
        model.logits(state, &mut row);
        out.push(Some(kvist_engine::logprobs(&row, pair[1], top)));
    }
    out
}

/// The tokens and the end that a choice gets alone on a cold server.
fn alone(model: SimModel, request: &Request, choice: u32) -> (Vec<TokenId>, Finish) {
    let mut state = after(model, &request.prompt);
    let mut constraint = request.constraint.clone();
    let mut out = Vec::new();
    while out.len() < request.max_tokens as usize {
        let mut logits = Vec::new();
        model.logits(state, &mut logits);
        if let Some(constraint) = &mut constraint {
            let allowed = match constraint.allowed() {
                Ok(allowed) => allowed,
                Err(message) => return (out, Finish::Constraint(message)),
            };
            let ends = |t| request.stop_tokens.contains(&t);
            let may = |t| if ends(t) { allowed.end } else { allowed.contains(t) };
            let struck: Vec<_> = (0..model.vocab as TokenId).filter(|&t| !may(t)).collect();
            match (struck.len() == model.vocab, allowed.end) {
                (true, true) => return (out, Finish::Complete),
                (true, false) => return (out, Finish::Constraint("no token of the vocabulary may follow".into())),
                (false, _) => struck.into_iter().for_each(|t| logits[t as usize] = f32::NEG_INFINITY),
            }
        }
        let logits = adjusted(logits, request, &out);
        let Some(token) = sample(&logits, &request.sampling, choice, request.prompt.len() + out.len()) else {
            let whole = constraint.as_mut().is_some_and(|c| c.allowed().is_ok_and(|allowed| allowed.end));
            let masked = || Finish::Constraint("what the request masks leaves no token to draw".into());
            return (out, if whole { Finish::Complete } else { masked() });
        };
        out.push(token);
        if request.stop_tokens.contains(&token) {
            return (out, Finish::Stop(token));
        }
        if let Some(constraint) = &mut constraint {
            if let Err(message) = constraint.accept(token) {
                return (out, Finish::Constraint(message));
            }
            if constraint.is_complete() {
                return (out, Finish::Complete);
            }
        }
        state = model.state(state, token);
    }
    (out, Finish::Length)
}
