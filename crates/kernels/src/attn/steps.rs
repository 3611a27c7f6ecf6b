//! In which order a task meets chunks.
//!
//! Common chunks, which many rows meet, take arithmetic; rows' own chunks take memory. One after the other each would
//! leave idle what the other needs. Segments are independent until they are folded, so that what few rows meet comes in
//! between what many meet of other segments, and of other branches of its own.

use std::ops::Range;

use kvist_base::{Run, RunList};

use super::plan::{BAND, Part};

/// What a task does, one after the other. States are numbered within the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing was seen in the segment yet.
    Begin { state: u32 },
    /// The band's rows of a run meet one of its chunks.
    Visit { state: u32, run: u32, chunk: u32 },
    /// The segment is complete: it is folded into the rows' results.
    Fold { state: u32 },
}

/// Segments whose own chunks come in between, at most. More of them take so much memory that it is busy anyway.
const BETWEEN: usize = 2;

/// Cost of a visit, at most, that takes memory rather than arithmetic: of 16 query rows.
const LIGHT: usize = 5;

/// Row blocks that meet a chunk of the run, and one for bringing it in.
pub(super) fn visit_cost(run: &Run, rows: &Range<u32>, group: usize) -> usize {
    1 + query_rows(run, rows, group).div_ceil(4)
}

/// Query rows of a band that meet a run.
pub(super) fn query_rows(run: &Run, rows: &Range<u32>, group: usize) -> usize {
    let both = run.rows.start.max(rows.start)..run.rows.end.min(rows.end);
    both.len() * group
}

/// A run of a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pick {
    pub run: u32,
    /// Whether its visits are light, and those of the runs that its rows meet after it as well, so that all of these may wait
    /// until the others are over.
    pub light: bool,
}

/// Finds out which runs of a segment are light. In a tree few rows come after many; where rows have windows some see a
/// chunk which others do not see any more, and then meet one that all of them see.
pub(super) fn mark_light(picks: &mut [Pick], runs: &RunList, rows: &Range<u32>, group: usize) {
    const { assert!(BAND <= u128::BITS as usize, "a bit for each row of a band") };
    // Rows that have other runs to meet yet.
    let mut others = 0_u128;
    for pick in picks.iter_mut().rev() {
        let run = &runs.runs[pick.run as usize];
        let [from, to] = [run.rows.start, run.rows.end].map(|row| row.clamp(rows.start, rows.end) - rows.start);
        let mine = (u128::MAX >> (u128::BITS - (to - from))) << from;
        pick.light = visit_cost(run, rows, group) <= LIGHT && mine & others == 0;
        if !pick.light {
            others |= mine;
        }
    }
}

/// Bits behind the point of a rate of visits.
const BITS: u32 = 24;

/// Light visits that are to come in between.
struct Light<V> {
    visits: V,
    /// Of them by arithmetic, and how many are due, with [`BITS`] behind the point.
    rate: usize,
    due: usize,
}

impl<V: Iterator<Item = (Step, usize)>> Light<V> {
    /// After a heavy visit those that are due by its arithmetic.
    fn after(&mut self, cost: usize, steps: &mut Vec<Step>) {
        self.due += self.rate * cost.saturating_sub(LIGHT);
        steps.extend(self.visits.by_ref().take(self.due >> BITS).map(|(visit, _)| visit));
        self.due %= 1 << BITS;
    }
}

/// Writes the steps of a band.
pub(super) struct StepList<'a> {
    pub runs: &'a RunList,
    pub picks: &'a [Pick],
    pub rows: &'a Range<u32>,
    pub group: usize,
}

