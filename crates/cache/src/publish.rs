//! Public prefixes: what the operator publishes to every domain.

use kvist_base::{CHUNK, DomainId, TokenId};

use crate::node::{NodeId, ROOT, State};
use crate::tree::Cache;

/// Answer to [`Cache::publish`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "paths must be remapped"]
pub struct Publish {
    /// Tokens of the prefix that are public now: whole chunks.
    pub tokens: usize,
    /// Nodes that were merged, and the public ones that took their place. [`Cache::remap`] applies it to a path.
    pub remap: Vec<(NodeId, NodeId)>,
}

impl Cache {
    /// Makes the whole chunks of `tokens` that `domain` holds public. Private nodes of any domain (but carried ones,
    /// whose KV may be another) that hold the same chunk in the same place are merged into the public node: their
    /// children are re-hung below it, their pins move.
    ///
    /// Changes no tokens, no slot, and no path's length; evicts nothing. What hangs below stays private to its domain.
    ///
    /// # Panics
    /// Within a step: merged slabs would be freed under the rows that read them.
    pub fn publish(&mut self, domain: DomainId, tokens: &[TokenId]) -> Publish {
        assert!(self.claimed.is_empty(), "publish between steps");
        let mut out = Publish::default();
        let mut parent = ROOT;
        for window in tokens.chunks_exact(CHUNK) {
            let node = match self.arena.whole(parent, DomainId::PUBLIC, window) {
                Some(public) => public,
                None => {
                    let Some(own) = self.arena.whole(parent, domain, window) else { break };
                    self.arena.unlink(own);
                    self.arena[own].domain = DomainId::PUBLIC;
                    self.arena.link(own);
                    self.note_unsaved(own);
                    let equals = self.equals(parent, window);
                    if !equals.is_empty() {
                        self.epoch += 1;
                        self.arena[own].merged = self.epoch;
                    }
                    for other in equals {
                        out.remap.push((self.arena.id(other), self.arena.id(own)));
                        self.merge(other, own);
                    }
                    own
                }
            };
            out.tokens += CHUNK;
            parent = node;
        }
        out
    }

    /// Ends the publication of a prefix: its public nodes and all below them, private ones too, leave the tree; slabs
    /// are freed when their last pin goes. Chunks that other public prefixes share stay. Returns how many nodes left.
    ///
    /// Changes no path: [`Cache::truncate`] tells what still stands of one.
    pub fn unpublish(&mut self, tokens: &[TokenId]) -> u64 {
        let mut parent = ROOT;
        let mut top = None;
        for window in tokens.chunks_exact(CHUNK) {
            let Some(public) = self.arena.whole(parent, DomainId::PUBLIC, window) else { break };
            let shared = self.arena.lower_bound(parent, DomainId(DomainId::PUBLIC.0 + 1), &[]) > 1;
            if top.is_none() || shared {
                top = Some(public);
            }
            parent = public;
        }
        let before = self.unlinked;
        if let Some(top) = top {
            self.epoch += 1;
            self.detach(top);
        }
        self.unlinked - before
    }

    /// The private children of `parent`, of any domain but those of carried paths, that hold exactly this whole chunk.
    pub(crate) fn equals(&self, parent: u32, window: &[TokenId]) -> Vec<u32> {
        let children = &self.arena[parent].children;
        let mut equal = Vec::new();
        let mut after = DomainId::PUBLIC;
        while let Some(next) = after.0.checked_add(1)
            && let Some(&child) = children.get(self.arena.lower_bound(parent, DomainId(next), &[]))
        {
            after = self.arena[child].domain;
            if after.is_carried() {
                break;
            }
            equal.extend(self.arena.whole(parent, after, window));
        }
        equal
    }

    /// Merges a node into a public sibling with the same tokens.
    fn merge(&mut self, from: u32, into: u32) {
        let parent = self.arena[into].parent;
        self.arena.unlink(from);
        let used = self.arena[from].refs > 0;
        let children = std::mem::take(&mut self.arena[from].children);
        let at = self.arena.lower_bound(into, self.arena[from].domain, &[]);
        self.arena[into].children.splice(at..at, children.iter().copied());
        for child in children {
            self.arena[child].parent = into;
            if self.arena[child].refs > 0 {
                self.pin(into);
                self.arena[from].refs -= 1;
            }
        }
        let node = &mut self.arena[from];
        (node.state, node.parent) = (State::Merged, into);
        let (last, held, len) = (node.last, node.refs > 0, node.len);
        // Paths that end in `from`, and unlinked nodes below it, hold it until they are brought up to date; it holds
        // `into` meanwhile, as it held its parent.
        if held {
            self.pin(into);
        }
        if used {
            self.unpin(parent);
        }
        self.linked -= 1;
        self.tokens -= u64::from(len);
        self.merges += 1;
        self.arena.close(from);
        self.guards.shift(from, into);
        self.refresh(from);
        if !held {
            self.pinned -= u32::from(used);
            self.arena.give(from);
        }
        let node = &mut self.arena[into];
        node.last = node.last.max(last);
        self.refresh(into);
    }
}
