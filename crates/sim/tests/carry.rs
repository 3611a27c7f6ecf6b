//! Conversations that outgrow the context, over a tier: what is carried past a cut is the same wherever it lies.

use std::sync::Arc;

use kvist_base::{CHUNK, DomainId, Executor, Micros, StepOutput, TokenId};
use kvist_engine::{Carry, CarrySource, Effect, Engine, EngineConfig, Request, RequestId};
use kvist_sim::{CostModel, Manners, SimExecutor, SimModel, SimTier};

const OWNER: DomainId = DomainId(2);
const COST: CostModel = CostModel { step: 500, row: 20, kilotoken: 10 };
const QUICK: Manners =
    Manners { seed: 3, room: 100, pace: 100, layer: 1, slower: 1, lost: 0, missed: 0, capacity: u64::MAX };
/// Tokens before the cut, and its two ends.
const START: usize = 100;
const ENDS: [usize; 2] = [300, 640];

/// What happens to RAM before a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Before {
    Nothing,
    Restart,
    /// Whatever nobody uses is evicted.
    Evict,
    /// The end of the longest path is, as under pressure.
    EvictSome,
}

struct Machine {
    engine: Engine,
    executor: SimExecutor,
    tier: SimTier,
    chunks: u32,
    now: Micros,
    next: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct Reply {
    prompt: usize,
    cached: usize,
    tokens: Vec<TokenId>,
}

impl Machine {
    fn new(manners: Manners, chunks: u32, open: Option<u32>) -> Machine {
        let executor = SimExecutor::new(SimModel { vocab: 100, seed: 5 }, COST, chunks, 2048);
        let executor = open.map_or(executor.clone(), |open| executor.with_open(open));
        let tier = SimTier::new(&executor.info().layout, manners);
        Machine { engine: engine(&executor, &tier), executor, tier, chunks, now: 0, next: 0 }
    }

    fn prepare(&mut self, before: Before) {
        match before {
            Before::Nothing => {}
            Before::Evict => self.engine.evict_all(),
            Before::EvictSome => {
                // Other conversations take most of the room.
                for other in 0..(self.chunks as usize - 12) / 10 {
                    let prompt = (0..10 * CHUNK - 1).map(|i| ((i + 7 * other) % 83) as TokenId).collect();
                    self.run(Request::greedy(RequestId(0), DomainId(9), prompt, 1));
                }
            }
            Before::Restart => {
                self.tier = self.tier.restarted();
                self.engine = engine(&self.executor, &self.tier);
            }
        }
    }

    fn submit(&mut self, request: Request) -> RequestId {
        self.next += 1;
        let id = RequestId(self.next);
        self.engine.submit(self.now, Request { id, ..request }).unwrap();
        id
    }

    /// One plan, and its step if there is one.
    fn step(&mut self, output: &mut StepOutput) {
        match self.engine.plan(self.now) {
            Some(plan) => {
                self.executor.step(plan, &self.tier, output);
                assert_eq!(self.executor.violations, Vec::<String>::new());
                self.now += self.executor.took;
                self.engine.complete(self.now, output);
                self.executor.forget_lost();
                self.tier.save_all(&mut self.engine, &self.executor);
            }
            None => self.now += 1_000,
        }
    }

