//! Planning a step: who is admitted, who gives way, which rows run.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use kvist_base::{CHUNK, Micros, Prepare, Row, Seal, Slot, StepPlan};
use kvist_cache::Claim;

use crate::assemble::Place;
use crate::budget::Load;
use crate::engine::{Engine, InStep};
use crate::queue::{Candidate, Moment, compare};
use crate::request::{Finish, RequestId};
use crate::sequence::{ClaimedRows, Sequence, StepRows};

/// Waiting sequences whose expected hit is looked up again per plan.
const PROBES: usize = 8;
/// Tokens of a reply that there is room for from the start; a longer one takes more as it grows.
const REPLY: usize = 4096;
/// Waiting sequences that are tried per plan when the first ones do not fit.
const BYPASS: usize = 4;
/// Admissions over which the pace is averaged.
const PACE: f64 = 32.0;

impl Engine {
    /// Plans the next step, or says that there is nothing to do. The plan stands until `complete` or `abort_step`.
    ///
    /// # Panics
    /// If a step is in flight.
    pub fn plan(&mut self, now: Micros) -> Option<&StepPlan> {
        assert!(self.in_step.is_none(), "one step at a time");
        self.poll_tier(now);
        let gave_way = self.starved && self.cache.available() == 0 && self.preempt_youngest();
        self.starved = false;
        if !gave_way {
            self.admit(now);
            self.look_ahead();
            self.read_ahead(now);
        }
        loop {
            let load = self.choose_rows(now);
            if self.running.iter().any(|s| s.step.n > 0) || self.has_arrivals() {
                self.assemble();
                self.in_step = Some(InStep { planned_at: now, load });
                return Some(&self.plan);
            }
            if self.running.is_empty() || self.held_up {
                return None;
            }
            // Nobody found room for a single row. The oldest fits alone (`submit` made sure), so this ends.
            if !self.preempt_youngest() {
                let oldest = self.running.remove(0);
                self.finish(now, oldest, Finish::Error("the KV pool has no room for the request".into()));
                return self.plan(now);
            }
        }
    }

    /// The plan of the step in flight.
    pub fn planned(&self) -> &StepPlan {
        &self.plan
    }

    /// Sends the youngest running sequence back to the queue. Its KV stays in the tree as long as there is room, so
    /// that resuming costs what was evicted. The oldest is never sent back.
    fn preempt_youngest(&mut self) -> bool {
        if self.running.len() < 2 {
            return false;
        }
        let mut s = self.running.pop().expect("two are running");
        self.cache.release(std::mem::take(&mut s.path));
        s.pos = 0;
        s.step = StepRows::default();
        s.seen = None;
        s.cached_guess = s.tokens.len() - 1;
        s.rank = 0;
        if self.config.look_ahead {
            self.cache.protect(s.ticket(), s.domain, &s.tokens, 0);
        }
        self.requests.get_mut(&s.id).expect("known").preemptions += 1;
        self.stats.preemptions += 1;
        self.waiting.push(s);
        true
    }

    /// Rows of a decode step that the running sequences and the forks to come take.
    fn batch_weight(&self) -> usize {
        self.running.iter().map(|s| self.weight(s)).sum()
    }

    fn weight(&self, s: &Sequence) -> usize {
        let state = &self.requests[&s.id];
        if state.forked { 1 } else { state.request.n as usize }
    }

    /// Chunks that a sequence may still need to its end.
    fn chunks_to_end(&self, s: &Sequence) -> usize {
        let state = &self.requests[&s.id];
        (state.prompt + state.request.max_tokens as usize).div_ceil(CHUNK).saturating_sub(s.path.nodes.len())
    }

