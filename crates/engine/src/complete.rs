//! Taking in a step's results: valid KV, lost rows, drawn tokens.

use kvist_base::{CHUNK, ChunkId, Micros, Prepare, RowOutcome, StepOutput};

use crate::adjust::{Seen, adjust};
use crate::constraint::{masked, moved};
use crate::draws::{Draw, Drawn, Run};
use crate::engine::Engine;
use crate::request::{Effect, Finish, Sampling};
use crate::sampler::logprobs;
use crate::sequence::{RequestState, Sequence, StepRows};

/// A sequence that was thrown back this often without getting further ends with an error: something is broken for good.
const SETBACKS: u32 = 100;

impl Engine {
    /// Takes in the results of the planned step.
    ///
    /// # Panics
    /// If no step is in flight.
    pub fn complete(&mut self, now: Micros, output: &StepOutput) {
        self.complete_with(now, output, &|pieces, piece| (0..pieces).for_each(piece));
    }

    /// The same; tokens are drawn on the threads of `run`.
    ///
    /// # Panics
    /// As [`Engine::complete`].
    pub fn complete_with(&mut self, now: Micros, output: &StepOutput, run: Run<'_>) {
        let step = self.in_step.take().expect("a step is in flight");
        if !self.plan.rows.is_empty() {
            let took = now.saturating_sub(step.planned_at).max(1);
            self.budget.observe(step.load, took, self.config.itl_target);
        }
        self.stats.steps += 1;
        self.stats.kv_bytes_read += output.counters.kv_bytes_read;
        self.stats.kv_bytes_unshared += output.counters.kv_bytes_unshared;
        let lost = self.drop_lost(output);
        self.note_arrivals(output, lost > 0 && lost == self.plan.rows.len());
        self.cache.commit();
        self.draw_ahead(output, run);
        let mut running = std::mem::take(&mut self.running);
        let mut forks = Vec::new();
        let mut ended = Vec::new();
        let mut place = 0;
        running.retain_mut(|s| {
            let drawn = self.draws.at(place);
            place += 1;
            let rows = std::mem::take(&mut s.step);
            self.advance(s, &rows, output);
            let (first_row, n) = (rows.first_row, rows.n);
            s.step = rows;
            s.step.clear();
            s.suspect &= n == 0;
            if s.setbacks > SETBACKS {
                ended.push((take(s), Finish::Error("its KV was lost again and again".into())));
                return false;
            }
            if s.pos < s.tokens.len() || n == 0 {
                return true;
            }
            match self.draw(s, first_row + n - 1, drawn, output, now, &mut forks) {
                None => true,
                Some(reason) => {
                    ended.push((take(s), reason));
                    false
                }
            }
        });
        self.running = running;
        for (sequence, reason) in ended {
            self.finish(now, sequence, reason);
        }
        for (fork, end) in forks {
            match end {
                Some(reason) => self.finish(now, fork, reason),
                None => self.running.push(fork),
            }
        }
        // Unique, so that the order is one; a stable sort would allocate.
        self.running.sort_unstable_by_key(|s| s.seniority);
        if lost > 0 || !output.gone.is_empty() {
            self.reseat();
        }
        self.deferred_cancels(now);
    }

    /// The step did not run to its end: nothing of it is valid. Each of its sequences is then run by itself, so that
    /// the one that breaks the step ends with an error and the others do not.
    pub fn abort_step(&mut self, now: Micros) {
        self.in_step.take().expect("a step is in flight");
        let alone = self.running.iter().filter(|s| s.step.n > 0).count() == 1;
        let mut broken = None;
        for s in &mut self.running {
            let rows = std::mem::take(&mut s.step);
            if rows.n > 0 {
                s.suspect = true;
                broken = alone.then(|| s.key()).or(broken);
            }
        }
        self.cache.abort();
        for prepare in &self.plan.prepare {
            match prepare {
                Prepare::Install(chunk) => self.cache.invalidate(*chunk, 0),
                Prepare::Copy { to, n, .. } if *n as usize == CHUNK => self.cache.invalidate(*to, 0),
                Prepare::Copy { .. } | Prepare::Zero(_) => {}
            }
        }
        self.reseat();
        if let Some(at) = self.running.iter().position(|s| Some(s.key()) == broken) {
            let sequence = self.running.remove(at);
            self.finish(now, sequence, Finish::Error("computing it fails".into()));
        }
        self.deferred_cancels(now);
    }

