//! What rows see through a sliding window, taken from what they see without one.

use crate::{CHUNK, Row, Run, RunList, SEGMENT, StepPlan, low_mask};

impl StepPlan {
    /// Makes the list of every class from the list of class 0: `windows` are those of
    /// [`crate::ChunkLayout::windows`].
    pub fn fill_windows(&mut self, windows: &[Option<u32>]) {
        self.classes.resize_with(windows.len(), RunList::default);
        let Some((all, rest)) = self.classes.split_first_mut() else { return };
        for (list, window) in rest.iter_mut().zip(&windows[1..]) {
            all.windowed(&self.rows, window.unwrap_or(u32::MAX), list);
        }
    }
}

impl RunList {
    /// `out` = what is left of this list when each row sees only keys whose position is less than `window` below its
    /// own. Chunks that no row of a run sees any more are not listed, and rows at either end of a run that see nothing
    /// of a chunk do not stand in its interval. What is left for a row depends on its position alone.
    pub fn windowed(&self, rows: &[Row], window: u32, out: &mut RunList) {
        out.clear();
        // The lowest position that a row sees.
        let from = |row: u32| (rows[row as usize].position as usize + 1).saturating_sub(window as usize);
        for run in &self.runs {
            let lowest = run.rows.clone().map(from).min().unwrap_or(0);
            for (c, &chunk) in self.chunks[run.chunks.start as usize..run.chunks.end as usize].iter().enumerate() {
                let start = (run.place as usize + c) * CHUNK;
                if start + CHUNK <= lowest {
                    continue;
                }
                let mask =
                    |row: u32| self.mask(run, c as u32, row) & !low_mask(from(row).saturating_sub(start).min(CHUNK));
                let Some(first) = run.rows.clone().find(|&row| mask(row) != 0) else { continue };
                let end = run.rows.clone().rfind(|&row| mask(row) != 0).map_or(first, |last| last + 1);
                let masks = out.masks.len();
                out.masks.extend((first..end).map(mask));
                let full = out.masks[masks..].iter().all(|&m| m == u64::MAX);
                if full {
                    out.masks.truncate(masks);
                }
                let at = out.chunks.len() as u32;
                out.chunks.push(chunk);
                let place = run.place + c as u32;
                match out.runs.last_mut() {
                    Some(last)
                        if last.rows == (first..end)
                            && last.place + (last.chunks.end - last.chunks.start) == place
                            && last.shift == run.shift
                            && last.masks.is_none() == full
                            && !(place as usize * CHUNK).is_multiple_of(SEGMENT) =>
                    {
                        last.chunks.end += 1;
                    }
                    _ => out.runs.push(Run {
                        rows: first..end,
                        place,
                        chunks: at..at + 1,
                        shift: run.shift,
                        masks: (!full).then_some(masks as u32),
                    }),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ChunkId;

    fn rows(positions: impl IntoIterator<Item = u32>) -> Vec<Row> {
        positions.into_iter().map(|position| Row { token: 0, position, shift: 0, write: None, logits: false }).collect()
    }

    /// (position of the key, chunk) of everything that a row sees.
    fn seen(list: &RunList, row: u32) -> Vec<(usize, ChunkId)> {
        let mut out = Vec::new();
        for run in list.runs.iter().filter(|r| r.rows.contains(&row)) {
            for c in 0..run.chunks.end - run.chunks.start {
                let mask = list.mask(run, c, row);
                let chunk = list.chunks[(run.chunks.start + c) as usize];
                let slots = (0..CHUNK).filter(|s| mask >> s & 1 == 1);
                out.extend(slots.map(|s| ((run.place + c) as usize * CHUNK + s, chunk)));
            }
        }
        out
    }

    /// Rows of one path, prefill and decode, with a run per segment that every row stands in.
    fn causal(rows: &[Row], chunks: u32) -> RunList {
        let mut list = RunList::default();
        for place in (0..chunks).step_by(SEGMENT / CHUNK) {
            let n = (chunks - place).min((SEGMENT / CHUNK) as u32);
            let (at, masks) = (list.chunks.len() as u32, list.masks.len() as u32);
            list.chunks.extend((place..place + n).map(|c| ChunkId(100 + c)));
            for c in place..place + n {
                let visible = |row: &Row| (row.position as usize + 1).saturating_sub(c as usize * CHUNK).min(CHUNK);
                list.masks.extend(rows.iter().map(|row| low_mask(visible(row))));
            }
            list.runs.push(Run { rows: 0..rows.len() as u32, place, chunks: at..at + n, shift: 0, masks: Some(masks) });
        }
        list
    }

    #[test]
    fn each_row_sees_its_window_and_nothing_else() {
        for positions in [vec![0, 1, 63, 64, 65, 511, 512, 1400], (500..700).collect(), vec![2000], vec![70, 1990]] {
            let rows = rows(positions);
            let all = causal(&rows, 32);
            for window in [1, 2, 63, 64, 65, 100, 512, 513, 5000, u32::MAX] {
                let mut list = RunList::default();
                all.windowed(&rows, window, &mut list);
                for (i, row) in rows.iter().enumerate() {
                    let position = row.position as usize;
                    let expected: Vec<_> = ((position + 1).saturating_sub(window as usize)..=position)
                        .map(|key| (key, ChunkId(100 + (key / CHUNK) as u32)))
                        .collect();
                    assert_eq!(seen(&list, i as u32), expected, "position {position}, window {window}");
                }
                for run in &list.runs {
                    let last = run.place + run.chunks.end - run.chunks.start - 1;
                    assert_eq!(run.place as usize * CHUNK / SEGMENT, last as usize * CHUNK / SEGMENT);
                    for c in 0..run.chunks.end - run.chunks.start {
                        assert!(run.rows.clone().any(|row| list.mask(run, c, row) != 0), "a chunk that nobody sees");
                    }
                }
            }
        }
    }

    #[test]
    fn chunks_inside_the_window_stay_one_run_without_masks() {
        let rows = rows([1000]);
        let run = |place, chunks| Run { rows: 0..1, place, chunks, shift: 64, masks: None };
        let runs = vec![run(0, 0..8), run(8, 8..15)];
        let all = RunList { runs, chunks: (0..15).map(ChunkId).collect(), masks: Vec::new() };
        let mut list = RunList::default();
        all.windowed(&rows, 600, &mut list);
        // Position 401 lies in chunk 6.
        assert_eq!(list.runs.len(), 3);
        assert_eq!((list.runs[0].place, list.runs[0].chunks.clone(), list.masks.len()), (6, 0..1, 1));
        assert_eq!((list.runs[1].place, list.runs[1].masks), (7, None));
        assert_eq!((list.runs[2].place, list.runs[2].chunks.clone(), list.runs[2].shift), (8, 2..9, 64));
    }
}
