//! Whether to load or to compute: with a tier and an executor whose times are known.

use kvist_base::{DomainId, Executor, Micros, StepOutput, TokenId};
use kvist_engine::{Effect, Engine, EngineConfig, Request, RequestId, TierStats};
use kvist_sim::{CostModel, Manners, SimExecutor, SimModel, SimTier};

const HISTORY: usize = 512;
const CHUNKS: u64 = HISTORY as u64 / 64;
const COST: CostModel = CostModel { step: 500, row: 20, kilotoken: 10 };

/// A tier that loads at once.
const QUICK: Manners =
    Manners { seed: 3, room: 100, pace: 100, layer: 1, slower: 1, lost: 0, capacity: u64::MAX, missed: 0 };

struct Machine {
    engine: Engine,
    executor: SimExecutor,
    tier: SimTier,
    now: Micros,
    next: u64,
}

/// What became of a prompt.
struct Reply {
    cached: usize,
    tokens: Vec<TokenId>,
    took: Micros,
}

impl Machine {
    /// A tier that holds the history, and an engine that knows nothing.
    fn new(manners: Manners) -> Machine {
        let executor = SimExecutor::new(SimModel { vocab: 100, seed: 5 }, COST, 100, 1024);
        let tier = SimTier::new(&executor.info().layout, manners);
        let mut machine = Machine { engine: engine(&executor, &tier), executor, tier, now: 0, next: 0 };
        machine.run(history());
        machine.tier.save_all(&mut machine.engine, &machine.executor);
        machine.restart();
        machine
    }

    fn restart(&mut self) {
        self.tier = self.tier.restarted();
        self.engine = engine(&self.executor, &self.tier);
    }

    /// Lets the engine learn how long steps take.
    fn learn(mut self) -> Machine {
        for i in 0..12 {
            self.run((0..40 * (1 + i % 5)).map(|t| (t * t + i) as TokenId % 90 + 1).collect());
        }
        self
    }

    /// Runs a prompt to its end, however long that takes in simulated time.
    fn run(&mut self, prompt: Vec<TokenId>) -> Reply {
        let (id, begun) = (RequestId(self.next), self.now);
        self.next += 1;
        self.engine.submit(self.now, Request::greedy(id, DomainId(2), prompt, 8)).unwrap();
        let mut reply = Reply { cached: 0, tokens: vec![], took: 0 };
        let mut output = StepOutput::default();
        for _ in 0..100_000 {
            match self.engine.plan(self.now) {
                Some(plan) => {
                    self.executor.step(plan, &self.tier, &mut output);
                    assert_eq!(self.executor.violations, Vec::<String>::new());
                    self.now += self.executor.took;
                    self.engine.complete(self.now, &output);
                    self.executor.forget_lost();
                }
                None => self.now += 1_000,
            }
            for effect in self.engine.take_effects() {
                match effect {
                    Effect::Token { token, .. } => reply.tokens.push(token),
                    Effect::Done { usage, .. } => {
                        reply.cached = usage.cached as usize;
                        reply.took = self.now - begun;
                        self.engine.check_integrity().unwrap();
                        return reply;
                    }
                    _ => {}
                }
            }
        }
        panic!("the request hangs");
    }

    fn stats(&self) -> TierStats {
        self.engine.stats().tier
    }
}

fn engine(executor: &SimExecutor, tier: &SimTier) -> Engine {
    let config = EngineConfig { saves: true, ..EngineConfig::default() };
    Engine::new(config, executor.info().clone()).with_tier(Box::new(tier.clone()))
}

fn history() -> Vec<TokenId> {
    (0..HISTORY).map(|i| (i * 7 % 97) as TokenId).collect()
}

/// The conversation comes back.
fn returns() -> Vec<TokenId> {
    [history(), (0..64).map(|i| i % 10).collect()].concat()
}

