//! A disk of so many chunks: what it holds, what it gives up, and how long loads take. What goes, and what is not taken in,
//! follows from what the engine tells of it and from the order that the store goes by, too ([`Leaves`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvist_base::eviction::{Class, Leaf, Leaves, Valuation};
use kvist_base::{
    CHUNK, ChunkId, DomainId, For, Found, Gone, Load, LoadId, LoadState, Micros, Residency, Tier, TokenId,
};
use kvist_engine::Engine;

use crate::random::mix;
use crate::sessions::paced::Costs;

/// Digests of a text's whole chunks, each of all tokens up to its end.
pub fn keys(tokens: &[TokenId]) -> Vec<u64> {
    let absorb =
        |state, chunk: &[TokenId]| chunk.iter().fold(state, |state, &token| mix(state ^ (u64::from(token) + 1)));
    tokens
        .chunks_exact(CHUNK)
        .scan(1, |state, chunk| {
            *state = absorb(*state, chunk);
            Some(*state)
        })
        .collect()
}

/// A handle; clones share the disk.
#[derive(Clone)]
pub struct Shelf {
    inner: Arc<Mutex<Inner>>,
}

struct Chunk {
    key: u64,
    parent: Option<u32>,
    children: u32,
    leaf: Leaf,
}

struct Inner {
    capacity: usize,
    costs: Costs,
    layers: usize,
    room: usize,
    now: Micros,
    by_key: HashMap<u64, u32>,
    chunks: Vec<Option<Chunk>>,
    free: Vec<u32>,
    leaves: Leaves,
    loads: BTreeMap<LoadId, Way>,
    /// When the disk has read what it was asked for so far.
    busy: Micros,
    counts: Counts,
}

/// Chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Loaded, of which somebody had to wait for them, and read ahead.
    pub waited_for: u64,
    pub ahead: u64,
    pub evicted: u64,
    pub not_admitted: u64,
}

struct Way {
    chunks: usize,
    begun: Micros,
    done: Micros,
    waited_for: bool,
}

impl Shelf {
    /// `capacity` chunks in `layers` layers; `room` of them may be on their way.
    pub fn new(capacity: usize, layers: usize, room: usize, costs: Costs) -> Shelf {
        let inner = Inner {
            capacity,
            costs,
            layers,
            room,
            now: 0,
            by_key: HashMap::new(),
            chunks: Vec::new(),
            free: Vec::new(),
            leaves: Leaves::default(),
            loads: BTreeMap::new(),
            busy: 0,
            counts: Counts::default(),
        };
        Shelf { inner: Arc::new(Mutex::new(inner)) }
    }

    pub fn pass(&self, now: Micros) {
        self.lock().now = now;
    }

    /// When the next load will be done.
    pub fn next_done(&self) -> Option<Micros> {
        let inner = self.lock();
        inner.loads.values().map(|way| way.done).filter(|&done| done > inner.now).min()
    }

    /// Takes what the engine has to be saved, as the server does it: whole paths, and what is worth its room.
    pub fn save_all(&self, engine: &mut Engine) {
        let mut inner = self.lock();
        while let Some(unsaved) = engine.unsaved() {
            let keys = keys(&unsaved.tokens);
            let known = keys.iter().take_while(|key| inner.by_key.contains_key(key)).count();
            let missing = (keys.len() - known).saturating_sub(unsaved.chunks.len());
            if missing <= unsaved.above.len() && known < keys.len() {
                let classes = &unsaved.classes[unsaved.classes.len() - (keys.len() - known)..];
                inner.save(&keys, known, missing, classes);
            }
            engine.saved(unsaved.chunks.len());
        }
    }

    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// Requests that are said to want something.
    pub fn wants(&self) -> usize {
        self.lock().leaves.tickets()
    }

