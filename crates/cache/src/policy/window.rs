//! How far into the queue of waiting requests to look (AttentionStore, arXiv 2403.19708, sections 3.3.1 and 3.3.2), in
//! chunks instead of whole sessions.

/// Bounds in chunks, counted over the waiting requests in the order in which they will be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Chunks to be fetched into memory ahead of their requests: L_pw sessions of S_kv.
    pub fetch: u64,
    /// Chunks not to be dropped, and those last demoted that are needed first: L_ew sessions of S_kv.
    pub keep: u64,
}

impl Windows {
    /// `memory`: chunks that memory has room for, those in use by running requests not counted. `disk`: chunks below it.
    pub fn new(memory: u64, disk: u64) -> Windows {
        Windows { fetch: memory, keep: memory.saturating_add(disk) }
    }

    /// How many of the waiting requests, which want `chunks` each, lie within a bound.
    pub fn requests(bound: u64, chunks: impl IntoIterator<Item = u64>) -> usize {
        let mut sum = 0u64;
        chunks
            .into_iter()
            .take_while(|&chunks| {
                sum = sum.saturating_add(chunks);
                sum <= bound
            })
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_sessions_that_fit() {
        let windows = Windows::new(10, 20);
        assert_eq!(Windows::requests(windows.fetch, [4, 4, 4]), 2);
        assert_eq!(Windows::requests(windows.keep, [4; 100]), 7, "30 / 4");
        assert_eq!(Windows::requests(windows.keep, [u64::MAX, 1]), 0);
    }
}