    fn run(&mut self, request: Request) -> Reply {
        let own = self.submit(request);
        let mut reply = Reply { prompt: 0, cached: 0, tokens: vec![] };
        let mut output = StepOutput::default();
        for _ in 0..100_000 {
            self.step(&mut output);
            for effect in self.engine.take_effects() {
                match effect {
                    Effect::Token { id, token, .. } if id == own => reply.tokens.push(token),
                    Effect::Done { id, usage } if id == own => {
                        (reply.prompt, reply.cached) = (usage.prompt as usize, usage.cached as usize);
                        self.engine.check_integrity().unwrap();
                        return reply;
                    }
                    _ => {}
                }
            }
        }
        panic!("the request hangs");
    }
}

fn engine(executor: &SimExecutor, tier: &SimTier) -> Engine {
    let config = EngineConfig { saves: true, ..EngineConfig::default() };
    Engine::new(config, executor.info().clone()).with_tier(Box::new(tier.clone()))
}

/// A request for what is left of a conversation behind the `cut`-th cut, carried on from the earlier ones.
fn carried(ids: &[TokenId], cut: usize) -> Request {
    let space = |cut: usize| DomainId::carried(cut as u32);
    let make = |cut: usize| Carry::new(ids, START, ENDS[cut], space(cut)).unwrap();
    let (mut carry, kept) = make(cut);
    for earlier in (0..cut).rev() {
        let (source, tokens) = make(earlier);
        let shift = carry.shift - source.shift;
        carry.sources.push(CarrySource { space: space(earlier), tokens: tokens.into(), shift });
    }
    carry.sources.push(CarrySource { space: OWNER, tokens: ids.into(), shift: carry.shift });
    Request { carry: Some(Arc::new(carry)), ..Request::greedy(RequestId(0), OWNER, kept, 40) }
}

/// The first turn, which fits, of `first` tokens.
fn first(machine: &mut Machine, first: usize) -> Vec<TokenId> {
    let mut ids: Vec<TokenId> = (0..first).map(|i| (i * i % 97) as TokenId).collect();
    let reply = machine.run(Request::greedy(RequestId(0), OWNER, ids.clone(), 40));
    ids.extend(reply.tokens);
    ids
}

/// Tokens that each turn adds before its reply.
const NEW: usize = 120;

/// A conversation of three turns, the last two behind a cut each.
fn conversation(machine: &mut Machine, length: usize, before: [Before; 2]) -> [Reply; 2] {
    let mut ids = first(machine, length);
    let mut replies = Vec::new();
    for (cut, before) in before.into_iter().enumerate() {
        ids.extend((0..NEW).map(|i| (i * 3 % 89) as TokenId));
        machine.prepare(before);
        replies.push(machine.run(carried(&ids, cut)));
        ids.extend(&replies[cut].tokens);
    }
    replies.try_into().unwrap()
}

#[test]
fn a_cut_that_moves_finds_its_sources_in_every_tier() {
    use Before::*;
    for (length, open) in [(700, None), (700, Some(6)), (777, Some(6))] {
        let alone = conversation(&mut Machine::new(QUICK, 100, open), length, [Nothing, Nothing]);
        for reply in &alone {
            // All but what is new, the last token of the reply before it, and the rest of their chunk.
            assert_eq!(reply.cached, (reply.prompt - NEW - 1) / CHUNK * CHUNK, "{length}: {reply:?}");
        }
        for before in [[Restart, Restart], [Nothing, Restart], [Restart, Nothing], [Evict, Evict], [EvictSome; 2]] {
            for (room, pace) in [(100, 100), (2, 50), (5, 100), (100, 20)] {
                let mut machine = Machine::new(Manners { room, pace, ..QUICK }, 100, open);
                let replies = conversation(&mut machine, length, before);
                assert_eq!(replies, alone, "{length} {open:?} {before:?} {room} {pace}");
                assert!(before[0] == Nothing || machine.engine.stats().tier.loads > 0);
            }
        }
    }
}

/// A whole chunk at the end of a prompt is carried, too, wherever it lies: computed anew it would be another.
#[test]
fn the_last_chunk_is_the_same_wherever_it_lies() {
    for open in [None, Some(6)] {
        let run = |before| {
            let mut machine = Machine::new(QUICK, 100, open);
            let ids = first(&mut machine, 704)[..704].to_vec();
            machine.prepare(before);
            let reply = machine.run(carried(&ids, 0));
            assert_eq!(reply.prompt % CHUNK, 0);
            machine.prepare(before);
            // Its rows run once more where they see it as it was before it was sealed.
            (reply, machine.run(carried(&ids, 0)).tokens)
        };
        let alone = run(Before::Nothing);
        for before in [Before::Restart, Before::Evict, Before::EvictSome] {
            assert_eq!(run(before), alone, "{before:?} {open:?}");
        }
    }
}

/// There is room for the new path, and not for the old one beside it.
#[test]
fn a_small_pool_has_room_for_what_is_carried() {
    let alone = conversation(&mut Machine::new(QUICK, 100, None), 700, [Before::Nothing; 2]);
    for before in [Before::Nothing, Before::Restart] {
        for chunks in [15, 16, 20] {
            let mut machine = Machine::new(Manners { pace: 50, ..QUICK }, chunks, None);
            assert_eq!(conversation(&mut machine, 700, [before; 2]), alone, "{before:?}, {chunks} chunks");
        }
    }
}

/// What was carried is saved under its own name: the turn after the next restart finds it.
#[test]
fn what_was_loaded_for_a_carried_path_is_saved_as_its_own() {
    let mut machine = Machine::new(QUICK, 100, None);
    let mut ids = first(&mut machine, 700);
    ids.extend((0..120).map(|i| (i * 3 % 89) as TokenId));
    machine.prepare(Before::Restart);
    machine.run(carried(&ids, 0));
    machine.prepare(Before::Restart);
    let mut request = carried(&ids, 0);
    let path = request.carry.as_mut().map(|carry| std::mem::take(&mut Arc::make_mut(carry).sources));
    assert!(path.is_some());
    let whole = request.prompt.len() / CHUNK * CHUNK;
    assert_eq!(machine.run(request).cached, whole);
}

#[test]
fn loads_end_with_their_request() {
    // Too slow for a step to begin with.
    let mut machine = Machine::new(Manners { pace: 0, layer: 10_000_000, ..QUICK }, 100, None);
    let ids = first(&mut machine, 700);
    let mut output = StepOutput::default();
    for request in [carried(&ids, 0), Request::greedy(RequestId(0), OWNER, ids, 1)] {
        machine.prepare(Before::Restart);
        let id = machine.submit(request);
        machine.step(&mut output);
        assert!(machine.tier.loading() > 1);
        machine.engine.cancel(machine.now, id);
        machine.step(&mut output);
        assert_eq!(machine.tier.loading(), 0);
        machine.engine.check_integrity().unwrap();
        assert_eq!(machine.engine.stats().cache.pinned, 0);
    }
}

/// From a tier of which nothing comes, or that loses what it has, what is missing is computed.
#[test]
fn what_does_not_come_is_computed() {
    for manners in [
        Manners { pace: 0, layer: 1000, slower: 5, ..QUICK },
        Manners { lost: 3000, ..QUICK },
        Manners { pace: 20, missed: 1000, ..QUICK },
    ] {
        let mut machine = Machine::new(manners, 100, None);
        let replies = conversation(&mut machine, 700, [Before::Restart; 2]);
        assert!(replies.iter().all(|reply| reply.tokens.len() == 40));
        assert!(replies.iter().any(|reply| reply.cached < reply.prompt / CHUNK * CHUNK), "{replies:?}");
    }
}
