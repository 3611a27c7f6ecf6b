//! In which order a task meets chunks.
//!
//! Common chunks, which many rows meet, take arithmetic; rows' own chunks take memory. One after the other each would
//! leave idle what the other needs. Segments are independent until they are folded, so that chunks of the last ones, if
//! few rows meet them, come in between those of the ones before.

use std::ops::Range;

use kvist_base::{Run, RunList};

use super::plan::Part;

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

/// States of a task at a time.
pub(super) const STATES: usize = 1 + BETWEEN;

/// Segments whose chunks come in between, at most. Longer ones take so much memory that it is busy anyway.
const BETWEEN: usize = 2;

/// Row blocks of a chunk, on average, with which it takes memory rather than arithmetic on any machine.
const LIGHT: usize = 2;

/// Row blocks that meet a chunk of the run, and one for bringing it in.
pub(super) fn visit_cost(run: &Run, rows: &Range<u32>, group: usize) -> usize {
    let both = run.rows.end.min(rows.end) - run.rows.start.max(rows.start);
    1 + (both as usize * group).div_ceil(4)
}

/// Writes the steps of a band.
pub(super) struct StepList<'a> {
    pub runs: &'a RunList,
    pub picks: &'a [u32],
    pub rows: &'a Range<u32>,
    pub group: usize,
}

impl StepList<'_> {
    /// One segment, to be folded by whoever completes the last one.
    pub fn one(&self, part: &Part, steps: &mut Vec<Step>) {
        steps.push(Step::Begin { state: 0 });
        steps.extend(self.visits(part, 0).map(|(visit, _)| visit));
    }

    /// All segments.
    pub fn all(&self, parts: &[Part], steps: &mut Vec<Step>) {
        let between = in_between(parts);
        let states = 1..=between.len() as u32;
        steps.extend(states.clone().map(|state| Step::Begin { state }));
        let light = &parts[between.clone()];
        let mut visits = light.iter().zip(states.clone()).flat_map(|(part, state)| self.visits(part, state));
        let chunks: usize = light.iter().map(|part| part.chunks).sum();
        let cost: usize = parts[..between.start].iter().map(|part| part.cost).sum();
        // As many of them as are due after each step: all of them in the end.
        let mut due = 0;
        for part in &parts[..between.start] {
            steps.push(Step::Begin { state: 0 });
            for (visit, its_cost) in self.visits(part, 0) {
                steps.push(visit);
                due += chunks * its_cost;
                while due >= cost {
                    due -= cost;
                    steps.extend(visits.next().map(|(visit, _)| visit));
                }
            }
            steps.push(Step::Fold { state: 0 });
        }
        steps.extend(states.map(|state| Step::Fold { state }));
        for part in &parts[between.end..] {
            self.one(part, steps);
            steps.push(Step::Fold { state: 0 });
        }
    }

    /// A segment's visits and their costs, in ascending order for each row.
    fn visits(&self, part: &Part, state: u32) -> impl Iterator<Item = (Step, usize)> {
        self.picks[part.picks.clone()].iter().flat_map(move |&pick| {
            let run = &self.runs.runs[pick as usize];
            let cost = visit_cost(run, self.rows, self.group);
            (0..run.chunks.len() as u32).map(move |chunk| (Step::Visit { state, run: pick, chunk }, cost))
        })
    }
}

/// The segments whose chunks come in between those of the ones before: the first of the light ones at the end.
fn in_between(parts: &[Part]) -> Range<usize> {
    let light = parts.iter().rev().take_while(|part| part.cost <= part.chunks * (1 + LIGHT)).count();
    let first = if light == parts.len() { parts.len() } else { parts.len() - light };
    first..parts.len().min(first + BETWEEN)
}

#[cfg(test)]
mod tests {
    use kvist_base::{CHUNK, ChunkId, SEGMENT};

    use super::super::plan::{AttnPlan, AttnShape};
    use super::*;

    /// Chunks of a segment.
    const PER: u32 = (SEGMENT / CHUNK) as u32;

    /// `rows` rows with `common` chunks and then `own` of their own each, an odd row one less.
    fn tree(rows: u32, common: u32, own: u32) -> RunList {
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

    fn built(runs: &RunList, rows: u32, group: usize, threads: usize) -> AttnPlan {
        let mut plan = AttnPlan::new(AttnShape { heads: 2 * group, kv_heads: 2, head_dim: 64 });
        plan.build(runs, rows as usize, threads);
        plan
    }

    /// Places of the chunks that a row has seen, in the order in which they are folded.
    fn seen(plan: &AttnPlan, runs: &RunList, row: u32) -> Vec<u32> {
        let mut seen = Vec::new();
        for task in plan.tasks.iter().filter(|task| task.head == 0) {
            let mut states = vec![None; STATES];
            for step in &plan.steps[task.steps.clone()] {
                match *step {
                    Step::Begin { state } => {
                        assert!(
                            states[state as usize].replace(Vec::new()).is_none(),
                            "a state is folded before it begins anew"
                        );
                    }
                    Step::Visit { state, run, chunk } => {
                        let run = &runs.runs[run as usize];
                        let state = states[state as usize].as_mut().expect("a state begins first");
                        if plan.bands[task.band].rows.contains(&row) && run.rows.contains(&row) {
                            state.push(run.place + chunk);
                        }
                    }
                    Step::Fold { state } => seen.extend(states[state as usize].take().expect("a state to be folded")),
                }
            }
            let left: Vec<u32> = states.into_iter().flatten().flatten().collect();
            assert!(left.is_empty() || task.part.is_some(), "what was not folded: {left:?}");
            seen.extend(left);
        }
        seen
    }

    #[test]
    fn a_row_sees_each_chunk_once_and_folds_its_segments_in_order() {
        for (rows, group) in [(1, 1), (3, 4), (32, 1), (32, 4), (70, 2)] {
            for (common, own) in [(0, 3), (0, 20), (5, 0), (6, 1), (8, 1), (12, 9), (20, 30), (40, 2), (33, 7)] {
                let runs = tree(rows, common, own);
                for threads in [1, 2, 16] {
                    let plan = built(&runs, rows, group, threads);
                    for row in 0..rows {
                        let mut seen = seen(&plan, &runs, row);
                        if threads > 1 {
                            // Segments that are tasks of their own are folded by the last one, in order.
                            seen.sort_unstable();
                        }
                        let end = common + own - (row % 2).min(own);
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

    /// Memory brings a row's own chunk while common ones are computed.
    #[test]
    fn own_chunks_come_in_between_common_ones() {
        // Every second row has a chunk of its own; each row has two segments and every second one a chunk of a third.
        for (own, each, last) in [(1, 1, 1), (2 * PER + 1, 32, 32 + 16)] {
            let runs = tree(32, 2 * PER, own);
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
            assert_eq!(after, vec![each; 2 * PER as usize - 1]);
        }
    }
}
