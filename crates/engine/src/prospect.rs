//! What would become of a prompt, without doing it.

use kvist_base::{CHUNK, DomainId, Micros, TokenId};

use crate::carry::Carry;
use crate::engine::Engine;

/// What a prompt would find now, and what the rest would take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prospect {
    /// Tokens in the tree.
    pub ram: usize,
    /// Tokens in the tier behind the whole chunks of these.
    pub tier: usize,
    /// Whether these would be loaded: not if computing them takes less time.
    pub loads: bool,
    /// Of both, tokens that are carried on from where they lie under the name of another path.
    pub carried: usize,
    /// For the load to come in full.
    pub load: Micros,
    /// For the rows that are then left, alone in their steps; `None` until enough steps were seen.
    pub compute: Option<Micros>,
    /// The path in the tree that agrees longest with the prompt, to the end of the chunk in which they part.
    pub nearest: Vec<TokenId>,
}

impl Prospect {
    /// Tokens of a prompt of `tokens` that would not be computed: its last one always is.
    pub fn cached(&self, tokens: usize) -> usize {
        let loaded = if self.loads { self.ram / CHUNK * CHUNK + self.tier } else { 0 };
        self.ram.max(loaded).min(tokens.saturating_sub(1))
    }
}

impl Engine {
    /// What `tokens` would find in a domain, or in the namespace of `carry`, if they came now. Changes nothing.
    pub fn prospect(&self, domain: DomainId, tokens: &[TokenId], carry: Option<&Carry>) -> Prospect {
        let domain = carry.map_or(domain, |carry| carry.space);
        let ram = self.cache.probe(domain, tokens);
        let mut prospect = Prospect { ram, nearest: self.cache.nearest(domain, tokens), ..Prospect::default() };
        let whole = ram / CHUNK * CHUNK;
        // As in `bring`: for the last chunk of an exact path nothing is loaded.
        if let Some(tiers) = &self.tiers
            && tokens.len() - whole >= CHUNK + usize::from(carry.is_none())
        {
            let found = tiers.tier.probe(domain, tokens, whole);
            let chunks = found.public + found.own;
            if whole + chunks * CHUNK > ram {
                let worth = self.found(domain, tokens, whole, whole).unwrap_or_default();
                prospect.tier = chunks * CHUNK;
                prospect.loads = worth.public + worth.own > 0;
            }
        }
        if let Some(carry) = carry {
            let place = whole + if prospect.loads { prospect.tier } else { 0 };
            let (copied, loaded) = self.expect_carried(tokens, carry, place);
            if copied + loaded > 0 {
                prospect.ram = whole + copied;
                prospect.tier = loaded + if prospect.loads { prospect.tier } else { 0 };
                prospect.loads |= loaded > 0;
                prospect.carried = copied + loaded;
            }
        }
        if let Some(tiers) = self.tiers.as_ref().filter(|_| prospect.tier > 0) {
            prospect.load = tiers.tier.estimate(prospect.tier / CHUNK);
        }
        prospect.compute = self.time_of_prompt(prospect.cached(tokens.len()), tokens.len());
        prospect
    }

    /// Of steps that are full of one prompt's rows `from..to`.
    fn time_of_prompt(&self, from: usize, to: usize) -> Option<Micros> {
        let step = self.config.max_step_rows;
        let starts = (from..to).step_by(step);
        starts.map(|at| self.budget.time_of(step.min(to - at), at / CHUNK)).sum()
    }
}
