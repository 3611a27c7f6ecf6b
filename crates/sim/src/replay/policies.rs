//! The policies on the blocks of a trace. They share the queue and the learner with the server's tree.

use kvist_base::Micros;
use kvist_cache::policy::{Class, End, Facts, Place, Queue, Returns};

use crate::random::mix;
use crate::replay::trace::{BLOCK, Trace};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// What was inserted first goes first.
    Fifo,
    /// What was used longest ago goes first.
    Lru,
    /// LRU, but what a waiting request wants goes last, that of the last of them first. Requests wait so long.
    QueueAware { wait: Micros },
    /// What is expected to return least for the time for which it is held goes first; leaves only.
    Returns,
    /// The same, learning from some of the facts only.
    Learning { facts: u16 },
    /// What is needed last, or never, goes first, be it new: no policy has more hits.
    Optimum,
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Policy::Fifo => f.pad("fifo"),
            Policy::Lru => f.pad("lru"),
            Policy::QueueAware { wait } => f.pad(&format!("queue-aware ({} s)", wait / 1_000_000)),
            Policy::Returns => f.pad("returns"),
            Policy::Learning { facts: 0 } => f.pad("age alone"),
            Policy::Learning { facts } if facts.count_ones() == 1 => {
                f.pad(&format!("+ {}", Facts::NAMES[facts.trailing_zeros() as usize]))
            }
            Policy::Learning { facts } => f.pad(&format!("- {}", Facts::NAMES[facts.trailing_ones() as usize])),
            Policy::Optimum => f.pad("optimum"),
        }
    }
}

/// Blocks asked for, and blocks that were there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    pub blocks: u64,
    pub hits: u64,
}

impl Hits {
    /// In percent.
    pub fn rate(&self) -> f64 {
        100.0 * self.hits as f64 / self.blocks.max(1) as f64
    }
}

/// Replays a trace against `capacity` blocks.
pub fn replay(trace: &Trace, capacity: usize, policy: Policy) -> Hits {
    let hits = hits(trace, capacity, policy).into_iter().map(u64::from).sum();
    Hits { blocks: trace.blocks.len() as u64, hits }
}

/// The hits of each request.
pub fn hits(trace: &Trace, capacity: usize, policy: Policy) -> Vec<u32> {
    match policy {
        Policy::Returns => returns(trace, capacity, Returns::new(Returns::memory(capacity))),
        Policy::Learning { facts } => {
            returns(trace, capacity, Returns::new(Returns::memory(capacity)).learning_from(facts))
        }
        _ => ordered(trace, capacity, policy),
    }
}

/// Policies whose order changes only when a block is used, or wanted.
fn ordered(trace: &Trace, capacity: usize, policy: Policy) -> Vec<u32> {
    const NEVER: u64 = u32::MAX as u64;
    let next = next_uses(trace);
    let mut queue = Queue::default();
    let mut places: Vec<Option<Place>> = vec![None; trace.different];
    // Of each block, the next request that uses it.
    let mut wanted = first_uses(trace);
    let (mut tick, mut waiting) = (0, 0);
    let mut hits = Vec::with_capacity(trace.rows.len());
    for row in &trace.rows {
        let blocks = trace.blocks(row);
        let held = blocks.iter().take_while(|&&block| places[block as usize].is_some()).count();
        hits.push(held as u32);
        let guard = |use_: u32, waiting: usize| {
            if (use_ as usize) < waiting { 1 + NEVER - u64::from(use_) } else { 0 }
        };
        if let Policy::QueueAware { wait } = policy {
            // Those who come to wait by now want their blocks from now on.
            while let Some(later) = trace.rows.get(waiting).filter(|later| later.at <= row.at + wait) {
                waiting += 1;
                for &block in trace.blocks(later) {
                    if let Some(place) = places[block as usize].as_mut().filter(|place| place.guard == 0) {
                        queue.remove(*place, block);
                        place.guard = guard(wanted[block as usize], waiting);
                        queue.insert(*place, block);
                    }
                }
            }
        }
        for (depth, &block) in blocks.iter().enumerate() {
            tick += 1;
            wanted[block as usize] = next[row.blocks.start + depth];
            let old = places[block as usize].take();
            old.map(|old| queue.remove(old, block));
            let place = match policy {
                Policy::Fifo => old.unwrap_or(Place { guard: 0, band: 0, last: tick, tie: 0 }),
                Policy::Optimum => {
                    let next = NEVER - u64::from(next[row.blocks.start + depth]);
                    Place { guard: 0, band: 0, last: next, tie: u32::MAX - depth as u32 }
                }
                _ => Place { guard: guard(wanted[block as usize], waiting), band: 0, last: tick, tie: 0 },
            };
            places[block as usize] = Some(place);
            queue.insert(place, block);
            if policy != Policy::Optimum {
                trim(&mut queue, &mut places, capacity);
            }
        }
        trim(&mut queue, &mut places, capacity);
    }
    hits
}