    fn admit(&mut self, now: Micros) {
        self.refresh_guesses(now);
        let moment = self.moment(now);
        let mut passed_over: Vec<(RequestId, u32)> = Vec::new();
        while !self.waiting.is_empty() && passed_over.len() < BYPASS {
            let mut best: Option<(usize, Candidate)> = None;
            for (i, s) in self.waiting.iter().enumerate() {
                if passed_over.contains(&s.key()) {
                    continue;
                }
                let candidate = self.candidate(s);
                if best.as_ref().is_none_or(|(_, b)| compare(&candidate, b, &moment) == Ordering::Less) {
                    best = Some((i, candidate));
                }
            }
            let Some((i, candidate)) = best else { return };
            let batch = self.batch_weight();
            if batch >= self.config.max_batch {
                return;
            }
            if batch + self.weight(&self.waiting[i]) <= self.config.max_batch && self.seat(i, now) {
                self.pace += (candidate.patience(now) - self.pace) / PACE;
                continue;
            }
            // Others may use the room that this one cannot, but not past its patience.
            if now.saturating_sub(candidate.arrival) >= self.config.overdue {
                return;
            }
            passed_over.push(self.waiting[i].key());
        }
    }

    fn moment(&self, now: Micros) -> Moment {
        Moment { now, overdue: self.config.overdue, token_cost: self.budget.row_cost() }
    }

    /// [`Sequence::rank`] as things stand.
    pub(crate) fn rank(&self, s: &Sequence, now: Micros) -> u32 {
        if s.seniority.is_some() {
            return 0;
        }
        u32::try_from(self.candidate(s).due(&self.moment(now), self.pace) >> 14).unwrap_or(u32::MAX)
    }

    fn candidate(&self, s: &Sequence) -> Candidate {
        let state = &self.requests[&s.id];
        Candidate {
            domain: s.owner,
            priority: state.request.priority,
            arrival: s.arrival,
            number: s.number,
            resumes: s.seniority,
            uncached: s.tokens.len() - if state.scoring() { 0 } else { s.cached_guess },
            deadline: state.request.ttft_slo.map(|slo| s.arrival + slo),
            served: self.fairness.served(s.owner),
        }
    }

    /// The tree changes while sequences wait; a few are looked up again each time.
    fn refresh_guesses(&mut self, now: Micros) {
        for _ in 0..PROBES.min(self.waiting.len()) {
            self.probe_cursor = (self.probe_cursor + 1) % self.waiting.len();
            let s = &mut self.waiting[self.probe_cursor];
            let (domain, carry, tokens) = (s.domain, s.carry.clone(), std::mem::take(&mut s.tokens));
            let expected = self.expect(domain, &tokens, carry.as_deref());
            let s = &mut self.waiting[self.probe_cursor];
            s.tokens = tokens;
            if std::mem::replace(&mut s.cached_guess, expected) != expected {
                self.look_again(self.probe_cursor);
            }
            self.waiting[self.probe_cursor].rank = self.rank(&self.waiting[self.probe_cursor], now);
        }
    }

    /// Lets a waiting sequence run if its prompt fits beside what the oldest running sequence needs to its end.
    fn seat(&mut self, i: usize, now: Micros) -> bool {
        let reserved = match self.running.first() {
            None => 0,
            // What a request may use is not what it will use: an open end must not keep the pool empty.
            Some(oldest) => self.chunks_to_end(oldest).min(self.info.chunks as usize / 4) + self.running.len() - 1,
        };
        let s = &mut self.waiting[i];
        // Room for all tokens, the next one, and a copy of an open chunk.
        let wanted = (s.tokens.len() + 1).div_ceil(CHUNK) + 1 + reserved;
        // Following counts as a use: not for one that will not fit whatever it hits.
        let hit = self.cache.probe(s.domain, &s.tokens).div_ceil(CHUNK);
        if wanted - hit > self.cache.available() as usize && !self.running.is_empty() {
            return false;
        }
        self.cache.follow(&mut s.path, s.domain, &s.tokens, now);
        let needed = wanted - s.path.nodes.len();
        if needed > self.cache.available() as usize && !self.running.is_empty() {
            let path = std::mem::take(&mut self.waiting[i].path);
            self.cache.release(path);
            return false;
        }
        let mut s = self.waiting.swap_remove(i);
        self.bring(&mut s, now);
        (s.read_ahead, s.computes) = (false, false);
        if s.seniority.is_none() {
            self.fairness.charge(s.owner, s.tokens.len() - s.path.used, 0);
        }
        self.cache.unprotect(s.ticket());
        let state = self.requests.get_mut(&s.id).expect("known");
        s.tokens.reserve((state.request.max_tokens as usize).min(REPLY));
        state.admitted.get_or_insert(now);
        let seniority = *s.seniority.get_or_insert_with(|| {
            self.next_seniority += 1;
            self.next_seniority
        });
        let at = self.running.partition_point(|r| r.seniority < Some(seniority));
        self.running.insert(at, s);
        true
    }

