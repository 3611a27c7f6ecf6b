//! Which chunks are kept: who waits for what, what is expected of what was used, and what is not worth its room.

use kvist_base::eviction::{Class, Valuation};
use kvist_base::{CHUNK, DomainId, TokenId};

use crate::index::{NodeId, moment};
use crate::reclaim::full;
use crate::state::Canary;
use crate::store::Store;

impl Store {
    /// Chunks that there is room for.
    pub fn capacity(&self) -> u64 {
        let shared = self.shared();
        full(shared.state().allowed) / shared.geometry.weight()
    }

    /// A request waits that will use this path of `domain`, and what of it is public: what is here of it goes last, of the
    /// worst rank first (0 is served next), until [`Store::unwant`]. A ticket wants one path; asking again replaces it.
    pub fn want(&self, ticket: u64, domain: DomainId, tokens: &[TokenId], rank: u32) {
        if self.shared().canary == Canary::IgnoreWants {
            return;
        }
        let mut state = self.shared().state();
        let state = &mut *state;
        // A carried path finds nothing public.
        let public = if domain.is_carried() { domain } else { DomainId::PUBLIC };
        for (ticket, domain) in tickets(ticket).zip([public, domain]) {
            let path = state.bound.get(&domain).map(|&domain| state.index.walk(domain, tokens));
            let last = path.and_then(|path| path.take_while(|&id| state.index.node(id).present()).last());
            match last {
                Some(last) => state.index.leaves.want(ticket, last, rank),
                None => state.index.leaves.unwant(ticket),
            }
        }
    }

    /// Nothing happens for a ticket that wants nothing.
    pub fn unwant(&self, ticket: u64) {
        let mut state = self.shared().state();
        tickets(ticket).for_each(|ticket| state.index.leaves.unwant(ticket));
    }

    /// Paths that are wanted, public parts counted by themselves.
    pub fn wants(&self) -> usize {
        self.shared().state().index.leaves.tickets()
    }

    /// The chunks of a path from chunk `first` on were used just now, and `classes` are what is expected of them, as far as
    /// there are so many.
    pub fn expect(&self, domain: DomainId, tokens: &[TokenId], first: usize, classes: &[Class]) {
        let shared = self.shared();
        let now = shared.vfs.now() as i64;
        let mut state = shared.state();
        let Some(&domain) = state.bound.get(&domain) else { return };
        let path: Vec<NodeId> = state.index.walk(domain, tokens).skip(first).collect();
        for (i, id) in path.into_iter().enumerate() {
            if let Some(&class) = classes.get(i) {
                state.index.node_mut(id).class = class;
            }
            state.index.touch(id, now);
            state.index.refresh(id);
        }
    }

    /// What it is worth to hold a chunk from now on.
    pub fn value(&self, valuation: &Valuation) {
        self.shared().state().index.leaves.value(valuation);
    }

    /// How many of new chunks, which follow one another on a path from chunk `first` on, are worth saving: all of them while
    /// there is room; otherwise those before the first that is worth less than what would have to go for it. The first
    /// `again` of them were offered before and are not counted if they are refused.
    pub fn admit(&self, domain: DomainId, tokens: &[TokenId], first: usize, again: usize, classes: &[Class]) -> usize {
        let shared = self.shared();
        let now = moment(shared.vfs.now() as i64);
        let mut state = shared.state();
        let need = state.queued + classes.len() as u64 * shared.geometry.weight();
        let room = state.bytes() + need <= state.allowed || state.live() + need <= full(state.allowed);
        if room {
            return classes.len();
        }
        let above = &tokens[..first * CHUNK];
        let above = state.bound.get(&domain).and_then(|&domain| state.index.walk(domain, above).last());
        let chunks = classes.iter().copied().zip(first as u32..);
        let admitted = state.index.leaves.admits(chunks, above, now);
        state.counters.not_admitted += (classes.len() - admitted).min(classes.len() - again) as u64;
        admitted
    }
}

/// A ticket of each of the two trees in which a path may lie.
fn tickets(ticket: u64) -> impl Iterator<Item = u64> {
    [ticket << 1, ticket << 1 | 1].into_iter()
}
