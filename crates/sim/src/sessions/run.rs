//! One run: users in a closed loop around the engine, from an empty store, measured once it has warmed up.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::fmt;

use kvist_base::{CHUNK, DomainId, Executor, Micros, StepOutput, TokenId};
use kvist_cache::policy::Order;
use kvist_engine::{Effect, Engine, EngineConfig, Request, RequestId};

use crate::random::Random;
use crate::replay::{self, Trace};
use crate::sessions::paced::{Costs, Paced};
use crate::sessions::shelf::{Counts, Shelf, keys};
use crate::sessions::users::{Conversation, Users, exponential};

const WHO: DomainId = DomainId(2);

/// Of memory and disk together, as the engine is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub order: Order,
    /// What waiting requests want is read ahead, and goes last.
    pub queue_aware: bool,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match (self.order, self.queue_aware) {
            (Order::Lru, true) => "queue-aware".into(),
            (order, true) => format!("queue-aware {order}"),
            (order, false) => order.to_string(),
        };
        f.pad(&name)
    }
}

/// What is run.
#[derive(Clone, Copy, Debug)]
pub struct Experiment {
    pub users: Users,
    pub policy: Policy,
    pub costs: Costs,
    /// Sequences at a time.
    pub batch: usize,
    /// Chunks of memory beside those that running sequences take at most, and of the disk.
    pub memory: usize,
    pub disk: usize,
    /// Served in order of arrival; otherwise as the server does it.
    pub in_order: bool,
    /// Turns before measuring, and measured.
    pub warm_up: usize,
    pub turns: usize,
    pub seed: u64,
}

/// What came out, of the turns measured.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    pub turns: usize,
    /// Tokens of prompts that were said before in their conversation.
    pub history: u64,
    pub prompt: u64,
    /// Prompt tokens that were not computed, and of these those that were in memory when their turn came.
    pub cached: u64,
    pub in_memory: u64,
    /// The same as `cached` for the optimum with as many chunks as the disk, on the same requests.
    pub optimum: u64,
    /// Until the first token, in microseconds: mean, half and 99 of 100 of the turns.
    pub ttft: [Micros; 3],
    /// Of which before the request was admitted: mean.
    pub queued: Micros,
    pub took: Micros,
    /// Chunks that the disk did not take in.
    pub not_admitted: u64,
    /// Requests waiting, on average over turns.
    pub waiting: f64,
}

impl Outcome {
    /// Percent of the history that was found at all, in memory, and by the optimum.
    pub fn hits(&self) -> [f64; 3] {
        [self.cached, self.in_memory, self.optimum].map(|n| 100.0 * n as f64 / self.history.max(1) as f64)
    }

    /// Percent of the prompts' tokens that were not computed.
    pub fn saved(&self) -> f64 {
        100.0 * self.cached as f64 / self.prompt.max(1) as f64
    }

    /// Turns a second, and prompt tokens.
    pub fn throughput(&self) -> [f64; 2] {
        let seconds = self.took.max(1) as f64 / 1e6;
        [self.turns as f64 / seconds, self.prompt as f64 / seconds]
    }
}

struct Talk {
    conversation: Conversation,
    /// Length of the history before this turn.
    history: usize,
    submitted: Micros,
    first: Option<Micros>,
    reply: u32,
}

struct Loop {
    experiment: Experiment,
    engine: Engine,
    executor: Paced,
    shelf: Shelf,
    now: Micros,
    talks: BTreeMap<u64, Talk>,
    /// Who speaks next, and when: (time, number, conversation).
    thinking: BinaryHeap<Reverse<(Micros, u64)>>,
    number: u64,
    seeds: u64,
    done: usize,
    /// Of each turn the chunks that it used, and whether it was measured.
    record: Vec<(Vec<u64>, bool)>,
    ttfts: Vec<Micros>,
    outcome: Outcome,
    /// What the disk had counted when measuring began.
    before: Counts,
    began: Micros,
}

/// # Errors
/// When the engine comes to a standstill, which would be a fault of its own.
pub fn run(experiment: Experiment) -> Result<Outcome, String> {
    let Experiment { users, policy, costs, batch, memory, disk, .. } = experiment;
    let layers = 16;
    let longest = users.context.div_ceil(CHUNK) + 1;
    let pool = memory + batch * longest;
    let executor = Paced::new(pool as u32, users.context + CHUNK, layers, costs);
    let config = EngineConfig {
        max_batch: batch,
        max_queue: users.count + 1,
        overdue: if experiment.in_order { 0 } else { EngineConfig::default().overdue },
        itl_target: 1_000_000,
        order: policy.order,
        look_ahead: policy.queue_aware,
        saves: true,
        ..EngineConfig::default()
    };
    let shelf = Shelf::new(disk, layers, memory.max(longest), costs);
    let engine = Engine::new(config, executor.info().clone()).with_tier(Box::new(shelf.clone()));
    let mut run = Loop {
        experiment,
        engine,
        executor,
        shelf,
        now: 0,
        talks: BTreeMap::new(),
        thinking: BinaryHeap::new(),
        number: 0,
        seeds: experiment.seed << 32,
        done: 0,
        record: Vec::new(),
        ttfts: Vec::new(),
        outcome: Outcome::default(),
        before: Counts::default(),
        began: 0,
    };
    run.drive()?;
    Ok(run.finish())
}

