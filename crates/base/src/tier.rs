//! What lies below RAM, as the engine sees it: it asks and orders, and nothing blocks. The slices themselves go past the
//! engine, by way of [`crate::Residency`], into the executor's pool.

use crate::{ChunkId, DomainId, Micros, TokenId};

/// Name of a load, unique for the life of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LoadId(pub u64);

/// What a tier holds of a path behind the part that was asked about, in whole chunks: first public ones, then the
/// domain's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub public: usize,
    pub own: usize,
}

/// Chunks that are to come.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    pub id: LoadId,
    /// Whose: the public domain or one of its own.
    pub domain: DomainId,
    /// The path from its root to the end of the last chunk.
    pub tokens: &'a [TokenId],
    /// Slabs of the path's last chunks, in order.
    pub chunks: &'a [ChunkId],
    /// Somebody waits for it; otherwise it is read ahead.
    pub urgent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadState {
    /// Layers of which all the load's slices have arrived; they arrive in the order of layers.
    pub layers: usize,
    /// Until all of them have, as far as known.
    pub left: Micros,
    /// A chunk, by its place in the load, of which a slice will not come.
    pub lost: Option<usize>,
}

/// A tier below RAM. What it finds may be lost by the time it is loaded; what it loads is verified.
pub trait Tier: Send {
    /// What could be loaded of `tokens` for `domain` behind the first `from` tokens, a multiple of [`crate::CHUNK`].
    fn probe(&self, domain: DomainId, tokens: &[TokenId], from: usize) -> Found;

    /// Chunks that could be begun to load now: what may be on its way at once is bounded.
    fn room(&self) -> usize;

    /// How long a load of `chunks` would take if it began now.
    fn estimate(&self, chunks: usize) -> Micros;

    /// Begins a load of at most [`Tier::room`] chunks, layer by layer.
    fn load(&mut self, load: Load);

    /// Somebody waits for it now.
    fn hurry(&mut self, load: LoadId);

    /// # Panics
    /// May panic for a load that was ended.
    fn state(&self, load: LoadId) -> LoadState;

    /// One of a load's chunks, by its place in the load, is wanted no more: its slab may be another's from now on.
    fn forget(&mut self, load: LoadId, place: usize);

    /// Ends a load, finished or not: nothing of it is asked for any more.
    fn end(&mut self, load: LoadId);
}
