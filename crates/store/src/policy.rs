/// What a policy knows of a chunk that may have to go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Facts {
    /// Index of the chunk on its path.
    pub depth: u32,
    /// Bytes on disk.
    pub bytes: u64,
    /// Microseconds since it was last loaded or saved.
    pub idle: u64,
    /// Times it was loaded in this process.
    pub uses: u32,
}

/// How much a chunk is worth keeping; the least goes first, and chunks below it on its path go before it in any case.
pub type Policy = dyn Fn(&Facts) -> f64 + Send + Sync;

/// Least recently used; among equals the deepest.
pub fn least_recently_used(facts: &Facts) -> f64 {
    -(facts.idle as f64) - f64::from(facts.depth) * 1e-3
}
