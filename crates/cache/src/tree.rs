//! The tree as requests see it: find, follow, fork, release.

use std::collections::VecDeque;

use kvist_base::{CHUNK, ChunkId, DomainId, Micros, TokenId};

use crate::campaign::Canary;
use crate::node::{Arena, NodeId, ROOT};
use crate::path::Path;
use crate::policy::{Guards, Order, Queue, Returns, Valuation};

#[derive(Clone, Copy, Debug)]
pub struct CacheConfig {
    /// Chunks in the pool.
    pub slabs: u32,
    /// Where sealed chunks are encoded: slabs for open chunks, two at least. Their ids follow those of the chunks.
    pub open: Option<u32>,
    /// Whether whole chunks are kept in mind until they are saved: see [`Cache::unsaved`].
    pub saves: bool,
    /// Position in tokens at which attention costs as much as the dense layers: how fast chunks get dearer with depth.
    pub parity: u32,
    /// What goes first of what nobody wants.
    pub order: Order,
}

impl Default for CacheConfig {
    fn default() -> CacheConfig {
        CacheConfig { slabs: 1024, open: None, saves: false, parity: 16384, order: Order::default() }
    }
}

/// Where the slabs are (`free + pinned + evictable = slabs`), and what happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    pub slabs: u32,
    /// Slabs that hold nothing.
    pub free: u32,
    /// Slabs in use by paths or by the current step, those that left the tree included.
    pub pinned: u32,
    /// Slabs that hold KV which nobody uses now.
    pub evictable: u32,
    /// Slabs for open chunks that hold one, where sealed chunks are encoded.
    pub open: u32,
    /// Nodes in the tree.
    pub nodes: u32,
    /// Tokens in the tree, claims of the current step included.
    pub tokens: u64,
    /// Nodes evicted.
    pub evictions: u64,
    /// Nodes made by copying the matched part of another.
    pub forks: u64,
    /// Nodes merged into public ones.
    pub merges: u64,
    /// Nodes lost by [`Cache::invalidate`], [`Cache::abort`] and [`Cache::unpublish`].
    pub unlinked: u64,
    /// Sealed chunks whose rows were computed again, in part at least: see [`Cache::reopen`].
    pub reopened: u64,
    /// Chunks taken from a tier: see [`Cache::adopt`].
    pub adopted: u64,
    /// Whole chunks that are not saved yet, and those that were evicted before they were.
    pub unsaved: u64,
    pub never_saved: u64,
}

/// The prefix tree of one namespace. See [`Path`] for what a sequence holds.
#[derive(Debug)]
pub struct Cache {
    pub(crate) arena: Arena,
    /// Unpinned leaves.
    pub(crate) queue: Queue,
    /// What is known of who comes back, and when.
    pub(crate) returns: Returns,
    pub(crate) guards: Guards,
    /// Nodes claimed in the current step, with the slots that were valid before it.
    pub(crate) claimed: Vec<(u32, u8)>,
    /// Counts the changes that paths must learn of: cuts, unlinked nodes, merges.
    pub(crate) epoch: u64,
    /// The latest time that was told.
    pub(crate) now: Micros,
    /// Counts the plans: see [`Cache::begin`].
    pub(crate) turn: u64,
    /// What it is worth to hold a chunk, as `returns` says.
    pub(crate) valuation: Valuation,
    pub(crate) pinned: u32,
    pub(crate) linked: u32,
    pub(crate) tokens: u64,
    pub(crate) evictions: u64,
    pub(crate) forks: u64,
    pub(crate) merges: u64,
    pub(crate) unlinked: u64,
    pub(crate) reopened: u64,
    pub(crate) adopted: u64,
    pub(crate) unsaved: Option<VecDeque<NodeId>>,
    pub(crate) never_saved: u64,
}

impl Cache {
    pub fn new(config: CacheConfig) -> Cache {
        let returns = Returns::new(Returns::memory(config.slabs as usize));
        let worths = returns.worths().clone();
        Cache {
            arena: Arena::new(config.slabs, config.open),
            queue: Queue::default(),
            returns,
            guards: Guards::default(),
            claimed: Vec::new(),
            epoch: 0,
            now: 0,
            turn: 1,
            valuation: Valuation { order: config.order, parity: config.parity, worths },
            pinned: 0,
            linked: 0,
            tokens: 0,
            evictions: 0,
            forks: 0,
            merges: 0,
            unlinked: 0,
            reopened: 0,
            adopted: 0,
            unsaved: config.saves.then(VecDeque::new),
            never_saved: 0,
        }
    }

