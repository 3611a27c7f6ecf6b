//! When requests come and end: what the tree learns of who comes back, and when.

use std::sync::Arc;

use kvist_base::{CHUNK, DomainId, Micros, TokenId};

use crate::path::Path;
use crate::policy::{Class, End, Order, Place, Valuation, Visit};
use crate::tree::Cache;

impl Cache {
    /// A request for `tokens` comes. What it uses of earlier ones has come back, whether the tree still holds it or not.
    /// Changes nothing in the tree but what it expects.
    pub fn enter(&mut self, domain: DomainId, tokens: &[TokenId], now: Micros) -> Visit {
        self.now = self.now.max(now);
        let open = |known: usize| Some(Keys::open(domain, &tokens[..known * CHUNK], tokens.get(known * CHUNK)?));
        self.returns.arrive(self.now, Keys::new(domain, tokens), open)
    }

    /// A request ends, or one of its choices: to be called before [`Cache::release`]. `tokens` begin with those of the
    /// path, of which the first `prompt` are the prompt. From now on the path's nodes are held as long as is worth it.
    /// Returns the classes of its whole chunks, where the order goes by them.
    pub fn leave(
        &mut self,
        path: &mut Path,
        domain: DomainId,
        tokens: &[TokenId],
        prompt: usize,
        visit: &Visit,
        now: Micros,
    ) -> Vec<Class> {
        self.sync(path);
        self.now = self.now.max(now);
        let used = &tokens[..path.used];
        let whole = used.len() / CHUNK * CHUNK;
        let mut keys: Vec<u64> = Keys::new(domain, used).collect();
        keys.extend(used.get(whole).map(|first| Keys::open(domain, &used[..whole], first)));
        let end = End {
            prompt: prompt as u32,
            fresh: prompt.saturating_sub(visit.known * CHUNK) as u32,
            reply: used.len().saturating_sub(prompt) as u32,
            open: whole < used.len(),
        };
        if self.valuation.order != Order::Returns {
            let nodes = path.nodes.iter().filter(|_| self.valuation.counts_uses());
            nodes.for_each(|node| self.arena[node.index].last = self.now);
            return Vec::new();
        }
        let arena = &mut self.arena;
        let last = self.now;
        let mut classes = Vec::with_capacity(keys.len());
        self.returns.leave(last, visit, &end, &keys, |level, class| {
            let node = &mut arena[path.nodes[level].index];
            (node.class, node.last) = (class, last);
            classes.push(class);
        });
        if !Arc::ptr_eq(&self.valuation.worths, self.returns.worths()) {
            self.valuation.worths = Arc::clone(self.returns.worths());
        }
        classes.truncate(whole / CHUNK);
        classes
    }

    /// What it is worth to hold a chunk, as far as is known now.
    pub fn valuation(&self) -> &Valuation {
        &self.valuation
    }

    /// Where a node without pins and children stands in the eviction queue.
    pub(crate) fn place(&self, index: u32) -> Place {
        let node = &self.arena[index];
        let band = self.valuation.band(node.class, node.depth);
        let guard = self.guards.rank(index).map_or(0, |rank| 1 + u64::from(u32::MAX - rank));
        Place { guard, band, last: node.last, tie: 0 }
    }

    pub(crate) fn worth(&self, band: u32, last: Micros) -> u128 {
        self.valuation.worth(band, last, self.now)
    }
}

/// Digests of the whole chunks of a text, each of all tokens up to its end.
pub(crate) struct Keys<'a> {
    state: u64,
    chunks: std::slice::ChunksExact<'a, TokenId>,
}

impl<'a> Keys<'a> {
    pub fn new(domain: DomainId, tokens: &'a [TokenId]) -> Keys<'a> {
        Keys { state: mix(u64::from(domain.0)), chunks: tokens.chunks_exact(CHUNK) }
    }

    /// Of a chunk that is not full: as it may grow, it goes by what is before it and by its first token.
    pub fn open(domain: DomainId, before: &[TokenId], first: &TokenId) -> u64 {
        let above = Keys::new(domain, before).last().unwrap_or_else(|| mix(u64::from(domain.0)));
        mix(above ^ (1 << 63 | u64::from(*first)))
    }
}

impl Iterator for Keys<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let chunk = self.chunks.next()?;
        let absorb = |state: u64, &token: &TokenId| {
            (state ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
        };
        self.state = mix(chunk.iter().fold(self.state, absorb));
        Some(self.state)
    }
}

/// The finaliser of splitmix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
