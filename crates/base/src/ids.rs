use std::fmt;

/// Tokens in a chunk. One `u64` masks a chunk; it is also the sharing, quantisation and tier unit.
pub const CHUNK: usize = 64;

/// Softmax state restarts at every absolute multiple of this many tokens (numerics contract, line 2).
pub const SEGMENT: usize = 512;

/// Index into a model's vocabulary.
pub type TokenId = u32;

/// A slab of the KV pool: the KV of up to [`CHUNK`] consecutive tokens, all layers, all kv-heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkId(pub u32);

/// A trust domain. [`DomainId::PUBLIC`] holds what the operator publishes to every tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainId(pub u32);

impl DomainId {
    pub const PUBLIC: DomainId = DomainId(0);

    /// The `n`-th namespace of a path that was carried over a cut, `n` below 2^31. KV in it does not follow from its tokens
    /// alone, so that it sees nothing of any other domain, not even what is public.
    pub const fn carried(n: u32) -> DomainId {
        DomainId(1 << 31 | n)
    }

    pub const fn is_carried(self) -> bool {
        self.0 >= 1 << 31
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chunk {}", self.0)
    }
}

/// Mask of the first `n` slots of a chunk, `n <= 64`.
#[inline]
pub fn low_mask(n: usize) -> u64 {
    debug_assert!(n <= CHUNK);
    if n == 0 { 0 } else { u64::MAX >> (CHUNK - n) }
}
