use std::collections::BTreeMap;

use kvist_base::{CHUNK, DomainId, ExecutorInfo, Micros, Prepare, StepPlan, TokenId};
use kvist_cache::{Cache, CacheConfig, CacheStats};

use crate::assemble::Assembler;
use crate::budget::{Budget, Load};
use crate::config::EngineConfig;
use crate::draws::Draws;
use crate::fairness::Fairness;
use crate::request::{Effect, Finish, Refusal, Request, RequestId};
use crate::sequence::{RequestState, Sequence, StepRows};
use crate::tier::Tiers;

/// Counters since start and gauges of now.
#[derive(Clone, Debug, Default)]
pub struct EngineStats {
    pub waiting: usize,
    pub running: usize,
    /// Sequences and requests that are known at all: 0 when idle.
    pub known: usize,
    pub steps: u64,
    /// Rows run, by kind.
    pub prompt_rows: u64,
    pub decode_rows: u64,
    /// Prompt tokens of ended requests, and those that were not computed for them.
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    /// Of the latter, those that were loaded from the tier for the request that used them first.
    pub loaded_tokens: u64,
    /// What computing the cached ones would have taken, as far as a step's time is known.
    pub saved_time: Micros,
    /// Tokens of prompts that were held once and were no longer when they came back.
    pub evicted_then_needed: u64,
    pub generated_tokens: u64,
    pub preemptions: u64,
    /// Rows thrown back because a chunk was lost.
    pub lost_rows: u64,
    pub kv_bytes_read: u64,
    pub kv_bytes_unshared: u64,
    pub tier: TierStats,
    /// Tokens whose KV was carried past a cut: copied, or loads begun for it.
    pub carried_tokens: u64,
    pub cache: CacheStats,
}

/// What was asked of the tier below RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierStats {
    pub loads: u64,
    /// Of these, those for requests that still waited.
    pub read_ahead: u64,
    /// Tokens that loads were begun for.
    pub tokens: u64,
    /// Of these, those that had not arrived when a request that ran needed them.
    pub awaited: u64,
    /// Loads that nobody wanted any more.
    pub dropped: u64,
    /// Loads that were given up because computing had become faster.
    pub too_slow: u64,
    /// Chunks that did not come.
    pub lost: u64,
}

/// See the crate's documentation. One step at a time: `plan`, run it, `complete` (or `abort_step`).
pub struct Engine {
    pub(crate) config: EngineConfig,
    pub(crate) info: ExecutorInfo,
    pub(crate) cache: Cache,
    pub(crate) tiers: Option<Tiers>,
    /// Copies of whole chunks to be made at the beginning of the next step.
    pub(crate) copies: Vec<Prepare>,
    pub(crate) fairness: Fairness,
    pub(crate) budget: Budget,
    pub(crate) requests: BTreeMap<RequestId, RequestState>,
    /// In no order; [`crate::queue::compare`] picks.
    pub(crate) waiting: Vec<Sequence>,
    /// In order of seniority.
    pub(crate) running: Vec<Sequence>,
    pub(crate) plan: StepPlan,
    /// A step is being run: set by `plan`, cleared by `complete` and `abort_step`.
    pub(crate) in_step: Option<InStep>,
    /// A sequence found no room in the last plan.
    pub(crate) starved: bool,
    /// A running sequence waits for what is on its way.
    pub(crate) held_up: bool,
    /// Cancels that arrived while a step ran.
    pub(crate) cancels: Vec<(RequestId, Option<u32>)>,
    pub(crate) effects: Vec<Effect>,
    pub(crate) next_number: u64,
    pub(crate) next_seniority: u64,
    pub(crate) probe_cursor: usize,
    /// Patience with which requests were admitted lately.
    pub(crate) pace: f64,
    pub(crate) stats: EngineStats,
    pub(crate) assembler: Assembler,
    /// By branch of the assembler: index in `running`.
    pub(crate) planned: Vec<usize>,
    /// A row of logits with a request's changes.
    pub(crate) adjusted: Vec<f32>,
    /// A row of logits in which what a constraint forbids is struck out.
    pub(crate) masked: Vec<f32>,
    pub(crate) draws: Draws,
}

pub(crate) struct InStep {
    pub planned_at: Micros,
    pub load: Load,
}

