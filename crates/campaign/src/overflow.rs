//! What is left of a conversation that has outgrown its context: how well the embedded model goes on where the rest keeps
//! its KV (carried), beside the truncated text computed anew, and beside the same KV read at places where it was not born.
//!
//! Documents are reference prompts in a row. The middle is dropped, and the text that follows is teacher-forced: perplexity
//! of how a text goes on, and how often what stood before is found again (a sequence of random tokens that is repeated).

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use kvist_base::{AllResident, Allowed, CHUNK, Constraint, DomainId, Executor, StepOutput, TokenId};
use kvist_engine::{Carry, CarrySource, Effect, Engine, EngineConfig, Request, RequestId};
use kvist_kernels::Isa;
use kvist_model::{Model, PoolSize};
use kvist_sim::Random;

use crate::quality::prompts;

/// Tokens of a document, of what is dropped of it behind the first ones, and of the repeated sequence.
const DOCUMENT: usize = 1024;
const DROPPED: usize = 512;
const HEAD: usize = 40;
const REPEATED: usize = 96;
const OWNER: DomainId = DomainId(2);
const SPACE: DomainId = DomainId::carried(0);

/// How what is left is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Nothing is dropped.
    Whole,
    /// What is left is computed anew.
    Recomputed,
    /// It keeps its KV, and its keys are met with their shift.
    Carried,
    /// It keeps its KV, and its keys are met as if they were born where they stand now.
    WrongPlaces,
}

pub const WAYS: [Way; 4] = [Way::Whole, Way::Recomputed, Way::Carried, Way::WrongPlaces];

/// Sums over the positions that were scored.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    pub positions: usize,
    pub nats: f64,
    pub best: usize,
    /// Prompt tokens computed after the cut, and seconds to the first token.
    pub computed: usize,
    pub seconds: f64,
}

impl Figures {
    pub fn perplexity(&self) -> f64 {
        (self.nats / self.positions.max(1) as f64).exp()
    }

    /// Share of the positions where the right token is the likeliest.
    pub fn found(&self) -> f64 {
        self.best as f64 / self.positions.max(1) as f64
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "perplexity {:.3}, right {:.2} % of {} positions; {} prompt tokens computed in {:.2} s",
            self.perplexity(),
            100.0 * self.found(),
            self.positions,
            self.computed,
            self.seconds
        )
    }
}

/// Lets one text come and nothing else.
#[derive(Clone)]
struct Forced {
    text: Arc<[TokenId]>,
    at: usize,
    mask: Vec<u32>,
}

impl Forced {
    fn new(text: &[TokenId]) -> Forced {
        let mut forced = Forced { text: text.into(), at: 0, mask: Vec::new() };
        forced.set();
        forced
    }

    fn set(&mut self) {
        self.mask.clear();
        if let Some(&token) = self.text.get(self.at) {
            self.mask.resize(token as usize / 32 + 1, 0);
            self.mask[token as usize / 32] = 1 << (token % 32);
        }
    }
}

impl Constraint for Forced {
    fn prepare(&mut self) {}

