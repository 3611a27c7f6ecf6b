//! A disk of so many chunks: what it holds, what it gives up, and how long loads take.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvist_base::{CHUNK, ChunkId, DomainId, Found, Gone, Load, LoadId, LoadState, Micros, Residency, Tier, TokenId};
use kvist_cache::policy::{Class, End, Order, Place, Queue, Returns, Visit, Windows};

use crate::random::mix;
use crate::sessions::paced::Costs;

/// Of memory and disk together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub order: Order,
    /// What waiting requests want is read ahead, and goes last.
    pub queue_aware: bool,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match (self.order, self.queue_aware) {
            (Order::Lru, true) => "queue-aware".into(),
            (order, true) => format!("queue-aware {order}"),
            (order, false) => order.to_string(),
        };
        f.pad(&name)
    }
}

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
    depth: u32,
    class: Class,
    last: Micros,
    /// In the order in which they will be served, the first waiting request that wants it.
    wanted: BTreeSet<u64>,
    place: Option<Place>,
}

struct Inner {
    policy: Policy,
    capacity: usize,
    costs: Costs,
    layers: usize,
    room: usize,
    now: Micros,
    by_key: HashMap<u64, u32>,
    chunks: Vec<Option<Chunk>>,
    free: Vec<u32>,
    queue: Queue,
    returns: Returns,
    /// Waiting requests by number: the chunks that they want, and whether they lie within the window.
    waiting: BTreeMap<u64, (Vec<u64>, bool)>,
    windows: Windows,
    loads: BTreeMap<LoadId, Way>,
    /// When the disk has read what it was asked for so far.
    busy: Micros,
    /// Chunks loaded that somebody had to wait for, and read ahead.
    waited_for: u64,
    ahead: u64,
    evicted: u64,
}

struct Way {
    chunks: usize,
    begun: Micros,
    done: Micros,
    waited_for: bool,
}