    /// Length of the longest prefix of `tokens` whose KV is computed and visible in `domain`. Changes nothing, not even
    /// what is evicted next.
    pub fn probe(&self, domain: DomainId, tokens: &[TokenId]) -> usize {
        let (mut parent, mut used) = (ROOT, 0);
        for window in tokens.chunks(CHUNK) {
            let Some(found) = self.arena.best(parent, domain, window, None) else { break };
            let n = found.n.min(self.arena[found.node].valid());
            used += n;
            if n < CHUNK {
                break;
            }
            parent = found.node;
        }
        used
    }

    /// Moves the path as far as the tree agrees with `tokens`, claims of the current step included, and returns
    /// `path.used`. A last node that is used in part may be exchanged for a sibling that agrees further, or that can be
    /// extended. `tokens` must begin with those of the path.
    ///
    /// Pins what it walks onto, which is used at `now`. Changes no other path, no node's tokens, and evicts nothing.
    pub fn follow(&mut self, path: &mut Path, domain: DomainId, tokens: &[TokenId], now: Micros) -> usize {
        self.sync(path);
        assert!(path.used <= tokens.len(), "tokens end before the path");
        self.now = self.now.max(now);
        let old = path.tip().map(|tip| tip.index);
        loop {
            let level = path.used / CHUNK;
            let current = path.nodes.get(level).map(|id| id.index);
            let parent = level.checked_sub(1).map_or(ROOT, |above| path.nodes[above].index);
            let start = level * CHUNK;
            let window = &tokens[start..tokens.len().min(start + CHUNK)];
            let Some(found) = self.arena.best(parent, domain, window, current) else { break };
            debug_assert!(start + found.n >= path.used, "tokens differ from those of the path");
            path.used = start + found.n;
            let node = &mut self.arena[found.node];
            if self.valuation.counts_uses() {
                node.last = self.now;
            }
            if current != Some(found.node) {
                path.nodes.truncate(level);
                path.nodes.push(self.arena.id(found.node));
            }
            if found.n < CHUNK {
                break;
            }
        }
        self.repin(old, path.tip().map(|tip| tip.index));
        path.used
    }

    /// Moves one pin.
    pub(crate) fn repin(&mut self, old: Option<u32>, new: Option<u32>) {
        if old == new {
            return;
        }
        if let Some(new) = new
            && self.arena.canary != Canary::ForgetPin
        {
            self.pin(new);
        }
        if let Some(old) = old {
            self.unpin(old);
        }
    }

    /// A second path over the same nodes. Changes nothing but the pins.
    pub fn fork(&mut self, path: &Path) -> Path {
        if let Some(tip) = path.tip() {
            let index = self.arena.index(tip);
            self.pin(index);
        }
        Path { nodes: path.nodes.clone(), used: path.used, seen: path.seen }
    }

    /// Ends a path. Its nodes stay in the tree and can be matched until they are evicted; those that left the tree go
    /// with their last pin. Claims of the current step stay pinned until [`Cache::commit`].
    pub fn release(&mut self, path: Path) {
        if let Some(tip) = path.tip() {
            let index = self.arena.index(tip);
            self.unpin(index);
        }
    }

    /// The slab of a node: of its sealed chunk, where such are encoded.
    ///
    /// # Panics
    /// On a handle that outlived its node.
    pub fn slab(&self, node: NodeId) -> ChunkId {
        Arena::chunk(self.arena.index(node))
    }

    /// The slab that rows of the node's own chunk are written to and attend to. There is one while the chunk is open, and
    /// of sealed ones as long as nobody else needs it.
    ///
    /// # Panics
    /// On a handle that outlived its node.
    pub fn open_slab(&self, node: NodeId) -> Option<ChunkId> {
        self.arena.open_chunk(self.arena.index(node))
    }

    /// Tokens of a node: (recorded, of these computed). They differ only within a step.
    pub fn filled(&self, node: NodeId) -> (usize, usize) {
        let node = &self.arena[self.arena.index(node)];
        (node.len(), node.valid())
    }

    /// Slabs that could be had now: the free ones and those of unpinned nodes, all of which can be evicted.
    pub fn available(&self) -> u32 {
        self.arena.slabs() - self.pinned
    }

    pub fn stats(&self) -> CacheStats {
        let (slabs, free) = (self.arena.slabs(), self.arena.free());
        CacheStats {
            slabs,
            free,
            pinned: self.pinned,
            evictable: slabs - free - self.pinned,
            open: self.arena.opens.as_ref().map_or(0, |opens| (opens.owners.len() - opens.free.len()) as u32),
            nodes: self.linked,
            tokens: self.tokens,
            evictions: self.evictions,
            forks: self.forks,
            merges: self.merges,
            unlinked: self.unlinked,
            reopened: self.reopened,
            adopted: self.adopted,
            unsaved: self.unsaved.as_ref().map_or(0, |list| list.len() as u64),
            never_saved: self.never_saved,
        }
    }
}
