//! A tier that keeps chunks in a map, loads them at a drawn pace, and loses a slice now and then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvist_base::eviction::Class;
use kvist_base::{
    CHUNK, ChunkId, ChunkLayout, DomainId, Executor, For, Found, Gone, Load, LoadId, LoadState, Micros, Residency,
    Tier, TokenId,
};
use kvist_engine::Engine;

use crate::random::Random;

/// How the tier behaves.
#[derive(Clone, Copy, Debug)]
pub struct Manners {
    pub seed: u64,
    /// Chunks that may be on their way at once.
    pub room: usize,
    /// Percent of the times that a load is asked for in which one more layer has arrived; of a hundred all have at once.
    pub pace: usize,
    /// How long a load says that it takes, per layer that is missing.
    pub layer: Micros,
    /// How many times as long it says when it is on its way.
    pub slower: u64,
    /// Slices of ten thousand that are lost: of those that are asked for, on their way or not.
    pub lost: u64,
    /// Chunks that it says it has room for.
    pub capacity: u64,
    /// Chunks of ten thousand of which the tier finds out by itself, between two plans.
    pub missed: u64,
}

/// A handle; clones share the tier.
#[derive(Clone)]
pub struct SimTier {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    manners: Manners,
    random: Random,
    /// Offset of each layer in a chunk's bytes, and the end.
    layers: Vec<usize>,
    /// By domain and path to the chunk's end.
    stored: BTreeMap<(DomainId, Vec<TokenId>), Vec<u8>>,
    loads: BTreeMap<LoadId, Way>,
    places: BTreeMap<ChunkId, (LoadId, usize)>,
    /// Chunks that whoever asked last may begin to load.
    granted: usize,
    filled: u64,
    /// Tickets of who waits.
    wants: BTreeSet<u64>,
}

/// A load.
struct Way {
    domain: DomainId,
    tokens: Vec<TokenId>,
    chunks: Vec<ChunkId>,
    state: LoadState,
}

impl Way {
    /// The path to the end of the `place`-th chunk.
    fn path(&self, place: usize) -> &[TokenId] {
        &self.tokens[..self.tokens.len() - (self.chunks.len() - 1 - place) * CHUNK]
    }
}

impl SimTier {
    pub fn new(layout: &ChunkLayout, manners: Manners) -> SimTier {
        let layers = layout.layers.iter().map(|layer| layer.offset).chain([layout.bytes]).collect();
        let inner = Inner {
            manners,
            random: Random::new(manners.seed),
            layers,
            stored: BTreeMap::new(),
            loads: BTreeMap::new(),
            places: BTreeMap::new(),
            granted: 0,
            filled: 0,
            wants: BTreeSet::new(),
        };
        SimTier { inner: Arc::new(Mutex::new(inner)) }
    }

    /// The same chunks, as a new process finds them: nothing is on its way.
    pub fn restarted(&self) -> SimTier {
        let mut inner = self.lock();
        inner.loads.clear();
        inner.places.clear();
        inner.wants.clear();
        drop(inner);
        self.clone()
    }

    /// Saves what the engine has to be saved.
    pub fn save_all(&self, engine: &mut Engine, executor: &dyn Executor) {
        while let Some(unsaved) = engine.unsaved() {
            let before = unsaved.tokens.len() - unsaved.chunks.len() * CHUNK;
            for (i, &chunk) in unsaved.chunks.iter().enumerate() {
                let mut bytes = Vec::new();
                executor.read_chunk(chunk, &mut bytes);
                let path = unsaved.tokens[..before + (i + 1) * CHUNK].to_vec();
                self.lock().stored.insert((unsaved.domain, path), bytes);
            }
            engine.saved(unsaved.chunks.len());
        }
    }

    /// The tokens of a chunk that is on its way.
    pub fn tokens(&self, chunk: ChunkId) -> Option<Vec<TokenId>> {
        let inner = self.lock();
        let (load, place) = inner.places.get(&chunk)?;
        let path = inner.loads[load].path(*place);
        Some(path[path.len() - CHUNK..].to_vec())
    }

    /// Slices given so far.
    pub fn filled(&self) -> u64 {
        self.lock().filled
    }

    /// Chunks that are on their way.
    pub fn loading(&self) -> usize {
        self.lock().places.len()
    }