impl Loop {
    fn drive(&mut self) -> Result<(), String> {
        let users = self.experiment.users;
        let mut random = Random::new(self.experiment.seed);
        let mut at = 0;
        for _ in 0..users.count {
            at += users.arrive.map_or(0, |gap| exponential(&mut random, gap));
            self.begin(at);
        }
        let mut output = StepOutput::default();
        let until = self.experiment.warm_up + self.experiment.turns;
        while self.done < until && !(self.talks.is_empty()) {
            self.shelf.pass(self.now);
            while let Some(&Reverse((at, number))) = self.thinking.peek().filter(|next| next.0.0 <= self.now) {
                self.thinking.pop();
                self.speak(at, number)?;
            }
            if let Some(plan) = self.engine.plan(self.now) {
                self.executor.step(plan, &self.shelf, &mut output);
                // What is taken over without rows takes no time.
                self.now += if plan.rows.is_empty() { 1 } else { self.executor.took };
                self.shelf.pass(self.now);
                self.engine.complete(self.now, &output);
                self.shelf.save_all(&mut self.engine);
                self.collect();
                continue;
            }
            let next = self.thinking.peek().map(|next| next.0.0);
            let next = next.into_iter().chain(self.shelf.next_done()).min();
            self.now = next.ok_or("nobody speaks, and nothing is planned")?.max(self.now + 1);
        }
        Ok(())
    }

    /// A user begins a conversation.
    fn begin(&mut self, at: Micros) {
        self.seeds += 1;
        let mut conversation = self.experiment.users.begin(self.seeds);
        let turn = self.experiment.users.speak(&mut conversation).expect("a first turn");
        // All users at once would come in step.
        let at = if self.experiment.users.arrive.is_some() { at } else { at + turn.think };
        self.think(conversation, at, turn.reply, 0);
    }

    fn think(&mut self, conversation: Conversation, at: Micros, reply: u32, history: usize) {
        self.number += 1;
        self.thinking.push(Reverse((at, self.number)));
        let talk = Talk { conversation, history, submitted: 0, first: None, reply };
        self.talks.insert(self.number, talk);
    }

    fn speak(&mut self, at: Micros, number: u64) -> Result<(), String> {
        let talk = self.talks.get_mut(&number).expect("somebody who thinks");
        let prompt: Vec<TokenId> = talk.conversation.tokens.clone();
        talk.submitted = at;
        let request = Request::greedy(RequestId(number), WHO, prompt, talk.reply);
        self.engine.submit(self.now, request).map_err(|refusal| refusal.to_string())?;
        self.outcome.waiting += self.engine.stats().waiting as f64;
        Ok(())
    }

    fn collect(&mut self) {
        for effect in self.engine.take_effects() {
            match effect {
                Effect::Token { id, token, .. } => {
                    let talk = self.talks.get_mut(&id.0).expect("somebody who asked");
                    talk.first.get_or_insert(self.now);
                    talk.conversation.tokens.push(token);
                }
                Effect::Done { id, usage } => {
                    let talk = self.talks.remove(&id.0).expect("somebody who asked");
                    self.done(talk, usage);
                }
                Effect::Finished { .. } | Effect::PromptLogprobs { .. } => {}
            }
        }
    }

    fn done(&mut self, mut talk: Talk, usage: kvist_engine::Usage) {
        let tokens = &talk.conversation.tokens;
        // The last token drawn has no KV.
        let used = keys(&tokens[..tokens.len() - 1]);
        let counts = self.done >= self.experiment.warm_up;
        self.record.push((used, counts));
        self.done += 1;
        let now = self.shelf.counts();
        if counts {
            self.outcome.turns += 1;
            self.outcome.history += talk.history as u64;
            self.outcome.prompt += u64::from(usage.prompt);
            self.outcome.cached += u64::from(usage.cached);
            self.outcome.queued += usage.timings.queued;
            self.ttfts.push(talk.first.unwrap_or(self.now) - talk.submitted);
        } else {
            (self.began, self.before, self.outcome.waiting) = (self.now, now, 0.0);
        }
        let history = tokens.len();
        match self.experiment.users.speak(&mut talk.conversation) {
            Some(turn) => self.think(talk.conversation, self.now + turn.think, turn.reply, history),
            None if self.experiment.users.arrive.is_none() => self.begin(self.now),
            None => {}
        }
    }

    /// Tokens that the optimum finds, in whole chunks.
    fn optimum(&self) -> u64 {
        let mut trace = Trace::default();
        let mut numbers = HashMap::new();
        for (used, ..) in &self.record {
            let mut number = |&key: &u64| {
                let next = numbers.len() as u32;
                *numbers.entry(key).or_insert(next)
            };
            trace.push(0, 0, 0, used.iter().map(&mut number).collect());
        }
        trace.number();
        let hits = replay::hits(&trace, self.experiment.disk, replay::Policy::Optimum);
        let counted = self.record.iter().zip(hits).filter(|(record, _)| record.1);
        counted.map(|(_, hits)| u64::from(hits) * CHUNK as u64).sum()
    }

    fn finish(mut self) -> Outcome {
        let counts = self.shelf.counts();
        let turns = self.outcome.turns.max(1);
        self.outcome.optimum = self.optimum();
        self.outcome.in_memory =
            self.outcome.cached.saturating_sub((counts.waited_for - self.before.waited_for) * CHUNK as u64);
        self.outcome.not_admitted = counts.not_admitted - self.before.not_admitted;
        self.outcome.took = self.now - self.began;
        self.outcome.queued /= turns as Micros;
        self.outcome.waiting /= turns as f64;
        self.ttfts.sort_unstable();
        let at =
            |percent: usize| self.ttfts.get((self.ttfts.len() * percent / 100).min(turns - 1)).copied().unwrap_or(0);
        let mean = self.ttfts.iter().sum::<Micros>() / turns as Micros;
        self.outcome.ttft = [mean, at(50), at(99)];
        self.outcome
    }
}
