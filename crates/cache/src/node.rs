//! Nodes and the arena that holds them. A node owns exactly one slab, so the slab's number is the node's index.

use std::ops::{Index, IndexMut};

use kvist_base::{CHUNK, ChunkId, DomainId, Micros, TokenId};

use crate::campaign::Canary;
use crate::policy::{Class, Place};

/// Index of the root: it has no tokens and no slab, and is never unpinned.
pub(crate) const ROOT: u32 = 0;

/// Handle of a node. A handle that outlived its node is recognised by its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId {
    pub(crate) index: u32,
    generation: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Free,
    /// In its parent's children: it can be matched.
    Linked,
    /// Left the tree while in use; it keeps its parent in use and goes with its last pin.
    Unlinked,
    /// Its tokens are now those of `parent`, the public node that took its place; it goes with its last pin.
    Merged,
}

#[derive(Debug)]
pub(crate) struct Node {
    generation: u32,
    pub state: State,
    pub domain: DomainId,
    /// The node above; of a [`State::Merged`] node the one that took its place.
    pub parent: u32,
    /// Chunks above it on its path.
    pub depth: u32,
    /// Paths that end here + children in use (linked or not) + 1 while it is claimed in the current step.
    pub refs: u32,
    pub len: u8,
    /// Slots whose KV is computed; less than `len` only within a step.
    pub valid: u8,
    /// Claimed in the current step.
    pub claimed: bool,
    /// Its KV is on its way from a tier.
    pub arriving: bool,
    /// Whole and encoded: what `open` holds of it is a copy that can be made again from its tokens.
    pub sealed: bool,
    /// The slab that rows of the chunk are written to, where sealed chunks are encoded.
    pub open: Option<u32>,
    /// Of a sealed node, slots in `open`, claims of the current step included, and those computed.
    pub warm: u8,
    pub warm_valid: u8,
    /// Turn in which `open` was last needed.
    pub needed: u64,
    /// What is expected of it since a request that used it ended.
    pub class: Class,
    /// The last use.
    pub last: Micros,
    /// Its entry in the eviction queue.
    pub place: Option<Place>,
    /// In order of (domain, tokens, index).
    pub children: Vec<u32>,
    /// (epoch, slots kept) of the cuts since the node was last unpinned; both strictly ascending.
    pub cuts: Vec<(u64, u8)>,
    /// Epoch in which others were merged into it.
    pub merged: u64,
    tokens: [TokenId; CHUNK],
}

impl Node {
    fn new() -> Node {
        Node {
            generation: 0,
            state: State::Free,
            domain: DomainId::PUBLIC,
            parent: ROOT,
            depth: 0,
            refs: 0,
            len: 0,
            valid: 0,
            claimed: false,
            arriving: false,
            sealed: false,
            open: None,
            warm: 0,
            warm_valid: 0,
            needed: 0,
            class: Class::UNKNOWN,
            last: 0,
            place: None,
            children: Vec::new(),
            cuts: Vec::new(),
            merged: 0,
            tokens: [0; CHUNK],
        }
    }

    pub fn len(&self) -> usize {
        self.len as usize
    }

    pub fn valid(&self) -> usize {
        self.valid as usize
    }

    /// Slots that are there for rows of the chunk itself, claims of the current step included.
    pub fn dense(&self) -> usize {
        (if self.sealed { self.warm } else { self.len }) as usize
    }

    /// Those of [`Node::dense`] that are computed.
    pub fn dense_valid(&self) -> usize {
        (if self.sealed { self.warm_valid } else { self.valid }) as usize
    }

    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens[..self.len()]
    }

    pub fn push(&mut self, tokens: &[TokenId]) {
        let len = self.len();
        self.tokens[len..][..tokens.len()].copy_from_slice(tokens);
        self.len += tokens.len() as u8;
    }

    pub fn is_public(&self) -> bool {
        self.domain == DomainId::PUBLIC
    }

    pub fn is_linked(&self) -> bool {
        self.state == State::Linked
    }

    /// Notes that only the first `keep` slots still hold what paths made before `epoch` rely on.
    pub fn cut(&mut self, epoch: u64, keep: u8) {
        while self.cuts.pop_if(|cut| cut.1 >= keep).is_some() {}
        self.cuts.push((epoch, keep));
    }

    /// Slots that still stand for a path that has seen everything up to `epoch`.
    pub fn stands(&self, epoch: u64) -> usize {
        self.cuts.iter().find(|cut| cut.0 > epoch).map_or(CHUNK, |cut| cut.1 as usize)
    }
}