fn trim(queue: &mut Queue, places: &mut [Option<Place>], capacity: usize) {
    while queue.len() > capacity {
        let (place, block) = queue.victim(|_, last| last).expect("more than there is room for");
        queue.remove(place, block);
        places[block as usize] = None;
    }
}

/// For each block of each request, the next request with it.
fn next_uses(trace: &Trace) -> Vec<u32> {
    let mut seen = vec![u32::MAX; trace.different];
    let mut next = vec![u32::MAX; trace.blocks.len()];
    for (i, row) in trace.rows.iter().enumerate().rev() {
        for at in row.blocks.clone() {
            let block = trace.blocks[at] as usize;
            next[at] = std::mem::replace(&mut seen[block], i as u32);
        }
    }
    next
}

/// For each block, the first request with it.
fn first_uses(trace: &Trace) -> Vec<u32> {
    let mut first = vec![u32::MAX; trace.different];
    for (i, row) in trace.rows.iter().enumerate().rev() {
        trace.blocks(row).iter().for_each(|&block| first[block as usize] = i as u32);
    }
    first
}

#[derive(Clone, Copy, Default)]
struct Block {
    parent: Option<u32>,
    children: u32,
    depth: u32,
    class: Option<Class>,
    last: Micros,
    held: bool,
    place: Option<Place>,
}

/// As the server's tree does it: leaves go first, and the class of a chunk is set when a request that used it ends.
struct Tree {
    blocks: Vec<Block>,
    queue: Queue,
    held: usize,
}

impl Tree {
    fn refresh(&mut self, id: u32) {
        let block = &mut self.blocks[id as usize];
        let band = block.class.unwrap_or(Class::UNKNOWN).index() as u32;
        let place = Place { guard: 0, band, last: block.last, tie: u32::MAX - block.depth };
        let place = (block.held && block.children == 0).then_some(place);
        if place != block.place {
            block.place.map(|old| self.queue.remove(old, id));
            if let Some(new) = place {
                self.queue.insert(new, id);
            }
            block.place = place;
        }
    }

    fn hold(&mut self, id: u32) {
        if !std::mem::replace(&mut self.blocks[id as usize].held, true) {
            self.held += 1;
            if let Some(parent) = self.blocks[id as usize].parent {
                self.blocks[parent as usize].children += 1;
                self.refresh(parent);
            }
        }
    }

    fn evict(&mut self, returns: &Returns, now: Micros) {
        let worth = |band: u32, last| returns.worth(Class::from_index(band as usize), last, now);
        let (_, id) = self.queue.victim(worth).expect("leaves");
        self.blocks[id as usize].held = false;
        self.held -= 1;
        self.refresh(id);
        if let Some(parent) = self.blocks[id as usize].parent {
            self.blocks[parent as usize].children -= 1;
            self.refresh(parent);
        }
    }
}

fn returns(trace: &Trace, capacity: usize, mut returns: Returns) -> Vec<u32> {
    let mut tree = Tree { blocks: vec![Block::default(); trace.different], queue: Queue::default(), held: 0 };
    let mut hits = Vec::with_capacity(trace.rows.len());
    let mut keys = Vec::new();
    for row in &trace.rows {
        let blocks = trace.blocks(row);
        hits.push(blocks.iter().take_while(|&&block| tree.blocks[block as usize].held).count() as u32);
        keys.clear();
        keys.extend(blocks.iter().map(|&block| mix(u64::from(block))));
        let visit = returns.arrive(row.at, keys.iter().copied(), |_| None);
        let fresh = row.prompt.saturating_sub(visit.known as u32 * BLOCK);
        let end = End { prompt: row.prompt, fresh, reply: row.reply, open: row.prompt % BLOCK != 0 };
        let mut parent = None;
        returns.leave(row.at, &visit, &end, &keys, |depth, class| {
            let block = &mut tree.blocks[blocks[depth] as usize];
            (block.parent, block.depth, block.class, block.last) = (parent, depth as u32, Some(class), row.at);
            parent = Some(blocks[depth]);
            tree.hold(blocks[depth]);
            tree.refresh(blocks[depth]);
        });
        while tree.held > capacity {
            tree.evict(&returns, row.at);
        }
    }
    hits
}
