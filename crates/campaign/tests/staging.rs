//! Scheduler and store together where far less may be on its way from the disk than conversations have: everybody comes to
//! his end, and nobody computes what he could have loaded.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvist_base::{DomainId, Executor, StepOutput, TokenId};
use kvist_engine::{Effect, Engine, EngineConfig, Request, RequestId, Usage};
use kvist_server::Keeper;
use kvist_sim::{CostModel, SimExecutor, SimModel};
use kvist_store::{Encryption, Fingerprint, SimVfs, Store, StoreConfig, StoreTier};

const WHO: DomainId = DomainId(2);
/// Chunks that may be on their way.
const ROOM: usize = 8;
const TRIES: usize = 100_000;

struct Machine {
    engine: Engine,
    executor: SimExecutor,
    keeper: Keeper,
    store: Store,
    output: StepOutput,
    now: u64,
    config: EngineConfig,
    done: Vec<(RequestId, Usage)>,
}

impl Machine {
    fn new(max_batch: usize) -> Machine {
        let model = SimModel { vocab: 90, seed: 1 };
        let executor = SimExecutor::new(model, CostModel { step: 5_000, row: 20_000, kilotoken: 10 }, 120, 4096);
        let slices: Vec<usize> = executor.info().layout.layers.iter().map(|layer| layer.bytes).collect();
        let fingerprint = Fingerprint { digest: [3; 32], text: "simulated".into() };
        let staging = (ROOM * slices.iter().sum::<usize>()) as u64;
        let config = StoreConfig::new("/store".into(), 64 << 20, fingerprint, slices, Encryption::Off);
        let vfs = Arc::new(SimVfs::new(1));
        let (store, _) = Store::open(vfs, StoreConfig { io_threads: 2, staging, ..config }).unwrap();
        store.register(DomainId::PUBLIC, "public").unwrap();
        store.register(WHO, "somebody").unwrap();
        let config = EngineConfig { max_batch, saves: true, ..EngineConfig::default() };
        let tier = StoreTier::new(store.clone());
        let engine = Engine::new(config.clone(), executor.info().clone()).with_tier(Box::new(tier.clone()));
        let keeper = Keeper::new(tier);
        Machine { engine, executor, keeper, store, output: StepOutput::default(), now: 0, config, done: vec![] }
    }

    /// Another process over the same store.
    fn restart(&mut self) {
        assert!(self.store.flush(Duration::from_secs(20)));
        let tier = StoreTier::new(self.store.clone());
        self.engine = Engine::new(self.config.clone(), self.executor.info().clone()).with_tier(Box::new(tier.clone()));
        self.keeper = Keeper::new(tier);
    }

    fn submit(&mut self, id: u64, prompt: &[TokenId], max_tokens: u32, priority: i32) {
        let request = Request { priority, ..Request::greedy(RequestId(id), WHO, prompt.to_vec(), max_tokens) };
        self.engine.submit(self.now, request).unwrap();
    }

    /// One turn of the server's loop; what is loaded takes real time.
    fn step(&mut self) {
        match self.engine.plan(self.now) {
            Some(plan) => {
                self.executor.step(plan, self.keeper.tier(), &mut self.output);
                assert_eq!(self.executor.violations, Vec::<String>::new());
                self.now += self.executor.took;
                self.engine.complete(self.now, &self.output);
                self.executor.forget_lost();
            }
            None => {
                let begun = Instant::now();
                std::thread::sleep(Duration::from_micros(200));
                self.now += begun.elapsed().as_micros() as u64;
            }
        }
        self.keeper.save(&mut self.engine, &self.executor, self.now);
        for effect in self.engine.take_effects() {
            if let Effect::Done { id, usage } = effect {
                self.done.push((id, usage));
            }
        }
        self.engine.check_integrity().unwrap();
    }

    fn until(&mut self, what: &str, there: impl Fn(&Machine) -> bool) {
        for _ in 0..TRIES {
            if there(self) {
                return;
            }
            self.step();
        }
        panic!("{what}: never");
    }

    /// Runs what is there to its end.
    fn finish(&mut self) {
        self.until("the end", |machine| machine.engine.is_idle());
        assert_eq!((self.keeper.tier().sums().stalls, self.store.staged()), (0, 0));
    }

    fn cached(&self, id: u64) -> u32 {
        self.done.iter().find(|done| done.0 == RequestId(id)).expect("it came to its end").1.cached
    }
}

/// A conversation of so many chunks and a bit.
fn talk(seed: u32, chunks: u32) -> Vec<TokenId> {
    (0..chunks * 64 + 10).map(|i| (i * (seed + 3) + i / 7 * seed + seed) % 90).collect()
}

/// What was read ahead for somebody in the queue took all the room, half of which it may fill, and came to rest there until
/// its turn. Somebody else, whose turn came first and who found no room, waited for it to make room; and its turn was to
/// come when he had ended: neither ever went on.
#[test]
fn what_is_read_ahead_leaves_room_for_who_runs() {
    let mut machine = Machine::new(1);
    let (ahead, first) = (talk(1, 12), talk(2, 12));
    machine.submit(1, &ahead, 1, 0);
    machine.submit(2, &first, 1, 0);
    machine.finish();
    machine.restart();
    machine.submit(3, &talk(3, 1), 1000, 0);
    machine.step();
    machine.submit(4, &ahead, 1, 0);
    machine.until("read ahead", |machine| machine.engine.stats().tier.read_ahead > 0);
    (0..20).for_each(|_| machine.step());
    machine.submit(5, &first, 1, -1);
    machine.engine.cancel(machine.now, RequestId(3));
    machine.finish();
    assert_eq!((machine.cached(4), machine.cached(5)), (12 * 64, 12 * 64));
}

/// Who runs alone may load more than there is room for, and his step makes the room. What came of a published prefix was
/// one such load; the rest of the path found no room and waited for the first load to end, which waited for the step: until
/// it was given up and all was computed.
#[test]
fn who_is_alone_loads_public_chunks_and_his_own() {
    let mut machine = Machine::new(2);
    let path = talk(1, 2 * ROOM as u32 + 20);
    machine.submit(1, &path, 1, 0);
    machine.finish();
    machine.engine.publish(WHO, &path[..2 * ROOM * 64]);
    machine.keeper.save(&mut machine.engine, &machine.executor, machine.now);
    (0..20).for_each(|_| machine.step());
    machine.restart();
    machine.submit(2, &path, 1, 0);
    machine.finish();
    assert_eq!(machine.cached(2) as usize, (2 * ROOM + 20) * 64);
}

/// Room is counted in whole chunks as they are in memory; on disk there is a tag to each slice, and what lies between the
/// slices that are wanted may be read with them. So a part that took all the room came to rest at its last piece, and its
/// step, which was to take it, waited for room for the next part: until it was given up and all was computed.
#[test]
fn who_is_not_alone_loads_part_after_part() {
    let mut machine = Machine::new(2);
    let paths = [talk(1, 3 * ROOM as u32), talk(2, 4 * ROOM as u32)];
    (1..).zip(&paths).for_each(|(id, path)| machine.submit(id, path, 1, 0));
    machine.finish();
    machine.restart();
    (3..).zip(&paths).for_each(|(id, path)| machine.submit(id, path, 1, 0));
    machine.finish();
    assert_eq!([machine.cached(3), machine.cached(4)], [3, 4].map(|n| n * ROOM as u32 * 64));
}