    fn allowed(&mut self) -> Result<Allowed<'_>, String> {
        Ok(Allowed { tokens: &self.mask, end: false })
    }

    fn accept(&mut self, _: TokenId) -> Result<(), String> {
        self.at += 1;
        self.set();
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.at == self.text.len()
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

/// A document, and what follows it.
struct Case {
    document: Vec<TokenId>,
    follows: Vec<TokenId>,
    /// Tokens of `follows` from here on are scored.
    from: usize,
}

/// Documents whose last text goes on.
fn texts(count: usize) -> Vec<Case> {
    let all = prompts().concat();
    let stride = (all.len() - DOCUMENT - REPEATED) / count.max(1);
    let case = |i: usize| {
        let (document, rest) = all[i * stride..].split_at(DOCUMENT);
        Case { document: document.to_vec(), follows: rest[..REPEATED].to_vec(), from: 0 }
    };
    (0..count).map(case).collect()
}

/// Documents that hold random tokens behind what is dropped, which then come again.
fn repeats(count: usize, vocab: usize) -> Vec<Case> {
    let mut cases = texts(count);
    for (seed, case) in (1..).zip(&mut cases) {
        let mut random = Random::new(seed);
        let sequence: Vec<TokenId> = (0..REPEATED).map(|_| 3 + random.below(vocab - 3) as TokenId).collect();
        let at = HEAD + DROPPED + CHUNK + random.below(DOCUMENT - HEAD - DROPPED - 2 * CHUNK - REPEATED);
        case.document[at..at + REPEATED].copy_from_slice(&sequence);
        // The first few say which sequence it is.
        (case.follows, case.from) = (sequence, 8);
    }
    cases
}

/// Each way's figures for how texts go on and for what is found again.
pub fn measure(model: &Model, isa: Isa, threads: usize, count: usize) -> Vec<(Way, Figures, Figures)> {
    let vocab = model.config().vocab;
    let (texts, repeats) = (texts(count), repeats(count, vocab));
    let figures = |way, cases: &[Case]| {
        let mut sum = Figures::default();
        cases.iter().for_each(|case| score(model, isa, threads, way, case, &mut sum));
        sum
    };
    WAYS.iter().map(|&way| (way, figures(way, &texts), figures(way, &repeats))).collect()
}

fn score(model: &Model, isa: Isa, threads: usize, way: Way, case: &Case, sum: &mut Figures) {
    let chunks = 3 * (DOCUMENT + REPEATED) / CHUNK + 8;
    let pool = PoolSize::kv16(chunks as u32);
    let mut executor = model.clone().with_pool(pool, None, isa, threads).expect("room for two documents");
    let mut engine = Engine::new(EngineConfig::default(), executor.info().clone());
    let mut output = StepOutput::default();
    let mut run = |request: Request| {
        engine.submit(0, request).expect("it fits");
        let start = Instant::now();
        let (mut scores, mut usage, mut first) = (Vec::new(), None, None);
        while let Some(plan) = engine.plan(0) {
            executor.step(plan, &AllResident, &mut output);
            engine.complete(1, &output);
            for effect in engine.take_effects() {
                match effect {
                    Effect::Token { logprobs, .. } => {
                        first.get_or_insert(start.elapsed());
                        scores.extend(logprobs);
                    }
                    Effect::Done { usage: done, .. } => usage = Some(done),
                    _ => {}
                }
            }
        }
        let usage = usage.expect("every request ends");
        (scores, (usage.prompt - usage.cached) as usize, first.unwrap_or_default().as_secs_f64())
    };
    let (carry, kept) = Carry::new(&case.document, HEAD, HEAD + DROPPED, SPACE).expect("whole chunks are dropped");
    let source = CarrySource { space: OWNER, tokens: case.document.as_slice().into(), shift: carry.shift };
    let carry = Carry { sources: vec![source], ..carry };
    let (prompt, carry) = match way {
        Way::Whole => (case.document.clone(), None),
        Way::Recomputed => ([&case.document[..HEAD], &case.document[HEAD + DROPPED..]].concat(), None),
        Way::Carried => (kept, Some(carry)),
        Way::WrongPlaces => (kept, Some(Carry { shift: 0, ..carry })),
    };
    if carry.is_some() {
        run(Request::greedy(RequestId(1), OWNER, case.document.clone(), 0));
    }
    let request = Request {
        carry: carry.map(Arc::new),
        constraint: Some(Box::new(Forced::new(&case.follows))),
        logprobs: Some(0),
        ..Request::greedy(RequestId(2), OWNER, prompt, case.follows.len() as u32)
    };
    let (scores, computed, seconds) = run(request);
    assert_eq!(scores.len(), case.follows.len(), "every token is forced");
    for score in &scores[case.from..] {
        sum.positions += 1;
        sum.nats -= f64::from(score.logprob);
        sum.best += usize::from(score.rank == 1);
    }
    sum.computed += computed;
    sum.seconds += seconds;
}