    pub fn held(&self) -> usize {
        self.lock().by_key.len()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn chunk(&mut self, i: u32) -> &mut Chunk {
        self.chunks[i as usize].as_mut().expect("held")
    }

    fn refresh(&mut self, i: u32) {
        let chunk = self.chunk(i);
        let leaf = (chunk.children == 0).then_some(chunk.leaf);
        self.leaves.stand(i, leaf);
    }

    /// A chunk is used; `class`: what is expected of it now, if that is told.
    fn touch(&mut self, key: u64, class: Option<Class>) {
        let Some(&i) = self.by_key.get(&key) else { return };
        let (now, counts) = (self.now, self.leaves.valuation().counts_uses());
        let leaf = &mut self.chunk(i).leaf;
        leaf.class = class.unwrap_or(leaf.class);
        leaf.last = if counts { now } else { leaf.last };
        self.refresh(i);
    }

    /// New chunks of a path, behind the first `known`; the first `again` of them were offered before.
    fn save(&mut self, keys: &[u64], known: usize, again: usize, classes: &[Class]) {
        let mut parent = known.checked_sub(1).map(|above| self.by_key[&keys[above]]);
        let new = classes.len();
        let mut admitted = new;
        if self.by_key.len() + new > self.capacity {
            let chunks = classes.iter().copied().zip(known as u32..);
            admitted = self.leaves.admits(chunks, parent, self.now);
            self.counts.not_admitted += (new - admitted).min(new - again) as u64;
        }
        for (i, &class) in classes.iter().enumerate().take(admitted) {
            let (key, depth) = (keys[known + i], (known + i) as u32);
            let above = parent.map(|parent| self.chunk(parent).leaf.last);
            let last = self.leaves.valuation().arrival(above, self.now);
            let chunk = Chunk { key, parent, children: 0, leaf: Leaf { class, depth, last } };
            let at = self.free.pop().unwrap_or(self.chunks.len() as u32);
            if at as usize == self.chunks.len() {
                self.chunks.push(Some(chunk));
            } else {
                self.chunks[at as usize] = Some(chunk);
            }
            self.by_key.insert(key, at);
            if let Some(parent) = parent {
                self.chunk(parent).children += 1;
                self.refresh(parent);
            }
            self.refresh(at);
            parent = Some(at);
        }
        while self.by_key.len() > self.capacity {
            let i = self.leaves.victim(self.now).expect("leaves");
            let chunk = self.chunks[i as usize].take().expect("held");
            self.by_key.remove(&chunk.key);
            self.free.push(i);
            self.counts.evicted += 1;
            self.leaves.left(i, chunk.parent);
            if let Some(parent) = chunk.parent {
                self.chunk(parent).children -= 1;
                self.refresh(parent);
            }
        }
    }
}

impl Tier for Shelf {
    fn probe(&self, _: DomainId, tokens: &[TokenId], from: usize) -> Found {
        let inner = self.lock();
        let own = keys(tokens)[from / CHUNK..].iter().take_while(|key| inner.by_key.contains_key(key)).count();
        Found { public: 0, own }
    }

    fn room(&self, _: For) -> usize {
        let inner = self.lock();
        inner.room.saturating_sub(inner.loads.values().map(|way| way.chunks).sum())
    }

    fn estimate(&self, chunks: usize) -> Micros {
        let costs = self.lock().costs;
        costs.seek + costs.chunk * chunks as Micros
    }

    fn load(&mut self, load: Load) {
        let mut inner = self.lock();
        let begun = inner.busy.max(inner.now);
        let done = begun + inner.costs.seek + inner.costs.chunk * load.chunks.len() as Micros;
        inner.busy = done;
        let (keys, chunks) = (keys(load.tokens), load.chunks.len());
        keys[keys.len() - chunks..].iter().for_each(|&key| inner.touch(key, None));
        inner.loads.insert(load.id, Way { chunks, begun, done, waited_for: load.urgent });
        let counts = &mut inner.counts;
        *(if load.urgent { &mut counts.waited_for } else { &mut counts.ahead }) += chunks as u64;
    }

    fn hurry(&mut self, load: LoadId) {
        let mut inner = self.lock();
        let now = inner.now;
        let way = inner.loads.get_mut(&load).expect("a load that was not ended");
        if way.done > now && !std::mem::replace(&mut way.waited_for, true) {
            let chunks = way.chunks as u64;
            inner.counts.waited_for += chunks;
            inner.counts.ahead -= chunks;
        }
    }

    fn state(&self, load: LoadId) -> LoadState {
        let inner = self.lock();
        let way = &inner.loads[&load];
        let share = |of: u64| of.saturating_sub(way.begun) * inner.layers as u64 / (way.done - way.begun);
        let layers = (share(inner.now) as usize).min(inner.layers);
        LoadState { layers, left: way.done.saturating_sub(inner.now), lost: None, held: false }
    }

    fn forget(&mut self, _: LoadId, _: usize) {}

    fn end(&mut self, load: LoadId) {
        self.lock().loads.remove(&load);
    }

    fn capacity(&self) -> u64 {
        self.lock().capacity as u64
    }

    fn want(&mut self, ticket: u64, _: DomainId, tokens: &[TokenId], rank: u32) {
        let mut inner = self.lock();
        let found = keys(tokens).iter().map_while(|key| inner.by_key.get(key).copied()).last();
        match found {
            Some(last) => inner.leaves.want(ticket, last, rank),
            None => inner.leaves.unwant(ticket),
        }
    }

    fn unwant(&mut self, ticket: u64) {
        self.lock().leaves.unwant(ticket);
    }

    fn left(&mut self, _: DomainId, tokens: &[TokenId], classes: &[Class]) {
        let mut inner = self.lock();
        let keys = keys(tokens);
        keys.into_iter().enumerate().for_each(|(i, key)| inner.touch(key, classes.get(i).copied()));
    }

    fn value(&mut self, valuation: &Valuation) {
        self.lock().leaves.value(valuation);
    }
}

impl Residency for Shelf {
    fn fill(&self, _: usize, _: ChunkId, _: &mut [u8]) -> Result<bool, Gone> {
        Ok(true)
    }
}
