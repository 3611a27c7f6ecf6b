//! Carried = carried from anywhere, bit for bit: a conversation outgrows its context turn by turn, once in RAM alone and
//! once over a tier, with restarts, evictions and a pool that holds little more than one path. Every row of logits, every
//! chunk of KV and every token must be the same.

use std::sync::Arc;

use kvist_base::{AllResident, CHUNK, DomainId, Executor, Residency, StepOutput, TokenId};
use kvist_engine::{Carry, CarrySource, Effect, Engine, EngineConfig, Request, RequestId};
use kvist_sim::{Manners, Random, SimTier};

use crate::bitwise::{Report, Subject};
use crate::recorder::{Bits, Recorder};

const OWNER: DomainId = DomainId(2);
const TURNS: usize = 4;

/// What happens to RAM before a turn.
#[derive(Clone, Copy)]
enum Before {
    Nothing,
    Restart,
    Evict,
}

struct Turn {
    /// New tokens.
    more: Vec<TokenId>,
    /// Chunks by which the cut moves.
    moves: usize,
    reply: u32,
    /// The client keeps the reply; without it the same prompt comes again, behind a cut that may have moved.
    keeps: bool,
    before: Before,
}

struct Case {
    first: Vec<TokenId>,
    start: usize,
    turns: Vec<Turn>,
    config: EngineConfig,
    /// Slabs beyond those that the longest path needs.
    spare: u32,
    open: u32,
    threads: usize,
    manners: Manners,
}

/// Runs the case of `seed` on `subject`.
pub fn run(seed: u64, subject: &dyn Subject) -> Result<Report, String> {
    let case = draw(seed, subject);
    let told = |e: String| format!("carried, seed {seed}, {}: {e}", subject.name());
    let alone = converse(&case, subject, None).map_err(told)?;
    let tier = SimTier::new(&alone.layout, case.manners);
    let again = converse(&case, subject, Some((tier, alone.longest))).map_err(told)?;
    let compared = alone.bits.covers(&again.bits).map_err(told)?;
    if alone.replies != again.replies {
        return Err(told(format!("{:?}, in RAM alone {:?}", again.replies, alone.replies)));
    }
    let carried = u64::from(again.carried > 0);
    Ok(Report { compared: compared as u64, with_cuts: carried, ..Report::default() })
}

struct Outcome {
    bits: Bits,
    replies: Vec<Vec<TokenId>>,
    layout: kvist_base::ChunkLayout,
    /// Slabs of the longest path.
    longest: u32,
    /// Tokens that were carried over cuts.
    carried: u64,
}

/// The conversation; over a tier, which has the bytes, with slabs for little more than a path of so many.
fn converse(case: &Case, subject: &dyn Subject, tier: Option<(SimTier, u32)>) -> Result<Outcome, String> {
    let (chunks, open) = tier.as_ref().map_or((200, 200), |(_, longest)| (longest + case.spare, case.open));
    let mut tier = tier.map(|(tier, _)| tier);
    let mut executor = Recorder::new(subject.executor(chunks, open, case.threads)).with_tier(tier.clone());
    let layout = executor.info().layout.clone();
    let begin = |executor: &Recorder, tier: &Option<SimTier>| {
        let engine = Engine::new(case.config.clone(), executor.info().clone());
        match tier {
            Some(tier) => engine.with_tier(Box::new(tier.clone())),
            None => engine,
        }
    };
    let mut engine = begin(&executor, &tier);
    let (mut replies, mut longest, mut carried) = (Vec::new(), 0, 0);
    let mut ids = case.first.clone();
    let mut cuts = Vec::new();
    for turn in &case.turns {
        ids.extend(&turn.more);
        let at = cuts.last().copied().unwrap_or(case.start) + turn.moves * CHUNK;
        if turn.moves > 0 && at < ids.len() {
            cuts.push(at);
        }
        if let (Some(tier), Before::Restart) = (&mut tier, turn.before) {
            *tier = tier.restarted();
            carried += engine.stats().carried_tokens;
            engine = begin(&executor, &Some(tier.clone()));
        }
        if let (Some(_), Before::Evict) = (&tier, turn.before) {
            engine.evict_all();
        }
        let request = request(&ids, case.start, &cuts, turn.reply);
        longest = longest.max((request.prompt.len() + turn.reply as usize).div_ceil(CHUNK) as u32 + 1);
        let reply = answer(&mut engine, &mut executor, tier.as_ref(), request)?;
        if turn.keeps {
            ids.extend(&reply);
        }
        replies.push(reply);
    }
    if let Some(clash) = executor.clash {
        return Err(clash);
    }
    Ok(Outcome { bits: executor.bits, replies, layout, longest, carried: carried + engine.stats().carried_tokens })
}