impl Shelf {
    /// `capacity` chunks below a memory of `memory` chunks, in `layers` layers; `room` of them may be on their way.
    pub fn new(policy: Policy, capacity: usize, memory: usize, layers: usize, room: usize, costs: Costs) -> Shelf {
        let inner = Inner {
            policy,
            capacity,
            costs,
            layers,
            room,
            now: 0,
            by_key: HashMap::new(),
            chunks: Vec::new(),
            free: Vec::new(),
            queue: Queue::default(),
            returns: Returns::new(Returns::memory(capacity)),
            waiting: BTreeMap::new(),
            windows: Windows::new(memory as u64, capacity as u64),
            loads: BTreeMap::new(),
            busy: 0,
            waited_for: 0,
            ahead: 0,
            evicted: 0,
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

    /// A request waits from now on: `number` says when it will be served.
    pub fn wait(&self, number: u64, keys: &[u64]) -> Visit {
        let mut inner = self.lock();
        let now = inner.now;
        inner.waiting.insert(number, (keys.to_vec(), false));
        inner.look();
        inner.returns.arrive(now, keys.iter().copied(), |_| None)
    }

    /// A request ended, which used these chunks, all of them in memory: those that the disk does not hold are written.
    pub fn end(&self, number: u64, keys: &[u64], visit: &Visit, end: &End) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        if let Some((wanted, true)) = inner.waiting.remove(&number) {
            wanted.iter().for_each(|&key| inner.want(key, number, false));
        }
        inner.look();
        inner.save(keys);
        let mut classes = vec![Class::UNKNOWN; keys.len()];
        inner.returns.leave(inner.now, visit, end, keys, |i, class| classes[i] = class);
        for (key, class) in keys.iter().zip(classes) {
            if let Some(&i) = inner.by_key.get(key) {
                let chunk = inner.chunks[i as usize].as_mut().expect("held");
                chunk.class = class;
                if inner.policy.order != Order::Fifo {
                    chunk.last = inner.now;
                }
                inner.refresh(i);
            }
        }
        inner.trim();
    }

    /// Chunks loaded that somebody had to wait for, chunks read ahead, chunks evicted.
    pub fn counts(&self) -> (u64, u64, u64) {
        let inner = self.lock();
        (inner.waited_for, inner.ahead, inner.evicted)
    }

    pub fn held(&self) -> usize {
        self.lock().by_key.len()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Who waits within the window wants its chunks, who does not does not.
    fn look(&mut self) {
        if !self.policy.queue_aware {
            return;
        }
        let sizes = self.waiting.values().map(|(keys, _)| keys.len() as u64);
        let within = Windows::requests(self.windows.keep, sizes);
        let moved =
            |(i, (&number, (_, wants))): (usize, (&u64, &(Vec<u64>, bool)))| ((i < within) != *wants).then_some(number);
        let moved: Vec<u64> = self.waiting.iter().enumerate().filter_map(moved).collect();
        for number in moved {
            let (keys, wants) = self.waiting.get_mut(&number).expect("it waits");
            *wants = !*wants;
            let (keys, wants) = (keys.clone(), *wants);
            keys.iter().for_each(|&key| self.want(key, number, wants));
        }
    }

    fn want(&mut self, key: u64, number: u64, wants: bool) {
        let Some(&i) = self.by_key.get(&key) else { return };
        let chunk = self.chunks[i as usize].as_mut().expect("held");
        if wants {
            chunk.wanted.insert(number);
        } else {
            chunk.wanted.remove(&number);
        }
        self.refresh(i);
    }

    fn refresh(&mut self, i: u32) {
        let chunk = self.chunks[i as usize].as_mut().expect("held");
        let guard = chunk.wanted.first().map_or(0, |number| u64::MAX - number);
        let band = if self.policy.order == Order::Returns { chunk.class.index() as u32 } else { 0 };
        let place = Place { guard, band, last: chunk.last, tie: u32::MAX - chunk.depth };
        let place = (chunk.children == 0).then_some(place);
        if place != chunk.place {
            if let Some(old) = chunk.place {
                self.queue.remove(old, i);
            }
            if let Some(new) = place {
                self.queue.insert(new, i);
            }
            chunk.place = place;
        }
    }

    fn save(&mut self, keys: &[u64]) {
        let mut parent = None;
        for (depth, &key) in keys.iter().enumerate() {
            if let Some(&i) = self.by_key.get(&key) {
                parent = Some(i);
                continue;
            }
            let wants = |(&number, (keys, wants)): (&u64, &(Vec<u64>, bool))| {
                (*wants && keys.get(depth) == Some(&key)).then_some(number)
            };
            let wanted = self.waiting.iter().filter_map(wants).collect();
            let chunk = Chunk {
                key,
                parent,
                children: 0,
                depth: depth as u32,
                class: Class::UNKNOWN,
                last: self.now,
                wanted,
                place: None,
            };
            let i = self.free.pop().unwrap_or(self.chunks.len() as u32);
            if i as usize == self.chunks.len() {
                self.chunks.push(Some(chunk));
            } else {
                self.chunks[i as usize] = Some(chunk);
            }
            self.by_key.insert(key, i);
            if let Some(parent) = parent {
                self.chunks[parent as usize].as_mut().expect("held").children += 1;
                self.refresh(parent);
            }
            self.refresh(i);
            parent = Some(i);
        }
    }

    fn trim(&mut self) {
        while self.by_key.len() > self.capacity {
            let Inner { policy, returns, now, queue, .. } = self;
            let worth = |band: u32, last| match policy.order {
                Order::Returns => returns.worth(Class::from_index(band as usize), last, *now),
                Order::Fifo | Order::Lru => last,
            };
            let (place, i) = queue.victim(worth).expect("leaves");
            queue.remove(place, i);
            let chunk = self.chunks[i as usize].take().expect("held");
            self.by_key.remove(&chunk.key);
            self.free.push(i);
            self.evicted += 1;
            if let Some(parent) = chunk.parent {
                self.chunks[parent as usize].as_mut().expect("it had a child").children -= 1;
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

    fn room(&self) -> usize {
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
        let chunks = load.chunks.len();
        inner.loads.insert(load.id, Way { chunks, begun, done, waited_for: load.urgent });
        *(if load.urgent { &mut inner.waited_for } else { &mut inner.ahead }) += chunks as u64;
    }

    fn hurry(&mut self, load: LoadId) {
        let mut inner = self.lock();
        let now = inner.now;
        let way = inner.loads.get_mut(&load).expect("a load that was not ended");
        if way.done > now && !std::mem::replace(&mut way.waited_for, true) {
            let chunks = way.chunks as u64;
            inner.waited_for += chunks;
            inner.ahead -= chunks;
        }
    }

    fn state(&self, load: LoadId) -> LoadState {
        let inner = self.lock();
        let way = &inner.loads[&load];
        let share = |of: u64| of.saturating_sub(way.begun) * inner.layers as u64 / (way.done - way.begun);
        let layers = (share(inner.now) as usize).min(inner.layers);
        LoadState { layers, left: way.done.saturating_sub(inner.now), lost: None }
    }

    fn forget(&mut self, _: LoadId, _: usize) {}

    fn end(&mut self, load: LoadId) {
        self.lock().loads.remove(&load);
    }
}

impl Residency for Shelf {
    fn fill(&self, _: usize, _: ChunkId, _: &mut [u8]) -> Result<bool, Gone> {
        Ok(true)
    }
}