/// Nodes by index; entries are created when first needed, up to the number of slabs.
#[derive(Debug)]
pub(crate) struct Arena {
    nodes: Vec<Node>,
    free: Vec<u32>,
    slabs: u32,
    /// Slabs for open chunks, where sealed ones are encoded.
    pub opens: Option<Opens>,
    /// Nodes whose KV is on its way.
    pub arriving: u32,
    /// A fault that a campaign asked for.
    pub canary: Canary,
}

/// Who has which slab for open chunks.
#[derive(Debug)]
pub(crate) struct Opens {
    pub owners: Vec<Option<u32>>,
    pub free: Vec<u32>,
}

impl Arena {
    pub fn new(slabs: u32, open: Option<u32>) -> Arena {
        let root = Node { state: State::Linked, refs: 1, ..Node::new() };
        let opens = open.map(|n| Opens { owners: vec![None; n as usize], free: (0..n).rev().collect() });
        Arena { nodes: vec![root], free: Vec::new(), slabs, opens, arriving: 0, canary: Canary::None }
    }

    pub fn slabs(&self) -> u32 {
        self.slabs
    }

    /// Slabs without a node.
    pub fn free(&self) -> u32 {
        self.slabs + 1 - self.nodes.len() as u32 + self.free.len() as u32
    }

    pub fn free_list(&self) -> &[u32] {
        &self.free
    }

    /// Indices of all entries but the root's.
    pub fn indices(&self) -> std::ops::Range<u32> {
        ROOT + 1..self.nodes.len() as u32
    }

    pub fn take(&mut self) -> Option<u32> {
        if let Some(index) = self.free.pop() {
            return Some(index);
        }
        if self.nodes.len() as u32 > self.slabs {
            return None;
        }
        self.nodes.push(Node::new());
        Some(self.nodes.len() as u32 - 1)
    }

    /// Frees an entry: every handle of it is stale from now on.
    pub fn give(&mut self, index: u32) {
        let node = &mut self[index];
        node.state = State::Free;
        node.children.clear();
        node.cuts.clear();
        node.len = 0;
        node.valid = 0;
        self.close(index);
        self[index].sealed = false;
        self.arriving -= u32::from(std::mem::take(&mut self[index].arriving));
        self.retire(index);
        self.free.push(index);
    }

    /// Frees the node's slab for open chunks, if it has one.
    pub fn close(&mut self, index: u32) {
        let node = &mut self[index];
        (node.warm, node.warm_valid) = (0, 0);
        if let Some(slab) = node.open.take() {
            let opens = self.opens.as_mut().expect("slabs for open chunks");
            opens.owners[slab as usize] = None;
            opens.free.push(slab);
        }
    }

    /// Gives a node a slab for open chunks.
    pub fn open(&mut self, index: u32, slab: u32) {
        debug_assert!(self[index].open.is_none());
        self.opens.as_mut().expect("slabs for open chunks").owners[slab as usize] = Some(index);
        self[index].open = Some(slab);
    }

    /// The chunk that rows of the node are written to and attend to.
    pub fn open_chunk(&self, index: u32) -> Option<ChunkId> {
        if self.opens.is_none() {
            return Some(Arena::chunk(index));
        }
        self[index].open.map(|slab| ChunkId(self.slabs + slab))
    }

    /// Makes every handle of the entry stale.
    pub fn retire(&mut self, index: u32) {
        let node = &mut self[index];
        node.generation = node.generation.wrapping_add(1);
    }

    pub fn id(&self, index: u32) -> NodeId {
        NodeId { index, generation: self[index].generation }
    }

    /// # Panics
    /// On a stale handle.
    pub fn index(&self, id: NodeId) -> u32 {
        let node = &self[id.index];
        assert!(node.generation == id.generation && node.state != State::Free, "stale handle {id:?}");
        id.index
    }

    pub fn chunk(index: u32) -> ChunkId {
        ChunkId(index - 1)
    }

    /// The entry of a slab, if it ever had one.
    pub fn of_chunk(&self, chunk: ChunkId) -> Option<u32> {
        if let (Some(opens), Some(slab)) = (&self.opens, chunk.0.checked_sub(self.slabs)) {
            return opens.owners.get(slab as usize).copied().flatten();
        }
        let index = chunk.0.checked_add(1)?;
        ((index as usize) < self.nodes.len()).then_some(index)
    }
}

impl Index<u32> for Arena {
    type Output = Node;

    #[inline]
    fn index(&self, index: u32) -> &Node {
        &self.nodes[index as usize]
    }
}

impl IndexMut<u32> for Arena {
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut Node {
        &mut self.nodes[index as usize]
    }
}