    /// Requests that are said to want something.
    pub fn wants(&self) -> usize {
        self.lock().wants.len()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tier for SimTier {
    fn probe(&self, domain: DomainId, tokens: &[TokenId], from: usize) -> Found {
        let inner = self.lock();
        let holds = |domain, chunk: usize| {
            let end = from + (chunk + 1) * CHUNK;
            end <= tokens.len() && inner.stored.contains_key(&(domain, tokens[..end].to_vec()))
        };
        let public = (0..).take_while(|&chunk| !domain.is_carried() && holds(DomainId::PUBLIC, chunk)).count();
        let own = (public..).take_while(|&chunk| holds(domain, chunk)).count();
        Found { public, own }
    }

    fn room(&self, who: For) -> usize {
        let mut inner = self.lock();
        let room = match who {
            For::Alone if inner.places.is_empty() => usize::MAX,
            For::Alone | For::Running => inner.manners.room,
            For::Waiting => inner.manners.room / 2,
        };
        inner.granted = room.saturating_sub(inner.places.len());
        inner.granted
    }

    fn estimate(&self, chunks: usize) -> Micros {
        let inner = self.lock();
        inner.manners.layer * (inner.layers.len() as u64 - 1) * chunks as u64
    }

    fn load(&mut self, load: Load) {
        let mut inner = self.lock();
        let left = inner.granted.checked_sub(load.chunks.len());
        inner.granted = left.expect("no more than there is room for");
        for (place, &chunk) in load.chunks.iter().enumerate() {
            inner.places.insert(chunk, (load.id, place));
        }
        let left = inner.manners.slower * inner.manners.layer * (inner.layers.len() as u64 - 1);
        let state = LoadState { layers: 0, left, lost: None, held: false };
        let way = Way { domain: load.domain, tokens: load.tokens.to_vec(), chunks: load.chunks.to_vec(), state };
        inner.loads.insert(load.id, way);
    }

    fn hurry(&mut self, load: LoadId) {
        assert!(self.lock().loads.contains_key(&load), "hurries what was ended");
    }

    fn state(&self, load: LoadId) -> LoadState {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let way = inner.loads.get_mut(&load).expect("a load that was not ended");
        let all = inner.layers.len() - 1;
        if inner.manners.pace == 100 {
            way.state.layers = all;
        } else if way.state.layers < all && !way.state.held && inner.random.chance(inner.manners.pace) {
            way.state.layers += 1;
            // Where not all fits that is on its way, no more comes by itself.
            way.state.held = inner.places.len() > inner.manners.room && way.state.layers < all;
        }
        way.state.left = inner.manners.slower * inner.manners.layer * (all - way.state.layers) as u64;
        if way.state.lost.is_none() && way.state.layers < all && inner.random.word() % 10_000 < inner.manners.missed {
            let place = inner.random.below(way.chunks.len());
            let key = (way.domain, way.path(place).to_vec());
            inner.stored.remove(&key);
            way.state.lost = Some(place);
        }
        way.state
    }

    fn forget(&mut self, load: LoadId, place: usize) {
        self.lock().places.retain(|_, at| *at != (load, place));
    }

    fn end(&mut self, load: LoadId) {
        let mut inner = self.lock();
        inner.loads.remove(&load).expect("a load that was not ended");
        inner.places.retain(|_, place| place.0 != load);
    }

    fn capacity(&self) -> u64 {
        self.lock().manners.capacity
    }

    fn want(&mut self, ticket: u64, domain: DomainId, _: &[TokenId], _: u32) {
        assert!(domain != DomainId::PUBLIC, "nobody waits in the public domain");
        self.lock().wants.insert(ticket);
    }

    fn unwant(&mut self, ticket: u64) {
        assert!(self.lock().wants.remove(&ticket), "ticket {ticket} wants nothing");
    }

    fn left(&mut self, _: DomainId, tokens: &[TokenId], classes: &[Class]) {
        assert!(tokens.len().is_multiple_of(CHUNK) && [0, tokens.len() / CHUNK].contains(&classes.len()));
    }
}

impl Residency for SimTier {
    fn fill(&self, layer: usize, chunk: ChunkId, to: &mut [u8]) -> Result<bool, Gone> {
        let mut inner = self.lock();
        let lost = inner.random.word() % 10_000 < inner.manners.lost;
        let Some(&(load, place)) = inner.places.get(&chunk) else {
            return if lost { Err(Gone(chunk)) } else { Ok(false) };
        };
        let way = &inner.loads[&load];
        let key = (way.domain, way.path(place).to_vec());
        if lost || way.state.lost == Some(place) {
            inner.stored.remove(&key);
            return Err(Gone(chunk));
        }
        let slice = inner.layers[layer]..inner.layers[layer + 1];
        to.copy_from_slice(&inner.stored.get(&key).ok_or(Gone(chunk))?[slice]);
        inner.filled += 1;
        Ok(true)
    }
}
