//! What the tier below is told of who waits and of what requests were, so that it keeps what will be needed.

use kvist_base::{CHUNK, DomainId, TokenId};
use kvist_cache::policy::{Class, Windows};

use crate::engine::Engine;
use crate::sequence::Sequence;

impl Engine {
    /// Who waits within the look-ahead window wants what the tier holds for it, who does not does not: as many of the waiting
    /// requests, in the order in which they will be served, as memory and tier have room for together (AttentionStore's L_ew).
    pub(crate) fn look_ahead(&mut self) {
        let Some(tiers) = self.tiers.as_mut().filter(|_| self.config.look_ahead && !self.waiting.is_empty()) else {
            return;
        };
        let requests = &self.requests;
        let loads = |s: &Sequence| !requests[&s.id].scoring();
        let mut order: Vec<usize> = (0..self.waiting.len()).filter(|&i| loads(&self.waiting[i])).collect();
        order.sort_unstable_by_key(|&i| (self.waiting[i].rank, self.waiting[i].ticket()));
        let window = Windows::new(self.cache.available().into(), tiers.tier.capacity()).keep;
        let chunks = order.iter().map(|&i| (self.waiting[i].tokens.len() / CHUNK) as u64);
        let within = Windows::requests(window, chunks);
        for (place, i) in order.into_iter().enumerate() {
            let s = &mut self.waiting[i];
            match (s.wants, place < within) {
                (false, true) => tiers.tier.want(s.ticket(), s.domain, &s.tokens, s.rank),
                (true, false) => tiers.tier.unwant(s.ticket()),
                _ => continue,
            }
            s.wants = !s.wants;
        }
    }

    /// Sequences that the tier was told to keep something for.
    pub fn wants(&self) -> usize {
        self.waiting.iter().chain(&self.running).filter(|s| s.wants).count()
    }

    /// More may be there, or less, than when a waiting request was told of.
    pub(crate) fn look_again(&mut self, i: usize) {
        if let Some(tiers) = &mut self.tiers
            && let s = &self.waiting[i]
            && s.wants
        {
            tiers.tier.want(s.ticket(), s.domain, &s.tokens, s.rank);
        }
    }

    /// A sequence needs nothing more of the tier.
    pub(crate) fn unwant(&mut self, s: &mut Sequence) {
        if std::mem::take(&mut s.wants)
            && let Some(tiers) = &mut self.tiers
        {
            tiers.tier.unwant(s.ticket());
        }
    }

    /// A request ended that used `tokens`.
    pub(crate) fn tell_left(&mut self, domain: DomainId, tokens: &[TokenId], classes: &[Class]) {
        let Some(tiers) = &mut self.tiers else { return };
        tiers.value(self.cache.valuation());
        let whole = &tokens[..tokens.len() / CHUNK * CHUNK];
        if !whole.is_empty() {
            tiers.tier.left(domain, whole, classes);
        }
    }
}
