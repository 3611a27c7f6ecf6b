//! The order of children, and the search in it. Children are sorted by (domain, tokens, index), tokens compared as
//! slices, so a node stands before those that go on from it. The longest common prefix with any child of a domain is
//! that with a neighbour of the insertion point.

use std::cmp::Ordering;

use kvist_base::{CHUNK, DomainId, TokenId};

use crate::campaign::Canary;
use crate::node::{Arena, State};

/// A child and how many of its first tokens agree with what was looked for (at least one).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Match {
    pub node: u32,
    pub n: usize,
}

pub(crate) fn common(a: &[TokenId], b: &[TokenId]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Arena {
    fn compare(&self, child: u32, domain: DomainId, tokens: &[TokenId]) -> Ordering {
        let node = &self[child];
        node.domain.cmp(&domain).then_with(|| node.tokens().cmp(tokens))
    }

    /// Position of the first child that is not before (domain, tokens).
    pub fn lower_bound(&self, parent: u32, domain: DomainId, tokens: &[TokenId]) -> usize {
        self[parent].children.partition_point(|&child| self.compare(child, domain, tokens) == Ordering::Less)
    }

    /// Position of a linked node among its parent's children.
    pub fn position(&self, index: u32) -> usize {
        let node = &self[index];
        let before = |&child: &u32| self.compare(child, node.domain, node.tokens()).then(child.cmp(&index)).is_lt();
        self[node.parent].children.partition_point(before)
    }

    /// Puts a node where its parent, domain and tokens say.
    pub fn link(&mut self, index: u32) {
        self[index].state = State::Linked;
        let at = self.position(index);
        let parent = self[index].parent;
        self[parent].children.insert(at, index);
    }

    /// Takes a node out of its parent's children. Its state is the caller's to set.
    pub fn unlink(&mut self, index: u32) {
        let at = self.position(index);
        let parent = self[index].parent;
        let removed = self[parent].children.remove(at);
        assert_eq!(removed, index, "children out of order");
    }

    /// Appends tokens to a linked node. Its place changes only if a sibling after it goes on from its old tokens.
    pub fn grow(&mut self, index: u32, tokens: &[TokenId]) {
        let parent = self[index].parent;
        if self[parent].children.len() == 1 {
            return self[index].push(tokens);
        }
        let at = self.position(index);
        self[index].push(tokens);
        let node = &self[index];
        let next = self[parent].children.get(at + 1);
        if next.is_some_and(|&next| self.compare(next, node.domain, node.tokens()).then(next.cmp(&index)).is_lt()) {
            self[parent].children.remove(at);
            self.link(index);
        }
    }

    /// Drops the tokens of a linked node from slot `keep` on.
    pub fn shrink(&mut self, index: u32, keep: u8) {
        self.unlink(index);
        let node = &mut self[index];
        node.len = keep;
        node.valid = node.valid.min(keep);
        self.link(index);
    }

    /// The child of `parent` in `domain` that agrees longest with `window`; of several the one that ends with the match.
    fn longest(&self, parent: u32, domain: DomainId, window: &[TokenId]) -> Option<Match> {
        let children = &self[parent].children;
        let at = self.lower_bound(parent, domain, window);
        let measure = |at: usize| {
            let &node = children.get(at)?;
            let found = &self[node];
            let n = match self.canary {
                Canary::MatchByLength if found.domain == domain => found.len().min(window.len()),
                Canary::IgnoreDomain => common(found.tokens(), window),
                _ if found.domain == domain => common(found.tokens(), window),
                _ => 0,
            };
            (n > 0).then_some(Match { node, n })
        };
        let (before, after) = (at.checked_sub(1).and_then(measure), measure(at));
        let best = if after.map(|m| m.n) >= before.map(|m| m.n) { after } else { before }?;
        if self[best.node].len() > best.n && best.n < window.len() {
            let at = self.lower_bound(parent, domain, &window[..best.n]);
            let first = children[at];
            if self[first].domain == domain && self[first].len() == best.n {
                return Some(Match { node: first, n: best.n });
            }
        }
        Some(best)
    }

    /// The child of `parent` visible in `domain` that agrees longest with `window` (at most a chunk). Among equals: one
    /// that can be extended, then `current`, then a public one.
    pub fn best(&self, parent: u32, domain: DomainId, window: &[TokenId], current: Option<u32>) -> Option<Match> {
        debug_assert!(window.len() <= CHUNK);
        if self[parent].children.is_empty() {
            return None;
        }
        let public = if domain.is_carried() { None } else { self.longest(parent, DomainId::PUBLIC, window) };
        let own = if domain == DomainId::PUBLIC { None } else { self.longest(parent, domain, window) };
        let best = match (public, own) {
            (Some(public), Some(own)) if own.n > public.n || (own.n == public.n && self[own.node].len() == own.n) => {
                own
            }
            (Some(public), _) => public,
            (None, own) => own?,
        };
        let open = !self[best.node].is_public() && self[best.node].len() == best.n;
        match current {
            Some(node) if node != best.node => {
                let n = common(self[node].tokens(), window);
                let keep = n == best.n && (!open || self[node].len() == n);
                Some(if keep { Match { node, n } } else { best })
            }
            _ => Some(best),
        }
    }

    /// The child of exactly this domain that holds exactly this whole chunk, computed.
    pub fn whole(&self, parent: u32, domain: DomainId, window: &[TokenId]) -> Option<u32> {
        debug_assert_eq!(window.len(), CHUNK);
        let &child = self[parent].children.get(self.lower_bound(parent, domain, window))?;
        (self.compare(child, domain, window).is_eq() && self[child].valid() == CHUNK).then_some(child)
    }
}
