//! Room for tokens that the tree does not hold, and the end of a step.

use kvist_base::{CHUNK, ChunkId, DomainId, Prepare, TokenId};

use crate::campaign::Canary;
use crate::node::{NodeId, ROOT};
use crate::path::Path;
use crate::policy::Class;
use crate::tree::Cache;

/// Answer to [`Cache::claim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Slots [first_slot, first_slot + n) of `chunk` take the tokens [path.used - n, path.used). Where sealed chunks are
    /// encoded, `seals` is the slab for the chunk that they make whole.
    Slots { chunk: ChunkId, first_slot: u8, n: u8, seals: Option<ChunkId> },
    /// Nothing is to be written for the next `n` tokens: they are there. Only [`Cache::reopen`] says so.
    Held { n: u8 },
    /// The matched part of a chunk would have to be copied, but is itself only computed in this step: ask again next
    /// step. Nothing was changed.
    NotYet,
    /// No slab is free and nothing can be evicted. Nothing was changed.
    Full,
}

impl Cache {
    /// Makes room for `tokens[path.used..]`, at most `max` of them and within one chunk, records them and moves the path
    /// over them. Others may follow onto them at once; they must be computed in the step that [`Cache::commit`] ends.
    ///
    /// The last node is extended in place if the path uses all of it, also when other paths use it. Otherwise a new
    /// node starts, with a copy of the part of the last node that the path uses. What the executor must do first is
    /// appended to `prepare`, to be done in order.
    ///
    /// May evict unpinned leaves. Changes no other path and no slot that another path uses.
    ///
    /// # Panics
    /// If the tree holds the next token (call [`Cache::follow`] first, so that nothing is computed twice); if there is
    /// no next token or `max` is 0; for [`DomainId::PUBLIC`], whose nodes are made by [`Cache::publish`] alone.
    pub fn claim(
        &mut self,
        path: &mut Path,
        domain: DomainId,
        tokens: &[TokenId],
        max: usize,
        prepare: &mut Vec<Prepare>,
    ) -> Claim {
        assert!(domain != DomainId::PUBLIC, "nobody computes in the public domain");
        self.sync(path);
        let (level, first) = (path.used / CHUNK, path.used % CHUNK);
        let start = level * CHUNK;
        let window = &tokens[start..tokens.len().min(start + CHUNK)];
        let n = max.min(window.len() - first);
        assert!(n > 0, "nothing to claim");
        let parent = level.checked_sub(1).map_or(ROOT, |above| path.nodes[above].index);
        let held = self.arena.best(parent, domain, window, None).map_or(0, |found| found.n);
        assert!(held <= first, "the tree holds the tokens to be claimed: follow first");

        let tip = path.nodes.get(level).map(|id| id.index);
        if let Some(tip) = tip {
            self.arena[tip].needed = self.turn;
        }
        let index = match tip {
            Some(tip) if self.arena[tip].len() == first && self.arena[tip].domain == domain => tip,
            Some(tip) if self.arena[tip].dense_valid() < first && self.arena.canary != Canary::CopyUncomputed => {
                return Claim::NotYet;
            }
            _ => {
                let Some(index) = self.start(parent, domain, &window[..first], tip, prepare) else {
                    return Claim::Full;
                };
                let old = path.tip().map(|tip| tip.index);
                path.nodes.truncate(level);
                path.nodes.push(self.arena.id(index));
                self.repin(old, Some(index));
                index
            }
        };
        self.mark(index, self.arena[index].valid);
        let first_slot = self.arena[index].len;
        self.arena.grow(index, &window[first..][..n]);
        self.tokens += n as u64;
        path.used += n;
        let chunk = self.arena.open_chunk(index).expect("an open chunk has its slab");
        Claim::Slots { chunk, first_slot, n: n as u8, seals: self.sealed_by(index) }
    }