impl StepList<'_> {
    /// One segment, to be folded by whoever completes the last one.
    pub fn one(&self, part: &Part, steps: &mut Vec<Step>) {
        steps.push(Step::Begin { state: 0 });
        steps.extend(self.visits(part, 0).map(|(visit, _)| visit));
    }

    /// All segments, of which those of `between` have chunks that come in between; they have states of their own.
    pub fn all(&self, parts: &[Part], between: Range<usize>, steps: &mut Vec<Step>) {
        let (before, later) = (&parts[..between.start], &parts[between.end..]);
        let with_own = || between.clone().rev().map(|i| (&parts[i], (1 + i - between.start) as u32));
        let visits = with_own().flat_map(|(part, state)| self.visits_of(part, state, |pick| pick.light));
        let mut light = Light { visits, rate: 0, due: 0 };
        let mut arithmetic: usize = parts[..between.end].iter().map(|part| self.arithmetic(part)).sum();
        for (part, state) in with_own() {
            steps.push(Step::Begin { state });
            for (visit, cost) in self.visits_of(part, state, |pick| !pick.light) {
                steps.push(visit);
                light.after(cost, steps);
            }
            // A segment's light visits are spread over all heavy ones that are left.
            arithmetic -= self.arithmetic(part);
            // Up, so that none is left; by less than one of them.
            light.rate += (self.light(part) << BITS).div_ceil(arithmetic.max(1));
        }
        for part in before {
            steps.push(Step::Begin { state: 0 });
            for (visit, cost) in self.visits(part, 0) {
                steps.push(visit);
                light.after(cost, steps);
            }
            steps.push(Step::Fold { state: 0 });
        }
        // None, unless a rate was rounded down.
        steps.extend(light.visits.map(|(visit, _)| visit));
        steps.extend((1..=between.len() as u32).map(|state| Step::Fold { state }));
        for part in later {
            self.one(part, steps);
            steps.push(Step::Fold { state: 0 });
        }
    }

    /// The segments whose own chunks come in between: the first of those at the end that have some, if the ones before
    /// have arithmetic.
    pub fn in_between(&self, parts: &[Part]) -> Range<usize> {
        let with_own = parts.iter().skip(1).rev().take_while(|part| self.light(part) > 0).count();
        let first = parts.len() - with_own;
        let any = parts[..first].iter().any(|part| self.arithmetic(part) > 0);
        first..if any { parts.len().min(first + BETWEEN) } else { first }
    }

    /// Visits of a part that are light.
    fn light(&self, part: &Part) -> usize {
        self.visits_of(part, 0, |pick| pick.light).count()
    }

    /// What a part's visits cost beyond light ones.
    fn arithmetic(&self, part: &Part) -> usize {
        self.visits(part, 0).map(|(_, cost)| cost.saturating_sub(LIGHT)).sum()
    }

    /// A segment's visits and their costs, in ascending order for each row.
    fn visits(&self, part: &Part, state: u32) -> impl Iterator<Item = (Step, usize)> {
        self.visits_of(part, state, |_| true)
    }

    /// Those of some of its runs.
    fn visits_of(&self, part: &Part, state: u32, of: impl Fn(&Pick) -> bool) -> impl Iterator<Item = (Step, usize)> {
        self.picks[part.picks.clone()].iter().filter(move |&pick| of(pick)).flat_map(move |pick| {
            let run = &self.runs.runs[pick.run as usize];
            let cost = visit_cost(run, self.rows, self.group);
            (0..run.chunks.len() as u32).map(move |chunk| (Step::Visit { state, run: pick.run, chunk }, cost))
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use kvist_base::{CHUNK, ChunkId, Row, SEGMENT};

    use super::super::plan::{AttnPlan, AttnShape};
    use super::*;

    /// Chunks of a segment.
    const PER: u32 = (SEGMENT / CHUNK) as u32;

    /// `rows` rows with `common` chunks and then `own` of their own each, an odd row one less.
    pub fn tree(rows: u32, common: u32, own: u32) -> RunList {
        let mut runs = RunList::default();
        let mut push = |rows: Range<u32>, from: u32, to: u32| {
            let mut place = from;
            while place < to {
                let end = to.min((place / PER + 1) * PER);
                let first = runs.chunks.len() as u32;
                runs.chunks.extend((place..end).map(ChunkId));
                let chunks = first..runs.chunks.len() as u32;
                runs.runs.push(Run { rows: rows.clone(), place, chunks, shift: 0, masks: None });
                place = end;
            }
        };
        push(0..rows, 0, common);
        (0..rows).for_each(|row| push(row..row + 1, common, common + own - (row % 2).min(own)));
        runs
    }

    pub fn built(runs: &RunList, rows: u32, group: usize, threads: usize) -> AttnPlan {
        let mut plan = AttnPlan::new(AttnShape { heads: 2 * group, kv_heads: 2, head_dim: 64 });
        plan.build(runs, rows as usize, threads);
        plan
    }

    /// Places of the chunks that a row has seen, in the order in which they are folded.
    fn seen(plan: &AttnPlan, runs: &RunList, row: u32) -> Vec<u32> {
        let (mut seen, mut last) = (Vec::new(), 0);
        for task in plan.tasks.iter().filter(|task| task.heads.contains(&0)) {
            let mut states = vec![None; task.states];
            for step in &plan.steps[task.steps.clone()] {
                match *step {
                    Step::Begin { state } => {
                        let before = states[state as usize].replace(Vec::new());
                        assert_eq!(before, None, "a state is folded before it begins anew");
                    }
                    Step::Visit { state, run, chunk } => {
                        let run = &runs.runs[run as usize];
                        let state = states[state as usize].as_mut().expect("a state begins first");
                        if plan.bands[task.band].rows.contains(&row) && run.rows.contains(&row) {
                            state.push(run.place + chunk);
                        }
                    }
                    Step::Fold { state } => seen.push(states[state as usize].take().expect("a state to be folded")),
                }
            }
            let left: Vec<_> = states.into_iter().flatten().collect();
            assert_eq!(left.len(), usize::from(task.part.is_some()), "what was not folded: {left:?}");
            seen.extend(left);
        }
        // Segments that are tasks of their own are folded by the last one, in order.
        if plan.tasks.iter().any(|task| task.part.is_some()) {
            seen.sort_unstable();
        }
        for places in seen.iter().filter(|places| !places.is_empty()) {
            let segments = places.iter().map(|place| place / PER);
            assert!(segments.clone().all(|of| of == places[0] / PER), "segments in one state: {places:?}");
            assert!(places[0] / PER >= last, "segments out of order");
            last = places[0] / PER;
        }
        seen.concat()
    }

    #[test]
    fn a_row_sees_each_chunk_once_and_folds_its_segments_in_order() {
        for (rows, group) in [(1, 1), (3, 4), (32, 1), (32, 4), (70, 2)] {
            for (common, own) in [(0, 3), (0, 20), (5, 0), (6, 1), (8, 1), (12, 9), (20, 30), (40, 2), (33, 7)] {
                let runs = tree(rows, common, own);
                for threads in [1, 2, 16] {
                    let plan = built(&runs, rows, group, threads);
                    for row in 0..rows {
                        let end = common + own - (row % 2).min(own);
                        let seen = seen(&plan, &runs, row);
                        assert_eq!(
                            seen,
                            (0..end).collect::<Vec<_>>(),
                            "{rows} rows, {common} + {own}, {threads} threads"
                        );
                    }
                }
            }
        }
    }

    /// Levels of nodes, each of so many chunks, depth first; rows of a level's nodes are those of the next one's.
    fn levels(levels: &[(u32, u32)]) -> RunList {
        let (mut runs, rows) = (RunList::default(), levels[levels.len() - 1].0);
        let mut node = |rows: Range<u32>, place: u32, chunks: u32| {
            for place in place..place + chunks {
                let first = runs.chunks.len() as u32;
                runs.chunks.push(ChunkId(place));
                runs.runs.push(Run { rows: rows.clone(), place, chunks: first..first + 1, shift: 0, masks: None });
            }
        };
        for first in 0..rows {
            let mut place = 0;
            for &(nodes, chunks) in levels {
                if first.is_multiple_of(rows / nodes) {
                    node(first..first + rows / nodes, place, chunks);
                }
                place += chunks;
            }
        }
        runs
    }

    /// A segment's runs are listed depth first: few rows' chunks of a branch before many rows' of the next. Once all of them up
    /// to the last of many rows' came first, as they are listed, and memory brought few rows' ones while nothing was computed.
    #[test]
    fn few_rows_of_each_branch_come_in_between() {
        let runs = levels(&[(1, PER), (2, 2), (8, 1), (32, 1)]);
        let plan = built(&runs, 32, 2, 1);
        for row in 0..32 {
            assert_eq!(seen(&plan, &runs, row), (0..PER + 4).collect::<Vec<_>>(), "row {row}");
        }
        let mut sizes = Vec::new();
        for step in &plan.steps {
            if let Step::Visit { run, .. } = *step {
                sizes.push(runs.runs[run as usize].rows.len());
            }
        }
        assert_eq!(sizes[..5], [16, 16, 16, 16, 32], "rows of the first visits");
        let between = sizes[4..].split(|&rows| rows == 32).map(<[usize]>::len).collect::<Vec<_>>();
        assert_eq!(between, [vec![0], vec![5; PER as usize]].concat());
    }

    /// A row whose window begins before others' meets a chunk that these do not see any more, and then one that they see as
    /// well. All that few rows meet once came after what many do: such a row's chunks were not in ascending order, and its bits others than
    /// alone.
    #[test]
    fn rows_with_windows_meet_their_chunks_in_ascending_order() {
        let mut runs = levels(&[(1, PER)]);
        runs.runs.iter_mut().for_each(|run| run.rows = 0..32);
        let mut push = |rows: Range<u32>, place: u32| {
            let first = runs.chunks.len() as u32;
            runs.chunks.push(ChunkId(place));
            runs.runs.push(Run { rows, place, chunks: first..first + 1, shift: 0, masks: None });
        };
        // Of the second segment the first four rows see two chunks more, and the first of them three.
        push(0..1, PER);
        push(0..4, PER + 1);
        push(0..4, PER + 2);
        push(0..28, PER + 3);
        (0..32).for_each(|row| push(row..row + 1, PER + 4));
        let plan = built(&runs, 32, 1, 1);
        for row in 0..32 {
            let first =
                [PER, PER + 1, PER + 3, PER + 4][usize::from(row > 0) + usize::from(row > 3) + usize::from(row > 27)];
            let expected: Vec<u32> = (0..PER).chain(first..PER + 5).collect();
            assert_eq!(seen(&plan, &runs, row), expected, "row {row}");
        }
        // Four of the rows' own chunks after each that all rows meet.
        let place = |step: &Step| match *step {
            Step::Visit { run, .. } => Some(runs.runs[run as usize].place),
            _ => None,
        };
        let places: Vec<u32> = plan.steps.iter().filter_map(place).skip(4).collect();
        let expected: Vec<u32> = (0..PER).flat_map(|place| [place, PER + 4, PER + 4, PER + 4, PER + 4]).collect();
        assert_eq!(places, expected);
    }

    /// What the engine makes of windows: prefills whose rows leave the first chunks behind, one after the other. Of the second
    /// one here five rows see a chunk of a segment before all of them see the next, while the first one's rows have a segment before that.
    #[test]
    fn prefills_with_windows_meet_their_chunks_in_ascending_order() {
        let window = 300;
        let (mut all, mut rows) = (RunList::default(), Vec::new());
        for (before, count) in [(600, 80_u32), (870, 48)] {
            let first = rows.len() as u32;
            let row = |i| Row { token: 0, position: before + i, shift: 0, write: None, logits: false };
            rows.extend((0..count).map(row));
            for place in 0..(before + count).div_ceil(CHUNK as u32) {
                let at = all.chunks.len() as u32;
                all.chunks.push(ChunkId(place));
                let from = first + (place * CHUNK as u32).saturating_sub(before);
                all.runs.push(Run { rows: from..first + count, place, chunks: at..at + 1, shift: 0, masks: None });
            }
        }
        let mut runs = RunList::default();
        all.windowed(&rows, window, &mut runs);
        let plan = built(&runs, rows.len() as u32, 1, 1);
        for (i, row) in rows.iter().enumerate() {
            let seen = seen(&plan, &runs, i as u32);
            let [first, last] = [(row.position + 1).saturating_sub(window), row.position].map(|at| at / CHUNK as u32);
            assert_eq!(seen, (first..=last).collect::<Vec<_>>(), "row {i}");
        }
    }

    /// Memory brings a row's own chunk while common ones are computed.
    #[test]
    fn own_chunks_come_in_between_common_ones() {
        // Every second row has a chunk of its own; the same where the last segment has common chunks as well; each row has
        // two segments, and every second one a chunk of a third.
        for (more, own, each, last) in [(0, 1, 1, 1), (7, 1, 1, 1), (0, 2 * PER + 1, 32, 32 + 16)] {
            let runs = tree(32, 2 * PER + more, own);
            let plan = built(&runs, 32, 1, 1);
            let mut after = Vec::new();
            for step in &plan.steps {
                match *step {
                    Step::Visit { run, .. } if runs.runs[run as usize].rows.len() > 1 => after.push(0),
                    Step::Visit { .. } => *after.last_mut().expect("a common chunk comes first") += 1,
                    _ => {}
                }
            }
            assert_eq!(after.pop(), Some(last));
            // Common ones of the last segment come first.
            let expected = [vec![0; more as usize], vec![each; 2 * PER as usize - 1]].concat();
            assert_eq!(after, expected);
        }
    }
}
