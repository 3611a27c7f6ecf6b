//! Which rows of a step cannot be computed because KV that they attend to is gone.

use kvist_base::{ChunkId, StepPlan, low_mask};

/// The rows lost so far, and why.
#[derive(Default)]
pub(crate) struct Lost {
    rows: Vec<Option<ChunkId>>,
    count: usize,
    /// Chunks that are not worth waiting for any more.
    chunks: Vec<ChunkId>,
    /// Chunks and slots whose readers are still to be found.
    open: Vec<(ChunkId, u64)>,
}

impl Lost {
    pub fn reset(&mut self, rows: usize) {
        self.rows.clear();
        self.rows.resize(rows, None);
        self.count = 0;
        self.chunks.clear();
    }

    /// The chunk that row `row` is lost with.
    pub fn row(&self, row: usize) -> Option<ChunkId> {
        self.rows[row]
    }

    pub fn is_lost(&self, chunk: ChunkId) -> bool {
        self.chunks.contains(&chunk)
    }

    /// The chunks that were lost, copies of such included.
    pub fn chunks(&self) -> &[ChunkId] {
        &self.chunks
    }

    pub fn any(&self) -> bool {
        self.count > 0
    }

    /// No row is left to compute.
    pub fn all(&self) -> bool {
        self.count == self.rows.len()
    }

    /// A slice of `chunk` will not come: loses every row that sees one of its slots.
    pub fn chunk(&mut self, plan: &StepPlan, chunk: ChunkId) {
        self.chunks.push(chunk);
        self.readers(plan, chunk, u64::MAX, chunk);
    }

    /// The first `n` slots of `copy` were to be copied from `chunk`, which is lost.
    pub fn copy(&mut self, plan: &StepPlan, chunk: ChunkId, copy: ChunkId, n: usize) {
        self.chunks.push(copy);
        self.readers(plan, copy, low_mask(n), chunk);
    }

    /// Loses the rows that see any of `slots`, then those that see what these rows write, and so on.
    fn readers(&mut self, plan: &StepPlan, chunk: ChunkId, slots: u64, cause: ChunkId) {
        self.open.push((chunk, slots));
        while let Some((chunk, slots)) = self.open.pop() {
            // What is sealed from it is lost whole.
            self.open.extend(plan.seals.iter().filter(|s| s.from == chunk).map(|s| (s.to, u64::MAX)));
            for list in &plan.classes {
                for run in &list.runs {
                    let chunks = &list.chunks[run.chunks.start as usize..run.chunks.end as usize];
                    for (i, _) in chunks.iter().enumerate().filter(|(_, c)| **c == chunk) {
                        for row in run.rows.clone() {
                            let lost = &mut self.rows[row as usize];
                            if lost.is_none() && list.mask(run, i as u32, row) & slots != 0 {
                                *lost = Some(cause);
                                self.count += 1;
                                self.open.extend(plan.rows[row as usize].write.map(|s| (s.chunk, 1 << s.slot)));
                            }
                        }
                    }
                }
            }
        }
    }
}
