//! Scheduler, keeper and store together on a disk that is far too small: what is kept, what is refused, and that nothing is
//! wanted for ever.

use std::path::PathBuf;
use std::sync::Arc;

use kvist_base::{DomainId, Executor, StepOutput, TokenId};
use kvist_engine::{Effect, Engine, EngineConfig, Request, RequestId};
use kvist_server::Keeper;
use kvist_sim::{CostModel, Random, SimExecutor, SimModel};
use kvist_store::{Encryption, Fingerprint, SimVfs, Store, StoreConfig, StoreTier, Vfs};

const WHO: DomainId = DomainId(2);
const BUDGET: u64 = 400 << 10;
const TALKS: usize = 40;

struct Machine {
    engine: Engine,
    executor: SimExecutor,
    keeper: Keeper,
    store: Store,
    vfs: SimVfs,
    now: u64,
    output: StepOutput,
    /// Of each conversation what was said, when somebody says more, and the request that is under way.
    talks: Vec<(Vec<TokenId>, u64, Option<RequestId>)>,
    cached: u64,
}

fn machine(seed: u64) -> Machine {
    machine_of(seed, |_| {})
}

fn machine_of(seed: u64, set: impl Fn(&mut StoreConfig)) -> Machine {
    let model = SimModel { vocab: 90, seed };
    let executor = SimExecutor::new(model, CostModel { step: 5_000, row: 20_000, kilotoken: 10 }, 60, 1024);
    let slices = executor.info().layout.layers.iter().map(|layer| layer.bytes).collect();
    let fingerprint = Fingerprint { digest: [3; 32], text: "simulated".into() };
    let mut config = StoreConfig::new(PathBuf::from("/store"), BUDGET, fingerprint, slices, Encryption::Off);
    (config.io_threads, config.segment) = (0, Some(24 << 10));
    set(&mut config);
    let vfs = SimVfs::new(seed);
    let (store, _) = Store::open(Arc::new(vfs.clone()), config).unwrap();
    store.register(DomainId::PUBLIC, "public").unwrap();
    store.register(WHO, "somebody").unwrap();
    let tier = StoreTier::new(store.clone());
    let config = EngineConfig { max_batch: 3, saves: true, ..EngineConfig::default() };
    let engine = Engine::new(config, executor.info().clone()).with_tier(Box::new(tier.clone()));
    let talks = (0..TALKS).map(|i| (vec![i as TokenId], 0, None)).collect();
    let output = StepOutput::default();
    Machine { engine, executor, keeper: Keeper::new(tier), store, vfs, now: 0, output, talks, cached: 0 }
}

impl Machine {
    /// Somebody goes on with each conversation whose time has come; some leave before they were answered.
    fn speak(&mut self, random: &mut Random, next: &mut u64) {
        for (tokens, at, request) in &mut self.talks {
            if request.is_none() && *at <= self.now {
                if tokens.len() > 700 {
                    tokens.truncate(1);
                }
                tokens.extend((0..random.below(120)).map(|_| random.below(90) as TokenId));
                let id = RequestId(*next);
                *next += 1;
                let asked = Request::greedy(id, WHO, tokens.clone(), 1 + random.below(40) as u32);
                self.engine.submit(self.now, asked).unwrap();
                *request = Some(id);
                if random.below(40) == 0 {
                    self.engine.cancel(self.now, id);
                }
            } else if let Some(id) = *request
                && random.below(2000) == 0
            {
                self.engine.cancel(self.now, id);
            }
        }
    }