impl Engine {
    /// An engine for an executor; its pool starts empty.
    ///
    /// # Panics
    /// If a bound in `config` is zero, or `max_step_rows` is 1.
    pub fn new(mut config: EngineConfig, info: ExecutorInfo) -> Engine {
        assert!(config.max_batch > 0 && config.max_step_rows > 1 && config.max_n > 0 && config.min_prefill_rows > 0);
        assert!(config.max_logit_rows > 0);
        assert!(info.open.as_ref().is_none_or(|open| open.chunks > 1), "copying takes two open chunks");
        config.min_prefill_rows = config.min_prefill_rows.min(config.max_step_rows / 2);
        config.max_batch = config.max_batch.min(config.max_step_rows - config.min_prefill_rows);
        let cache = Cache::new(CacheConfig {
            slabs: info.chunks,
            open: info.open.as_ref().map(|open| open.chunks),
            saves: config.saves,
            order: config.order,
            ..CacheConfig::default()
        });
        let plan = StepPlan { classes: vec![Default::default()], ..StepPlan::default() };
        Engine {
            config,
            info,
            cache,
            tiers: None,
            copies: Vec::new(),
            fairness: Fairness::default(),
            budget: Budget::new(),
            requests: BTreeMap::new(),
            waiting: Vec::new(),
            running: Vec::new(),
            plan,
            in_step: None,
            starved: false,
            held_up: false,
            cancels: Vec::new(),
            effects: Vec::new(),
            next_number: 0,
            next_seniority: 0,
            probe_cursor: 0,
            pace: 0.0,
            stats: EngineStats::default(),
            assembler: Assembler::default(),
            planned: Vec::new(),
            adjusted: Vec::new(),
            draws: Draws::default(),
            masked: Vec::new(),
        }
    }

    /// Takes a request into the queue, or refuses it at once and holds nothing.
    pub fn submit(&mut self, now: Micros, request: Request) -> Result<(), Refusal> {
        self.check(&request)?;
        let (id, owner) = (request.id, request.domain);
        let domain = request.carry.as_ref().map_or(owner, |carry| carry.space);
        let mut request = request;
        let tokens = std::mem::take(&mut request.prompt);
        let constraint = request.constraint.take();
        let cached_guess = self.expect(domain, &tokens, request.carry.as_deref());
        let visit = self.cache.enter(domain, &tokens, now);
        let held = self.cache.probe(domain, &tokens).div_ceil(CHUNK);
        self.stats.evicted_then_needed += (visit.known.saturating_sub(held) * CHUNK) as u64;
        self.fairness.enter(owner);
        let mut sequence = Sequence {
            id,
            choice: 0,
            owner,
            domain,
            carry: request.carry.clone(),
            seen: None,
            path: Default::default(),
            pos: 0,
            seniority: None,
            arrival: now,
            number: self.next_number,
            cached_guess,
            rank: 0,
            setbacks: 0,
            furthest: 0,
            suspect: false,
            read_ahead: false,
            wants: false,
            computes: false,
            step: StepRows::default(),
            constraint,
            tokens,
        };
        self.next_number += 1;
        let state = RequestState {
            prompt: sequence.tokens.len(),
            visit,
            submitted: now,
            admitted: None,
            first_token: None,
            open: request.n,
            forked: false,
            counted: 0,
            computed: 0,
            loaded: 0,
            generated: 0,
            preemptions: 0,
            scores: if request.prompt_logprobs.is_some() { vec![None] } else { vec![] },
            request,
        };
        self.requests.insert(id, state);
        sequence.rank = self.rank(&sequence, now);
        // The queue's head loses its cached prefix last.
        if self.config.look_ahead {
            self.cache.protect(sequence.ticket(), domain, &sequence.tokens, sequence.rank);
        }
        self.waiting.push(sequence);
        self.look_ahead();
        Ok(())
    }

