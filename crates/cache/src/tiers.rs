//! The tree's border to the tiers below RAM: chunks that come from there, and whole ones that are to go there.
//!
//! A chunk that is on its way is a node like any other: it is matched, pinned, evicted. Whoever plans rows that attend to
//! it must have its slices waited for, until [`Cache::arrived`].

use kvist_base::{CHUNK, ChunkId, DomainId, TokenId};

use crate::node::{Arena, Node, NodeId, ROOT};
use crate::path::Path;
use crate::policy::Class;
use crate::tree::Cache;

/// Whole chunks, one below the other, that no tier holds yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsaved {
    pub domain: DomainId,
    /// The path from its root to the end of the last of them.
    pub tokens: Vec<TokenId>,
    /// Their slabs, in order: the last of the path.
    pub chunks: Vec<ChunkId>,
    /// The slabs before them on the path, as far as they have arrived: the last ones.
    pub above: Vec<ChunkId>,
    /// What is expected of them, those above first.
    pub classes: Vec<Class>,
}

impl Cache {
    /// Makes room for the next whole chunk of `tokens`, whose KV comes from a tier, and moves the path over it. A node in
    /// which the path ends is let go for it. With `public` the chunk is one that the operator published: its node is public
    /// where the one above it is, too, and no private node holds the same.
    ///
    /// With `spare` only room that nobody wants is taken: free slabs, and leaves that no queued request wants. May evict
    /// unpinned leaves; `None`: there is no room, and nothing was changed but where the path ends.
    ///
    /// # Panics
    /// If the tree holds the chunk, or if `tokens` end before it does.
    pub fn adopt(
        &mut self,
        path: &mut Path,
        domain: DomainId,
        tokens: &[TokenId],
        public: bool,
        spare: bool,
    ) -> Option<NodeId> {
        self.sync(path);
        let level = path.used / CHUNK;
        let old = path.tip().map(|tip| tip.index);
        path.used = level * CHUNK;
        path.nodes.truncate(level);
        self.repin(old, path.tip().map(|tip| tip.index));
        let parent = path.tip().map_or(ROOT, |tip| tip.index);
        let window = &tokens[level * CHUNK..][..CHUNK];
        let public =
            public && (parent == ROOT || self.arena[parent].is_public()) && self.equals(parent, window).is_empty();
        let domain = if public { DomainId::PUBLIC } else { domain };
        assert!(self.arena.best(parent, domain, window, None).is_none_or(|m| m.n < CHUNK), "the tree holds the chunk");
        if spare && self.arena.free() == 0 && !self.queue.has_unwanted() {
            return None;
        }
        let index = self.allocate()?;
        let depth = if parent == ROOT { 0 } else { self.arena[parent].depth + 1 };
        let encodes = self.encodes();
        let node = &mut self.arena[index];
        (node.parent, node.depth, node.domain) = (parent, depth, domain);
        (node.class, node.last) = (Class::UNKNOWN, self.now);
        node.push(window);
        (node.valid, node.sealed, node.arriving) = (node.len, encodes, true);
        self.arena.arriving += 1;
        self.tokens += CHUNK as u64;
        self.linked += 1;
        self.adopted += 1;
        self.arena.link(index);
        let id = self.arena.id(index);
        let old = path.tip().map(|tip| tip.index);
        path.nodes.push(id);
        path.used += CHUNK;
        self.repin(old, Some(index));
        Some(id)
    }

    /// All of a node's KV is in its slab. Nothing happens for a handle that outlived its node.
    pub fn arrived(&mut self, node: NodeId) {
        if self.stands(node) && self.arena[node.index].arriving {
            self.arena[node.index].arriving = false;
            self.arena.arriving -= 1;
            if self.arena[node.index].is_public() {
                // It may have been published on its way: then the tier holds it as somebody's own.
                self.note_unsaved(node.index);
            }
        }
    }

    /// Takes a node whose KV will not come out of the tree, with all below it: see [`Cache::invalidate`].
    pub fn missed(&mut self, node: NodeId) {
        if self.stands(node) {
            self.invalidate(Arena::chunk(node.index), 0);
        }
    }

    /// Whether the handle's node is in the tree.
    pub fn stands(&self, node: NodeId) -> bool {
        self.arena[node.index].is_linked() && self.arena.id(node.index) == node
    }

