//! What would become of a prompt, without doing it.

use kvist_base::{CHUNK, DomainId, Micros, TokenId};

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
    /// What `tokens` would find in a domain if they came now. Changes nothing.
    pub fn prospect(&self, domain: DomainId, tokens: &[TokenId]) -> Prospect {
        let ram = self.cache.probe(domain, tokens);
        let mut prospect = Prospect { ram, nearest: self.cache.nearest(domain, tokens), ..Prospect::default() };
        let whole = ram / CHUNK * CHUNK;
        // As in `load_for`: for the last chunk nothing is loaded.
        if let Some(tiers) = &self.tiers
            && tokens.len() - whole > CHUNK
        {
            let found = tiers.tier.probe(domain, tokens, whole);
            let chunks = found.public + found.own;
            if whole + chunks * CHUNK > ram {
                prospect.tier = chunks * CHUNK;
                prospect.load = tiers.tier.estimate(chunks);
                prospect.loads = self.expect(domain, tokens, None) > ram;
            }
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
