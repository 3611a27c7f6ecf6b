//! From the paths of the scheduled sequences to a step plan's rows and runs.

use std::ops::Range;
use std::sync::Arc;

use kvist_base::{CHUNK, ChunkId, Run, RunList, SEGMENT, low_mask};

use crate::carry::Carry;

/// A chunk of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// What rows after the chunk attend to. Tells chunks apart.
    pub chunk: ChunkId,
    /// What rows that lie in the chunk attend to: the same, unless sealed chunks are encoded.
    pub open: ChunkId,
}

/// Makes the runs of a step out of the paths of its sequences. Kept from step to step, so that a steady step allocates
/// nothing.
#[derive(Debug, Default)]
pub struct Assembler {
    /// Chunks of all paths, one path after the other.
    places: Vec<Place>,
    branches: Vec<Branch>,
    /// Branches depth first.
    order: Vec<usize>,
    /// By place in `order`: number of the first row.
    starts: Vec<usize>,
    /// Groups of branches that share the chunk at a depth, leftmost on top: a single child continues its parent's run.
    open: Vec<Group>,
}

/// Rows of one sequence in a step: tokens at positions `[first, first + rows)` of a path.
#[derive(Clone, Debug)]
struct Branch {
    /// The chunks of the path.
    places: Range<usize>,
    first: usize,
    rows: usize,
    carry: Option<Arc<Carry>>,
}

/// A range of `order`, and a depth.
type Group = (usize, usize, usize);

impl Assembler {
    /// Forgets all branches.
    pub fn clear(&mut self) {
        self.places.clear();
        self.branches.clear();
    }

    /// Adds the rows of a sequence: tokens at positions `[first, first + rows)` of a path whose chunks cover them.
    pub fn push(&mut self, path: impl Iterator<Item = Place>, first: usize, rows: usize, carry: Option<&Arc<Carry>>) {
        let from = self.places.len();
        self.places.extend(path);
        self.branches.push(Branch { places: from..self.places.len(), first, rows, carry: carry.cloned() });
    }

    /// Orders the branches depth first, so that sequences that share nodes are neighbours, and lists what their rows
    /// attend to: every chunk once, however many sequences stand on it, coalesced to maximal runs. Returns the order, by
    /// the numbers of the branches as they were pushed; rows are numbered by it.
    pub fn assemble(&mut self, out: &mut RunList) -> &[usize] {
        out.clear();
        let Assembler { places, branches, order, starts, open } = self;
        order.clear();
        order.extend(0..branches.len());
        let chunks = |b: usize| &places[branches[b].places.clone()];
        // A slab belongs to one node, so lexicographic order of slabs groups shared prefixes at every depth.
        order.sort_unstable_by(|&a, &b| chunks(a).cmp(chunks(b)).then(a.cmp(&b)));
        starts.clear();
        let mut rows = 0;
        for &b in order.iter() {
            starts.push(rows);
            rows += branches[b].rows;
        }
        let mut walk = Walk { places, branches, order, starts, out };
        open.clear();
        walk.groups(0, order.len(), 0, open);
        while let Some((from, to, depth)) = open.pop() {
            if to - from == 1 {
                (depth..walk.chunks(from).len()).for_each(|d| walk.emit(from, to, d));
                continue;
            }
            walk.emit(from, to, depth);
            walk.groups(from, to, depth + 1, open);
        }
        order
    }
}

struct Walk<'a> {
    places: &'a [Place],
    branches: &'a [Branch],
    order: &'a [usize],
    starts: &'a [usize],
    out: &'a mut RunList,
}

