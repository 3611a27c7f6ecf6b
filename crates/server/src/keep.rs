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
    /// Chunks that are handed over at a time: no more than may wait to be written, or they would be refused for ever.
    run: usize,
    /// Nothing is offered before.
    later: Micros,
    /// What does not fit the store's domains can never be saved.
    refused: u64,
}

impl Keeper {
    pub fn new(tier: StoreTier) -> Keeper {
        let config = tier.store().config();
        let run = (config.saves / config.chunk_bytes() as u64).clamp(1, EXTENT as u64) as usize;
        Keeper { tier, run, later: 0, refused: 0 }
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
            let unsaved = first(unsaved, self.run);
            match self.hand_over(&unsaved, executor) {
                Some(Saved::Queued(_) | Saved::Known) | None => engine.saved(unsaved.chunks.len()),
                Some(Saved::Full) => self.later = now + LATER,
                // The store says why in its statistics, and takes up saving by itself.
                Some(Saved::Off) if self.tier.store().stats().degraded.is_some() => self.later = now + 20 * LATER,
                Some(Saved::Off | Saved::Parentless) => {
                    self.refused += unsaved.chunks.len() as u64;
                    engine.saved(unsaved.chunks.len());
                }
            }
        }
    }

    /// `None`: the first of them is not worth the room that it would take, so that none can be saved.
    fn hand_over(&self, unsaved: &Unsaved, executor: &dyn Executor) -> Option<Saved> {
        let Unsaved { domain, tokens, chunks, above, classes } = unsaved;
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
        if known == first + chunks.len() {
            return Some(Saved::Known);
        }
        let missing = first.saturating_sub(known);
        if missing > above.len() {
            return Some(Saved::Parentless);
        }
        let (above, chunks) = (&above[above.len() - missing..], &chunks[known.saturating_sub(first)..]);
        let classes = &classes[classes.len() - missing - chunks.len()..];
        // Before a byte is copied.
        let worthy = store.admit(*domain, tokens, known, missing, classes).checked_sub(missing).filter(|&n| n > 0)?;
        let save = |at: usize, part: &[ChunkId]| {
            let path = &tokens[..(at + part.len()) * CHUNK];
            let saved = store.save(*domain, path, at, read(part));
            // What ended already is told of no more.
            store.expect(*domain, path, at, &classes[at - known..]);
            saved
        };
        for (i, part) in above.chunks(self.run).enumerate() {
            match save(known + i * self.run, part) {
                Saved::Queued(_) | Saved::Known => {}
                other => return Some(other),
            }
        }
        Some(save(known + missing, &chunks[..worthy]))
    }
}

/// The first `most` of the chunks.
fn first(mut unsaved: Unsaved, most: usize) -> Unsaved {
    let over = unsaved.chunks.len().saturating_sub(most);
    unsaved.chunks.truncate(most);
    unsaved.tokens.truncate(unsaved.tokens.len() - over * CHUNK);
    unsaved.classes.truncate(unsaved.classes.len() - over);
    unsaved
}

/// Fills a table with the replies of a domain that a store remembers.
pub fn recall(replies: &ReplyTable, store: &Store, domain: DomainId) {
    for (key, ids) in store.notes(domain, REPLY) {
        replies.restore(domain, &key, &ids);
    }
}