    fn check(&self, r: &Request) -> Result<(), Refusal> {
        let invalid = |field, message: String| Err(Refusal::Invalid { field, message });
        if self.requests.contains_key(&r.id) {
            return invalid("id", format!("request {} is already known", r.id.0));
        }
        if r.domain == DomainId::PUBLIC {
            return invalid("domain", "the public domain is published to, nobody computes in it".into());
        }
        if r.domain.is_carried() || r.carry.as_ref().is_some_and(|carry| !carry.space.is_carried()) {
            return invalid("domain", "carried paths have namespaces of their own, and nobody else has".into());
        }
        if r.prompt.is_empty() {
            return invalid("prompt", "it is empty".into());
        }
        if let Some(t) = r.prompt.iter().find(|&&t| t as usize >= self.info.vocab) {
            return invalid("prompt", format!("token {t} is outside the vocabulary of {}", self.info.vocab));
        }
        let most = self.config.max_n.min(self.config.max_batch as u32);
        if r.n == 0 || r.n > most {
            return invalid("n", format!("{} is not between 1 and {most}", r.n));
        }
        let s = &r.sampling;
        if !(s.temperature.is_finite() && s.temperature >= 0.0) {
            return invalid("temperature", format!("{} is not a number of 0 or more", s.temperature));
        }
        if !(s.top_p > 0.0 && s.top_p <= 1.0) {
            return invalid("top_p", format!("{} is not above 0 and at most 1", s.top_p));
        }
        if !(s.min_p >= 0.0 && s.min_p <= 1.0) {
            return invalid("min_p", format!("{} is not between 0 and 1", s.min_p));
        }
        if !(s.repetition_penalty.is_finite() && s.repetition_penalty > 0.0) {
            return invalid("repetition_penalty", format!("{} is not a number above 0", s.repetition_penalty));
        }
        for (field, penalty) in [("presence_penalty", s.presence_penalty), ("frequency_penalty", s.frequency_penalty)] {
            if !penalty.is_finite() {
                return invalid(field, format!("{penalty} is not a number"));
            }
        }
        r.edits.check(self.info.vocab, &r.stop_tokens)?;
        let (prompt, max_tokens, context) = (r.prompt.len(), r.max_tokens as usize, self.info.context);
        if prompt + max_tokens > context {
            return Err(Refusal::TooLong { prompt, max_tokens, context });
        }
        // One chunk more: while an open chunk is copied, both copies are held.
        let chunk = kvist_base::CHUNK;
        let needed = (prompt + max_tokens).div_ceil(chunk) + 1;
        if needed > self.info.chunks as usize {
            return Err(Refusal::NeverFits { needed: needed * chunk, pool: self.info.chunks as usize * chunk });
        }
        if self.waiting.len() >= self.config.max_queue {
            return Err(Refusal::QueueFull { waiting: self.waiting.len(), limit: self.config.max_queue });
        }
        Ok(())
    }

    /// Ends a request; nothing happens if it is unknown. During a step it takes effect when the step completes.
    pub fn cancel(&mut self, now: Micros, id: RequestId) {
        self.cancel_some(now, id, None);
    }

    /// Ends one choice of a request, e.g. when its text met a stop string.
    pub fn cancel_choice(&mut self, now: Micros, id: RequestId, choice: u32) {
        self.cancel_some(now, id, Some(choice));
    }

    pub(crate) fn cancel_some(&mut self, now: Micros, id: RequestId, choice: Option<u32>) {
        if self.in_step.is_some() {
            self.cancels.push((id, choice));
            return;
        }
        // Before the choices part, choice 0 stands for all of them: one choice alone cannot be cancelled yet.
        let forked = self.requests.get(&id).is_some_and(|r| r.forked);
        let hit = |s: &Sequence| s.id == id && (choice.is_none() || (forked && choice == Some(s.choice)));
        let mut gone: Vec<Sequence> = self.waiting.extract_if(.., |s| hit(s)).collect();
        gone.extend(self.running.extract_if(.., |s| hit(s)));
        for sequence in gone {
            self.finish(now, sequence, Finish::Cancelled);
        }
    }

