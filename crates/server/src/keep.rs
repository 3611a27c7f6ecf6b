//! Between engine, executor and store: whole chunks are handed over after each step, while their slabs still hold them.

use kvist_base::{CHUNK, ChunkId, DomainId, Executor, Micros};
use kvist_cache::Unsaved;
use kvist_engine::{EXTENT, Engine};
use kvist_store::{Saved, Store, StoreTier};
use kvist_text::ReplyTable;

/// Kind of the store's notes that hold replies.
pub(crate) const REPLY: u8 = 1;

/// Until chunks that could not be taken are offered again.
const LATER: Micros = 50_000;

/// Saves what becomes whole. What the store cannot take now stays in the engine's list as long as it stays in RAM.
pub struct Keeper {
    tier: StoreTier,
    /// Nothing is offered before.
    later: Micros,
    /// What does not fit the store's domains can never be saved.
    refused: u64,
}

impl Keeper {
    pub fn new(tier: StoreTier) -> Keeper {
        Keeper { tier, later: 0, refused: 0 }
    }

    pub fn tier(&self) -> &StoreTier {
        &self.tier
    }

    /// When [`Keeper::save`] should be called though no step ran, if something waits for it.
    pub fn waits(&self, engine: &Engine) -> bool {
        engine.stats().cache.unsaved > 0
    }

    /// Hands over what the engine has, between two steps. Copies the chunks and does no I/O.
    pub fn save(&mut self, engine: &mut Engine, executor: &dyn Executor, now: Micros) {
        while now >= self.later
            && let Some(unsaved) = engine.unsaved()
        {
            match self.hand_over(&unsaved, executor) {
                Saved::Queued(_) | Saved::Known => engine.saved(unsaved.chunks.len()),
                Saved::Full => self.later = now + LATER,
                // The store says why in its statistics, and takes up saving by itself.
                Saved::Off if self.tier.store().stats().degraded.is_some() => self.later = now + 20 * LATER,
                Saved::Off | Saved::Parentless => {
                    self.refused += unsaved.chunks.len() as u64;
                    engine.saved(unsaved.chunks.len());
                }
            }
        }
    }

    fn hand_over(&self, unsaved: &Unsaved, executor: &dyn Executor) -> Saved {
        let Unsaved { domain, tokens, chunks, above } = unsaved;
        let first = tokens.len() / CHUNK - chunks.len();
        let store = self.tier.store();
        let read = |chunks: &[ChunkId]| -> Vec<Vec<u8>> {
            let read = |chunk: &ChunkId| {
                let mut bytes = Vec::with_capacity(executor.info().layout.bytes);
                executor.read_chunk(*chunk, &mut bytes);
                bytes
            };
            chunks.iter().map(read).collect()
        };
        // A domain's files hold whole paths: what is above and is not there goes first, as where a tenant's conversation
        // begins with a public prompt.
        let known = store.probe(*domain, tokens, 0) / CHUNK;
        let missing = first.saturating_sub(known);
        if missing > above.len() {
            return Saved::Parentless;
        }
        for (i, part) in above[above.len() - missing..].chunks(EXTENT).enumerate() {
            let at = first - missing + i * EXTENT;
            match store.save(*domain, &tokens[..(at + part.len()) * CHUNK], at, read(part)) {
                Saved::Queued(_) | Saved::Known => {}
                other => return other,
            }
        }
        store.save(*domain, tokens, first, read(chunks))
    }
}

/// Fills a table with the replies of a domain that a store remembers.
pub fn recall(replies: &ReplyTable, store: &Store, domain: DomainId) {
    for (key, ids) in store.notes(domain, REPLY) {
        replies.restore(domain, &key, &ids);
    }
}
