//! The store as the engine's tier and the executor's residency: loads by name, how long they take, and when to give up.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvist_base::eviction::{Class, Valuation};
use kvist_base::{CHUNK, ChunkId, DomainId, For, Found, Gone, LoadId, LoadState, Micros, Residency, Tier, TokenId};

use crate::load::{Load, Priority};
use crate::store::Store;

/// What is believed of a disk before anything was read: a slow SSD. Bytes per second.
const PRIOR: f64 = 500e6;
/// So many bytes of a load count as if they had come at the rate that was believed before it.
const GRAIN: f64 = 1e6;
/// What was given up sooner says nothing of the rate.
const TELLING: Duration = Duration::from_millis(50);
/// What a load takes besides its bytes.
const LATENCY: Duration = Duration::from_micros(500);
/// A measured rate counts for less as it ages: belief goes back to the prior by a factor of two in so long, so that a
/// disk that was slow for a while is tried again.
const FORGET: Duration = Duration::from_secs(20);
/// A load that brings nothing for so long has failed, and nothing is loaded for as long, and twice as long each time.
const STALL: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// A handle; clones share the loads.
#[derive(Clone)]
pub struct StoreTier {
    store: Store,
    chunk: u64,
    staging: u64,
    layers: usize,
    inner: Arc<Mutex<Loads>>,
}

struct Loads {
    active: BTreeMap<LoadId, Active>,
    places: BTreeMap<ChunkId, (LoadId, usize)>,
    /// Bytes per second, and when it was measured.
    rate: Option<(f64, Instant)>,
    stalled: Option<(Instant, Duration)>,
    /// Threads that wait for slices, and since when one does.
    waiting: (usize, Instant),
    sums: TierSums,
}

struct Active {
    load: Arc<Load>,
    begun: Instant,
    measured: bool,
    late: bool,
}

impl Active {
    /// Bytes per second, where `before` was believed before it began.
    fn pace(&self, before: f64) -> f64 {
        (self.load.bytes() as f64 + GRAIN) / (self.begun.elapsed().as_secs_f64() + GRAIN / before)
    }
}

/// Sums since the tier was made.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TierSums {
    /// Loads that came to their end, their bytes and the seconds from their beginning to it.
    pub loads: u64,
    pub bytes: u64,
    pub seconds: f64,
    /// Seconds in which steps waited for slices.
    pub waited: f64,
    /// Seconds that threads of steps copied slices; a sum over threads.
    pub copied: f64,
    /// Loads that were given up because nothing came.
    pub stalls: u64,
    /// Bytes per second, as believed now.
    pub rate: f64,
}

impl StoreTier {
    pub fn new(store: Store) -> StoreTier {
        let config = store.config();
        let inner = Loads {
            active: BTreeMap::new(),
            places: BTreeMap::new(),
            rate: None,
            stalled: None,
            waiting: (0, Instant::now()),
            sums: TierSums::default(),
        };
        StoreTier {
            chunk: config.chunk_bytes() as u64,
            staging: config.staging,
            layers: config.slices.len(),
            inner: Arc::new(Mutex::new(inner)),
            store,
        }
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn sums(&self) -> TierSums {
        let inner = self.lock();
        TierSums { rate: inner.rate(), ..inner.sums }
    }

    fn lock(&self) -> MutexGuard<'_, Loads> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loads {
    fn rate(&self) -> f64 {
        let Some((rate, at)) = self.rate else { return PRIOR };
        let fresh = 0.5f64.powf(at.elapsed().as_secs_f64() / FORGET.as_secs_f64());
        (rate.ln() * fresh + PRIOR.ln() * (1.0 - fresh)).exp()
    }

    /// Takes in how fast a load came. Bytes that were in memory all along say nothing.
    fn measure(&mut self, (bytes, took): (u64, Duration)) {
        if bytes > 0 {
            let new = bytes as f64 / took.as_secs_f64().max(1e-6);
            let rate = self.rate.map_or(new, |_| (self.rate() * new).sqrt());
            self.rate = Some((rate, Instant::now()));
        }
    }

    /// Takes in how far a load came that was given up: a rate no better than this.
    fn measure_part(&mut self, active: &Active) {
        let took = active.begun.elapsed();
        let pace = active.pace(self.rate());
        if took > TELLING && pace < self.rate() {
            self.rate = Some((pace, Instant::now()));
        }
    }

    fn begin_wait(&mut self) {
        if self.waiting.0 == 0 {
            self.waiting.1 = Instant::now();
        }
        self.waiting.0 += 1;
    }

    fn end_wait(&mut self) {
        self.waiting.0 -= 1;
        if self.waiting.0 == 0 {
            self.sums.waited += self.waiting.1.elapsed().as_secs_f64();
        }
    }

    fn stall(&mut self) {
        if self.paused() {
            return;
        }
        let pause = self.stalled.map_or(STALL, |(_, pause)| (pause * 2).min(LONGEST_PAUSE));
        self.stalled = Some((Instant::now(), pause));
        self.sums.stalls += 1;
    }

    fn paused(&self) -> bool {
        self.stalled.is_some_and(|(at, pause)| at.elapsed() < pause)
    }

    /// Bytes that are still to be read.
    fn pending(&self) -> u64 {
        self.active.values().map(|a| a.load.total_bytes().saturating_sub(a.load.bytes())).sum()
    }
}

impl Tier for StoreTier {
    fn probe(&self, domain: DomainId, tokens: &[TokenId], from: usize) -> Found {
        if self.lock().paused() {
            return Found::default();
        }
        let first = from / CHUNK;
        let public = |store: &Store| store.probe(DomainId::PUBLIC, tokens, first) / CHUNK;
        let public = if domain.is_carried() { 0 } else { public(&self.store) };
        let own = self.store.probe(domain, tokens, first) / CHUNK;
        Found { public, own: own.saturating_sub(public) }
    }

