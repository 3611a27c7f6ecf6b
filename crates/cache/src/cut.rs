//! Loss: KV that is no longer valid leaves the tree at once, and paths learn what still stands of them.

use kvist_base::{CHUNK, ChunkId};

use crate::campaign::Canary;
use crate::node::State;
use crate::path::Path;
use crate::tree::Cache;

impl Cache {
    /// The KV of a slab is lost from slot `keep` on, and with it everything below its node. Nobody can match it from
    /// now on; slabs are freed when their last pin goes. A public node, which must be whole, is lost whole.
    ///
    /// Changes no path: paths over it keep their pins until [`Cache::truncate`], [`Cache::follow`] or
    /// [`Cache::claim`] takes the lost part off them, or [`Cache::release`] ends them. What is above the node, and
    /// its first `keep` slots, stay as they are. Does nothing for a slab that holds no node of the tree.
    pub fn invalidate(&mut self, chunk: ChunkId, keep: usize) {
        if let Some(index) = self.arena.of_chunk(chunk)
            && self.arena[index].is_linked()
            && keep < self.arena[index].len()
        {
            self.epoch += 1;
            self.cut(index, keep as u8);
        }
    }

    /// Takes what was lost off the path and returns `path.used`, the tokens that still stand. Also does what
    /// [`Cache::remap`] does. Changes no other path and nothing in the tree but pins.
    pub fn truncate(&mut self, path: &mut Path) -> usize {
        self.sync(path);
        path.used
    }

    /// Makes the path name the public nodes that took the place of merged ones. The slab of a merged node in which a
    /// path ends is freed when the last such path is remapped or released.
    pub fn remap(&mut self, path: &mut Path) {
        self.sync(path);
    }

    /// Takes the slots of a node from `keep` on, and all below it, out of the tree.
    pub(crate) fn cut(&mut self, index: u32, keep: u8) {
        let node = &self.arena[index];
        if !node.is_linked() || keep >= node.len {
            return;
        }
        // The codes of a sealed chunk are no start of an open one.
        let parts = !node.sealed || node.dense_valid() >= keep as usize;
        if keep == 0 || node.is_public() || !parts {
            return self.detach(index);
        }
        let node = &mut self.arena[index];
        (node.sealed, node.warm, node.warm_valid) = (false, 0, 0);
        let children = std::mem::take(&mut self.arena[index].children);
        self.drop_all(children, index);
        self.tokens -= u64::from(self.arena[index].len - keep);
        self.arena.shrink(index, keep);
        if self.arena[index].refs > 0 {
            self.arena[index].cut(self.epoch, keep);
        }
    }

    /// Takes a node and all below it out of the tree.
    pub(crate) fn detach(&mut self, top: u32) {
        let parent = self.arena[top].parent;
        self.arena.unlink(top);
        self.drop_all(vec![top], parent);
    }

    /// Drops nodes that were taken from the children of `parent`, and all below them.
    fn drop_all(&mut self, mut stack: Vec<u32>, parent: u32) {
        while let Some(index) = stack.pop() {
            let node = &mut self.arena[index];
            stack.append(&mut node.children);
            node.state = State::Unlinked;
            let (len, refs) = (node.len, node.refs);
            self.linked -= 1;
            self.tokens -= u64::from(len);
            self.unlinked += 1;
            self.guards.shift(index, parent);
            self.refresh(index);
            if refs == 0 {
                self.arena.give(index);
            }
        }
        self.refresh(parent);
    }

    /// Brings a path up to date with cuts, unlinked nodes and merges.
    pub(crate) fn sync(&mut self, path: &mut Path) {
        if path.seen == self.epoch || self.arena.canary == Canary::IgnoreLoss {
            return;
        }
        let pinned = path.tip().map(|tip| self.arena.index(tip));
        let mut next = pinned;
        let mut used = path.used;
        // The pin holds the tip and all above it, so parents are right where the handles on the path may be stale.
        for level in (0..path.nodes.len()).rev() {
            let mut index = next.expect("as many nodes above as the path has");
            let mut stands = CHUNK;
            while self.arena[index].state == State::Merged {
                stands = stands.min(self.arena[index].stands(path.seen));
                index = self.arena[index].parent;
            }
            let node = &self.arena[index];
            // What a node lost before it took another's place, the paths over the other did not lose.
            let id = self.arena.id(index);
            let since = if path.nodes[level] == id { path.seen } else { path.seen.max(node.merged) };
            stands = if node.is_linked() { stands.min(node.stands(since)) } else { 0 };
            if stands < CHUNK {
                used = used.min(level * CHUNK + stands);
            }
            path.nodes[level] = id;
            next = Some(node.parent);
        }
        path.used = used;
        path.nodes.truncate(used.div_ceil(CHUNK));
        path.seen = self.epoch;
        self.repin(pinned, path.tip().map(|tip| tip.index));
    }
}