impl<'a> Walk<'a> {
    fn branch(&self, i: usize) -> &'a Branch {
        &self.branches[self.order[i]]
    }

    fn chunks(&self, i: usize) -> &'a [Place] {
        &self.places[self.branch(i).places.clone()]
    }

    /// Splits `[from, to)` into groups with the same chunk at `depth`, leaving out paths that end before. The leftmost
    /// comes last.
    fn groups(&self, from: usize, to: usize, depth: usize, out: &mut Vec<Group>) {
        let chunk = |i: usize| self.chunks(i).get(depth).map(|place| place.chunk);
        let mut end = to;
        while end > from {
            let mut start = end - 1;
            while start > from && chunk(start - 1) == chunk(end - 1) {
                start -= 1;
            }
            if chunk(start).is_some() {
                out.push((start, end, depth));
            }
            end = start;
        }
    }

    /// Lets the rows of `[from, to)` that stand at or after the chunk attend to it.
    fn emit(&mut self, from: usize, to: usize, depth: usize) {
        let Place { chunk, open } = self.chunks(from)[depth];
        let start = depth * CHUNK;
        if chunk == open {
            return self.emit_to(from, to, depth, chunk, start..usize::MAX);
        }
        self.emit_to(from, to, depth, chunk, start + CHUNK..usize::MAX);
        self.emit_to(from, to, depth, open, start..start + CHUNK);
    }

    /// Lets the rows at `positions` attend to `chunk`, which stands at `depth`.
    fn emit_to(&mut self, from: usize, to: usize, depth: usize, chunk: ChunkId, positions: Range<usize>) {
        let place = depth * CHUNK;
        // Rows of a branch at these positions.
        let reach = |b: &Branch| {
            let row = |position: usize| position.saturating_sub(b.first).min(b.rows);
            row(positions.start)..row(positions.end)
        };
        let mut interval: Option<(usize, usize)> = None;
        for i in from..to {
            let b = self.branch(i);
            let rows = reach(b);
            if !rows.is_empty() {
                let (lo, hi) = (self.starts[i] + rows.start, self.starts[i] + rows.end);
                interval = Some(interval.map_or((lo, hi), |(l, _)| (l, hi)));
            }
        }
        let Some((lo, hi)) = interval else { return };
        let masks_from = self.out.masks.len();
        let mut partial = false;
        for i in from..to {
            let b = self.branch(i);
            let seeing = reach(b);
            for r in 0..b.rows {
                let row = self.starts[i] + r;
                if row < lo || row >= hi {
                    continue;
                }
                let visible = if seeing.contains(&r) { (b.first + r + 1 - place).min(CHUNK) } else { 0 };
                let carried = b.carry.as_ref().map_or(u64::MAX, |carry| carry.visible(depth, b.first + r));
                let mask = low_mask(visible) & carried;
                partial |= mask != u64::MAX;
                self.out.masks.push(mask);
            }
        }
        if !partial {
            self.out.masks.truncate(masks_from);
        }
        // Who shares a chunk behind a cut shares the cut.
        let shift = self.branch(from).carry.as_ref().map_or(0, |carry| carry.shift_at(depth * CHUNK)) as u32;
        let at = self.out.chunks.len() as u32;
        self.out.chunks.push(chunk);
        let rows = lo as u32..hi as u32;
        if let Some(last) = self.out.runs.last_mut() {
            let next = last.place + (last.chunks.end - last.chunks.start);
            if last.rows == rows
                && last.chunks.end == at
                && next as usize == depth
                && last.shift == shift
                && !place.is_multiple_of(SEGMENT)
                && last.masks.is_some() == partial
            {
                last.chunks.end += 1;
                return;
            }
        }
        let masks = partial.then_some(masks_from as u32);
        self.out.runs.push(Run { rows, place: depth as u32, chunks: at..at + 1, shift, masks });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chunks of one form.
    fn ids(list: &[u32]) -> Vec<Place> {
        list.iter().map(|&c| Place { chunk: ChunkId(c), open: ChunkId(c) }).collect()
    }

    /// What each row attends to, chunk by chunk with masks, by going through the runs.
    fn attended(out: &RunList, row: usize) -> Vec<(u32, ChunkId, u64)> {
        let mut seen = Vec::new();
        for run in out.runs.iter().filter(|r| r.rows.contains(&(row as u32))) {
            for c in 0..run.chunks.end - run.chunks.start {
                let mask = out.mask(run, c, row as u32);
                if mask != 0 {
                    seen.push((run.place + c, out.chunks[(run.chunks.start + c) as usize], mask));
                }
            }
        }
        assert!(seen.is_sorted_by_key(|s| s.0));
        seen
    }

    /// (path, first, rows) of each branch.
    fn check(branches: &[(&[Place], usize, usize)]) -> RunList {
        let (mut out, mut assembler) = (RunList::default(), Assembler::default());
        // What was there before leaves nothing behind.
        assembler.push(ids(&[1, 2]).into_iter(), 70, 9, None);
        assembler.assemble(&mut out);
        assembler.clear();
        branches.iter().for_each(|&(path, first, rows)| assembler.push(path.iter().copied(), first, rows, None));
        let mut row = 0;
        for &b in assembler.assemble(&mut out) {
            let (chunks, first, rows) = branches[b];
            for r in 0..rows {
                let position = first + r;
                let seen = |d: usize| if d == position / CHUNK { chunks[d].open } else { chunks[d].chunk };
                let expected: Vec<_> = (0..=position / CHUNK)
                    .map(|d| (d as u32, seen(d), low_mask((position + 1 - d * CHUNK).min(CHUNK))))
                    .collect();
                assert_eq!(attended(&out, row), expected, "row {row}");
                row += 1;
            }
        }
        out
    }

    #[test]
    fn a_shared_prefix_is_one_run() {
        let paths: Vec<Vec<Place>> = (0..8).map(|i| ids(&[1, 2, 3, 10 + i])).collect();
        let branches: Vec<_> = paths.iter().map(|p| (p.as_slice(), 200, 1)).collect();
        let out = check(&branches);
        assert_eq!(out.runs[0].rows, 0..8);
        assert_eq!(out.runs[0].chunks, 0..3);
        assert_eq!(out.runs.len(), 9);
        assert_eq!(out.chunks.len(), 11);
    }

    #[test]
    fn runs_stop_at_segments_and_prefill_masks_its_own_chunks() {
        let path = ids(&(0..20).collect::<Vec<_>>());
        let out = check(&[(&path, 900, 300)]);
        assert!(out.runs.iter().all(|r| r.place / 8 == (r.place + r.chunks.end - r.chunks.start - 1) / 8));
    }

    #[test]
    fn rows_may_attend_to_chunks_written_by_others_in_the_same_step() {
        let (long, short) = (ids(&[5, 6, 7]), ids(&[5, 6, 9]));
        // The first writes chunks 5 and 6 in this very step, the second continues after them.
        check(&[(&long, 0, 150), (&short, 128, 10)]);
    }

    #[test]
    fn random_trees() {
        let mut state = 1u64;
        let mut random = |n: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % n
        };
        for round in 0..600 {
            let open = |chunk: u32| if round % 2 == 0 { chunk } else { chunk + 1000 };
            let mut next = 100;
            let mut paths: Vec<Vec<Place>> = vec![];
            for _ in 0..1 + random(9) {
                let mut path = match paths.len() {
                    0 => vec![],
                    n => {
                        let p = &paths[random(n)];
                        p[..random(p.len() + 1)].to_vec()
                    }
                };
                for _ in 0..random(12) + usize::from(path.is_empty()) {
                    next += 1;
                    let chunk = next * 7 % 1000;
                    path.push(Place { chunk: ChunkId(chunk), open: ChunkId(open(chunk)) });
                }
                paths.push(path);
            }
            let branches: Vec<_> = paths
                .iter()
                .map(|p| {
                    let end = (p.len() - 1) * CHUNK + 1 + random(CHUNK);
                    let rows = 1 + random(end.min(200));
                    (p.as_slice(), end - rows, rows)
                })
                .collect();
            check(&branches);
        }
    }
}