/// What is left of the conversation behind the last of the cuts, carried on from the others and from the whole.
fn request(ids: &[TokenId], start: usize, cuts: &[usize], reply: u32) -> Request {
    let make = |k: usize| Carry::new(ids, start, cuts[k], DomainId::carried(k as u32));
    let Some((mut carry, kept)) = cuts.len().checked_sub(1).and_then(make) else {
        return Request::greedy(RequestId(0), OWNER, ids.to_vec(), reply);
    };
    for k in (0..cuts.len() - 1).rev() {
        if let Some((source, tokens)) = make(k) {
            let shift = carry.shift - source.shift;
            carry.sources.push(CarrySource { space: source.space, tokens: tokens.into(), shift });
        }
    }
    carry.sources.push(CarrySource { space: OWNER, tokens: ids.into(), shift: carry.shift });
    Request { carry: Some(Arc::new(carry)), ..Request::greedy(RequestId(0), OWNER, kept, reply) }
}

fn answer(
    engine: &mut Engine,
    executor: &mut Recorder,
    tier: Option<&SimTier>,
    request: Request,
) -> Result<Vec<TokenId>, String> {
    engine.submit(0, request).map_err(|e| e.to_string())?;
    let mut output = StepOutput::default();
    let mut reply = Vec::new();
    for step in 0..100_000 {
        if let Some(plan) = engine.plan(step) {
            let residency: &dyn Residency = tier.map_or(&AllResident, |tier| tier);
            executor.step(plan, residency, &mut output);
            engine.complete(step, &output);
            if let Some(tier) = tier {
                tier.save_all(engine, executor);
            }
        }
        for effect in engine.take_effects() {
            match effect {
                Effect::Token { token, .. } => reply.push(token),
                Effect::Done { .. } => {
                    engine.check_integrity()?;
                    return Ok(reply);
                }
                _ => {}
            }
        }
    }
    Err("no end in sight after 100,000 steps".into())
}

fn draw(seed: u64, subject: &dyn Subject) -> Case {
    let mut random = Random::new(seed.wrapping_mul(0x9e37_79b9).wrapping_add(71));
    let light = !subject.heavy();
    let tokens =
        |random: &mut Random, n: usize| (0..n).map(|_| random.below(subject.vocab()) as TokenId).collect::<Vec<_>>();
    let length = if light { random.pick(&[300, 383, 384, 500]) } else { 260 };
    let first = tokens(&mut random, length);
    let turns = (0..TURNS).map(|i| {
        let more = random.pick(if light { &[0, 1, 40, 64, 130] } else { &[0, 1, 40] });
        Turn {
            more: tokens(&mut random, more),
            moves: if i == 0 { 0 } else { random.pick(&[0, 1, 1, 2]) },
            reply: random.pick(if light { &[1, 10, 70] } else { &[1, 3] }),
            keeps: random.chance(70),
            before: random.pick(&[Before::Nothing, Before::Restart, Before::Restart, Before::Evict]),
        }
    });
    let turns = turns.collect();
    Case {
        first,
        start: random.pick(&[0, 4, 64, 100]),
        turns,
        config: EngineConfig {
            max_step_rows: random.pick(&[5, 33, 64, 512]),
            max_logit_rows: 4,
            min_prefill_rows: 1,
            saves: true,
            ..EngineConfig::default()
        },
        spare: random.pick(&[0, 1, 3, 100]),
        open: random.pick(&[2, 3, 8, 60]),
        threads: 1 + random.below(4),
        manners: Manners {
            seed: random.word(),
            room: random.pick(&[1, 2, 5, 1000]),
            capacity: u64::MAX,
            pace: random.pick(&[30, 70, 100]),
            layer: 0,
            slower: 1,
            lost: 0,
            missed: 0,
        },
    }
}
