//! One engine over one store, in which a conversation comes back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kvist_base::{CHUNK, DomainId, TokenId};
use kvist_engine::{Effect, Engine, EngineConfig, Request, RequestId};
use kvist_store::vfs::{RealVfs, Vfs};
use kvist_store::{Encryption, Fingerprint, Store, StoreConfig, StoreTier};

use super::child;
use super::disk::{Throttled, device_bytes};
use crate::bench::figures::Random;
use crate::driver::Driver;
use crate::failure::{Failure, Result};

/// Whose conversation it is.
pub const DOMAIN: DomainId = DomainId(1);
/// Somebody of whom the store knows nothing: computes everything.
const STRANGER: DomainId = DomainId(2);
/// What the server's thread sleeps while nothing but loads are on their way.
const PAUSE: Duration = Duration::from_micros(300);
const PATIENCE: Duration = Duration::from_secs(300);
/// Bytes of the store, and of its memory.
const BUDGET: u64 = 64 << 30;

/// As the bench and the process that it kills open it.
pub fn config(dir: &Path, slices: Vec<usize>, io_threads: usize) -> StoreConfig {
    let fingerprint = Fingerprint { digest: *b"bench: the same run, same model.", text: "kvist bench store".into() };
    let keys = Encryption::Keys(dir.join("key"));
    StoreConfig { io_threads, ..StoreConfig::new(dir.join("kv"), BUDGET, fingerprint, slices, keys) }
}

pub fn register(store: &Store) -> Result<()> {
    [(DomainId::PUBLIC, "public"), (DOMAIN, "bench")]
        .into_iter()
        .try_for_each(|(domain, name)| store.register(domain, name))
        .map_err(|e| Failure::new(format!("the store's keys: {e}"), "run it with --dir DIR"))
}

/// What becomes of the conversation before it comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Return {
    /// It is nowhere.
    Recompute,
    /// Its KV is in the tree.
    Ram,
    /// Its KV is on disk.
    Disk,
    /// The same, and no step starts before all of it has arrived.
    DiskAtOnce,
    /// The store was closed and opened again, under a new engine.
    Reopened,
    /// The process that saved it was killed while it saved more; a new engine opened what it left.
    Killed,
}

/// One return of the conversation. Seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turn {
    /// From the request to its first token.
    pub first: f64,
    /// Of the prompt, not computed.
    pub cached: usize,
    /// Before the first step began, and steps' waiting for slices.
    pub held: f64,
    pub waited: f64,
    /// Copying slices into the pool, in steps.
    pub copied: f64,
    /// From the beginning of the loads to their ends.
    pub load: f64,
    /// Bytes that the store read, and what the process fetched from a device meanwhile.
    pub read: u64,
    pub device: Option<u64>,
    /// Reading and decrypting, summed over threads.
    pub reading: f64,
    pub opening: f64,
}

pub struct Scene {
    driver: Driver,
    tier: Option<StoreTier>,
    dir: PathBuf,
    slices: Vec<usize>,
    io_threads: usize,
    throttle: Option<f64>,
    random: Random,
    /// The longest history.
    pub history: Vec<TokenId>,
    /// Its chunks, for the process that saves them.
    chunks: Vec<Vec<u8>>,
}

impl Scene {
    pub fn new(driver: Driver, dir: &Path, io_threads: usize, throttle: Option<f64>) -> Scene {
        let slices = driver.executor.info().layout.layers.iter().map(|layer| layer.bytes).collect();
        let (dir, tier, history, chunks) = (dir.to_path_buf(), None, vec![], vec![]);
        Scene { driver, tier, dir, slices, io_threads, throttle, random: Random(11), history, chunks }
    }

    pub fn tokens(&mut self, n: usize) -> Vec<TokenId> {
        let vocab = self.driver.executor.info().vocab;
        (0..n).map(|_| self.random.below(vocab) as TokenId).collect()
    }

    /// Computes a history and keeps its chunks.
    pub fn compute(&mut self, tokens: usize, note: &dyn Fn(u64)) -> Result<()> {
        self.history = self.tokens(tokens);
        let config = EngineConfig { saves: true, ..EngineConfig::default() };
        self.driver.restart(None);
        self.driver.engine = Engine::new(config, self.driver.executor.info().clone());
        self.submit(DOMAIN, self.history.clone())?;
        while !self.driver.engine.is_idle() {
            self.driver.step();
            note(self.driver.engine.stats().prompt_rows);
        }
        self.driver.take_effects();
        while let Some(unsaved) = self.driver.engine.unsaved() {
            for &chunk in &unsaved.chunks {
                let mut bytes = Vec::new();
                self.driver.executor.read_chunk(chunk, &mut bytes);
                self.chunks.push(bytes);
            }
            self.driver.engine.saved(unsaved.chunks.len());
        }
        Ok(())
    }