    fn room(&self, who: For) -> usize {
        let staged = self.lock().places.len() as u64 * self.chunk;
        let room = match who {
            For::Alone if staged == 0 => return usize::MAX,
            For::Alone | For::Running => self.staging,
            For::Waiting => self.staging / 2,
        };
        (room.saturating_sub(staged) / self.chunk) as usize
    }

    fn estimate(&self, chunks: usize) -> Micros {
        let inner = self.lock();
        let bytes = inner.pending() + chunks as u64 * self.chunk;
        LATENCY.as_micros() as Micros + (bytes as f64 / inner.rate() * 1e6) as Micros
    }

    fn load(&mut self, load: kvist_base::Load) {
        let end = load.tokens.len() / CHUNK;
        let priority = if load.urgent { Priority::Urgent } else { Priority::Prefetch };
        let range = end - load.chunks.len()..end;
        let mut inner = self.lock();
        for (place, &chunk) in load.chunks.iter().enumerate() {
            inner.places.insert(chunk, (load.id, place));
        }
        let granted = inner.places.len() as u64 * self.chunk <= self.staging;
        let begun = self.store.begin_load(load.domain, load.tokens, range, priority, granted);
        let active = Active { load: Arc::new(begun), begun: Instant::now(), measured: false, late: false };
        inner.active.insert(load.id, active);
    }

    fn hurry(&mut self, load: LoadId) {
        if let Some(active) = self.lock().active.get(&load) {
            active.load.raise(Priority::Urgent);
        }
    }

    fn state(&self, load: LoadId) -> LoadState {
        let mut inner = self.lock();
        let rate = inner.rate();
        let active = inner.active.get_mut(&load).expect("a load that was not ended");
        let (layers, bytes) = (active.load.layers(), active.load.bytes());
        let held = active.load.held();
        // How fast it goes on after a rest says nothing of the disk.
        let first = (layers == self.layers || held && bytes > 0) && !std::mem::replace(&mut active.measured, true);
        let came = active.load.pace();
        let pace = if active.measured { rate } else { active.pace(rate) };
        let left = active.load.total_bytes().saturating_sub(bytes);
        let mut lost = active.load.lost();
        if first {
            inner.measure(came);
            inner.stalled = None;
        } else if layers < self.layers && !active.late && active.load.stuck() > STALL {
            active.late = true;
            inner.stall();
        }
        let active = &inner.active[&load];
        if active.late {
            lost = lost.or(Some(0));
        }
        LoadState { layers, left: (left as f64 / pace * 1e6) as Micros, lost, held }
    }

    fn forget(&mut self, load: LoadId, place: usize) {
        self.lock().places.retain(|_, at| *at != (load, place));
    }

    fn capacity(&self) -> u64 {
        self.store.capacity()
    }

    fn want(&mut self, ticket: u64, domain: DomainId, tokens: &[TokenId], rank: u32) {
        self.store.want(ticket, domain, tokens, rank);
    }

    fn unwant(&mut self, ticket: u64) {
        self.store.unwant(ticket);
    }

    fn left(&mut self, domain: DomainId, tokens: &[TokenId], classes: &[Class]) {
        if !domain.is_carried() {
            self.store.expect(DomainId::PUBLIC, tokens, 0, classes);
        }
        self.store.expect(domain, tokens, 0, classes);
    }

    fn value(&mut self, valuation: &Valuation) {
        self.store.value(valuation);
    }

    fn end(&mut self, load: LoadId) {
        let mut inner = self.lock();
        inner.places.retain(|_, at| at.0 != load);
        let ended = inner.active.remove(&load);
        if let Some(active) = &ended {
            let whole = active.load.done();
            if whole {
                inner.sums.loads += 1;
                inner.sums.bytes += active.load.bytes();
                inner.sums.seconds += active.load.lasted().as_secs_f64();
            }
            match (active.measured, whole) {
                (true, _) => {}
                (false, true) => inner.measure(active.load.pace()),
                (false, false) => inner.measure_part(active),
            }
        }
        drop(inner);
        drop(ended);
    }
}

impl Residency for StoreTier {
    fn fill(&self, layer: usize, chunk: ChunkId, to: &mut [u8]) -> Result<bool, Gone> {
        let (load, place) = {
            let inner = self.lock();
            let Some(&(id, place)) = inner.places.get(&chunk) else { return Ok(false) };
            (inner.active[&id].load.clone(), place)
        };
        if !load.has(layer, place) {
            self.lock().begin_wait();
            let came = load.await_slice(layer, place, STALL);
            let mut inner = self.lock();
            inner.end_wait();
            if !came {
                inner.stall();
                return Err(Gone(chunk));
            }
        }
        let begun = Instant::now();
        let filled = load.wait(layer, place, to);
        self.lock().sums.copied += begun.elapsed().as_secs_f64();
        filled.map(|()| true).map_err(|_| Gone(chunk))
    }
}