    /// A node below `parent` that holds `copied`, the part that is used of `from`.
    fn start(
        &mut self,
        parent: u32,
        domain: DomainId,
        copied: &[TokenId],
        from: Option<u32>,
        prepare: &mut Vec<Prepare>,
    ) -> Option<u32> {
        let slab = if self.encodes() { Some(self.take_open()?) } else { None };
        let Some(index) = self.allocate() else {
            slab.into_iter().for_each(|slab| self.arena.opens.as_mut().expect("it is theirs").free.push(slab));
            // Only this path uses `from`, which then is a leaf: with nothing else to be had, its slab goes on as the new
            // node, and the rest of it is what was evicted.
            let from = from.filter(|&from| self.arena[from].refs == 1 && !self.arena[from].arriving)?;
            self.take_over(from, domain, copied.len() as u8);
            return Some(from);
        };
        slab.into_iter().for_each(|slab| self.arena.open(index, slab));
        let open = |index| self.arena.open_chunk(index).expect("what is written or copied is open");
        prepare.push(Prepare::Zero(open(index)));
        if let Some(from) = from {
            prepare.push(Prepare::Copy { from: open(from), to: open(index), n: copied.len() as u8 });
            self.forks += 1;
            if self.arena[from].arriving || self.unsaved.is_some() {
                // What is on its way must have come before it is copied, and what is loaded comes before any copy is made:
                // nobody may take its slab in this step.
                self.mark(from, self.arena[from].valid);
            }
        }
        let depth = if parent == ROOT { 0 } else { self.arena[parent].depth + 1 };
        let node = &mut self.arena[index];
        (node.parent, node.depth, node.domain) = (parent, depth, domain);
        (node.class, node.last) = (Class::UNKNOWN, self.now);
        node.push(copied);
        node.valid = node.len;
        self.tokens += copied.len() as u64;
        self.linked += 1;
        self.arena.link(index);
        self.mark(index, 0);
        Some(index)
    }

    /// Turns a leaf into a node of `domain` that holds its first `keep` tokens.
    fn take_over(&mut self, index: u32, domain: DomainId, keep: u8) {
        debug_assert!(self.arena[index].children.is_empty());
        self.arena.unlink(index);
        self.arena.retire(index);
        let node = &mut self.arena[index];
        let parent = node.parent;
        self.tokens -= u64::from(node.len - keep);
        (node.len, node.valid, node.domain) = (keep, keep, domain);
        (node.sealed, node.warm, node.warm_valid) = (false, 0, 0);
        (node.class, node.last) = (Class::UNKNOWN, self.now);
        node.cuts.clear();
        self.arena.link(index);
        self.guards.shift(index, parent);
        self.evictions += 1;
    }

    /// Keeps a node that the next step copies from until [`Cache::commit`]: what is loaded into its slab, if it were given
    /// away, would come before the copy.
    pub fn hold(&mut self, node: NodeId) {
        let index = self.arena.index(node);
        self.mark(index, self.arena[index].valid);
    }

    /// Notes that slots of a node are computed in this step: until its end the node is pinned.
    pub(crate) fn mark(&mut self, index: u32, valid: u8) {
        if !self.arena[index].claimed {
            self.arena[index].claimed = true;
            self.claimed.push((index, valid));
            self.pin(index);
        }
    }

    /// Ends a step: what was claimed and not invalidated is computed. Changes no path.
    pub fn commit(&mut self) {
        let encodes = self.encodes();
        let mut claimed = std::mem::take(&mut self.claimed);
        for (index, valid) in claimed.drain(..) {
            let node = &mut self.arena[index];
            node.claimed = false;
            node.valid = node.len;
            let whole = node.len() == CHUNK && node.is_linked();
            if node.sealed {
                node.warm_valid = node.warm;
            } else if encodes && node.len() == CHUNK {
                (node.sealed, node.warm, node.warm_valid) = (true, node.len, node.len);
            }
            if whole && valid < CHUNK as u8 {
                self.note_unsaved(index);
            }
            self.unpin(index);
        }
        self.claimed = claimed;
    }

    /// Ends a step of which nothing was computed: the tree holds no more than before it, and nodes that it started are
    /// gone. What was evicted for it stays evicted. Paths learn of it as of [`Cache::invalidate`].
    pub fn abort(&mut self) {
        self.epoch += 1;
        let claimed = std::mem::take(&mut self.claimed);
        for &(index, valid) in &claimed {
            self.cut(index, valid);
        }
        for (index, _) in claimed {
            let node = &mut self.arena[index];
            node.claimed = false;
            node.warm = node.warm_valid;
            if node.sealed && node.warm == 0 {
                self.arena.close(index);
            }
            self.unpin(index);
        }
    }
}