#[test]
fn below_the_break_even_it_is_computed_and_above_it_is_loaded() {
    let alone = Machine::new(QUICK).run(returns());
    let computed = COST.step + HISTORY as u64 * COST.row;
    let mut loaded_before = true;
    for percent in [1, 10, 50, 90, 150, 200, 1000, 10_000] {
        let layer = computed * percent / 100 / CHUNKS;
        let mut machine = Machine::new(Manners { layer, ..QUICK }).learn();
        let reply = machine.run(returns());
        assert_eq!(reply.tokens, alone.tokens);
        let loaded = reply.cached == HISTORY;
        assert!(loaded || reply.cached == 0, "{} tokens", reply.cached);
        assert_eq!(loaded, machine.stats().loads == 1);
        assert!(loaded_before || !loaded, "loads at {percent} % and not at less");
        loaded_before = loaded;
        match percent {
            ..=90 => assert!(loaded, "{percent} % of the time that computing takes"),
            150.. => assert!(!loaded, "{percent} % of the time that computing takes"),
            _ => {}
        }
    }
}

#[test]
fn who_knows_no_times_loads() {
    let mut machine = Machine::new(QUICK);
    assert_eq!(machine.run(returns()).cached, HISTORY);
}

/// It promised to be quick.
#[test]
fn a_load_that_turns_out_slow_is_given_up() {
    let manners = Manners { pace: 0, layer: 100, slower: 1000, ..QUICK };
    let mut machine = Machine::new(manners).learn();
    let reply = machine.run(returns());
    assert_eq!(reply.cached, 0);
    assert_eq!((machine.stats().loads >= 1, machine.stats().too_slow >= 1), (true, true));
    assert_eq!(reply.tokens, Machine::new(QUICK).run(returns()).tokens);
}

/// It goes on promising that it is nearly there.
#[test]
fn a_tier_from_which_nothing_comes_holds_nobody_up_for_long() {
    let manners = Manners { pace: 0, layer: 1000, slower: 5, ..QUICK };
    let alone = Machine::new(QUICK).run(returns()).tokens;
    let mut machine = Machine::new(manners).learn();
    let reply = machine.run(returns());
    let computed = COST.step + HISTORY as u64 * COST.row;
    assert!(machine.stats().too_slow > 0, "{:?}", machine.stats());
    assert!(reply.took < 10 * computed, "{} us", reply.took);
    assert_eq!(reply.tokens, alone);
    // Nor where no step's time is known.
    let mut machine = Machine::new(Manners { layer: 1_000_000, ..manners });
    let reply = machine.run(returns());
    assert!(machine.stats().too_slow > 0, "{:?}", machine.stats());
    assert_eq!((reply.cached, reply.tokens), (0, alone));
}

/// Where what was not computed came from, and what had to go and was asked for again, is counted once each.
#[test]
fn what_was_found_is_counted_by_where_it_was() {
    let mut machine = Machine::new(QUICK);
    let counted = |m: &Machine| {
        let s = m.engine.stats();
        (s.cached_tokens - s.loaded_tokens, s.loaded_tokens, s.evicted_then_needed)
    };
    let history = HISTORY as u64;
    machine.run(returns());
    assert_eq!(counted(&machine), (0, history, 0));
    machine.run(returns());
    let again = history + (returns().len() - HISTORY - 1) as u64;
    assert_eq!(counted(&machine), (again, history, 0));
    machine.engine.evict_all();
    machine.run(returns());
    // The chunk behind the history, too, of which the tier knows nothing.
    assert_eq!(counted(&machine), (again, 2 * history, history + 64));
}

#[test]
fn as_many_want_what_is_kept_as_memory_and_tier_have_room_for() {
    let mut machine = Machine::new(Manners { capacity: 50, ..QUICK });
    let submit = |machine: &mut Machine, id: u64| {
        let prompt = (0..HISTORY as TokenId).map(|t| (t + id as TokenId) % 90 + 1).collect();
        machine.engine.submit(machine.now, Request::greedy(RequestId(id), DomainId(2), prompt, 8)).unwrap();
    };
    (100..200).for_each(|id| submit(&mut machine, id));
    // 100 chunks of memory that nobody uses, and 50 below.
    assert_eq!((machine.tier.wants() as u64, machine.engine.wants() as u64), (150 / CHUNKS, 150 / CHUNKS));
    // Who goes makes room for who came later.
    (100..190).for_each(|id| machine.engine.cancel(machine.now, RequestId(id)));
    submit(&mut machine, 300);
    assert_eq!(machine.tier.wants(), 11);
    machine.run(history());
    (190..200).chain([300]).for_each(|id| machine.engine.cancel(machine.now, RequestId(id)));
    assert_eq!((machine.tier.wants(), machine.engine.wants()), (0, 0));
}