    /// Decode rows first, then prompts within the budget. Returns what the step has to do.
    fn choose_rows(&mut self, now: Micros) -> Load {
        self.plan.clear();
        self.cache.begin();
        let mut attended = 0;
        let mut rows = 0;
        let mut scored = 0;
        let mut prompts = Vec::new();
        self.running.iter_mut().for_each(|s| s.step.clear());
        let suspect = self.running.iter().position(|s| s.suspect);
        self.held_up = false;
        for i in suspect.map_or(0..self.running.len(), |i| i..i + 1) {
            self.catch_up(i, now);
            if !self.load_more(i, now) || !self.may_run(i) {
                self.held_up = true;
                continue;
            }
            if self.running[i].wants && self.running[i].pending() <= CHUNK {
                let mut s = std::mem::replace(&mut self.running[i], Sequence::vacant());
                self.unwant(&mut s);
                self.running[i] = s;
            }
            let s = &self.running[i];
            if s.pending() == 1 && rows < self.config.max_step_rows {
                self.take_rows(i, 1);
                rows += self.running[i].step.n;
                attended += self.chunks_attended(i);
            } else {
                prompts.push(i);
            }
        }
        self.order_prompts(&mut prompts, now);
        let decoding = rows;
        let mut budget = self.prefill_budget(decoding, attended, &prompts);
        for (k, &i) in prompts.iter().enumerate() {
            // Others may have computed, in this very step, what this one was about to.
            self.catch_up(i, now);
            let mut most = budget.min(self.running[i].pending());
            if k == 0 {
                // The first leaves half to the others, as far as they can use it.
                let others: usize = prompts[1..].iter().map(|&i| self.running[i].pending()).sum();
                most = most.min(budget.saturating_sub(others).max(budget.div_ceil(2)));
            }
            let scoring = self.requests[&self.running[i].id].scoring();
            if scoring {
                most = most.min(self.config.max_logit_rows - scored);
            }
            self.take_rows(i, most);
            let n = self.running[i].step.n;
            budget -= n;
            rows += n;
            scored += if scoring { n } else { 0 };
            attended += self.chunks_attended(i);
        }
        Load { rows, decoding, attended }
    }

    /// The oldest prompt first, so that there is progress; the others as the queue would order them.
    fn order_prompts(&self, prompts: &mut [usize], now: Micros) {
        if prompts.len() > 2 {
            let moment = self.moment(now);
            let candidate = |i: usize| {
                let s = &self.running[i];
                Candidate { resumes: None, uncached: s.pending(), ..self.candidate(s) }
            };
            let mut rest: Vec<(Candidate, usize)> = prompts[1..].iter().map(|&i| (candidate(i), i)).collect();
            rest.sort_by(|a, b| compare(&a.0, &b.0, &moment));
            prompts[1..].iter_mut().zip(rest).for_each(|(p, r)| *p = r.1);
        }
    }

    /// Of a path that is longer than what may be on its way at once, the next part is loaded when the one before has come.
    fn load_more(&mut self, i: usize, now: Micros) -> bool {
        if self.running[i].pending() < self.running[i].least_brought() {
            return true;
        }
        let mut s = std::mem::replace(&mut self.running[i], Sequence::vacant());
        let go_on = self.bring(&mut s, now);
        self.running[i] = s;
        self.catch_up(i, now);
        go_on
    }

    /// Moves a sequence over everything that the tree holds by now. Its last token's row runs in any case: it gives
    /// the logits. Rows before it run again where they are attended to and are there no more.
    fn catch_up(&mut self, i: usize, now: Micros) {
        let s = &mut self.running[i];
        let used = self.cache.follow(&mut s.path, s.domain, &s.tokens, now);
        let state = &self.requests[&s.id];
        let known = if state.scoring() { state.scores.len() - 1 } else { s.tokens.len() - 1 };
        s.pos = self.cache.resume(&s.path, s.pos.max(used.min(known)));
    }