    /// The only way out for a sequence: releases its path, tells `Finished`, and `Done` after a request's last one.
    pub(crate) fn finish(&mut self, now: Micros, mut sequence: Sequence, reason: Finish) {
        let id = sequence.id;
        self.cache.unprotect(sequence.ticket());
        self.unwant(&mut sequence);
        let state = &self.requests[&id];
        let (path, tokens) = (&mut sequence.path, &sequence.tokens);
        let classes = self.cache.leave(path, sequence.domain, tokens, state.prompt, &state.visit, now);
        let used = sequence.path.used;
        self.tell_left(sequence.domain, &sequence.tokens[..used], &classes);
        self.cache.release(sequence.path);
        let state = self.requests.get_mut(&id).expect("a sequence belongs to a known request");
        let choices = if state.forked { sequence.choice..sequence.choice + 1 } else { 0..state.request.n };
        state.open -= choices.len() as u32;
        self.effects.extend(choices.map(|choice| Effect::Finished { id, choice, reason: reason.clone() }));
        if state.open == 0 {
            let state = self.requests.remove(&id).expect("it was there");
            let usage = state.usage(now);
            self.stats.prompt_tokens += u64::from(usage.prompt);
            self.stats.cached_tokens += u64::from(usage.cached);
            self.stats.loaded_tokens += u64::from(usage.loaded);
            self.stats.saved_time +=
                self.budget.time_of(usage.cached as usize, 0).filter(|_| usage.cached > 0).unwrap_or(0);
            self.fairness.leave(state.request.domain);
            self.effects.push(Effect::Done { id, usage });
        }
    }

    /// What happened since the last call, in order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// As [`Engine::take_effects`], into a vector that is kept from step to step; what was in it is dropped.
    pub fn drain_effects(&mut self, out: &mut Vec<Effect>) {
        out.clear();
        std::mem::swap(&mut self.effects, out);
    }

    /// Whether a call of `plan` could find work.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && !self.is_loading()
    }

    pub fn stats(&self) -> EngineStats {
        EngineStats {
            waiting: self.waiting.len(),
            running: self.running.len(),
            known: self.requests.len(),
            cache: self.cache.stats(),
            ..self.stats.clone()
        }
    }

    /// Tokens of a prompt that the tree holds for a domain now.
    pub fn probe(&self, domain: DomainId, tokens: &[TokenId]) -> usize {
        self.cache.probe(domain, tokens)
    }

    /// Makes the whole chunks that `domain` holds of this path readable by every domain. Returns the tokens that are
    /// public now. Between steps only.
    pub fn publish(&mut self, domain: DomainId, tokens: &[TokenId]) -> usize {
        assert!(self.in_step.is_none(), "publishing between steps only");
        let published = self.cache.publish(domain, tokens);
        for sequence in &mut self.running {
            self.cache.remap(&mut sequence.path);
        }
        published.tokens
    }

    /// Takes a published prefix, and all that hangs below it, out of the tree. Between steps only.
    pub fn unpublish(&mut self, tokens: &[TokenId]) {
        assert!(self.in_step.is_none(), "unpublishing between steps only");
        self.cache.unpublish(tokens);
        self.reseat();
    }

    /// After nodes left the tree: every path ends where it is still whole, and what is missing is planned again.
    pub(crate) fn reseat(&mut self) {
        for s in &mut self.running {
            self.cache.truncate(&mut s.path);
            s.pos = s.pos.min(s.path.used);
        }
    }

    /// Checks the engine's own invariants and the tree's. Between steps.
    pub fn check_integrity(&self) -> Result<(), String> {
        self.cache.check_integrity()?;
        if self.in_step.is_some() {
            return Err("a step is in flight".into());
        }
        if !self.running.is_sorted_by_key(|s| s.seniority) || self.running.iter().any(|s| s.seniority.is_none()) {
            return Err("running sequences are not in order of seniority".into());
        }
        if self.waiting.iter().any(|s| s.path.used != 0 || !s.path.nodes.is_empty()) {
            return Err("a waiting sequence holds KV".into());
        }
        for s in &self.running {
            if s.pos >= s.tokens.len() || (s.pos > s.path.used && s.step.n == 0) {
                return Err(format!("request {}: row {} of {} has no KV below it", s.id.0, s.pos, s.tokens.len()));
            }
        }
        for (id, state) in &self.requests {
            let mut held = 0;
            for s in self.waiting.iter().chain(&self.running).filter(|s| s.id == *id) {
                held += if state.forked { 1 } else { state.request.n };
                debug_assert!(s.choice < state.request.n);
            }
            if held != state.open {
                return Err(format!("request {}: {held} choices held, {} open", id.0, state.open));
            }
        }
        if self.running.is_empty() && self.cache.stats().pinned != 0 {
            return Err(format!("nothing runs, but {} chunks are pinned", self.cache.stats().pinned));
        }
        Ok(())
    }
}