    /// One turn of the server's loop, with the store's threads played by hand.
    fn step(&mut self, random: &mut Random) {
        while self.store.read_turn() {}
        match self.engine.plan(self.now) {
            Some(plan) => {
                while self.store.read_turn() {}
                let residency = self.keeper.tier();
                self.executor.step(plan, residency, &mut self.output);
                assert_eq!(self.executor.violations, Vec::<String>::new());
                self.now += self.executor.took;
                self.engine.complete(self.now, &self.output);
                self.executor.forget_lost();
            }
            None => self.now += if self.engine.is_loading() { 1_000 } else { 1_000_000 },
        }
        self.keeper.save(&mut self.engine, &self.executor, self.now);
        self.vfs.advance(self.now - self.vfs.now());
        for _ in 0..1 + random.below(3) {
            let _ = self.store.turn();
        }
        for effect in self.engine.take_effects() {
            match effect {
                Effect::Token { id, token, .. } => {
                    let talk = self.talks.iter_mut().find(|talk| talk.2 == Some(id)).expect("it asked");
                    talk.0.push(token);
                }
                Effect::Done { id, usage } => {
                    let talk = self.talks.iter_mut().find(|talk| talk.2 == Some(id)).expect("it asked");
                    (talk.1, talk.2) = (self.now + random.below(300_000_000) as u64, None);
                    self.cached += u64::from(usage.cached);
                }
                _ => {}
            }
        }
        self.engine.check_integrity().unwrap();
        self.store.check().unwrap();
        // In two trees each, as far as something of it is there.
        assert!(self.store.wants() <= 2 * self.engine.wants());
        // The simulated file system counts in pages.
        let store = self.store.stats();
        assert!(store.bytes <= BUDGET + (store.segments + 1) * 4096, "{store:?}");
    }
}

#[test]
fn a_disk_that_is_too_small_keeps_what_is_wanted_and_refuses_what_is_not_worth_it() {
    let mut machine = machine(7);
    let (mut random, mut next, mut most) = (Random::new(7), 0, 0);
    for _ in 0..8_000 {
        machine.speak(&mut random, &mut next);
        machine.step(&mut random);
        most = most.max(machine.store.wants());
    }
    machine.talks.iter_mut().for_each(|talk| talk.1 = u64::MAX);
    while !machine.engine.is_idle() || machine.keeper.waits(&machine.engine) {
        machine.talks.iter_mut().for_each(|talk| talk.1 = u64::MAX);
        machine.step(&mut random);
    }
    let (engine, store) = (machine.engine.stats(), machine.store.stats());
    println!("{next} requests, {} cached tokens, {most} wants, {:?} {store:?}", machine.cached, engine.tier);
    assert_eq!((machine.engine.wants(), machine.store.wants()), (0, 0), "nobody waits");
    assert!(most > 4 && engine.tier.loads > 100 && engine.tier.read_ahead > 30, "{most} {:?}", engine.tier);
    assert!(store.evicted.budget > 500 && store.not_admitted > 20 && store.refused_off == 0, "{store:?}");
    assert_eq!(store.evicted.damaged + store.evicted.abandoned + store.corrupt, 0, "{store:?}");
}

/// Chunks were handed over in runs of up to sixteen, all or none, and a run that is larger than what may wait to be written
/// was refused as if something else had to be written first: for ever. A model with large chunks (25 MiB: 32 layers of 32
/// heads), or a machine with little free memory, saved nothing from the first prompt on that had that many at once.
#[test]
fn chunks_are_saved_where_few_of_them_may_wait_to_be_written() {
    for room in [1, 3] {
        let mut machine = machine_of(5, |config| config.saves = (room * config.chunk_bytes()) as u64);
        machine.talks.truncate(1);
        let tokens: Vec<TokenId> = (0..700).map(|i| i % 90).collect();
        machine.talks[0] = (tokens.clone(), 0, Some(RequestId(1)));
        machine.engine.submit(0, Request::greedy(RequestId(1), WHO, tokens.clone(), 1)).unwrap();
        for _ in 0..200 {
            machine.step(&mut Random::new(5));
            machine.now += 10_000;
        }
        assert!(machine.engine.is_idle() && !machine.keeper.waits(&machine.engine), "{room}");
        assert_eq!(machine.store.probe(WHO, &tokens, 0), 640, "{room} chunks may wait");
    }
}