    fn deferred_cancels(&mut self, now: Micros) {
        for (id, choice) in std::mem::take(&mut self.cancels) {
            self.cancel_some(now, id, choice);
        }
    }

    /// Takes the lost chunks, and with them all that lost rows claimed below them, out of the tree. Returns the number
    /// of lost rows.
    fn drop_lost(&mut self, output: &StepOutput) -> usize {
        let lost = |o: &RowOutcome| match o {
            RowOutcome::Lost(chunk) => Some(*chunk),
            _ => None,
        };
        let mut lost_chunks: Vec<ChunkId> = output.outcomes.iter().filter_map(lost).collect();
        let rows = lost_chunks.len();
        self.stats.lost_rows += rows as u64;
        lost_chunks.extend(&output.gone);
        lost_chunks.sort_unstable();
        lost_chunks.dedup();
        // What was to be copied from a lost chunk is not there either, nor a copy of that copy: they are in order.
        for prepare in &self.plan.prepare {
            if let Prepare::Copy { from, to, .. } = prepare
                && lost_chunks.contains(from)
            {
                lost_chunks.push(*to);
            }
        }
        for chunk in lost_chunks {
            self.cache.invalidate(chunk, 0);
        }
        rows
    }

    /// Moves a sequence over the rows that succeeded and accounts for them.
    fn advance(&mut self, s: &mut Sequence, rows: &StepRows, output: &StepOutput) {
        let outcomes = &output.outcomes[rows.first_row..rows.first_row + rows.n];
        let good = outcomes.iter().position(|o| matches!(o, RowOutcome::Lost(_))).unwrap_or(rows.n);
        if good < rows.n {
            s.setbacks += 1;
        }
        let state = self.requests.get_mut(&s.id).expect("known");
        let in_prompt = state.prompt.saturating_sub(s.pos).min(good);
        let new = (s.pos + in_prompt).saturating_sub(s.pos.max(state.counted));
        state.computed += new as u32;
        state.counted = state.counted.max(s.pos + in_prompt).min(state.prompt);
        self.stats.prompt_rows += in_prompt as u64;
        self.stats.decode_rows += (good - in_prompt) as u64;
        if state.scoring() {
            let top = state.request.prompt_logprobs.unwrap_or(0) as usize;
            for (k, outcome) in outcomes[..good].iter().enumerate() {
                // A row scores the token after it; rows that ran before a setback are scored already.
                let scored = s.pos + k + 1;
                if let (RowOutcome::Logits(at), true) = (outcome, scored == state.scores.len() && scored < state.prompt)
                {
                    let row = logits(output, *at, self.info.vocab);
                    state.scores.push(Some(logprobs(row, s.tokens[scored], top)));
                }
            }
        }
        s.pos += good;
        if s.pos > s.furthest {
            (s.furthest, s.setbacks) = (s.pos, 0);
        }
    }

    /// Draws the next token of a sequence whose rows have all run; parts the choices at the first one. `Some` ends it.
    fn draw(
        &mut self,
        s: &mut Sequence,
        last_row: usize,
        drawn: Drawn,
        output: &StepOutput,
        now: Micros,
        forks: &mut Vec<(Sequence, Option<Finish>)>,
    ) -> Option<Finish> {
        let RowOutcome::Logits(at) = output.outcomes[last_row] else {
            unreachable!("the row of the last token asks for logits")
        };
        let row = logits(output, at, self.info.vocab);
        let state = self.requests.get_mut(&s.id).expect("known");
        if !state.forked {
            if state.request.prompt_logprobs.is_some() {
                let logprobs = std::mem::take(&mut state.scores);
                self.effects.push(Effect::PromptLogprobs { id: s.id, logprobs });
            }
            if state.request.max_tokens == 0 {
                return Some(Finish::Length);
            }
            state.forked = true;
            state.first_token = Some(now);
            for choice in 1..state.request.n {
                self.next_seniority += 1;
                let mut fork = Sequence {
                    id: s.id,
                    choice,
                    owner: s.owner,
                    domain: s.domain,
                    carry: s.carry.clone(),
                    tokens: s.tokens.clone(),
                    seen: None,
                    path: self.cache.fork(&s.path),
                    pos: s.pos,
                    seniority: Some(self.next_seniority),
                    arrival: s.arrival,
                    number: s.number,
                    cached_guess: s.cached_guess,
                    rank: 0,
                    setbacks: 0,
                    furthest: 0,
                    suspect: false,
                    read_ahead: false,
                    wants: false,
                    computes: false,
                    constraint: s.constraint.clone(),
                    step: StepRows::default(),
                };
                let end = self.push_token(&mut fork, row, None);
                forks.push((fork, end));
            }
        }
        self.push_token(s, row, drawn)
    }

