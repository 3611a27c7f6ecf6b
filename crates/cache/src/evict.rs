//! Room: free slabs, the queue of unpinned leaves, and the soft protection of queued requests.

use std::collections::BTreeSet;

use kvist_base::{CHUNK, DomainId, TokenId};

use crate::campaign::Canary;
use crate::node::{ROOT, State};
use crate::tree::Cache;

impl Cache {
    /// Protects what the tree holds of `tokens` for a queued request until [`Cache::unprotect`]; a ticket protects one
    /// path, asking again replaces it. `rank` 0 is served next. Protected nodes are evicted only when nothing else can
    /// be: those of the worst rank first, from the end of the path. Does not pin, count as a use, or change any path.
    pub fn protect(&mut self, ticket: u64, domain: DomainId, tokens: &[TokenId], rank: u32) {
        self.unprotect(ticket);
        let mut node = ROOT;
        for window in tokens.chunks(CHUNK) {
            let Some(found) = self.arena.best(node, domain, window, None) else { break };
            node = found.node;
            if found.n < CHUNK {
                break;
            }
        }
        self.guards.set(ticket, node, rank);
        self.refresh(node);
    }

    /// Ends a protection; an unknown ticket is ignored.
    pub fn unprotect(&mut self, ticket: u64) {
        if let Some(node) = self.guards.remove(ticket) {
            self.refresh(node);
        }
    }

    /// Tickets for which less is protected than was, as something else took the room, since the last call.
    pub fn take_short(&mut self) -> BTreeSet<u64> {
        self.guards.take_short()
    }

    /// An entry for a new node, evicting if need be.
    pub(crate) fn allocate(&mut self) -> Option<u32> {
        self.arena.take().or_else(|| {
            self.evict()?;
            self.arena.take()
        })
    }

    /// Evicts the node that is worth least.
    fn evict(&mut self) -> Option<()> {
        let (_, index) = self.queue.victim(|band, last| match self.arena.canary {
            Canary::EvictTheBest => u128::MAX - self.worth(band, last),
            _ => self.worth(band, last),
        })?;
        self.evictions += 1;
        self.drop_leaf(index);
        Some(())
    }

    /// Evicts everything that nobody uses.
    pub fn evict_all(&mut self) {
        while self.evict().is_some() {}
    }

    /// Takes an unpinned leaf out of the tree and frees it.
    pub(crate) fn drop_leaf(&mut self, index: u32) {
        let parent = self.arena[index].parent;
        self.arena.unlink(index);
        self.arena[index].state = State::Unlinked;
        self.tokens -= self.arena[index].len() as u64;
        self.linked -= 1;
        self.guards.evict(index, parent);
        self.refresh(index);
        self.arena.give(index);
        self.refresh(parent);
    }

    /// Puts a node into the eviction queue, takes it out, or moves it: whatever its state asks for.
    pub(crate) fn refresh(&mut self, index: u32) {
        let node = &self.arena[index];
        let evictable = node.refs == 0 && node.is_linked() && node.children.is_empty();
        let (old, new) = (node.place, evictable.then(|| self.place(index)));
        if new != old {
            if let Some(old) = old {
                self.queue.remove(old, index);
            }
            if let Some(new) = new {
                self.queue.insert(new, index);
            }
            self.arena[index].place = new;
        }
    }

    /// Keeps a node and all above it from eviction.
    pub(crate) fn pin(&mut self, mut index: u32) {
        loop {
            let node = &mut self.arena[index];
            node.refs += 1;
            if node.refs > 1 {
                return;
            }
            let parent = node.parent;
            self.pinned += 1;
            self.refresh(index);
            index = parent;
        }
    }

    /// Undoes one [`Cache::pin`]. What is left without pins becomes evictable, or is freed if it left the tree.
    pub(crate) fn unpin(&mut self, mut index: u32) {
        loop {
            let node = &mut self.arena[index];
            node.refs -= 1;
            if node.refs > 0 {
                return;
            }
            let parent = node.parent;
            self.pinned -= 1;
            if node.is_linked() {
                node.cuts.clear();
                self.refresh(index);
            } else {
                self.arena.give(index);
            }
            index = parent;
        }
    }
}