    /// Bytes of KV of so many tokens.
    pub fn bytes(&self, tokens: usize) -> u64 {
        (tokens / CHUNK * self.slices.iter().sum::<usize>()) as u64
    }

    /// Bytes per second that the store believes in.
    pub fn belief(&self) -> f64 {
        self.tier.as_ref().map_or(0.0, |tier| tier.sums().rate)
    }

    fn close(&mut self) {
        self.tier = None;
        self.driver.restart(None);
    }

    fn open(&mut self) -> Result<()> {
        let vfs: Arc<dyn Vfs> = match self.throttle {
            Some(rate) => Arc::new(Throttled::new(rate)),
            None => Arc::new(RealVfs::new()),
        };
        let config = config(&self.dir, self.slices.clone(), self.io_threads);
        let opened = Store::open(vfs, config).map_err(|e| Failure::new(e.to_string(), "run it with --dir DIR"))?;
        register(&opened.0)?;
        let tier = StoreTier::new(opened.0);
        self.driver.restart(Some(tier.clone()));
        self.tier = Some(tier);
        Ok(())
    }

    /// Another process saves the history and is killed; the store that it leaves is opened.
    pub fn killed(&mut self) -> Result<()> {
        self.close();
        child::save_and_kill(&self.dir, &self.slices, &self.history, &self.chunks)?;
        self.open()
    }

    /// Lets the first `history` tokens of the conversation come back with `new` more.
    pub fn turn(&mut self, how: Return, history: usize, new: usize) -> Result<Turn> {
        let prompt = [self.history[..history].to_vec(), self.tokens(new)].concat();
        match how {
            Return::Killed => self.killed()?,
            Return::Reopened => {
                self.close();
                self.open()?;
            }
            Return::Recompute | Return::Ram | Return::Disk | Return::DiskAtOnce => {}
        }
        self.driver.engine.evict_all();
        if how == Return::Ram {
            let loaded = [self.history[..history].to_vec(), self.tokens(1)].concat();
            self.run(DOMAIN, loaded)?;
        }
        self.driver.engine.set_layer_wise(how != Return::DiskAtOnce);
        if let Some(tier) = &self.tier {
            tier.store().flush(PATIENCE);
            tier.store().forget_cache();
        }
        self.run(if how == Return::Recompute { STRANGER } else { DOMAIN }, prompt)
    }

    fn run(&mut self, domain: DomainId, prompt: Vec<TokenId>) -> Result<Turn> {
        let Some(tier) = self.tier.clone() else { unreachable!("turns are taken over an open store") };
        let before = (tier.sums(), tier.store().stats(), device_bytes());
        let submitted = self.driver.now();
        self.submit(domain, prompt)?;
        let mut turn = Turn::default();
        let mut begun = false;
        while !self.driver.engine.is_idle() {
            match self.driver.step() {
                Some(step) if !begun => {
                    begun = true;
                    turn.held = (self.driver.now() - submitted - step.took) as f64 / 1e6;
                }
                Some(_) => {}
                None => std::thread::sleep(PAUSE),
            }
            for effect in self.driver.take_effects() {
                match effect {
                    Effect::Token { .. } => turn.first = (self.driver.now() - submitted) as f64 / 1e6,
                    Effect::Done { usage, .. } => turn.cached = usage.cached as usize,
                    _ => {}
                }
            }
        }
        let after = (tier.sums(), tier.store().stats(), device_bytes());
        Ok(Turn {
            waited: after.0.waited - before.0.waited,
            copied: after.0.copied - before.0.copied,
            load: after.0.seconds - before.0.seconds,
            read: after.1.read - before.1.read,
            device: after.2.zip(before.2).map(|(after, before)| after - before),
            reading: after.1.read_seconds - before.1.read_seconds,
            opening: after.1.open_seconds - before.1.open_seconds,
            ..turn
        })
    }

    fn submit(&mut self, domain: DomainId, prompt: Vec<TokenId>) -> Result<RequestId> {
        let request = Request::greedy(RequestId(0), domain, prompt, 1);
        self.driver.submit(request).map_err(|refusal| Failure::new(refusal.to_string(), "choose a shorter --history"))
    }
}