    /// Draws, without an effect yet, what no constraint, penalty or edit changes: a pure function of logits, request and
    /// position, so that it does not matter where and in which order it is done.
    fn draw_ahead(&mut self, output: &StepOutput, run: Run<'_>) {
        let requests = &self.requests;
        let wanted = self.running.iter().map(|s| {
            let last = (s.step.n > 0 && s.pos + s.step.n == s.tokens.len())
                .then(|| output.outcomes[s.step.first_row + s.step.n - 1]);
            let Some(RowOutcome::Logits(row)) = last else { return None };
            let RequestState { request, prompt, .. } = &requests[&s.id];
            let changed = request.sampling.penalises() || request.edits.apply_after(s.tokens.len() - prompt);
            let draw = || Draw { row, sampling: request.sampling, choice: s.choice, position: s.tokens.len() };
            (s.constraint.is_none() && !changed).then(draw)
        });
        self.draws.fill(wanted, &output.logits, self.info.vocab, run);
    }

    fn push_token(&mut self, s: &mut Sequence, row: &[f32], drawn: Drawn) -> Option<Finish> {
        let state = self.requests.get_mut(&s.id).expect("known");
        let request = &state.request;
        let row_allowed = match &mut s.constraint {
            None => row,
            Some(constraint) => match masked(constraint.as_mut(), row, &request.stop_tokens, &mut self.masked) {
                Ok(row) => row,
                Err(end) => return Some(end),
            },
        };
        if s.seen.is_none() {
            s.seen = Seen::new(&request.sampling, &s.tokens, state.prompt);
        }
        let adjusted = adjust(row_allowed, request, &s.tokens[state.prompt..], s.seen.as_ref(), &mut self.adjusted);
        let draw = || self.draws.draw(adjusted, &request.sampling, s.choice, s.tokens.len());
        let Some(token) = drawn.unwrap_or_else(draw) else {
            if self.draws.draw(row, &Sampling::GREEDY, 0, 0).is_none() {
                return Some(Finish::Error("the model's logits are not finite".into()));
            }
            // The constraint's end counts even where `min_tokens` holds off the tokens that would say so.
            let whole = s.constraint.as_mut().is_some_and(|c| c.allowed().is_ok_and(|allowed| allowed.end));
            let masked = || Finish::Constraint("what the request masks leaves no token to draw".into());
            return Some(if whole { Finish::Complete } else { masked() });
        };
        s.tokens.push(token);
        if let Some(seen) = &mut s.seen {
            seen.push(token);
        }
        state.generated += 1;
        self.stats.generated_tokens += 1;
        self.fairness.charge(s.owner, 0, 1);
        let logprobs = request.logprobs.map(|top| logprobs(row, token, top as usize));
        self.effects.push(Effect::Token { id: s.id, choice: s.choice, token, logprobs });
        if request.stop_tokens.contains(&token) {
            return Some(Finish::Stop(token));
        }
        if let Some(end) = s.constraint.as_mut().and_then(|c| moved(c.as_mut(), token)) {
            return Some(end);
        }
        (s.tokens.len() - state.prompt == request.max_tokens as usize).then_some(Finish::Length)
    }
}

fn logits(output: &StepOutput, at: u32, vocab: usize) -> &[f32] {
    &output.logits[at as usize * vocab..(at as usize + 1) * vocab]
}

/// Moves a sequence out of a list that is about to drop its place.
fn take(s: &mut Sequence) -> Sequence {
    Sequence {
        tokens: std::mem::take(&mut s.tokens),
        seen: s.seen.take(),
        path: std::mem::take(&mut s.path),
        constraint: s.constraint.take(),
        carry: s.carry.take(),
        step: std::mem::take(&mut s.step),
        ..*s
    }
}