    /// Plans up to `most` rows of a sequence; fewer where there is no room, or where a copy must wait for a step.
    fn take_rows(&mut self, i: usize, most: usize) {
        let s = &mut self.running[i];
        let mut n = 0;
        while n < most {
            let pos = s.pos + n;
            let prepare = &mut self.plan.prepare;
            let claim = if pos < s.path.used {
                self.cache.reopen(&mut s.path, pos, most - n, prepare)
            } else {
                self.cache.claim(&mut s.path, s.domain, &s.tokens, most - n, prepare)
            };
            match claim {
                Claim::Held { n: held } => n += held as usize, // computed before: the rows only attend
                Claim::Slots { chunk, first_slot, n: slots, seals } => {
                    let (slot, slots) = (first_slot as usize, slots as usize);
                    s.step.claims.push(ClaimedRows { pos, chunk, slot, n: slots });
                    self.plan.seals.extend(seals.map(|to| Seal { from: chunk, to }));
                    n += slots;
                }
                Claim::NotYet => break,
                Claim::Full => {
                    self.starved = true;
                    break;
                }
            }
        }
        s.step.n = n;
    }

    fn chunks_attended(&self, i: usize) -> usize {
        let s = &self.running[i];
        (s.pos..s.pos + s.step.n).map(|p| p / CHUNK + 1).sum()
    }

    fn prefill_budget(&self, decoding: usize, attended: usize, prompts: &[usize]) -> usize {
        let most = self.config.max_step_rows.saturating_sub(decoding);
        if decoding == 0 || prompts.is_empty() {
            return most;
        }
        let depth = prompts.iter().map(|&i| self.running[i].pos / CHUNK + 1).max().unwrap_or(1);
        let least = self.config.min_prefill_rows;
        self.budget.rows_within(self.config.itl_target, decoding, attended, depth, least).min(most)
    }

    fn assemble(&mut self) {
        let place = |&node| {
            let chunk = self.cache.slab(node);
            Place { chunk, open: self.cache.open_slab(node).unwrap_or(chunk) }
        };
        self.assembler.clear();
        self.planned.clear();
        for (i, s) in self.running.iter().enumerate().filter(|(_, s)| s.step.n > 0) {
            self.planned.push(i);
            self.assembler.push(s.path.nodes.iter().map(place), s.pos, s.step.n, s.carry.as_ref());
        }
        for &b in self.assembler.assemble(&mut self.plan.classes[0]) {
            let s = &mut self.running[self.planned[b]];
            s.step.first_row = self.plan.rows.len();
            let scoring = self.requests[&s.id].scoring();
            for position in s.pos..s.pos + s.step.n {
                self.plan.rows.push(Row {
                    token: s.tokens[position],
                    position: position as u32,
                    shift: s.carry.as_ref().map_or(0, |carry| carry.shift_at(position)) as u32,
                    write: None,
                    logits: scoring || position + 1 == s.tokens.len(),
                });
            }
            for claim in &s.step.claims {
                let row = s.step.first_row + claim.pos - s.pos;
                for (k, row) in self.plan.rows[row..row + claim.n].iter_mut().enumerate() {
                    row.write = Some(Slot { chunk: claim.chunk, slot: (claim.slot + k) as u8 });
                }
            }
        }
        self.plan.fill_windows(&self.info.layout.windows);
        self.plan_arrivals();
        if self.config.ask_residency {
            self.list_arriving();
        }
    }

    /// Every stored chunk that the step reads; chunks that it fills itself are there by construction.
    fn list_arriving(&mut self) {
        let plan = &mut self.plan;
        let mut written: BTreeSet<_> = plan.rows.iter().filter_map(|r| r.write.map(|w| w.chunk)).collect();
        written.extend(plan.seals.iter().map(|seal| seal.to));
        let sources = plan.prepare.iter().filter_map(|p| match p {
            Prepare::Copy { from, .. } => Some(from),
            Prepare::Zero(_) | Prepare::Install(_) => None,
        });
        plan.arriving.extend(plan.classes[0].chunks.iter().chain(sources).filter(|c| !written.contains(c)));
        plan.arriving.sort_unstable();
        plan.arriving.dedup();
    }
}