    /// Whether anybody uses a node that stands, or waits for it, or it has others below it than `below`.
    pub fn wanted(&self, node: NodeId, below: Option<NodeId>) -> bool {
        let others = |node: &Node| node.children.iter().any(|&child| Some(self.arena.id(child)) != below);
        let used = |node: &Node| node.refs > 0 || others(node);
        self.stands(node) && (used(&self.arena[node.index]) || self.guards.rank(node.index).is_some())
    }

    /// Whether a slab's KV is on its way.
    pub fn is_arriving(&self, chunk: ChunkId) -> bool {
        self.arena.arriving > 0 && self.arena.of_chunk(chunk).is_some_and(|index| self.arena[index].arriving)
    }

    /// The nodes of a path whose KV is on its way.
    pub fn arriving<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = NodeId> + 'a {
        let some = if self.arena.arriving > 0 { path.nodes.as_slice() } else { &[] };
        some.iter().copied().filter(|id| self.arena[id.index].arriving)
    }

    /// The whole chunks that have waited longest to be saved, as far as each lies below the one before: at most `most`.
    /// They stay first in line until [`Cache::saved`]. Between steps only.
    pub fn unsaved(&mut self, most: usize) -> Option<Unsaved> {
        let mut list = std::mem::take(self.unsaved.as_mut()?);
        while list.front().is_some_and(|&id| !self.is_whole(id)) {
            list.pop_front();
            self.never_saved += 1;
        }
        let mut out = None;
        if let Some(&first) = list.front() {
            let run = list.iter().zip(1..).take_while(|&(&id, n)| {
                let above = |n: usize| list[n - 2];
                n == 1 || n <= most && self.is_whole(id) && self.below(id, above(n))
            });
            let chunks: Vec<ChunkId> = run.map(|(id, _)| Arena::chunk(id.index)).collect();
            let last = list[chunks.len() - 1];
            let domain = self.arena[first.index].domain;
            let (tokens, above) = (self.path_to(last.index), self.above(first.index));
            let run = list.iter().take(chunks.len()).map(|id| self.arena[id.index].class);
            let of = |&chunk| self.arena.of_chunk(chunk).map_or(Class::UNKNOWN, |index| self.arena[index].class);
            let classes = above.iter().map(of).chain(run).collect();
            out = Some(Unsaved { domain, tokens, chunks, above, classes });
        }
        self.unsaved = Some(list);
        out
    }

    /// The first `n` chunks of [`Cache::unsaved`] need not be told of again.
    pub fn saved(&mut self, n: usize) {
        self.unsaved.as_mut().expect("chunks are saved").drain(..n);
    }

    /// Whether a node stands and is whole, as it was when it was noted: what is cut off comes back with other tokens.
    fn is_whole(&self, node: NodeId) -> bool {
        self.stands(node) && self.arena[node.index].len() == CHUNK
    }

    /// A node that was adopted is one that no tier holds.
    pub fn unsaved_again(&mut self, node: NodeId) {
        if self.is_whole(node) {
            self.note_unsaved(node.index);
        }
    }

    /// Whether `id` is the child of `above` and of its domain.
    fn below(&self, id: NodeId, above: NodeId) -> bool {
        self.arena[id.index].parent == above.index && self.arena[id.index].domain == self.arena[above.index].domain
    }

    /// The slabs above a node up to one that is on its way, from above to below.
    fn above(&self, index: u32) -> Vec<ChunkId> {
        let parents = std::iter::successors(Some(index), |&index| Some(self.arena[index].parent)).skip(1);
        let arrived = parents.take_while(|&index| index != ROOT && !self.arena[index].arriving);
        let mut above: Vec<ChunkId> = arrived.map(Arena::chunk).collect();
        above.reverse();
        above
    }

    /// All tokens from the root to the end of a node.
    fn path_to(&self, mut index: u32) -> Vec<TokenId> {
        let mut nodes = vec![];
        while index != ROOT {
            nodes.push(index);
            index = self.arena[index].parent;
        }
        nodes.iter().rev().flat_map(|&index| self.arena[index].tokens()).copied().collect()
    }

    /// A chunk has become whole, or public. One that is on its way is noted when it arrives.
    pub(crate) fn note_unsaved(&mut self, index: u32) {
        if self.arena[index].arriving {
            return;
        }
        let Some(mut list) = self.unsaved.take() else { return };
        // What left the tree meanwhile must not pile up while nothing can be saved.
        if list.len() > self.arena.slabs() as usize {
            let before = list.len();
            list.retain(|&id| self.is_whole(id));
            self.never_saved += (before - list.len()) as u64;
        }
        list.push_back(self.arena.id(index));
        self.unsaved = Some(list);
    }
}
