//! What lies below RAM, as the engine sees it: it asks and orders, and nothing blocks. The slices themselves go past the
//! engine, by way of [`crate::Residency`], into the executor's pool.

use crate::eviction::{Class, Valuation};
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

/// For whom a load is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// Somebody in the queue.
    Waiting,
    /// Somebody who runs beside others.
    Running,
    /// The only one who runs.
    Alone,
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
    /// Nothing more comes before a step takes what has come: there is no room for it.
    pub held: bool,
}

/// A tier below RAM. What it finds may be lost by the time it is loaded; what it loads is verified. A tier that never drops
/// anything need not listen to who wants what.
pub trait Tier: Send {
    /// What could be loaded of `tokens` for `domain` behind the first `from` tokens, a multiple of [`crate::CHUNK`].
    fn probe(&self, domain: DomainId, tokens: &[TokenId], from: usize) -> Found;

    /// Chunks that could be begun to load now: what may be on its way at once is bounded. Who waits leaves room for who runs.
    /// Who is alone may load any number if nothing is on its way: his step takes what comes, and holds up nobody else.
    fn room(&self, who: For) -> usize;

    /// How long a load of `chunks` would take if it began now.
    fn estimate(&self, chunks: usize) -> Micros;

    /// Begins a load of chunks that there is [`Tier::room`] for, layer by layer.
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

    /// Chunks that it has room for.
    fn capacity(&self) -> u64 {
        u64::MAX
    }

    /// A request waits that will use this path: what the tier holds of it goes last, that of the worst rank first (0 is
    /// served next). A ticket wants one path until [`Tier::unwant`]; asking again replaces it.
    fn want(&mut self, _ticket: u64, _domain: DomainId, _tokens: &[TokenId], _rank: u32) {}

    /// Ends what [`Tier::want`] began.
    fn unwant(&mut self, _ticket: u64) {}

    /// A request ended that used these whole chunks, in `domain` or public. `classes`: what is expected of each from now
    /// on; none where the order does not go by them.
    fn left(&mut self, _domain: DomainId, _tokens: &[TokenId], _classes: &[Class]) {}

    /// What it is worth to hold a chunk from now on.
    fn value(&mut self, _valuation: &Valuation) {}
}
